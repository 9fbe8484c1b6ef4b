"""Predictions -> scores: python -m example_paper.evaluate DIR prints those of a finished run."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

Predictions = dict[str, np.ndarray]


def score(predictions: Predictions) -> dict[str, float]:
    """r2: the share of the variance of `label` (rows,) that `prediction` (rows,) explains."""
    label, prediction = predictions["label"], predictions["prediction"]
    residual, total = np.sum((label - prediction) ** 2), np.sum((label - label.mean()) ** 2)
    return {"r2": float(1 - residual / total) if total > 0 else float("nan")}


STATISTICS: dict[str, Callable[[dict[str, Predictions]], float]] = {}


def main(directory: str) -> None:
    path = Path(directory) / "predictions.npz"
    if not path.exists():
        sys.exit(f"error: no predictions.npz in {directory}; train the run first")
    with np.load(path, allow_pickle=False) as archive:
        for name, value in score({k: archive[k] for k in archive.files}).items():
            print(f"{name} = {value:.4f}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m example_paper.evaluate DIR")
    main(sys.argv[1])
