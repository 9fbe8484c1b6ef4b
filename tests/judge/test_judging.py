"""Runs to verdicts: claims of every kind through `judge`, with controls, failures and items."""

from __future__ import annotations

import math

import numpy as np
import pytest
from judged import IDS, ITEMS, STRONG, Paper, case

from benchmarks import rules, words
from benchmarks.claims import ClaimSpec
from benchmarks.rules import tidy
from benchmarks.scores import RESAMPLES, item_draws
from shared.protocol import BadInput

A = np.array([80, 81, 79, 80.5, 79.5, 80.2, 79.8, 80.1, 79.9, 80])
B = np.array([70, 83, 77, 82, 76, 81, 75, 84, 79, 78.0])


def test_judge_supported_and_scaled_down():
    row = case(STRONG).claim()
    assert (row.verdict, row.reason, row.n) == ("SUPPORTED", "", 5)
    np.testing.assert_allclose(row.d, STRONG)
    np.testing.assert_allclose(row.d_by_task["task"], STRONG)
    assert row.item_ci95[0] > 0 and row.item_ci95[0] < row.effect < row.item_ci95[1]
    assert case(STRONG).claim("cpu").verdict == "SUPPORTED (scaled down)"
    assert case([-x for x in STRONG]).claim().verdict == "CONTRADICTED"
    assert case([-x for x in STRONG], direction="lower").claim().verdict == "SUPPORTED"
    assert case(STRONG, unit="raw").claim().effect == pytest.approx(0.054)


def test_judge_items_decide_where_a_test_set_is_small():
    paper = case((1, 0.75, 1.25, 1, 1))
    assert (
        paper.claim().verdict == "SUPPORTED"
    )  # nested answers: the same items differ in every resample
    other = Paper().arm("method", [71, 70.75, 71.25, 71, 71], salt=1).arm("opponent", [70] * 5)
    row = other.claim()
    assert (row.verdict, row.reason) == ("INCONCLUSIVE", "items")


def test_item_interval_matches_the_binomial():
    row = Paper().arm("method", [80] * 8, salt=1).arm("opponent", [70] * 8, salt=2).claim()
    half = 1.96 * 100 * math.sqrt((0.16 + 0.21) / ITEMS)
    assert row.item_ci95 == pytest.approx([10 - half, 10 + half], abs=1.0)
    assert len(np.concatenate(list(item_draws(IDS)))) == RESAMPLES


def test_fast_path_gives_the_same_numbers():
    assert tidy(case(STRONG).claim()) == tidy(case(STRONG).claim(item_values=None))
    with pytest.raises(ValueError, match="not a mean over items"):
        case(STRONG).claim(item_values=lambda p: {"accuracy": p["right"] * 0.5})


def test_judge_not_run():
    paper = case(STRONG)
    paper.runs.pop()
    row = paper.claim()
    assert row.verdict == "NOT RUN" and "opponent on task, seed 104: missing" in row.reason
    crashed = case(STRONG)
    crashed.runs[0].status = "crashed"
    assert crashed.claim().verdict == "NOT RUN"
    assert Paper().arm("method", [70] * 5).claim().verdict == "NOT RUN"
    assert case(STRONG, tasks=["elsewhere"]).claim().verdict == "NOT RUN"
    assert case(STRONG, scales=["cpu"]).judge().claims == []


def test_judge_holm_counts_claims_not_run():
    d = (4.5, 1, 7, 3, 2.5)
    base = case(d)
    absent = {**base.spec, "id": "C2", "arms": {"method": "absent", "opponent": "opponent"}}
    row = base.claim(others=[absent, {**absent, "id": "C3"}])
    assert (row.verdict, row.reason) == ("INCONCLUSIVE", "Holm")
    assert base.claim(others=[{**absent, "role": "secondary"}]).verdict == "SUPPORTED"
    assert base.claim(others=[{**absent, "kind": "exact"}]).verdict == "SUPPORTED"
    exhibit = base.judge(others=[{**base.spec, "id": "C4", "role": "exhibit"}]).claims[1]
    assert exhibit.verdict is None and exhibit.p_holm_for is None and exhibit.effect > 0


def test_judge_controls():
    def with_control(percents):
        paper = case(STRONG, controls=["control"])
        return (paper.arm("control", percents) if percents else paper).claim()

    method = [70 + x for x in STRONG]
    assert with_control([70] * 5).verdict == "SUPPORTED"
    close = with_control([m - d for m, d in zip(method, (0.25, -0.25, 0, 0.25, -0.25))])
    assert close.verdict == "SUPPORTED, NOT ATTRIBUTED"
    np.testing.assert_allclose(close.controls[0].d, (0.25, -0.25, 0, 0.25, -0.25), atol=1e-9)
    assert with_control([m - d for m, d in zip(method, (2, -0.5, 1.5, -0.25, 1))]).verdict == (
        "SUPPORTED, ATTRIBUTION OPEN"
    )
    absent = with_control(None)
    assert absent.verdict == "SUPPORTED, ATTRIBUTION OPEN" and absent.controls[0].d == []


def test_judge_divergence_scores_chance_and_never_helps():
    one = case(STRONG)
    one.predictions.pop(("method", "task", 100))
    one.runs[0].status = "diverged"
    row = one.claim()
    assert row.d[0] == pytest.approx(-20) and row.diverged == {"method": 1, "opponent": 0}
    assert (row.verdict, row.reason) == ("INCONCLUSIVE", "t") and row.at_chance["method"] == 1
    two = Paper().arm("method", [None, None, 75, 76, 77]).arm("opponent", [70] * 5).claim()
    assert (two.verdict, two.reason) == ("INCONCLUSIVE", "failures")
    broken = (
        Paper()
        .arm("method", [76, 74, 77.5, 75, 74.5])
        .arm("opponent", [None, 70, 70, 70, 70])
        .claim()
    )
    assert broken.d[0] == 0
    margin = (
        Paper(threshold=-2)
        .arm("method", [69.5] * 5)
        .arm("opponent", [None, 70, 70, 70, 70])
        .claim()
    )
    assert (
        margin.d[0] == -2
    )  # at most the threshold: a broken baseline is no evidence for a margin either
    controlled = case(STRONG, controls=["control"]).arm("control", [None, 70, 70, 70, 70]).claim()
    assert controlled.controls[0].d[0] == 0


def test_judge_divergence_without_declared_chance_is_not_run():
    row = Paper().arm("method", [None, 75, 75, 76, 77]).arm("opponent", [70] * 5).claim(tasks={})
    assert row.verdict == "NOT RUN" and "declares no chance" in row.reason


def test_judge_nan_score_counts_as_diverged():
    paper = case(STRONG)
    paper.predictions["opponent", "task", 101]["right"] = np.full(ITEMS, np.nan)
    row = paper.claim()
    assert row.diverged == {"method": 0, "opponent": 1} and row.d[1] == 0


def test_judge_tasks_are_averaged_and_seeds_are_the_common_ones():
    paper = Paper(tasks=["task", "other"])
    paper.arm("method", [72] * 10).arm("opponent", [70] * 10)
    paper.arm("method", [76, 77, 76, 75, 76], task="other").arm("opponent", [70] * 5, task="other")
    row = paper.claim()
    assert row.n == 5
    np.testing.assert_allclose(row.d, [4, 4.5, 4, 3.5, 4])
    np.testing.assert_allclose(row.d_by_task["task"], [2] * 5)
    paper.spec["task_units"] = {"other": 2.0}
    np.testing.assert_allclose(paper.claim().d, [2.5, 2.75, 2.5, 2.25, 2.5])
    paper.spec["tasks"] = {"paper": ["task"], "cpu": ["other"]}
    assert paper.claim().n == 10 and paper.claim("cpu").n == 5


def test_arms_of_fewer_seeds_are_judged_on_those_that_they_share():
    d = [*STRONG, 6, 5, 7]
    paper = case(d, controls=["few", "gone"], sensitivity={"method": "rich", "opponent": "few"})
    paper.arm("few", [69] * 5).arm("rich", [75, 76] * 4)
    whole = paper.claim("cpu")
    assert (whole.n, whole.verdict) == (8, "SUPPORTED, ATTRIBUTION OPEN (scaled down)")
    few, gone = whole.controls
    np.testing.assert_allclose(few.d, np.add(STRONG, 1))
    assert (few.outcome, gone.outcome, gone.d) == ("BEATEN", "OPEN", [])
    assert (len(whole.sensitivity.d), whole.sensitivity.outcome) == (5, "SHOWN")
    assert whole.diverged == {"few": 0, "method": 0, "opponent": 0}
    assert words.fewer(few, whole) == ", 5 of 8 seeds"
    paper.spec |= {"arms": {"method": "method", "opponent": "few"}, "controls": ["opponent"]}
    row = paper.claim()
    assert row.n == 5 and words.fewer(row.controls[0], row) == ""
    np.testing.assert_allclose(row.d, np.add(STRONG, 1))
    paper.runs = [run for run in paper.runs if run.key != ("few", "task", 104)]
    assert "few on task, seed 104: missing" in paper.claim().reason  # declared: not left out


def test_case_5_through_judge_four_tasks_are_five_replicates():
    names = [f"task{i}" for i in range(4)]
    paper = Paper(tasks=names)
    for name in names:
        paper.arm("method", [70 + x for x in (8, 7, -1.5, 6, 0.5)], task=name).arm(
            "opponent", [70] * 5, task=name
        )
    row = paper.claim()
    assert (row.verdict, row.reason, row.n) == ("INCONCLUSIVE", "t", 5)


def test_judge_contrast():
    weights = {"method@few": 1, "plain@few": -1, "method@many": -1, "plain@many": 1}
    paper = Paper(
        kind="contrast", arms={"weights": weights}, tasks=["few", "many"], controls=["control"]
    )
    paper.arm("method", [76, 77, 78, 77, 76], task="few").arm("plain", [70] * 5, task="few")
    paper.arm("method", [81, 81, 80, 80, 81], task="many").arm("plain", [80] * 5, task="many")
    paper.arm("control", [71] * 5, task="few").arm("control", [80] * 5, task="many")
    row = paper.claim()
    np.testing.assert_allclose(row.d, [5, 6, 8, 7, 5])
    np.testing.assert_allclose(row.controls[0].d, [4, 5, 7, 6, 4])
    assert row.verdict == "SUPPORTED" and row.item_ci95[0] > 0
    paper.runs[[run.arm for run in paper.runs].index("plain") + 2].status = "diverged"
    declared = {task: {"chance": {"accuracy": 0.5}} for task in ("few", "many")}
    assert paper.claim(tasks=declared).d[2] == 0


def test_judge_spread():
    paper = Paper(kind="spread", items="test").arm("method", A - 0.0).arm("opponent", B - 0.0)
    scores = {"method": A, "opponent": B}
    for key, predictions in paper.predictions.items():  # every item is worth the arm's score
        predictions["right"] = np.full(ITEMS, scores[key[0]][key[2] - 100] / 100)
    row = paper.claim()
    np.testing.assert_allclose(row.d, rules.spread_differences(A, B))
    assert row.verdict == "SUPPORTED" and row.item_ci95 is None
    short = Paper(kind="spread").arm("method", A[:8]).arm("opponent", B[:8]).claim()
    assert (short.verdict, short.reason) == ("INCONCLUSIVE", "seeds")


def gap(arms):
    first, second = arms["method"], arms["opponent"]
    return float(np.mean(first["right"]) - np.mean(second["right"]))


def test_judge_statistic_and_its_control():
    arms = {"method": ["method", "opponent"], "name": "gap"}
    paper = case(STRONG, kind="statistic", arms=arms, metric=None, controls=["control"])
    paper.arm("control", [71] * 5)
    row = paper.claim(statistics={"gap": gap})
    np.testing.assert_allclose(row.d, STRONG)
    np.testing.assert_allclose(row.controls[0].d, [x - 1 for x in STRONG])
    assert row.verdict == "SUPPORTED" and row.metric == "gap"
    plain = case(STRONG).claim()
    np.testing.assert_allclose(row.item_ci95, plain.item_ci95)
    with pytest.raises(BadInput, match="did you mean 'gaps'"):
        paper.claim(statistics={"gaps": gap})


def test_judge_exact():
    paper = Paper(kind="exact", metric="evaluations", items="none: counts", direction="lower")
    paper.arm("method", [70] * 3, metrics={"evaluations": 5}).arm(
        "opponent", [70] * 3, metrics={"evaluations": 6}
    )
    row = paper.claim()
    assert row.verdict == "SUPPORTED" and row.p_for is None and row.effect == 1
    paper.spec["arms"] = {"method": "opponent", "opponent": "method"}
    assert paper.claim().verdict == "CONTRADICTED"


def test_judge_items_as_replicates():
    paper = Paper(unit="item", items="none: items are the replicates").arm("method", [80], salt=1)
    paper.arm("opponent", [60], salt=2)
    row = paper.claim("cpu")
    assert row.n == ITEMS and row.verdict == "SUPPORTED for this model (scaled down)"
    assert row.effect == pytest.approx(0.2) and rules.plain(row.verdict) == "SUPPORTED"
    assert row.p_for == pytest.approx(row.flip_for, abs=1e-3)


CLOSE = (0.25, -0.25, 0, 0.25, -0.25, 0, 0, 0.25)  # with answers nested: item interval about +-0.5
PAIR = {"method": "good", "opponent": "poor"}


def positive(d, **spec):
    """A claim with differences CLOSE and a positive control with differences d."""
    paper = case(CLOSE, **{"sensitivity": PAIR, "material": 1.0, **spec})
    return paper.arm("good", [60 + x for x in d]).arm("poor", [60] * len(d))


@pytest.mark.parametrize(
    ("d", "verdict", "outcome"),
    [
        ((3, 4, 3.5, 5, 4, 3, 4, 4), "NO MATERIAL DIFFERENCE", ("SHOWN", "")),
        ((0.25, -1, 1, 0, 0.5, -0.5, 1, 0), "INSENSITIVE", ("NOT SHOWN", "t")),
    ],
)
def test_judge_sensitivity(d, verdict, outcome):
    row = positive(d).claim()
    assert (row.verdict, row.sensitivity.outcome, row.sensitivity.reason) == (verdict, *outcome)
    np.testing.assert_allclose(row.sensitivity.d, d)
    assert row.p_within == row.p_holm_within < 0.025 and max(row.flip_within) == 1 / 256
    falls = positive([-x for x in d], direction="lower").claim()
    np.testing.assert_allclose(falls.sensitivity.d, d)
    raw = positive([-x for x in d], direction="lower", unit="raw", material=0.01).claim()
    assert raw.verdict == verdict and raw.sensitivity.effect == pytest.approx(np.mean(d) / 100)
    rival = positive(d)
    rival.runs[[run.arm for run in rival.runs].index("poor")].status = "diverged"
    assert rival.claim().sensitivity.d[0] == 0  # a broken baseline shows nothing


def test_a_positive_control_that_did_not_run_is_missed_where_the_verdict_rests_on_it():
    row = case(CLOSE, sensitivity=PAIR).claim()
    assert row.verdict == "NOT RUN" and row.sensitivity.outcome == "NOT RUN"
    assert "positive control: good on task, seed 100" in row.reason
    assert case(STRONG, sensitivity=PAIR).claim().verdict == "SUPPORTED"
    none = case(CLOSE, sensitivity="none: no arms").claim()
    assert (none.verdict, none.sensitivity.outcome) == ("NO MATERIAL DIFFERENCE", "none")
    assert case(CLOSE).claim().sensitivity is None
    at_t = case(CLOSE, threshold=-2, sensitivity="none: no arms").claim()
    assert (at_t.verdict, at_t.p_within, at_t.p_holm_within) == ("SUPPORTED", None, None)


def test_sensitivity_of_a_contrast_and_of_a_statistic():
    weights = {"method@few": 1, "opponent@few": -1, "method@many": -1, "opponent@many": 1}
    contrast = Paper(kind="contrast", arms={"weights": weights}, tasks=[], sensitivity=PAIR)
    for task, gain in (("few", 4), ("many", 8)):
        contrast.arm("method", [70] * 8, task=task).arm("opponent", [70] * 8, task=task)
        contrast.arm("good", [60 + gain] * 8, task=task).arm("poor", [60] * 8, task=task)
    row = contrast.claim()
    np.testing.assert_allclose(row.sensitivity.d, [6] * 8)  # averaged over the tasks
    assert row.verdict == "NO MATERIAL DIFFERENCE"
    arms = {"method": ["method", "opponent"], "name": "gap"}
    statistic = positive((3, 4, 3.5, 5, 4, 3, 4, 4), kind="statistic", arms=arms, metric=None)
    row = statistic.claim(statistics={"gap": gap})
    np.testing.assert_allclose(row.sensitivity.d, [3, 4, 3.5, 5, 4, 3, 4, 4])
    assert row.verdict == "NO MATERIAL DIFFERENCE"


def test_sensitivity_of_one_arm_on_two_tasks():
    """Three times the labels against one: the task says how many."""
    labels = {"method": "opponent@many", "opponent": "opponent@task"}
    paper = case(CLOSE, sensitivity=labels).arm("opponent", [75] * 8, task="many")
    row = paper.claim()
    np.testing.assert_allclose(row.sensitivity.d, [5] * 8)
    assert row.verdict == "NO MATERIAL DIFFERENCE"


def test_within_is_adjusted_over_the_claims_that_ask_for_it():
    paper = case(CLOSE, role="secondary")
    spec = dict(paper.spec)
    far = {**spec, "id": "C2", "arms": {"method": "good", "opponent": "opponent"}}
    margin = {**far, "id": "C3", "threshold": -1}
    missing = {**far, "id": "C4", "arms": {"method": "none", "opponent": "opponent"}}
    others = [ClaimSpec.model_validate(s) for s in (far, margin, missing)]
    paper.arm("good", [69 + x for x in CLOSE])
    first, second, third, _ = paper.judge(others=others).claims
    assert first.p_holm_within == pytest.approx(3 * first.p_within)  # C1, C2, C4
    assert second.p_holm_within == pytest.approx(2 * second.p_within)
    assert third.p_holm_within is None  # of t = -1 it is not asked


def test_a_result_keeps_the_rule_of_its_schema():
    paper = positive((3, 4, 3.5, 5, 4, 3, 4, 4))
    old, new = (paper.judge(schema=schema).claims[0] for schema in (1, 2))
    assert (old.verdict, old.reason) == ("INCONCLUSIVE", "t")
    assert new.verdict == "NO MATERIAL DIFFERENCE"
    assert (old.p_within, old.p_holm_within, old.flip_within, old.sensitivity) == (None,) * 4
    assert old.detectable == new.detectable and old.p_for == new.p_for
    small = case((1, 0.75, 1.25, 1, 1), material=3)
    words = [small.judge(schema=schema).claims[0].verdict for schema in (1, 2)]
    assert words == ["SUPPORTED", "SUPPORTED, but smaller than 3"]
