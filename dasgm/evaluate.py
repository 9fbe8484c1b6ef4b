"""A run's predictions -> its metrics.   python -m dasgm.evaluate DIR

Three kinds of predictions: `correct` of `_trials` per test image (a cell of the digits table), `label` and `prediction` per
test image (a retrained network), or no images at all (a cell of NAS-Bench-201). `score` is pure and fast.
"""

import sys
from pathlib import Path

import numpy as np

STATISTICS: dict = {}  # no claim of this paper needs a statistic over several arms


def score(predictions: dict[str, np.ndarray]) -> dict[str, float]:
    """accuracy: of the found cell, in [0, 1]. percentile: share of all cells that score less. regret: best cell minus this
    one. early: accuracy of the cell before skips took over. skips: in the (normal) cell. cifar100, imagenet16: the same
    cell's accuracy there. top5, parameters: of a retrained network."""
    found = {name: float(predictions[f"_{name}"]) for name in ("percentile", "regret", "early", "skips", "parameters")
             if f"_{name}" in predictions}  # fmt: skip
    if "correct" in predictions:
        found["accuracy"] = float(predictions["correct"].mean() / predictions["_trials"])
    elif "prediction" in predictions:
        found["accuracy"] = float(np.mean(predictions["label"] == predictions["prediction"]))
        if "top5" in predictions:
            found["top5"] = float(predictions["top5"].mean())
            found["top5_error_percent"] = 100 - 100 * found["top5"]
        found["error_percent"] = 100 - 100 * found["accuracy"]
    else:
        found["accuracy"] = float(predictions["_accuracy_cifar10"])
        found["cifar100"] = float(predictions["_accuracy_cifar100"])
        found["imagenet16"] = float(predictions["_accuracy_imagenet16"])
        found["accuracy_percent"] = 100 * found["accuracy"]
    return found


def item_values(predictions: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Metrics that are means over test images, image by image."""
    if "correct" in predictions:
        return {"accuracy": predictions["correct"] / predictions["_trials"]}
    if "prediction" in predictions:
        return {"accuracy": (predictions["label"] == predictions["prediction"]).astype(float)}
    return {}


def main(directory: str) -> None:
    path = Path(directory) / "predictions.npz"
    if not path.exists():
        sys.exit(
            f"error: no predictions.npz in {directory}; train the run first (python -m dasgm.train --help)"
        )
    with np.load(path, allow_pickle=False) as archive:
        for name, value in score({k: archive[k] for k in archive.files}).items():
            print(f"{name} = {value:.4f}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m dasgm.evaluate DIR")
    main(sys.argv[1])
