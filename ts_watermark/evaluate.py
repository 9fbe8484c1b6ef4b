"""Predictions -> metrics and the statistics that claims test. Pure numpy.

    python -m ts_watermark.evaluate DIR        # metrics of a finished run

An arm is a watermark traced over its strengths: arrays are (n items, K strengths), `_strengths` names the columns.
Frontiers are compared at equal detectability, never at equal delta: the opponent's value is interpolated, linearly
in its mean z, at the mean z of the method.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np

WORD_CLASSES = {
    "determiner": {
        "a",
        "an",
        "the",
        "this",
        "that",
        "these",
        "those",
        "each",
        "every",
        "any",
        "some",
    },
    "punctuation": {".", ",", ";", ":", "!", "?", ")"},
}  # where Figure 4 finds small and large delta

Predictions = dict[str, np.ndarray]


# ---- thresholds and scores -----------------------------------------------------------------------------------


def threshold_at(human: np.ndarray, fpr: float) -> float:
    """The paper's threshold: (floor(fpr n) + 1)-th largest human z + 0.001 (0 %: the largest; 1 % of 500: the sixth).

    ValueError if the texts are too few for the rate: at least one text must be allowed above it.
    """
    human = np.asarray(human, dtype=float)
    allowed = int(fpr * len(human) + 1e-9)
    if len(human) == 0 or not 0 <= fpr < 1 or (fpr > 0 and allowed == 0):
        least = math.ceil(1 / fpr) if fpr > 0 else 1
        raise ValueError(f"{len(human)} human texts cannot set a threshold at {fpr:.1%} false positives; "
                         f"at least {least} are needed")  # fmt: skip
    return float(np.sort(human)[::-1][allowed]) + 0.001


def auroc(positive: np.ndarray, negative: np.ndarray) -> float:
    """Probability that a watermarked z exceeds a human one, ties counted half."""
    negative = np.sort(negative)
    below = np.searchsorted(negative, positive, "left") + np.searchsorted(
        negative, positive, "right"
    )
    return float(below.mean() / 2 / len(negative))


def best_f1(positive: np.ndarray, negative: np.ndarray) -> float:
    """Largest F1 over thresholds on the pooled scores."""
    scores = np.concatenate([positive, negative])
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(order < len(positive))
    last = np.append(np.diff(scores[order]) != 0, True)  # a threshold cannot split ties
    return float((2 * hits / (np.arange(1, len(scores) + 1) + len(positive)))[last].max())


def score(predictions: Predictions) -> dict[str, float]:
    """Metrics per strength, `<metric>@<gamma>_<delta>`: z, cosine, ppl, auroc, tpr0, tpr1, tpr_analytic (z > 2.326),
    f1, mean_gamma, mean_delta, null moments, and the same after attacks."""
    found: dict[str, float] = {}
    p = {
        k: np.asarray(v, dtype=float)
        for k, v in predictions.items()
        if k not in ("id", "_strengths")
    }
    enough = len(p["z"]) >= 100
    for k, name in enumerate(map(str, predictions["_strengths"])):
        z, human = p["z"][:, k], p["z_human"][:, k]
        found |= {f"z@{name}": z.mean(), f"z_sd@{name}": z.std(ddof=1) if len(z) > 1 else 0.0,
                  f"cosine@{name}": p["cosine"][:, k].mean(), f"auroc@{name}": auroc(z, human),
                  f"f1@{name}": best_f1(z, human), f"tpr_analytic@{name}": (z > 2.326).mean(),
                  f"z_human@{name}": human.mean(), f"roundtrip@{name}": p["roundtrip"][:, k].mean()}  # fmt: skip
        if p["nll"][:, k].any():
            found[f"ppl@{name}"] = math.exp(p["nll"][:, k].mean())
        for key in ("gamma_mean", "delta_mean"):
            if key in p:
                found[f"{key}@{name}"] = p[key][:, k].mean()
        attacks = [
            c[2:] for c in p if c.startswith("z_") and not c.endswith("human") and "null" not in c
        ]
        for label in ["", *attacks]:
            own = p[f"z_{label}" if label else "z"][:, k]
            reference = p.get(f"z_{label}_human", p["z_human"])[:, k] if label else human
            suffix = f"_{label}" if label else ""
            found[f"tpr0{suffix}@{name}"] = (own > threshold_at(reference, 0.0)).mean()
            found[f"threshold0{suffix}@{name}"] = threshold_at(reference, 0.0)
            if enough:
                found[f"tpr1{suffix}@{name}"] = (own > threshold_at(reference, 0.01)).mean()
                found[f"threshold1{suffix}@{name}"] = threshold_at(reference, 0.01)
            if label:
                found |= {f"z_{label}@{name}": own.mean(), f"auroc_{label}@{name}": auroc(own, reference),
                          f"z_{label}_human@{name}": reference.mean(), f"f1_{label}@{name}": best_f1(own, reference)}  # fmt: skip
        if "cosine_dipper" in p:
            found[f"cosine_dipper@{name}"] = p["cosine_dipper"][:, k].mean()
    found["detection_model_passes"] = float(p["_detection_model_passes"])
    return {k: float(v) for k, v in found.items()}


# ---- frontiers -------------------------------------------------------------------------------------------------


def interpolated(x: np.ndarray, xs: np.ndarray, ys: np.ndarray) -> np.ndarray:
    """Value at x of the line through neighbouring points (xs, ys); beyond the ends, the last segment goes on."""
    order = np.argsort(xs, kind="stable")
    xs, ys = xs[order], ys[order]
    right = np.clip(np.searchsorted(xs, x), 1, len(xs) - 1)
    x0, x1, y0, y1 = xs[right - 1], xs[right], ys[right - 1], ys[right]
    return y0 + (x - x0) * (y1 - y0) / np.maximum(x1 - x0, 1e-9)


def gap_at_equal_z(method: Predictions, sweep: Predictions, value: str, z: str = "z") -> float:
    """Mean over the method's strengths of value(method) - value(sweep at the method's mean z)."""
    own = method[value].mean(0, dtype=float)
    there = interpolated(
        method["z"].mean(0, dtype=float),
        sweep[z].mean(0, dtype=float),
        sweep[value].mean(0, dtype=float),
    )
    return float((own - there).mean())


def two(predictions: dict[str, Predictions]) -> tuple[Predictions, Predictions]:
    """The arms of a frontier statistic: the method first, then the opponent's sweep."""
    method, sweep = list(predictions.values())[:2]
    return method, sweep


def frontier_gap(predictions: dict[str, Predictions]) -> float:
    """Cosine of the method minus the opponent's at the same mean z."""
    return gap_at_equal_z(*two(predictions), "cosine")


def frontier_gap_blind(predictions: dict[str, Predictions]) -> float:
    """As `frontier_gap`, against SWEET's detector without the prompt."""
    return gap_at_equal_z(*two(predictions), "cosine", z="z_blind")


def fluency_gap(predictions: dict[str, Predictions]) -> float:
    """Opponent's negative log-likelihood minus the method's, at the same mean z (nats a token; positive = better)."""
    return -gap_at_equal_z(*two(predictions), "nll")


def survival(attack: str):
    """Statistic: z after an attack, minus the opponent's at the same mean z before it."""

    def statistic(predictions: dict[str, Predictions]) -> float:
        method, sweep = two(predictions)
        return gap_at_equal_z(method, sweep, f"z_{attack}")

    return statistic


def frontier_dominance(predictions: dict[str, Predictions]) -> float:
    """Smaller of the two gains of the first arm over the second, strength by strength, in units of their scale:
    cosine / 0.01 and z / 0.1. Positive only if both objectives improve."""
    method, start = two(predictions)
    cosine = (
        method["cosine"].mean(0, dtype=float) - start["cosine"].mean(0, dtype=float)
    ).mean() / 0.01
    z = (method["z"].mean(0, dtype=float) - start["z"].mean(0, dtype=float)).mean() / 0.1
    return float(min(cosine, z))


def null_z(predictions: Predictions) -> np.ndarray:
    """z of human texts under the arm's watermarks, flat."""
    columns = [v for k, v in predictions.items() if k == "z_human" or k.startswith("z_null_")]
    return np.concatenate([np.asarray(c, dtype=float).ravel() for c in columns])


def null_calibration(predictions: dict[str, Predictions]) -> float:
    """0.15 minus the larger of |mean| and |sd - 1| of z on human text: positive = calibrated within 0.15."""
    z = null_z(next(iter(predictions.values())))
    return float(0.15 - max(abs(z.mean()), abs(z.std(ddof=1) - 1)))


def null_tail(predictions: dict[str, Predictions]) -> float:
    """0.02 minus the share of human texts above the analytic 1 % threshold: positive = at most twice the nominal rate."""
    return float(0.02 - (null_z(next(iter(predictions.values()))) > 2.326).mean())


def punctuation_over_determiners(predictions: dict[str, Predictions]) -> float:
    """Mean delta at punctuation minus at determiners, over generated tokens, mean over strengths."""
    p = next(iter(predictions.values()))
    mean = {
        c: p[f"delta_sum_{c}"].sum(0, dtype=float)
        / np.maximum(p[f"count_{c}"].sum(0, dtype=float), 1)
        for c in WORD_CLASSES
    }
    return float((mean["punctuation"] - mean["determiner"]).mean())


def gamma_spread(predictions: dict[str, Predictions]) -> float:
    """0.01 minus the larger distance, in cosine at equal z, of the other gammas' frontiers from the last arm's."""
    *others, sweep = list(predictions.values())
    return float(0.01 - max(abs(gap_at_equal_z(other, sweep, "cosine")) for other in others))


STATISTICS = {
    "frontier_gap": frontier_gap,
    "frontier_gap_blind": frontier_gap_blind,
    "fluency_gap": fluency_gap,
    "copy_paste_1_gap": survival("copy_paste_1"),
    "copy_paste_3_gap": survival("copy_paste_3"),
    "delete_gap": survival("delete_0.2"),
    "substitute_gap": survival("substitute_0.2"),
    "dipper_gap": survival("dipper"),
    "both_objectives": frontier_dominance,
    "null_calibration": null_calibration,
    "null_tail": null_tail,
    "gamma_spread": gamma_spread,
    "punctuation_over_determiners": punctuation_over_determiners,
}


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m ts_watermark.evaluate DIR   (directory of a finished run)")
    file = Path(sys.argv[1]) / "predictions.npz"
    if not file.is_file():
        sys.exit(f"error: {file} is missing; finish the run first (python -m ts_watermark.train)")
    with np.load(file) as stored:
        for key, value in score(dict(stored)).items():
            print(f"{key} = {value:.4f}")
