"""A run's predictions -> its metrics.   python -m mlo_mae.evaluate DIR

`score` is pure and fast: the judge calls it on thousands of resamples of the test items.
"""

from __future__ import annotations

import numpy as np

from shared import scores

Arrays = dict[str, np.ndarray]
PATHS = ("unrolled", "identity", "none")  # of `head_path`
# Of a trial (`directions.trial`): level-1 steps before it; L3 after the inner steps; the cosine of
# each estimate with the true gradient; changes of L3: after a small move of T along -g_T of each
# estimate, masks held; of the run's own estimate also after a step as training takes it, masks held
# (`taken`) and free; the same with shuffled a_j
COLUMNS = (
    "step",
    "L3",
    *(f"cosine_{path}" for path in PATHS),
    *(f"small_{path}" for path in PATHS),
    *("small", "taken", "free", "shuffled_small", "shuffled_free"),
)


def score(predictions: Arrays) -> dict[str, float]:
    """`accuracy` of finetuning, and where they were made `accuracy_<n>` with n labels,
    `accuracy_best_epoch`, `probe` (linear, frozen encoder) and `pixels` (linear, raw pixels)."""
    return {name: float(np.mean(right)) for name, right in item_values(predictions).items()}


def item_values(predictions: Arrays) -> dict[str, np.ndarray]:
    """Per test item: right (1) or wrong (0), or the share of finetunings that were right."""
    label = predictions["label"]
    names = {"accuracy": "prediction", "probe": "probe", "pixels": "pixels"}
    names |= {
        f"accuracy_{n.removeprefix('prediction_')}": n
        for n in predictions
        if n.startswith("prediction_")
    }
    return {
        metric: (predictions[n].reshape(len(label), -1) == label[:, None]).mean(1)
        for metric, n in names.items()
        if n in predictions
    }


# --- statistics of the mechanism claims -----------------------------------------------------------


def _only(arms: dict[str, Arrays]) -> Arrays:
    return next(iter(arms.values()))


def _trials(arms: dict[str, Arrays]) -> dict[str, np.ndarray]:
    """The trials of a run: by the names of `COLUMNS`."""
    return dict(zip(COLUMNS, _only(arms)["_directions"].T))


def _wins(ours: np.ndarray, other: np.ndarray) -> float:
    """Share of trials in which ours is lower, ties counting half, minus 1/2."""
    return float(np.mean(np.sign(other - ours)) / 2)


def descent_held(arms: dict[str, Arrays]) -> float:
    """How much more often than in half of the trials a step along -g_T lowers the validation loss
    more than the same with the a_j shuffled, masks held."""
    trials = _trials(arms)
    return _wins(trials["small"], trials["shuffled_small"])


def ascent_held(arms: dict[str, Arrays]) -> float:
    """The same as descent_held, with its sign turned: above 0, the direction climbs."""
    return -descent_held(arms)


def derived_over_official(arms: dict[str, Arrays]) -> float:
    """The same for a small step along the derived -g_T against one along the official, from one
    place, over the trials of all arms."""
    trials = [_trials({"": arrays}) for arrays in arms.values()]
    derived, official = (
        np.concatenate([t[f"small_{path}"] for t in trials]) for path in ("unrolled", "identity")
    )
    return _wins(derived, official)


def descent_free(arms: dict[str, Arrays]) -> float:
    """The same with masks that follow T."""
    trials = _trials(arms)
    return _wins(trials["free"], trials["shuffled_free"])


def flips(arms: dict[str, Arrays]) -> float:
    """log10 of how much more a step of T as training takes it changes the validation loss through
    flipped masks (masks free minus held) than through weights (held); means of absolute changes."""
    trials = _trials(arms)
    flipped = np.abs(trials["free"] - trials["taken"]).mean()
    return float(np.log10(max(flipped, 1e-30) / max(np.abs(trials["taken"]).mean(), 1e-30)))


def planted_alignment(arms: dict[str, Arrays]) -> float:
    """Mean a_j on patches of the label's quadrant minus that on the others, over the spread of both
    between images."""
    p = _only(arms)
    spread = np.concatenate([p["a_code"], p["a_other"]]).std()
    return float((p["a_code"].mean() - p["a_other"].mean()) / max(spread, 1e-30))


def planted_masking(arms: dict[str, Arrays]) -> float:
    """Share masked of the label's patches minus that of the others."""
    p = _only(arms)
    return float(p["masked_code"].mean() - p["masked_other"].mean())


def planted_score(arms: dict[str, Arrays]) -> float:
    """Mean score that T gives the label's patches minus that of the others."""
    p = _only(arms)
    return float(p["score_code"].mean() - p["score_other"].mean())


STATISTICS = {
    "descent_held": descent_held,
    "ascent_held": ascent_held,
    "derived_over_official": derived_over_official,
    "descent_free": descent_free,
    "flips": flips,
    "planted_alignment": planted_alignment,
    "planted_masking": planted_masking,
    "planted_score": planted_score,
}


def all_scores(arrays: dict[str, np.ndarray]) -> dict[str, float]:
    """What a person sees: the scores, and statistics of the run alone."""
    metrics = score(arrays)
    if "_directions" in arrays:
        names = ("descent_held", "descent_free", "flips")
        metrics |= {name: STATISTICS[name]({"run": arrays}) for name in names}
        cosines = {name: v for name, v in _trials({"run": arrays}).items() if "cosine" in name}
        metrics |= {name: float(v.mean()) for name, v in cosines.items()}
    if "masked_code" in arrays:
        metrics |= {
            n: f({"run": arrays})
            for n, f in STATISTICS.items()
            if n.startswith("planted") and (n != "planted_alignment" or "a_code" in arrays)
        }
    return metrics


if __name__ == "__main__":
    scores.show("mlo_mae", all_scores)
