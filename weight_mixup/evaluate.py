"""A run's predictions -> its metrics.   python -m weight_mixup.evaluate DIR

`score` is pure and fast: the judge calls it on thousands of resamples of the test items.
"""

import sys
from pathlib import Path

import numpy as np

from shared import glue

STATISTICS: dict = {}  # no claim of this paper needs a statistic over several arms


METRICS = {
    "accuracy": glue.accuracy,
    "f1": glue.f1,
    "matthews": glue.matthews,
    "spearman": glue.spearman,
}


def score(predictions: dict[str, np.ndarray]) -> dict[str, float]:
    """`score`: the task's own metric (specification, section 6); `degenerate`: 1 if every prediction is the same."""
    label, prediction = predictions["label"], predictions["prediction"]
    metric = str(predictions["_metric"])
    if metric not in METRICS:
        raise ValueError(
            f"unknown metric {metric!r} in the predictions; it is one of {', '.join(METRICS)}"
        )
    found = {
        "score": METRICS[metric](label, prediction),
        "degenerate": float(np.all(prediction == prediction[0])),
    }
    if metric != "spearman":
        found["accuracy"] = glue.accuracy(label, prediction)
    return found


def main(directory: str) -> None:
    path = Path(directory) / "predictions.npz"
    if not path.exists():
        sys.exit(
            f"error: no predictions.npz in {directory}; train the run first (python -m weight_mixup.train --help)"
        )
    with np.load(path, allow_pickle=False) as archive:
        for name, value in score({k: archive[k] for k in archive.files}).items():
            print(f"{name} = {value:.4f}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m weight_mixup.evaluate DIR")
    main(sys.argv[1])
