"""Predictions -> metrics and the statistics that claims test. Pure numpy.

    python -m ts_watermark.evaluate DIR        # metrics of a finished run

An arm is a watermark traced over its strengths: arrays are (n items, K strengths), `_strengths`
names the columns. Frontiers are compared at equal detectability, never at equal delta: the
opponent's value is read off a curve through its strengths, at the method's mean evidence. Evidence
is the normal score of the exact p-value over distinct pairs: z of different gammas is not
comparable.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from shared import scores
from shared.protocol import BadInput

DETERMINERS = {"a", "an", "the", "this", "that", "these", "those", "each", "every", "any", "some"}
WORD_CLASSES = {  # where Figure 4 finds small and large delta
    "determiner": DETERMINERS,
    "punctuation": set(".,;:!?)"),
}

LEVELS = {"1pct": 1e-2, "0.1pct": 1e-3, "0.01pct": 1e-4}  # of the tests on human text

Predictions = dict[str, np.ndarray]
Statistic = Callable[[dict[str, Predictions]], float]


# --- thresholds and scores ------------------------------------------------------------------------


def threshold_at(human: np.ndarray, fpr: float) -> float:
    """The paper's threshold: (floor(fpr n) + 1)-th largest human z + 0.001 (0 %: the largest; 1 %
    of 500: the sixth).

    ValueError if the texts are too few for the rate: at least one text must be allowed above it.
    """
    human = np.asarray(human, dtype=float)
    allowed = int(fpr * len(human) + 1e-9)
    if len(human) == 0 or not 0 <= fpr < 1 or (fpr > 0 and allowed == 0):
        least = math.ceil(1 / fpr) if fpr > 0 else 1
        what = f"{len(human)} human texts cannot set a threshold at {fpr:.1%} false positives"
        raise BadInput(f"{what}; at least {least} are needed")
    return float(np.sort(human)[::-1][allowed]) + 0.001


def auroc(positive: np.ndarray, negative: np.ndarray) -> float:
    """Probability that a watermarked z exceeds a human one, ties counted half."""
    negative = np.sort(negative)
    smaller, up_to = (np.searchsorted(negative, positive, side) for side in ("left", "right"))
    return float((smaller + up_to).mean() / 2 / len(negative))


def best_f1(positive: np.ndarray, negative: np.ndarray) -> float:
    """Largest F1 over thresholds on the pooled scores."""
    scores = np.concatenate([positive, negative])
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(order < len(positive))
    last = np.append(np.diff(scores[order]) != 0, True)  # a threshold cannot split ties
    return float((2 * hits / (np.arange(1, len(scores) + 1) + len(positive)))[last].max())


def score(predictions: Predictions) -> dict[str, float]:
    """Metrics per strength, `<metric>@<gamma>_<delta>`; README.md explains them."""
    if "_keys" in predictions:
        return score_null(predictions)
    metrics: dict[str, float] = {}
    numbers = {k: v for k, v in predictions.items() if k not in ("id", "_strengths")}
    columns = {k: np.asarray(v, dtype=float) for k, v in numbers.items()}
    passes = columns.pop("_detection_model_passes")
    for k, name in enumerate(map(str, predictions["_strengths"])):
        of_strength = score_strength({key: column[:, k] for key, column in columns.items()})
        metrics |= {f"{metric}@{name}": float(value) for metric, value in of_strength.items()}
    return metrics | {"detection_model_passes": float(passes)}


def score_null(predictions: dict[str, np.ndarray]) -> dict[str, float]:
    """Mean and sd of z, and the share of (text, key) pairs that each test calls watermarked."""
    keys = float(predictions["_keys"])
    metrics: dict[str, float] = {}
    for counted in ("all", "distinct"):
        mean = float(np.mean(predictions[f"{counted}_z"]) / keys)
        square = float(np.mean(predictions[f"{counted}_z2"]) / keys)
        metrics |= {f"{counted}_mean": mean, f"{counted}_sd": (square - mean**2) ** 0.5}
    for test in ("all", "distinct", "exact"):
        for name in LEVELS:
            column = f"{test}_{name}"
            metrics[f"false_alarms_{column}"] = float(np.mean(predictions[column]) / keys)
    return metrics


def score_strength(p: Predictions) -> dict[str, float]:
    """Metrics of one strength from its columns (n,)."""
    z, human = p["z"], p["z_human"]
    metrics = {
        "z": z.mean(),
        "z_sd": z.std(ddof=1) if len(z) > 1 else 0.0,
        "evidence": p["evidence"].mean(),
        "cosine": p["cosine"].mean(),
        "auroc": auroc(z, human),
        "f1": best_f1(z, human),
        "tpr_analytic": (z > 2.326).mean(),
        "z_human": human.mean(),
        "roundtrip": p["roundtrip"].mean(),
    }
    if p["nll"].any():
        metrics["ppl"] = math.exp(p["nll"].mean())
    for key in ("gamma_mean", "delta_mean", "cosine_dipper"):
        if key in p:
            metrics[key] = p[key].mean()
    metrics |= at_thresholds(z, human, "")
    for key in p:
        if key.startswith("z_") and not key.endswith("human"):
            metrics |= score_attack(key.removeprefix("z_"), p[key], p.get(f"{key}_human", human))
    return metrics


def score_attack(attack: str, z: np.ndarray, human: np.ndarray) -> dict[str, float]:
    """Metrics of z after an attack (or of SWEET's blind detector), beside its own human z."""
    metrics = {
        f"z_{attack}": z.mean(),
        f"auroc_{attack}": auroc(z, human),
        f"z_{attack}_human": human.mean(),
        f"f1_{attack}": best_f1(z, human),
    }
    return metrics | at_thresholds(z, human, f"_{attack}")


def at_thresholds(z: np.ndarray, human: np.ndarray, suffix: str) -> dict[str, float]:
    """True positive rates at 0 % and, from 100 texts on, at 1 % false positives."""
    metrics = {}
    for name, fpr in (("0", 0.0), ("1", 0.01))[: 2 if len(z) >= 100 else 1]:
        threshold = threshold_at(human, fpr)
        metrics[f"tpr{name}{suffix}"] = (z > threshold).mean()
        metrics[f"threshold{name}{suffix}"] = threshold
    return metrics


# --- frontiers ------------------------------------------------------------------------------------


def interpolated(x: np.ndarray, xs: np.ndarray, ys: np.ndarray) -> np.ndarray:
    """Value at x of the curve through the points (xs, ys): a parabola through three, a line through
    two, the least-squares cubic of more.

    Frontiers are convex: chords between distant strengths lie above them, by 0.003 in cosine where
    three strengths span four units of evidence, which would count against the method."""
    degree, middle = min(3, len(xs) - 1), xs.mean()
    curve = np.linalg.lstsq(np.vander(xs - middle, degree + 1), ys, rcond=None)[0]
    return np.polyval(curve, x - middle)


def gap(method: Predictions, sweep: Predictions, value: str, at: str = "evidence") -> float:
    """Mean over the method's strengths of value(method) - value(sweep at the method's evidence)."""
    opponent = interpolated(mean(method, "evidence"), mean(sweep, at), mean(sweep, value))
    return float((mean(method, value) - opponent).mean())


def mean(predictions: Predictions, column: str) -> np.ndarray:
    """Means over items, (K,)."""
    return predictions[column].mean(0, dtype=float)


def two(predictions: dict[str, Predictions]) -> tuple[Predictions, Predictions]:
    """The arms of a frontier statistic: the method first, then the opponent's sweep."""
    method, sweep = list(predictions.values())[:2]
    return method, sweep


def frontier_gap(predictions: dict[str, Predictions]) -> float:
    """Cosine of the method minus the opponent's at the same mean evidence."""
    return gap(*two(predictions), "cosine")


def frontier_gap_blind(predictions: dict[str, Predictions]) -> float:
    """As `frontier_gap`, against SWEET's detector without the prompt."""
    return gap(*two(predictions), "cosine", at="evidence_blind")


def fluency_gap(predictions: dict[str, Predictions]) -> float:
    """Opponent's negative log-likelihood minus the method's, at the same mean evidence (nats a
    token; positive = better)."""
    return -gap(*two(predictions), "nll")


def survival(attack: str) -> Statistic:
    """Statistic: z after an attack, minus the opponent's at the same mean evidence before it."""

    def statistic(predictions: dict[str, Predictions]) -> float:
        method, sweep = two(predictions)
        return gap(method, sweep, f"z_{attack}")

    return statistic


def spared(test: str, name: str) -> Statistic:
    """Statistic: a level minus the share of human texts that a test calls watermarked at it, in
    units of the level: 0 = as it says, 1 = none, -1 = twice as many."""

    def statistic(predictions: dict[str, Predictions]) -> float:
        (p,) = predictions.values()
        return 1 - float(np.mean(p[f"{test}_{name}"]) / float(p["_keys"])) / LEVELS[name]

    return statistic


def punctuation_over_determiners(predictions: dict[str, Predictions]) -> float:
    """Mean delta at punctuation minus at determiners, over generated tokens, mean over
    strengths."""
    p = next(iter(predictions.values()))

    def delta(words: str) -> np.ndarray:
        count = np.maximum(p[f"count_{words}"].sum(0, dtype=float), 1)
        return p[f"delta_sum_{words}"].sum(0, dtype=float) / count

    return float((delta("punctuation") - delta("determiner")).mean())


def gamma_spread(predictions: dict[str, Predictions]) -> float:
    """0.01 minus the larger distance, in cosine at equal evidence, of the other gammas' frontiers
    from the last arm's."""
    *others, sweep = list(predictions.values())
    return float(0.01 - max(abs(gap(other, sweep, "cosine")) for other in others))


STATISTICS: dict[str, Statistic] = {
    "frontier_gap": frontier_gap,
    "frontier_gap_blind": frontier_gap_blind,
    "fluency_gap": fluency_gap,
    "copy_paste_1_gap": survival("copy_paste_1"),
    "copy_paste_3_gap": survival("copy_paste_3"),
    "delete_gap": survival("delete_0.2"),
    "substitute_gap": survival("substitute_0.2"),
    "dipper_gap": survival("dipper"),
    **{f"{test}_{k}": spared(test, k) for test in ("all", "exact") for k in ("1pct", "0.1pct")},
    "gamma_spread": gamma_spread,
    "punctuation_over_determiners": punctuation_over_determiners,
}


if __name__ == "__main__":
    scores.show("ts_watermark", score)
