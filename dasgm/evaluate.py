"""A run's predictions -> its metrics.   python -m dasgm.evaluate DIR

Three kinds of predictions: `correct` of `_trials` per test image (a cell of the digits table),
`label` and `prediction` per test image (a retrained network), or no images at all (a cell of
NAS-Bench-201). `score` is pure and fast.
"""

import numpy as np

from shared import scores

STATISTICS: dict = {}  # no claim of this paper needs a statistic over several arms


def score(predictions: dict[str, np.ndarray]) -> dict[str, float]:
    """accuracy: of the cell, in [0, 1]. correlation: rank correlation of A with the table, in
    [-1, 1]. percentile: share of cells that score less. regret: best
    cell minus it. early: accuracy of the cell before skips took over. skips: in the (normal) cell.
    cifar100, imagenet16: accuracy there. top5, parameters: of a retrained network."""
    names = ("percentile", "correlation", "regret", "early", "skips", "parameters")
    metrics = {n: float(predictions[f"_{n}"]) for n in names if f"_{n}" in predictions}
    if "correct" in predictions:
        metrics["accuracy"] = float(predictions["correct"].mean() / predictions["_trials"])
    elif "prediction" in predictions:
        metrics["accuracy"] = float(np.mean(predictions["label"] == predictions["prediction"]))
        if "top5" in predictions:
            metrics["top5"] = float(predictions["top5"].mean())
            metrics["top5_error_percent"] = 100 - 100 * metrics["top5"]
        metrics["error_percent"] = 100 - 100 * metrics["accuracy"]
    else:
        metrics["accuracy"] = float(predictions["_accuracy_cifar10"])
        metrics["cifar100"] = float(predictions["_accuracy_cifar100"])
        metrics["imagenet16"] = float(predictions["_accuracy_imagenet16"])
        metrics["accuracy_percent"] = 100 * metrics["accuracy"]
    return metrics


def item_values(predictions: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Metrics that are means over test images, image by image."""
    if "correct" in predictions:
        return {"accuracy": predictions["correct"] / predictions["_trials"]}
    if "prediction" in predictions:
        return {"accuracy": (predictions["label"] == predictions["prediction"]).astype(float)}
    return {}


if __name__ == "__main__":
    scores.show("dasgm", score)
