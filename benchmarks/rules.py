"""The rules of docs/verdicts.md on plain numbers: tests, intervals, and the words they lead to.

`d` is one difference per seed, signed so that positive favours the claim; `t` is the claim's
threshold. Nothing here reads a file or a clock, and the only random draws are seeded.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import optimize, special

ALPHA = 0.025  # one side
MOST_SEEDS = 10_000  # beyond this nobody asks how many would do
FLIPS = 100_000  # sign patterns drawn when the 2^n of them are too many
MOST_EXACT_FLIPS = 20  # up to this n every sign pattern is counted
TIE = 1e-9  # two sums closer than this (relative to their size, at least 1) are equal
DIGITS = 10  # significant digits of a number in a results file, see `tidy`
MIN_SEEDS = {"spread": 10}  # by kind; 5 for the others


def all_equal(d: np.ndarray) -> bool:
    return bool(np.ptp(d) <= TIE * max(1.0, float(np.max(np.abs(d)))))


def t_test(d: np.ndarray, t: float = 0.0) -> tuple[float, float]:
    """One-sided p of mean(d) > t and of mean(d) < t; equal d, without spread: 2^-n, or 1."""
    n = len(d)
    if n == 0:
        return 1.0, 1.0
    gap = float(np.mean(d)) - t
    if all_equal(d):
        if abs(gap) <= TIE * max(1.0, abs(t)):
            return 1.0, 1.0
        return (2.0**-n, 1.0) if gap > 0 else (1.0, 2.0**-n)
    statistic = gap / (float(np.std(d, ddof=1)) / math.sqrt(n))
    return float(special.stdtr(n - 1, -statistic)), float(special.stdtr(n - 1, statistic))


def t_interval(d: np.ndarray) -> list[float] | None:
    """95 % t interval of the mean; None below two numbers."""
    if len(d) < 2:
        return None
    half = float(special.stdtrit(len(d) - 1, 0.975)) * float(np.std(d, ddof=1)) / math.sqrt(len(d))
    return [float(np.mean(d)) - half, float(np.mean(d)) + half]


def sign_flip(d: np.ndarray, t: float = 0.0) -> tuple[float, float]:
    """One-sided sign-flip p of d - t, for and against: how many sign patterns are as extreme.

    All 2^n patterns up to n = 20, else 100,000 seeded ones and the observed one. Sums that differ
    only by rounding count as ties, otherwise p would depend on the order of additions.
    """
    x = np.asarray(d, dtype=np.float64) - t
    n = len(x)
    if n == 0:
        return 1.0, 1.0
    observed, tolerance = float(x.sum()), TIE * max(1.0, float(np.abs(x).sum()))
    if n <= MOST_EXACT_FLIPS:
        sums = np.zeros(1)
        for value in x:
            sums = np.concatenate([sums + value, sums - value])
        return float(np.mean(sums >= observed - tolerance)), float(
            np.mean(sums <= observed + tolerance)
        )
    above = below = 1
    for signs in sign_blocks(n):
        sums = 2.0 * (signs @ x) - observed
        above += int(np.sum(sums >= observed - tolerance))
        below += int(np.sum(sums <= observed + tolerance))
    return above / (FLIPS + 1), below / (FLIPS + 1)


def sign_blocks(n: int) -> Iterator[np.ndarray]:
    """FLIPS seeded patterns of n zeros and ones, the same at every call, in blocks of 1,000 rows.

    Those of as many signs as a claim has seeds are kept: each claim asks for them several times.
    """
    return iter(_cached_blocks(n)) if n <= 64 else _drawn_blocks(n)


def _drawn_blocks(n: int) -> Iterator[np.ndarray]:
    bits, block, words = np.random.PCG64(0), 1000, -(-n // 64)
    for _ in range(FLIPS // block):
        raw = bits.random_raw(block * words).view(np.uint8).reshape(block, -1)
        yield np.unpackbits(raw, axis=1)[:, :n]


@functools.lru_cache(maxsize=1)
def _cached_blocks(n: int) -> list[np.ndarray]:
    return [signs.astype(np.float64) for signs in _drawn_blocks(n)]


def flip_limit(n: int) -> float:
    """The sign-flip p that is small enough: below n = 6 the smallest that exists is above 0.025."""
    return max(ALPHA, 2.0**-n)


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment, in the order given."""
    adjusted, largest = [0.0] * len(p), 0.0
    for rank, i in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        largest = max(largest, min(1.0, (len(p) - rank) * p[i]))
        adjusted[i] = largest
    return adjusted


def item_interval(resampled: np.ndarray | None) -> list[float] | None:
    """2.5-97.5 % of the resampled means; None when any of them is undefined."""
    if resampled is None or len(resampled) == 0 or not np.all(np.isfinite(resampled)):
        return None
    low, high = np.quantile(resampled, [0.025, 0.975])
    return [float(low), float(high)]


def detectable(
    n: int, sd: float, t: float = 0.0, power: float = 0.8, claims: float = 1
) -> float | None:
    """The smallest true effect above t that a one-sided t-test finds with this power.

    Its level is that of Holm's first step over so many claims: 0.025 / claims.
    """
    if n < 2:
        return None
    if sd == 0:
        return t
    critical = float(special.stdtrit(n - 1, 1 - ALPHA / claims))

    def missed(shift: float) -> float:
        return float(special.nctdtr(n - 1, shift, critical)) - (1 - power)

    shift = optimize.brentq(missed, 0.0, 1.5 * critical + 3, xtol=1e-12)
    return t + float(shift) * sd / math.sqrt(n)


def seeds_needed(sd: float, material: float, claims: float, n: int = 5) -> int | None:
    """The fewest seeds, from n on, whose detectable effect is at most `material`; None: more than
    10,000."""
    while (detectable(n, sd, claims=claims) or 0.0) > material and n <= MOST_SEEDS:
        n = max(n + 1, int(1.02 * n))
    return n if n <= MOST_SEEDS else None


def claims_of(effect: float, n: int, sd: float) -> float:
    """Over how many claims the level was divided, if this effect is `detectable`; 1 where none."""

    def off(claims: float) -> float:
        return (detectable(n, sd, claims=claims) or 0.0) - effect

    return float(optimize.brentq(off, 1, 1000)) if off(1) < 0 < off(1000) else 1.0


def collapse_bound(n: int) -> float:
    """n runs without a collapse exclude, at 95 %, only collapse rates above this."""
    return 1 - 0.05 ** (1 / n)


def wins_ties_losses(d: np.ndarray) -> list[int]:
    tie = np.abs(d) <= TIE
    return [int(np.sum((d > 0) & ~tie)), int(np.sum(tie)), int(np.sum((d < 0) & ~tie))]


def spread_differences(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """|b_s - median b| - |a_s - median a| along the first axis: positive where a is steadier."""
    return np.abs(b - np.median(b, axis=0)) - np.abs(a - np.median(a, axis=0))


@dataclass(frozen=True)
class Evidence:
    """Every number of a claim that follows from d alone; p and flip are one-sided."""

    n: int
    effect: float | None
    median: float | None
    ci95: list[float] | None
    detectable: float | None
    p_for: float
    p_against: float
    flip_for: float
    flip_against: float
    wins_ties_losses: list[int]
    p_within: float | None = None
    flip_within: list[float] | None = None


def asks_within(kind: str, t: float) -> bool:
    """Whether a claim can end as no material difference."""
    return t == 0 and kind not in ("spread", "exact")


def evidence(
    d: Sequence[float] | np.ndarray, t: float = 0.0, material: float | None = None, claims: int = 1
) -> Evidence:
    """The numbers of d; with `material` m also whether it lies within (t - m, t + m).

    `claims`: those of the role, for `detectable`.
    """
    x = np.asarray(d, dtype=np.float64)
    p_within, flip_within = None, None
    if material is not None:
        low, high = t - material, t + material
        p_within = max(t_test(x, low)[0], t_test(x, high)[1])
        flip_within = [sign_flip(x, low)[0], sign_flip(x, high)[1]]
    p_for, p_against = t_test(x, t)
    flip_for, flip_against = sign_flip(x, t)
    sd = 0.0 if len(x) == 0 or all_equal(x) else float(np.std(x, ddof=1))
    return Evidence(
        n=len(x),
        effect=float(np.mean(x)) if len(x) else None,
        median=float(np.median(x)) if len(x) else None,
        ci95=t_interval(x),
        detectable=detectable(len(x), sd, t, claims=claims),
        p_for=p_for,
        p_against=p_against,
        flip_for=flip_for,
        flip_against=flip_against,
        wins_ties_losses=wins_ties_losses(x),
        p_within=p_within,
        flip_within=flip_within,
    )


CONDITIONS = ("t", "Holm", "sign-flip", "items")  # in the order in which they are asked


def first_failed(p: float, p_holm: float, flip: float, n: int, items_agree: bool) -> str:
    """The first of CONDITIONS that does not hold, '' if all do."""
    met = (p <= ALPHA, p_holm <= ALPHA, flip <= flip_limit(n), items_agree)
    return next((name for name, holds in zip(CONDITIONS, met) if not holds), "")


def outside(shown: Evidence, p_holm_within: float, item_inside: bool) -> str:
    """The first condition of *within* that does not hold, '' if all do."""
    if shown.p_within is None or shown.flip_within is None:
        return CONDITIONS[0]  # not asked
    flip = max(shown.flip_within)
    return first_failed(shown.p_within, p_holm_within, flip, shown.n, item_inside)


def claim_verdict(
    shown: Evidence,
    t: float,
    p_holm: tuple[float, float],
    item_ci95: Sequence[float] | None,
    *,
    items: bool = True,
    kind: str = "difference",
    failures: bool = False,
    material: float = math.inf,
    p_holm_within: float = 1.0,
    sensitivity: str = "none",
) -> tuple[str, str]:
    """(word, reason) of one claim; controls, if any, come after it (`attribute`).

    SUPPORTED and CONTRADICTED may add "but smaller than m"; else NO MATERIAL DIFFERENCE,
    INSENSITIVE, or INCONCLUSIVE with the first condition that failed. Of the two questions, on one
    side of t and within the margin, the one that came further names it.

    `shown` is `evidence(d, t, material)`, without material where *within* is not asked; `p_holm`
    the adjusted p for and against; `items` false where condition (c) does not apply; `failures`:
    more than 20 % of the runs of one arm diverged; `sensitivity`: SHOWN, NOT SHOWN or none.
    """
    if shown.effect is None or shown.n < MIN_SEEDS.get(kind, 5):
        return "INCONCLUSIVE", "seeds"
    if failures:
        return "INCONCLUSIVE", "failures"
    low, high = item_ci95 if item_ci95 is not None else (-math.inf, math.inf)
    inside = not items or (t - material < low and high < t + material)
    apart = outside(shown, p_holm_within, inside)
    favours = shown.effect >= t
    p, flip = (shown.p_for, shown.flip_for) if favours else (shown.p_against, shown.flip_against)
    beyond = not items or (low > t if favours else high < t)
    failed = first_failed(p, p_holm[0 if favours else 1], flip, shown.n, beyond)
    if not failed:
        word = "SUPPORTED" if favours else "CONTRADICTED"
        return (word if apart else word + smaller(material)), ""
    if sensitivity == "NOT SHOWN":
        return "INSENSITIVE", "sensitivity"
    if not apart:
        return "NO MATERIAL DIFFERENCE", ""
    return "INCONCLUSIVE", max(failed, apart, key=CONDITIONS.index)


def sensitivity_outcome(
    shown: Evidence,
    item_ci95: Sequence[float] | None,
    material: float,
    *,
    items: bool = True,
    kind: str = "difference",
    failures: bool = False,
) -> tuple[str, str]:
    """(SHOWN | NOT SHOWN, why not) of the positive control; `shown` is `evidence(A - B)`."""
    p = (shown.p_for, shown.p_against)  # without Holm: nothing is claimed of it
    word, reason = claim_verdict(
        shown, 0.0, p, item_ci95, items=items, kind=kind, failures=failures
    )
    if word != "SUPPORTED":
        return "NOT SHOWN", reason or "it points the other way"
    if shown.effect is None or shown.effect < material:
        return "NOT SHOWN", f"it is smaller than {material:g}"
    return "SHOWN", ""


def control_outcome(
    shown: Evidence,
    item_ci95: Sequence[float] | None,
    material: float,
    *,
    items: bool = True,
    kind: str = "difference",
    failures: bool = False,
) -> str:
    """BEATEN, NOT BEATEN or OPEN; `shown` is `evidence(method - control, 0)`."""
    if failures or shown.ci95 is None or shown.n < MIN_SEEDS.get(kind, 5):
        return "OPEN"
    unadjusted = (shown.p_for, shown.p_against)  # all controls must be beaten: no Holm
    if claim_verdict(shown, 0.0, unadjusted, item_ci95, items=items, kind=kind)[0] == "SUPPORTED":
        return "BEATEN"
    item_below = not items or (item_ci95 is not None and item_ci95[1] < material)
    return "NOT BEATEN" if shown.ci95[1] < material and item_below else "OPEN"


def attribute(word: str, outcomes: Sequence[str]) -> str:
    """What the controls add to a supported claim; other verdicts stay as they are."""
    base = plain(word)
    if base != "SUPPORTED" or all(outcome == "BEATEN" for outcome in outcomes):
        return word
    added = ", NOT ATTRIBUTED" if "NOT BEATEN" in outcomes else ", ATTRIBUTION OPEN"
    return base + added + word.removeprefix(base)


def exact_verdict(d: Sequence[float], t: float) -> str:
    """A comparison of counts needs no test: every seed is better (t = 0) or reaches t."""
    reached = all(x > 0 for x in d) if t == 0 else all(x >= t for x in d)
    return "SUPPORTED" if reached else "CONTRADICTED"


def default_tolerance(
    rows: int, sd: float | None, sd_over: str | None, n_paper: int | None
) -> float:
    """Of a percentage: 1.0 under 1,000 test rows, else 0.5; wider only for a sd over seeds."""
    floor = 1.0 if rows < 1000 else 0.5
    if sd is None or sd_over != "seeds":
        return floor
    return max(floor, 2 * sd / math.sqrt(n_paper or 3))


def reported_verdict(
    reported: float | None,
    ours: Sequence[float],
    tolerance: float | None,
    *,
    higher_is_better: bool | None = True,
    sd: float | None = None,
    sd_over: str | None = None,
    n_paper: int | None = None,
    own: bool = True,
    deviations: Sequence[str] = (),
) -> tuple[str, float | None, list[float] | None]:
    """(verdict, gap, its 95 % interval) of a published number; `ours` is empty where nothing ran.

    The gap is our mean - reported, turned so that positive is better where there is a direction.
    """
    gap: float | None = None
    interval: list[float] | None = None
    half = math.inf
    if reported is not None and len(ours):
        gap = (float(np.mean(ours)) - reported) * (-1 if higher_is_better is False else 1)
        if len(ours) > 1:
            variance = float(np.var(ours, ddof=1)) / len(ours)
            if sd is not None and sd_over == "seeds" and n_paper:
                variance += sd**2 / n_paper
            half = float(special.stdtrit(len(ours) - 1, 0.975)) * math.sqrt(variance)
            interval = [gap - half, gap + half]
    if reported is None:
        return "NO PUBLISHED VALUE", gap, interval
    if not own:
        return "CONTEXT", gap, interval
    if gap is None:
        return "NOT RUN", gap, interval
    if deviations:
        return "SUBSTITUTED", gap, interval
    if len(ours) < 3 or tolerance is None or interval is None or not math.isfinite(gap):
        return "INCONCLUSIVE", gap, interval
    if abs(gap) <= tolerance + TIE and half <= tolerance:
        return "REPRODUCED", gap, interval
    if interval[0] > tolerance:
        return ("NOT REPRODUCED" if higher_is_better is None else "BETTER"), gap, interval
    if interval[1] < -tolerance:
        return "NOT REPRODUCED", gap, interval
    return "INCONCLUSIVE", gap, interval


SCALED_DOWN = " (scaled down)"
FOR_THIS_MODEL = " for this model"


SMALLER = re.compile(r", but smaller than [^ ]+")


def smaller(material: float) -> str:
    return f", but smaller than {material:g}"


def plain(verdict: str) -> str:
    """'SUPPORTED, but smaller than 1 for this model (scaled down)' -> 'SUPPORTED'."""
    return SMALLER.sub("", verdict.removesuffix(SCALED_DOWN).removesuffix(FOR_THIS_MODEL))


def tidy(value: Any) -> Any:
    """Numbers as they stand in a results file: ten significant digits, null for what is undefined.

    Processors differ in the last bits of a sum; these digits are the same on all of them, so that a
    check can insist on every digit written.
    """
    if isinstance(value, Mapping):
        return {key: tidy(item) for key, item in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [tidy(item) for item in value]
    plain_value = value.item() if isinstance(value, np.generic) else value
    if not isinstance(plain_value, float):
        return plain_value
    if not math.isfinite(plain_value):
        return None
    return 0.0 if abs(plain_value) < 1e-12 else float(f"{plain_value:.{DIGITS}g}")
