"""A run's predictions -> its metrics.   python -m weight_mixup.evaluate DIR

`score` is pure and fast: the judge calls it on thousands of resamples of the test items.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from shared import glue, scores

STATISTICS: dict[str, Callable[..., float]] = {}  # no claim needs one over several arms

METRICS = {
    "accuracy": glue.accuracy,
    "f1": glue.f1,
    "matthews": glue.matthews,
    "spearman": glue.spearman,
}


def score(predictions: dict[str, np.ndarray]) -> dict[str, float]:
    """`score`: the task's own metric (docs/papers/weight_mixup.md, section 6).

    `degenerate`: 1 if every prediction is the same. ValueError for a metric that is none."""
    label, prediction = predictions["label"], predictions["prediction"]
    metric = str(predictions["_metric"])
    if metric not in METRICS:
        raise ValueError(f"metric {metric!r} of the predictions is none of {', '.join(METRICS)}")
    values = {
        "score": METRICS[metric](label, prediction),
        "degenerate": float(np.all(prediction == prediction[0])),
    }
    if metric != "spearman":
        values["accuracy"] = glue.accuracy(label, prediction)
    return values


def item_values(predictions: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Metrics that are means over test items, item by item."""
    metric = str(predictions["_metric"])
    right = (predictions["label"] == predictions["prediction"]).astype(float)
    names = {"accuracy": ("score", "accuracy"), "spearman": ()}.get(metric, ("accuracy",))
    return dict.fromkeys(names, right)


if __name__ == "__main__":
    scores.show("weight_mixup", score)
