"""A run's predictions -> its metrics.   python -m weight_mixup.evaluate DIR

`score` is pure and fast: the judge calls it on thousands of resamples of the test items.
"""

import sys
from pathlib import Path

import numpy as np

STATISTICS: dict = {}  # no claim of this paper needs a statistic over several arms


def accuracy(label: np.ndarray, prediction: np.ndarray) -> float:
    return float(np.mean(label == prediction))


def f1(label: np.ndarray, prediction: np.ndarray) -> float:
    """F1 of class 1; 0 if nothing is, or is called, class 1."""
    both = np.sum((label == 1) & (prediction == 1))
    either = np.sum(label == 1) + np.sum(prediction == 1)
    return float(2 * both / either) if either else 0.0


def matthews(label: np.ndarray, prediction: np.ndarray) -> float:
    """Matthews correlation of two classes; 0 for a constant prediction (a degenerate run counts as a failure)."""
    return pearson(label.astype(float), prediction.astype(float))


def pearson(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a - a.mean(), b - b.mean()
    size = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / size) if size > 0 else 0.0


def ranks(x: np.ndarray) -> np.ndarray:
    """Ranks, ties averaged."""
    _, inverse, counts = np.unique(x, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def spearman(label: np.ndarray, prediction: np.ndarray) -> float:
    return pearson(ranks(label), ranks(prediction))


METRICS = {"accuracy": accuracy, "f1": f1, "matthews": matthews, "spearman": spearman}


def score(predictions: dict[str, np.ndarray]) -> dict[str, float]:
    """`score`: the task's own metric (specification, section 6); `degenerate`: 1 if every prediction is the same."""
    label, prediction = predictions["label"], predictions["prediction"]
    metric = str(predictions["_metric"])
    if metric not in METRICS:
        raise ValueError(f"unknown metric {metric!r} in the predictions; it is one of {', '.join(METRICS)}")
    found = {
        "score": METRICS[metric](label, prediction),
        "degenerate": float(np.all(prediction == prediction[0])),
    }
    if metric != "spearman":
        found["accuracy"] = accuracy(label, prediction)
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
