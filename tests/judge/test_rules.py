"""The synthetic cases of docs/verdicts.md on the rules, and the borders between them."""

from __future__ import annotations

import math

import numpy as np
import pytest

from benchmarks import rules
from benchmarks.rules import (
    asks_within,
    attribute,
    claim_verdict,
    control_outcome,
    evidence,
    exact_verdict,
    holm,
    reported_verdict,
    sensitivity_outcome,
    sign_flip,
    t_test,
    tidy,
)

CASE1 = (1.2, 0.8, 1.5, 1.0, 0.9)
SAME_SIDE = "the side of the mean"


def verdict(
    d, t=0.0, others=(), item=SAME_SIDE, kind="difference", failures=False, sensitivity="none"
):
    """Verdict and reason of one claim, material 1, whose role also holds claims with these p."""
    shown = evidence(d, t, 1.0 if asks_within(kind, t) else None)
    adjusted = [holm([getattr(shown, f"p_{side}"), *others])[0] for side in ("for", "against")]
    if item == SAME_SIDE:
        item = [t + 0.01, t + 9] if shown.effect > t else [t - 9, t - 0.01]
    return claim_verdict(
        shown,
        t,
        (adjusted[0], adjusted[1]),
        item,
        kind=kind,
        failures=failures,
        material=1.0,
        p_holm_within=1.0 if shown.p_within is None else shown.p_within,
        sensitivity=sensitivity,
    )


def test_case_1_supported_with_its_interval():
    assert verdict(CASE1) == ("SUPPORTED", "")
    assert evidence(CASE1).ci95 == pytest.approx([0.73, 1.43], abs=0.01)


def test_case_2_contradicted():
    assert verdict([-x for x in CASE1]) == ("CONTRADICTED", "")


def test_case_3_sign_flip():
    d = (1.2, 0.8, 1.5, 1.0, -0.1)
    shown = evidence(d)
    assert shown.ci95 == pytest.approx([0.13, 1.63], abs=0.01)
    assert shown.p_for == pytest.approx(0.016, abs=0.001)
    assert shown.flip_for == 0.0625
    assert verdict(d) == ("INCONCLUSIVE", "sign-flip")


def test_case_4_tasks_are_not_replicates():
    rng = np.random.default_rng(0)
    assert verdict(rng.normal(2, 0.1, (4, 5)).mean(axis=1)) == ("INCONCLUSIVE", "seeds")


def test_case_5_t():
    d = (1.6, 1.4, -0.3, 1.2, 0.1)
    assert verdict(d) == ("INCONCLUSIVE", "t")
    assert evidence(d).ci95 == pytest.approx([-0.25, 1.85], abs=0.01)
    assert t_test(np.repeat(d, 4))[0] == pytest.approx(0.0001, abs=0.0001)


def test_case_6_holm():
    d = (0.9, 0.2, 1.4, 0.6, 0.5)
    p = evidence(d).p_for
    assert p == pytest.approx(0.012, abs=0.0005)
    assert holm([p, 0.4, 0.4])[0] == pytest.approx(0.036, abs=0.001)
    assert verdict(d, others=(0.4, 0.4)) == ("INCONCLUSIVE", "Holm")
    assert verdict(d) == ("SUPPORTED", "")


@pytest.mark.parametrize(
    ("d", "expected"),
    [
        ([0.5] * 5, ("INCONCLUSIVE", "t")),
        ([0.5] * 8, ("SUPPORTED", "")),
        ([-0.5] * 8, ("CONTRADICTED", "")),
        ([0.0] * 5, ("INCONCLUSIVE", "t")),
        (
            [0.1 + 0.2, 0.3, 0.3, 0.3, 0.1 + 0.2, 0.3, 0.3, 0.3],
            ("SUPPORTED", ""),
        ),  # equal but for rounding
    ],
)
def test_case_7_equal_differences(d, expected):
    assert verdict(d) == expected


def test_case_8_items():
    assert verdict(CASE1, item=[-0.2, 2.3]) == ("INCONCLUSIVE", "items")
    assert verdict(CASE1, item=None) == ("INCONCLUSIVE", "items")
    assert verdict(CASE1, item=[0.0, 2.3]) == (
        "INCONCLUSIVE",
        "items",
    )  # touching t is not beyond it


def test_case_9_not_worse_by_more_than_two():
    d = (-0.5, -0.8, -0.2, -1.0, -0.4)
    assert verdict(d, t=-2) == ("SUPPORTED", "")
    assert verdict(d, t=0) == ("CONTRADICTED", "")


NARROW = (0.1, -0.2, 0.05, 0.15, -0.1, 0.1, 0, -0.05)  # case 16


@pytest.mark.parametrize(
    ("d", "more", "expected"),
    [
        # case 16
        (NARROW, {"sensitivity": "SHOWN"}, ("NO MATERIAL DIFFERENCE", "")),
        (NARROW, {"sensitivity": "NOT SHOWN"}, ("INSENSITIVE", "sensitivity")),
        (NARROW, {"sensitivity": "none"}, ("NO MATERIAL DIFFERENCE", "")),
        # case 17
        (NARROW, {"item": [-1.2, 0.9]}, ("INCONCLUSIVE", "items")),
        ([10 * x for x in NARROW], {}, ("INCONCLUSIVE", "t")),
        (
            (0.5, 0.4, 0.6, 0.5, 0.45, 0.55, 0.5, 0.52),
            {"item": [0.2, 0.8]},
            ("SUPPORTED, but smaller than 1", ""),
        ),
        (
            (-0.5, -0.4, -0.6, -0.5, -0.45, -0.55, -0.5, -0.52),
            {"item": [-0.8, -0.2], "sensitivity": "NOT SHOWN"},
            ("CONTRADICTED, but smaller than 1", ""),
        ),
        # case 18: what is decided needs no positive control; *within* is not asked at t != 0
        (
            [-x for x in CASE1],
            {"item": [-9, -0.1], "sensitivity": "NOT SHOWN"},
            ("CONTRADICTED", ""),
        ),
        ((-0.5, -0.8, -0.2, -1.0, -0.4), {"t": -2, "item": [-1, -0.1]}, ("SUPPORTED", "")),
        # equal differences inside, at the margin, and too few of them
        ([0.0] * 8, {}, ("NO MATERIAL DIFFERENCE", "")),
        ([0.0] * 5, {}, ("INCONCLUSIVE", "t")),
        ([0.0] * 4, {"sensitivity": "NOT SHOWN"}, ("INCONCLUSIVE", "seeds")),
        (NARROW, {"kind": "spread"}, ("INCONCLUSIVE", "seeds")),
        (NARROW, {"item": None}, ("INCONCLUSIVE", "items")),
        (NARROW, {"item": [-0.6, 1.0]}, ("INCONCLUSIVE", "items")),  # touching m is not inside
        (NARROW, {"failures": True, "sensitivity": "NOT SHOWN"}, ("INCONCLUSIVE", "failures")),
        # an experiment that could have found nothing says so, however wide its interval
        ([10 * x for x in NARROW], {"sensitivity": "NOT SHOWN"}, ("INSENSITIVE", "sensitivity")),
    ],
)
def test_cases_16_to_18_within_and_sensitivity(d, more, expected):
    assert verdict(d, **{"item": [-0.6, 0.6], **more}) == expected


def test_within_is_the_worse_of_two_one_sided_tests():
    shown = evidence(NARROW, 0.0, 1.0)
    assert shown.p_within == max(t_test(np.array(NARROW), -1)[0], t_test(np.array(NARROW), 1)[1])
    assert shown.flip_within == [1 / 256, 1 / 256]
    at_m = evidence([1.0] * 8, 0.0, 1.0)
    assert (at_m.p_within, evidence([0.9] * 8, 0.0, 1.0).p_within) == (1.0, 1 / 256)
    assert evidence(NARROW, 0.0).p_within is None
    kinds = ("difference", "contrast", "statistic", "spread", "exact")
    assert [asks_within(kind, 0.0) for kind in kinds] == [True, True, True, False, False]
    assert not asks_within("difference", -1.0)


def test_holm_over_within_alone():
    shown = evidence(NARROW, 0.0, 1.0)
    p = (shown.p_for, shown.p_against)
    more = {"material": 1.0, "p_holm_within": 0.026}
    assert claim_verdict(shown, 0.0, p, [-0.6, 0.6], **more) == ("INCONCLUSIVE", "Holm")


@pytest.mark.parametrize(
    ("d", "item", "expected"),
    [
        ((3, 4, 3.5, 5, 4, 3, 4, 4), (2.5, 5), ("SHOWN", "")),
        ((0.2, -1, 1, 0, 0.5, -0.5, 1, 0), (0.01, 1), ("NOT SHOWN", "t")),
        ((0.5, 0.4, 0.6, 0.5, 0.45, 0.55, 0.5, 0.5), (0.2, 2), ("NOT SHOWN", "smaller than 1")),
        ((-3, -4, -3.5, -5, -4), (-5, -2), ("NOT SHOWN", "the other way")),
        ((3, 4, 3.5, 5), (2.5, 5), ("NOT SHOWN", "seeds")),
        ((3, 4, 3.5, 5, 4), (-0.1, 8), ("NOT SHOWN", "items")),
    ],
)
def test_sensitivity_is_shown_by_a_difference_that_would_matter(d, item, expected):
    outcome, reason = sensitivity_outcome(evidence(d), item, 1.0)
    assert outcome == expected[0] and expected[1] in reason


def control(d, material=1.0, item=SAME_SIDE):
    shown = evidence(d)
    half = 0.01
    item = [shown.effect - half, shown.effect + half] if item == SAME_SIDE else item
    return control_outcome(shown, item, material)


def test_case_10_not_attributed():
    d = (0.1, -0.2, 0.05, 0.15, -0.1)
    assert control(d) == "NOT BEATEN"
    assert attribute("SUPPORTED", [control(d)]) == "SUPPORTED, NOT ATTRIBUTED"
    assert control(d, item=[-0.5, 1.0]) == "OPEN"  # the items leave room for a material difference


def test_case_11_attribution_open():
    d = (2, -0.5, 1.5, -0.2, 1.0)
    assert evidence(d).ci95 == pytest.approx([-0.58, 2.10], abs=0.01)
    assert attribute("SUPPORTED", [control(d)]) == "SUPPORTED, ATTRIBUTION OPEN"
    assert attribute("SUPPORTED", ["BEATEN", "OPEN"]) == "SUPPORTED, ATTRIBUTION OPEN"
    assert attribute("SUPPORTED", ["NOT BEATEN", "OPEN"]) == "SUPPORTED, NOT ATTRIBUTED"
    assert attribute("SUPPORTED", ["BEATEN"]) == attribute("SUPPORTED", []) == "SUPPORTED"
    assert attribute("CONTRADICTED", ["OPEN"]) == "CONTRADICTED"
    smaller = attribute("SUPPORTED, but smaller than 0.5", ["OPEN"])
    assert smaller == "SUPPORTED, ATTRIBUTION OPEN, but smaller than 0.5"
    words = f"{smaller} for this model (scaled down)"
    assert rules.plain(words) == "SUPPORTED, ATTRIBUTION OPEN"


def test_case_12_failures():
    assert verdict((-30, *CASE1[1:])) == ("INCONCLUSIVE", "t")
    assert verdict((-30, -30, *CASE1[2:]), failures=True) == ("INCONCLUSIVE", "failures")


A = np.array([80, 81, 79, 80.5, 79.5, 80.2, 79.8, 80.1, 79.9, 80])
B = np.array([70, 83, 77, 82, 76, 81, 75, 84, 79, 78.0])


def spread(n):
    d = rules.spread_differences(A[:n], B[:n])
    shown = evidence(d)
    return claim_verdict(shown, 0, (shown.p_for, shown.p_against), None, items=False, kind="spread")


def test_case_13_spread():
    assert spread(10) == ("SUPPORTED", "")
    assert spread(8) == ("INCONCLUSIVE", "seeds")


def test_case_14_reported():
    word, gap, interval = reported_verdict(83.6, (83.42, 83.57, 83.41, 83.44, 83.44), 0.3)
    assert (word, gap) == ("REPRODUCED", pytest.approx(-0.14, abs=0.005))
    assert interval == pytest.approx([-0.23, -0.06], abs=0.01)
    assert reported_verdict(83.6, (81.7, 81.5, 81.6, 81.8, 81.4), 0.3)[0] == "NOT REPRODUCED"


def test_case_15_reported_borders():
    wide = [80 + g for g in (0.5, -2.5, 1.5, -1, 1)]
    word, _, interval = reported_verdict(80, wide, 1.0)
    assert word == "INCONCLUSIVE"
    assert interval[1] - interval[0] == pytest.approx(4.0, abs=0.1)
    around = [78.9 + x for x in (-0.16, -0.08, 0, 0.08, 0.16)]
    word, gap, interval = reported_verdict(80, around, 1.0)
    assert (word, gap) == ("INCONCLUSIVE", pytest.approx(-1.1))
    assert interval[1] - gap == pytest.approx(0.2, abs=0.05)
    assert reported_verdict(80, (80, 80), 1.0)[0] == "INCONCLUSIVE"
    assert (
        reported_verdict(80, (80, 80, 80), 1.0, deviations=["best epoch, ours the last"])[0]
        == "SUBSTITUTED"
    )
    assert reported_verdict(None, (80, 80, 80), 1.0)[0] == "NO PUBLISHED VALUE"


def test_reported_order_and_directions():
    equal = (80.0, 80.1, 79.9, 80.0)
    assert reported_verdict(80, equal, 1.0, own=False)[0] == "CONTEXT"
    assert reported_verdict(80, (), 1.0, deviations=["model"])[0] == "NOT RUN"
    assert reported_verdict(80, equal, None)[0] == "INCONCLUSIVE"
    assert reported_verdict(70, equal, 1.0)[0] == "BETTER"
    assert reported_verdict(70, equal, 1.0, higher_is_better=False)[0] == "NOT REPRODUCED"
    assert reported_verdict(70, equal, 1.0, higher_is_better=None)[0] == "NOT REPRODUCED"
    assert reported_verdict(90, equal, 1.0, higher_is_better=None)[0] == "NOT REPRODUCED"
    assert (
        reported_verdict(80, (79.0, 79.0, 79.0), 1.0)[0] == "REPRODUCED"
    )  # on the border: within 1e-9
    assert reported_verdict(80, (math.nan, 80, 80), 1.0)[0] == "INCONCLUSIVE"
    narrow = reported_verdict(80, equal, 1.0)[2]
    assert reported_verdict(80, equal, 1.0, sd=1, sd_over="seeds", n_paper=5)[2][1] > narrow[1]
    assert reported_verdict(80, equal, 1.0, sd=1, sd_over="texts", n_paper=5)[2] == narrow


def test_default_tolerance():
    assert rules.default_tolerance(277, None, None, None) == 1.0
    assert rules.default_tolerance(1000, None, None, None) == 0.5
    assert rules.default_tolerance(1000, 1.5, "seeds", None) == pytest.approx(3 / math.sqrt(3))
    assert rules.default_tolerance(1000, 1.5, "texts", 500) == 0.5


def test_sign_flip_counts_ties_in_floating_sums():
    assert sign_flip(np.array([0.1, 0.2, 0.3, 0.0, 0.6]))[0] == 2 / 32
    # 0.1 + 0.2 - 0.3 is not 0 in floating point; the patterns that give it are ties all the same
    assert sign_flip(np.array([0.1, 0.2, -0.3]))[0] == sign_flip(np.array([1, 2, -3.0]))[0] == 5 / 8
    for_, against = sign_flip(np.random.default_rng(0).normal(0.3, 1, 200))
    t_for, _ = t_test(np.random.default_rng(0).normal(0.3, 1, 200))
    assert for_ == pytest.approx(t_for, abs=0.002)
    assert for_ + against == pytest.approx(1, abs=0.001)
    assert sign_flip(np.full(21, 1.0))[0] == pytest.approx(1 / 100_001, abs=1e-4)


def test_numbers_on_the_way():
    assert t_test(np.array([]))[0] == 1 and t_test(np.array([1.0]))[0] == 0.5
    assert evidence([1.0]).ci95 is None and evidence([]).effect is None
    assert evidence([1.0, -1.0, 0.0]).wins_ties_losses == [1, 1, 1]
    assert rules.collapse_bound(5) == pytest.approx(0.45, abs=0.005)
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    # n = 5, sd = 1: a t-test needs a true effect of about 1.7 to find it four times in five
    rng = np.random.default_rng(1)
    effect = rules.detectable(5, 1.0)
    detected = [t_test(rng.normal(effect, 1, 5))[0] <= 0.025 for _ in range(3000)]
    assert np.mean(detected) == pytest.approx(0.8, abs=0.03)
    assert rules.detectable(5, 1.0, t=-2) == pytest.approx(effect - 2)
    assert rules.detectable(5, 0.25, claims=2) == pytest.approx(0.51, abs=0.005)  # Holm's first


def test_exact_is_a_comparison():
    assert exact_verdict([0.7] * 5, 0) == "SUPPORTED"
    assert exact_verdict([0.7, 0.0], 0) == "CONTRADICTED"
    assert exact_verdict([-1.0, -2.0], -2) == "SUPPORTED"


def test_tidy_keeps_ten_digits():
    assert tidy({"a": [1 / 3, math.nan, np.float32(0.5), np.int64(3), 1e-17, True]}) == {
        "a": [0.3333333333, None, 0.5, 3, 0.0, True]
    }
