"""A run's predictions -> its metrics.   python -m mlo_mae.evaluate DIR

`score` is pure and fast: the judge calls it on thousands of resamples of the test items.
"""

from __future__ import annotations

import numpy as np

from shared import scores

Arrays = dict[str, np.ndarray]


def score(predictions: Arrays) -> dict[str, float]:
    """`accuracy` of finetuning, and where they were made `accuracy_<n>` with n labels,
    `accuracy_best_epoch`, `probe` (linear, frozen encoder) and `pixels` (linear, raw pixels)."""
    return {name: float(np.mean(right)) for name, right in item_values(predictions).items()}


def item_values(predictions: Arrays) -> dict[str, np.ndarray]:
    """Per test item: right (1) or wrong (0), for every metric of `score`."""
    label = predictions["label"]
    names = {"accuracy": "prediction", "probe": "probe", "pixels": "pixels"}
    names |= {
        f"accuracy_{n.removeprefix('prediction_')}": n
        for n in predictions
        if n.startswith("prediction_")
    }
    return {
        metric: (predictions[n] == label).astype(float)
        for metric, n in names.items()
        if n in predictions
    }


# --- statistics of the mechanism claims -----------------------------------------------------------


def _only(arms: dict[str, Arrays]) -> Arrays:
    return next(iter(arms.values()))


def _wins(trials: np.ndarray, ours: int, other: int) -> float:
    """Share of trials in which the first column is lower, ties counting half, minus 1/2."""
    return float(np.mean(np.sign(trials[:, other] - trials[:, ours])) / 2)


def descent(arms: dict[str, Arrays]) -> float:
    """How much more often than in half of the trials a step along -g_T lowers the validation loss
    more than a random step.

    Columns of `_descent`: unmoved, along -g_T, random; these two with the masks as they were."""
    return _wins(_only(arms)["_descent"], 1, 2)


def descent_masks_held(arms: dict[str, Arrays]) -> float:
    return _wins(_only(arms)["_descent"], 3, 4)


def planted_alignment(arms: dict[str, Arrays]) -> float:
    """Mean a_j on patches of the digit minus that on distractor patches, over the spread of both
    between images."""
    p = _only(arms)
    spread = np.concatenate([p["a_digit"], p["a_other"]]).std()
    return float((p["a_digit"].mean() - p["a_other"].mean()) / max(spread, 1e-30))


def planted_masking(arms: dict[str, Arrays]) -> float:
    """Share of digit patches that is masked minus share of distractor patches that is."""
    p = _only(arms)
    return float(p["masked_digit"].mean() - p["masked_other"].mean())


def planted_score(arms: dict[str, Arrays]) -> float:
    p = _only(arms)
    return float(p["score_digit"].mean() - p["score_other"].mean())


STATISTICS = {
    "descent": descent,
    "descent_masks_held": descent_masks_held,
    "planted_alignment": planted_alignment,
    "planted_masking": planted_masking,
    "planted_score": planted_score,
}


def all_scores(arrays: dict[str, np.ndarray]) -> dict[str, float]:
    """What a person sees: the scores, and statistics of the run alone."""
    metrics = score(arrays)
    if "_descent" in arrays:
        names = ("descent", "descent_masks_held")
        metrics |= {name: STATISTICS[name]({"run": arrays}) for name in names}
    if "masked_digit" in arrays:
        metrics |= {
            n: f({"run": arrays})
            for n, f in STATISTICS.items()
            if n.startswith("planted") and (n != "planted_alignment" or "a_digit" in arrays)
        }
    return metrics


if __name__ == "__main__":
    scores.show("mlo_mae", all_scores)
