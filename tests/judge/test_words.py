"""Words for readers: numbers, intervals, what is compared and why a verdict is what it is."""

from __future__ import annotations

import pytest
import synthetic_results

from benchmarks.arms import factors, scores, seeds_of
from benchmarks.claims import Arms, load_claims
from benchmarks.recorded import Claim, Results
from benchmarks.words import formula, in_words, interval, number, why

OF_SD_1 = [-1.26491, -0.63246, 0.0, 0.63246, 1.26491]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        *[(None, "n/a"), (float("nan"), "n/a")],
        *[(1234567, "1,234,567"), (150.0, "150"), (12.345, "12.35"), (-0.5, "-0.50")],
        *[(0.0123, "0.0123"), (0.012, "0.0120"), (-5.44e-5, "-0.0000544")],
        *[(-5.44e-10, "-5.44e-10"), (0.0, "0.00")],
    ],
)
def test_numbers(value, shown):
    assert number(value) == shown


def test_intervals_share_their_decimals():
    assert interval([-0.00658, 2.36]) == "-0.01 to +2.36"
    assert interval([-5.44e-05, 0.0356]) == "-0.0001 to +0.0356"
    assert interval([None, 1.0]) == "n/a" and interval(None) == "n/a"


def test_a_metric_is_in_points_where_its_own_task_has_shares():
    """`score` of a planted task may count something: accuracies of another stay in points."""
    runs = [
        {
            "arm": "a",
            "task": task,
            "seed": 0,
            "status": "finished",
            "metrics": {"score": value, "kept": 0.5},
        }
        for task, value in (("documentation", 0.64), ("planted", 1.25))
    ]
    claim = {"id": "c", "metric": "kept", "unit": "raw"}
    document = {"paper": "p", "scale": "cpu", "runs": runs, "claims": [claim]}
    result = Results.model_validate(document)
    shown = scores(result, None)
    assert shown["documentation", "score", "a"] == [(0, 64.0, False)]
    assert shown["planted", "score", "a"] == [(0, 1.25, False)]
    assert shown["planted", "kept", "a"] == [(0, 0.5, False)]
    assert factors(result)["documentation", "score"] == 100.0
    assert factors(result)["planted", "score"] == factors(result)["planted", "kept"] == 1.0


def test_where_lower_is_better_the_difference_is_written_the_other_way_round():
    score = Claim(id="c", arms=Arms(method="m", opponent="o"))
    cost = score.model_copy(update={"direction": "lower"})
    assert formula(cost) == "o - m" and formula(score) == "m - o"
    assert formula(cost, "c") == "c - m" and formula(score, "c") == "m - c"
    spreads = [claim.model_copy(update={"kind": "spread"}) for claim in (cost, score)]
    assert formula(spreads[0]) == formula(spreads[1])


def test_a_claim_that_holds_says_which_control_leaves_it_open():
    controls = [
        {"arm": "a", "outcome": "OPEN"},
        {"arm": "b", "outcome": "NOT BEATEN"},
        {"arm": "c"},
    ]

    def said(verdict):
        claim = {"id": "c", "controls": controls, "verdict": verdict}
        return why(Claim.model_validate(claim))

    whole = "the claim holds, but the control b does as well without the idea"
    assert said("SUPPORTED, NOT ATTRIBUTED (scaled down)") == whole
    open_ = "controls a, c were neither beaten nor shown to do as well"
    assert said("SUPPORTED, ATTRIBUTION OPEN").endswith(open_)
    assert said("SUPPORTED") == ""


SHOWN_NOT = {
    **{"arms": {"method": "a", "opponent": "b"}, "d": [0.2] * 5, "effect": 0.2},
    **{"ci95": [-1.0, 1.4], "outcome": "NOT SHOWN", "reason": "t"},
}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            {"verdict": "NO MATERIAL DIFFERENCE (scaled down)"},
            "these runs exclude a difference of 1 point either way",
        ),
        (
            {"verdict": "NO MATERIAL DIFFERENCE", "unit": "raw", "metric": "f1", "material": 0.05},
            "these runs exclude a difference of 0.05 f1 either way",
        ),
        (
            {"verdict": "INSENSITIVE", "reason": "sensitivity", "sensitivity": SHOWN_NOT},
            "the experiment could not have found it: its positive control a - b NOT SHOWN, +0.20 "
            "(-1.00 to +1.40); first failed: t",
        ),
        (
            {"verdict": "INCONCLUSIVE", "reason": "t", "n": 10, "detectable": 3.0},
            "the t-test over seeds does not reach 0.025 on either side; about 90 seeds would find "
            "a difference of 1 point",
        ),
        (  # the same at the level of one claim: a t of more degrees of freedom asks for less
            {"verdict": "INCONCLUSIVE", "reason": "t", "n": 5, "detectable": 1.682, "d": OF_SD_1},
            "the t-test over seeds does not reach 0.025 on either side; about 10 seeds would find "
            "a difference of 1 point",
        ),
        (
            {"verdict": "INCONCLUSIVE", "reason": "t", "n": 10, "detectable": 0.4},
            "the t-test over seeds does not reach 0.025 on either side",
        ),
        (
            {"verdict": "SUPPORTED, but smaller than 1 (scaled down)"},
            "these runs also exclude a difference of 1 point or more",
        ),
        ({"verdict": "SUPPORTED"}, ""),
    ],
)
def test_a_verdict_in_words(fields, words):
    assert why(Claim.model_validate({"id": "c", **fields})) == words


PLAIN = [  # of a claim whose verdict is plain; what the page says of it
    ({"verdict": "SUPPORTED (scaled down)", "item_ci95": [0.1, 2.0]},
     "the t-test and the sign-flip test over seeds and the interval over test items agree that the "
     "difference lies above 0"),
    ({"verdict": "CONTRADICTED", "threshold": -2.0},
     "the t-test and the sign-flip test over seeds agree that the difference lies below -2"),
    ({"verdict": "SUPPORTED", "unit": "item", "controls": [{"arm": "c", "outcome": "BEATEN"}]},
     "the t-test and the sign-flip test over test items agree that the difference lies above 0; "
     "every control is beaten"),
    ({"verdict": "CONTRADICTED", "kind": "exact"},
     "the counts are against the claim in at least one seed"),
    ({"verdict": "SUPPORTED, but smaller than 1"},
     "these runs also exclude a difference of 1 point or more"),
    ({"verdict": "NOT RUN"}, ""),
]  # fmt: skip


@pytest.mark.parametrize("fields, words", PLAIN)
def test_a_plain_verdict_in_words(fields, words):
    assert in_words(Claim.model_validate({"id": "c", **fields})) == words


def test_a_claim_names_the_seeds_of_its_own_tasks():
    numbers = {"t": 3, "u": 5}
    runs = [
        {"arm": arm, "task": task, "seed": seed}
        for arm in "mo"
        for task, n in numbers.items()
        for seed in range(100, 100 + n)
    ]
    seeds = list(range(100, 105))
    document = {"paper": "p", "scale": "cpu", "seeds": seeds, "runs": runs}
    data = Results.model_validate(document)
    claim = Claim(id="c", arms=Arms(method="m", opponent="o"), tasks=["t"], n=3)
    assert seeds_of(claim, data) == [100, 101, 102]
    assert seeds_of(claim.model_copy(update={"tasks": ["u"], "n": 5}), data) == seeds
    assert seeds_of(claim.model_copy(update={"n": 40}), data) == seeds  # items are replicates


def test_a_diverged_run_counts_as_chance_in_the_mean(checkout):
    result, claims = synthetic_results.result(), load_claims(checkout / "autolora/claims.yaml")
    points = scores(result, claims)["digits", "accuracy", "autolora"]
    assert [(seed, value) for seed, value, diverged in points if diverged] == [(103, 10.0)]
    assert len(points) == len(synthetic_results.SEEDS)
