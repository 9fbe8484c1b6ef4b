"""Synthetic cases with known verdicts (docs/verdicts.md, section 9), and the borders between them."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import rules
from benchmarks.claims import check_claim, check_names, load_claims
from benchmarks.rules import (
    attribute,
    claim_verdict,
    control_outcome,
    evidence,
    exact_verdict,
    holm,
    reported_verdict,
    sign_flip,
    t_test,
    tidy,
)
from benchmarks.scores import RESAMPLES, item_draws
from benchmarks.verdicts import judge
from shared.protocol import BadInput

CASE1 = (1.2, 0.8, 1.5, 1.0, 0.9)
SAME_SIDE = "the side of the mean"


def verdict(d, t=0.0, others=(), item=SAME_SIDE, kind="difference", failures=False):
    """Verdict and reason of one claim whose role also holds claims with these p (for)."""
    found = evidence(d, t)
    adjusted = [holm([found[f"p_{side}"], *others])[0] for side in ("for", "against")]
    if item == SAME_SIDE:
        item = [t + 0.01, t + 9] if found["effect"] > t else [t - 9, t - 0.01]
    return claim_verdict(found, t, (adjusted[0], adjusted[1]), item, kind=kind, failures=failures)


def test_case_1_supported_with_its_interval():
    assert verdict(CASE1) == ("SUPPORTED", "")
    assert evidence(CASE1)["ci95"] == pytest.approx([0.73, 1.43], abs=0.01)


def test_case_2_contradicted():
    assert verdict([-x for x in CASE1]) == ("CONTRADICTED", "")


def test_case_3_sign_flip():
    d = (1.2, 0.8, 1.5, 1.0, -0.1)
    found = evidence(d)
    assert found["ci95"] == pytest.approx([0.13, 1.63], abs=0.01)
    assert found["p_for"] == pytest.approx(0.016, abs=0.001)
    assert found["flip_for"] == 0.0625
    assert verdict(d) == ("INCONCLUSIVE", "sign-flip")


def test_case_4_tasks_are_not_replicates():
    rng = np.random.default_rng(0)
    assert verdict(rng.normal(2, 0.1, (4, 5)).mean(axis=1)) == ("INCONCLUSIVE", "seeds")


def test_case_5_t():
    d = (1.6, 1.4, -0.3, 1.2, 0.1)
    assert verdict(d) == ("INCONCLUSIVE", "t")
    assert evidence(d)["ci95"] == pytest.approx([-0.25, 1.85], abs=0.01)
    assert t_test(np.repeat(d, 4))[0] == pytest.approx(0.0001, abs=0.0001)


def test_case_6_holm():
    d = (0.9, 0.2, 1.4, 0.6, 0.5)
    p = evidence(d)["p_for"]
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


def control(d, material=1.0, item=SAME_SIDE):
    found = evidence(d)
    half = 0.01
    item = [found["effect"] - half, found["effect"] + half] if item == SAME_SIDE else item
    return control_outcome(found, item, material)


def test_case_10_not_attributed():
    d = (0.1, -0.2, 0.05, 0.15, -0.1)
    assert control(d) == "NOT BEATEN"
    assert attribute("SUPPORTED", [control(d)]) == "SUPPORTED, NOT ATTRIBUTED"
    assert control(d, item=[-0.5, 1.0]) == "OPEN"  # the items leave room for a material difference


def test_case_11_attribution_open():
    d = (2, -0.5, 1.5, -0.2, 1.0)
    assert evidence(d)["ci95"] == pytest.approx([-0.58, 2.10], abs=0.01)
    assert attribute("SUPPORTED", [control(d)]) == "SUPPORTED, ATTRIBUTION OPEN"
    assert attribute("SUPPORTED", ["BEATEN", "OPEN"]) == "SUPPORTED, ATTRIBUTION OPEN"
    assert attribute("SUPPORTED", ["NOT BEATEN", "OPEN"]) == "SUPPORTED, NOT ATTRIBUTED"
    assert attribute("SUPPORTED", ["BEATEN"]) == attribute("SUPPORTED", []) == "SUPPORTED"
    assert attribute("CONTRADICTED", ["OPEN"]) == "CONTRADICTED"


def test_case_12_failures():
    assert verdict((-30, *CASE1[1:])) == ("INCONCLUSIVE", "t")
    assert verdict((-30, -30, *CASE1[2:]), failures=True) == ("INCONCLUSIVE", "failures")


A = np.array([80, 81, 79, 80.5, 79.5, 80.2, 79.8, 80.1, 79.9, 80])
B = np.array([70, 83, 77, 82, 76, 81, 75, 84, 79, 78.0])


def spread(n):
    d = rules.spread_differences(A[:n], B[:n])
    found = evidence(d)
    return claim_verdict(
        found, 0, (found["p_for"], found["p_against"]), None, items=False, kind="spread"
    )


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
    assert evidence([1.0])["ci95"] is None and evidence([])["effect"] is None
    assert evidence([1.0, -1.0, 0.0])["wins_ties_losses"] == [1, 1, 1]
    assert rules.collapse_bound(5) == pytest.approx(0.45, abs=0.005)
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    # n = 5, sd = 1: a t-test needs a true effect of about 1.7 to find it four times in five
    rng = np.random.default_rng(1)
    effect = rules.detectable(5, 1.0)
    found = [t_test(rng.normal(effect, 1, 5))[0] <= 0.025 for _ in range(3000)]
    assert np.mean(found) == pytest.approx(0.8, abs=0.03)
    assert rules.detectable(5, 1.0, t=-2) == pytest.approx(effect - 2)


def test_exact_is_a_comparison():
    assert exact_verdict([0.7] * 5, 0) == "SUPPORTED"
    assert exact_verdict([0.7, 0.0], 0) == "CONTRADICTED"
    assert exact_verdict([-1.0, -2.0], -2) == "SUPPORTED"


def test_tidy_keeps_ten_digits():
    assert tidy({"a": [1 / 3, math.nan, np.float32(0.5), np.int64(3), 1e-17, True]}) == {
        "a": [0.3333333333, None, 0.5, 3, 0.0, True]
    }


# ---------------------------------------------------------------- through judge

ITEMS = 400
IDS = np.arange(ITEMS)


def score(predictions):
    return {
        "accuracy": float(np.mean(predictions["right"])),
        "size": float(np.mean(predictions["right"] > 0.5)),
    }


def item_values(predictions):
    return {"accuracy": predictions["right"].astype(float)}


def answers(percent, salt=0, items=ITEMS):
    """Predictions of which exactly this share is right; which ones they are is fixed by the salt."""
    order = np.random.default_rng(salt).permutation(items)
    return {"id": np.arange(items), "right": (order < round(percent * items / 100)).astype(np.int8)}


class Paper:
    """Runs by hand: arms with an accuracy (in percent) per seed, judged at scale paper unless said otherwise."""

    def __init__(self, **spec):
        self.spec = {
            "id": "C1", "statement": "s", "source": "x", "kind": "difference", "role": "primary",
            "arms": {"method": "method", "opponent": "opponent"}, "tasks": ["task"], "metric": "accuracy",
            "controls": "none: a test", "items": "test", "scales": ["cpu", "paper"], **spec,
        }  # fmt: skip
        self.nodes, self.runs, self.predictions, self.more = [], [], {}, {}

    def arm(self, arm, percents, task="task", **run):
        for seed, percent in enumerate(percents, 100):
            self.nodes.append(SimpleNamespace(key=(arm, task, seed), stage=False))
            status = "finished" if percent is not None else run.get("status", "diverged")
            entry = {
                "arm": arm,
                "task": task,
                "seed": seed,
                "status": status,
                "metrics": dict(run.get("metrics", {})),
            }
            entry |= {
                "state_sha256": f"{arm}{task}{seed}",
                "split_sha256": f"{task}{seed}",
                "selection": "last",
            }
            self.runs.append(entry)
            if percent is not None:
                self.predictions[arm, task, seed] = answers(percent, run.get("salt", 0))
        return self

    def judge(self, scale="paper", **more):
        claims = {"claims": [self.spec, *more.pop("others", [])], "gates": more.pop("gates", [])}
        claims["targets"] = more.pop("targets", [])
        claims["tasks"] = more.pop(
            "tasks", {"task": {"chance": {"accuracy": 0.5, "gap": 0.0, "count": 9}}}
        )
        given = {"statistics": {}, "reported": None, "item_values": item_values, **more}
        recorded = given.pop("recorded", [])
        return judge(claims=claims, scale=scale, nodes=self.nodes, runs=self.runs, gates=recorded,
                     predictions=self.predictions, score=score, **given)  # fmt: skip

    def claim(self, scale="paper", **more):
        return self.judge(scale, **more)["claims"][0]


def case(d, base=70.0, n=None, **spec):
    """The opponent at `base` on every seed, the method d points above it."""
    return Paper(**spec).arm("method", [base + x for x in d]).arm("opponent", [base] * len(d))


STRONG = (
    6,
    4,
    7.5,
    5,
    4.5,
)  # case 1 times five: multiples of 0.25 points, and beyond the noise of 400 items


def test_judge_supported_and_scaled_down():
    row = case(STRONG).claim()
    assert (row["verdict"], row["reason"], row["n"]) == ("SUPPORTED", "", 5)
    np.testing.assert_allclose(row["d"], STRONG)
    np.testing.assert_allclose(row["d_by_task"]["task"], STRONG)
    assert row["item_ci95"][0] > 0 and row["item_ci95"][0] < row["effect"] < row["item_ci95"][1]
    assert case(STRONG).claim("cpu")["verdict"] == "SUPPORTED (scaled down)"
    assert case([-x for x in STRONG]).claim()["verdict"] == "CONTRADICTED"
    assert case([-x for x in STRONG], direction="lower").claim()["verdict"] == "SUPPORTED"
    assert case(STRONG, unit="raw").claim()["effect"] == pytest.approx(0.054)


def test_judge_items_decide_where_a_test_set_is_small():
    paper = case((1, 0.75, 1.25, 1, 1))
    assert (
        paper.claim()["verdict"] == "SUPPORTED"
    )  # nested answers: the same items differ in every resample
    other = Paper().arm("method", [71, 70.75, 71.25, 71, 71], salt=1).arm("opponent", [70] * 5)
    row = other.claim()
    assert (row["verdict"], row["reason"]) == ("INCONCLUSIVE", "items")


def test_item_interval_matches_the_binomial():
    row = Paper().arm("method", [80] * 8, salt=1).arm("opponent", [70] * 8, salt=2).claim()
    half = 1.96 * 100 * math.sqrt((0.16 + 0.21) / ITEMS)
    assert row["item_ci95"] == pytest.approx([10 - half, 10 + half], abs=1.0)
    assert len(np.concatenate(list(item_draws(IDS)))) == RESAMPLES


def test_fast_path_gives_the_same_numbers():
    assert tidy(case(STRONG).claim()) == tidy(case(STRONG).claim(item_values=None))
    with pytest.raises(ValueError, match="not a mean over items"):
        case(STRONG).claim(item_values=lambda p: {"accuracy": p["right"] * 0.5})


def test_judge_not_run():
    paper = case(STRONG)
    paper.runs.pop()
    row = paper.claim()
    assert row["verdict"] == "NOT RUN" and "opponent on task, seed 104: missing" in row["reason"]
    crashed = case(STRONG)
    crashed.runs[0]["status"] = "crashed"
    assert crashed.claim()["verdict"] == "NOT RUN"
    assert Paper().arm("method", [70] * 5).claim()["verdict"] == "NOT RUN"
    assert case(STRONG, tasks=["elsewhere"]).claim()["verdict"] == "NOT RUN"
    assert case(STRONG, scales=["cpu"]).judge()["claims"] == []


def test_judge_holm_counts_claims_not_run():
    d = (4.5, 1, 7, 3, 2.5)
    base = case(d)
    absent = {**base.spec, "id": "C2", "arms": {"method": "absent", "opponent": "opponent"}}
    row = base.claim(others=[absent, {**absent, "id": "C3"}])
    assert (row["verdict"], row["reason"]) == ("INCONCLUSIVE", "Holm")
    assert base.claim(others=[{**absent, "role": "secondary"}])["verdict"] == "SUPPORTED"
    assert base.claim(others=[{**absent, "kind": "exact"}])["verdict"] == "SUPPORTED"
    exhibit = base.judge(others=[{**base.spec, "id": "C4", "role": "exhibit"}])["claims"][1]
    assert exhibit["verdict"] is None and exhibit["p_holm_for"] is None and exhibit["effect"] > 0


def test_judge_controls():
    def with_control(percents):
        paper = case(STRONG, controls=["control"])
        return (paper.arm("control", percents) if percents else paper).claim()

    method = [70 + x for x in STRONG]
    assert with_control([70] * 5)["verdict"] == "SUPPORTED"
    close = with_control([m - d for m, d in zip(method, (0.25, -0.25, 0, 0.25, -0.25))])
    assert close["verdict"] == "SUPPORTED, NOT ATTRIBUTED"
    np.testing.assert_allclose(close["controls"][0]["d"], (0.25, -0.25, 0, 0.25, -0.25), atol=1e-9)
    assert with_control([m - d for m, d in zip(method, (2, -0.5, 1.5, -0.25, 1))])["verdict"] == (
        "SUPPORTED, ATTRIBUTION OPEN"
    )
    absent = with_control(None)
    assert absent["verdict"] == "SUPPORTED, ATTRIBUTION OPEN" and absent["controls"][0]["d"] == []


def test_judge_divergence_scores_chance_and_never_helps():
    one = case(STRONG)
    one.predictions.pop(("method", "task", 100))
    one.runs[0]["status"] = "diverged"
    row = one.claim()
    assert row["d"][0] == pytest.approx(-20) and row["diverged"] == {"method": 1, "opponent": 0}
    assert (row["verdict"], row["reason"]) == ("INCONCLUSIVE", "t") and row["at_chance"][
        "method"
    ] == 1
    two = Paper().arm("method", [None, None, 75, 76, 77]).arm("opponent", [70] * 5).claim()
    assert (two["verdict"], two["reason"]) == ("INCONCLUSIVE", "failures")
    broken = (
        Paper()
        .arm("method", [76, 74, 77.5, 75, 74.5])
        .arm("opponent", [None, 70, 70, 70, 70])
        .claim()
    )
    assert broken["d"][0] == 0
    margin = (
        Paper(threshold=-2)
        .arm("method", [69.5] * 5)
        .arm("opponent", [None, 70, 70, 70, 70])
        .claim()
    )
    assert (
        margin["d"][0] == -2
    )  # at most the threshold: a broken baseline is no evidence for a margin either
    controlled = case(STRONG, controls=["control"]).arm("control", [None, 70, 70, 70, 70]).claim()
    assert controlled["controls"][0]["d"][0] == 0


def test_judge_divergence_without_declared_chance_is_not_run():
    row = Paper().arm("method", [None, 75, 75, 76, 77]).arm("opponent", [70] * 5).claim(tasks={})
    assert row["verdict"] == "NOT RUN" and "declares no chance" in row["reason"]


def test_judge_nan_score_counts_as_diverged():
    paper = case(STRONG)
    paper.predictions["opponent", "task", 101]["right"] = np.full(ITEMS, np.nan)
    row = paper.claim()
    assert row["diverged"] == {"method": 0, "opponent": 1} and row["d"][1] == 0


def test_judge_tasks_are_averaged_and_seeds_are_the_common_ones():
    paper = Paper(tasks=["task", "other"])
    paper.arm("method", [72] * 10).arm("opponent", [70] * 10)
    paper.arm("method", [76, 77, 76, 75, 76], task="other").arm("opponent", [70] * 5, task="other")
    row = paper.claim()
    assert row["n"] == 5
    np.testing.assert_allclose(row["d"], [4, 4.5, 4, 3.5, 4])
    np.testing.assert_allclose(row["d_by_task"]["task"], [2] * 5)
    paper.spec["task_units"] = {"other": 2.0}
    np.testing.assert_allclose(paper.claim()["d"], [2.5, 2.75, 2.5, 2.25, 2.5])
    paper.spec["tasks"] = {"paper": ["task"], "cpu": ["other"]}
    assert paper.claim()["n"] == 10 and paper.claim("cpu")["n"] == 5


def test_case_5_through_judge_four_tasks_are_five_replicates():
    names = [f"task{i}" for i in range(4)]
    paper = Paper(tasks=names)
    for name in names:
        paper.arm("method", [70 + x for x in (8, 7, -1.5, 6, 0.5)], task=name).arm(
            "opponent", [70] * 5, task=name
        )
    row = paper.claim()
    assert (row["verdict"], row["reason"], row["n"]) == ("INCONCLUSIVE", "t", 5)


def test_judge_contrast():
    weights = {"method@few": 1, "plain@few": -1, "method@many": -1, "plain@many": 1}
    paper = Paper(
        kind="contrast", arms={"weights": weights}, tasks=["few", "many"], controls=["control"]
    )
    paper.arm("method", [76, 77, 78, 77, 76], task="few").arm("plain", [70] * 5, task="few")
    paper.arm("method", [81, 81, 80, 80, 81], task="many").arm("plain", [80] * 5, task="many")
    paper.arm("control", [71] * 5, task="few").arm("control", [80] * 5, task="many")
    row = paper.claim()
    np.testing.assert_allclose(row["d"], [5, 6, 8, 7, 5])
    np.testing.assert_allclose(row["controls"][0]["d"], [4, 5, 7, 6, 4])
    assert row["verdict"] == "SUPPORTED" and row["item_ci95"][0] > 0
    paper.runs[[r["arm"] for r in paper.runs].index("plain") + 2]["status"] = "diverged"
    declared = {task: {"chance": {"accuracy": 0.5}} for task in ("few", "many")}
    assert paper.claim(tasks=declared)["d"][2] == 0


def test_judge_spread():
    paper = Paper(kind="spread", items="test").arm("method", A - 0.0).arm("opponent", B - 0.0)
    scores = {"method": A, "opponent": B}
    for (
        key,
        predictions,
    ) in paper.predictions.items():  # exact scores: every item is worth the arm's score
        predictions["right"] = np.full(ITEMS, scores[key[0]][key[2] - 100] / 100)
    row = paper.claim()
    np.testing.assert_allclose(row["d"], rules.spread_differences(A, B))
    assert row["verdict"] == "SUPPORTED" and row["item_ci95"] is None
    short = Paper(kind="spread").arm("method", A[:8]).arm("opponent", B[:8]).claim()
    assert (short["verdict"], short["reason"]) == ("INCONCLUSIVE", "seeds")


def gap(arms):
    first, second = arms["method"], arms["opponent"]
    return float(np.mean(first["right"]) - np.mean(second["right"]))


def test_judge_statistic_and_its_control():
    arms = {"method": ["method", "opponent"], "name": "gap"}
    paper = case(STRONG, kind="statistic", arms=arms, metric=None, controls=["control"])
    paper.arm("control", [71] * 5)
    row = paper.claim(statistics={"gap": gap})
    np.testing.assert_allclose(row["d"], STRONG)
    np.testing.assert_allclose(row["controls"][0]["d"], [x - 1 for x in STRONG])
    assert row["verdict"] == "SUPPORTED" and row["metric"] == "gap"
    plain = case(STRONG).claim()
    np.testing.assert_allclose(row["item_ci95"], plain["item_ci95"])
    with pytest.raises(BadInput, match="did you mean 'gaps'"):
        paper.claim(statistics={"gaps": gap})


def test_judge_exact():
    paper = Paper(kind="exact", metric="evaluations", items="none: counts", direction="lower")
    paper.arm("method", [70] * 3, metrics={"evaluations": 5}).arm(
        "opponent", [70] * 3, metrics={"evaluations": 6}
    )
    row = paper.claim()
    assert row["verdict"] == "SUPPORTED" and row["p_for"] is None and row["effect"] == 1
    paper.spec["arms"] = {"method": "opponent", "opponent": "method"}
    assert paper.claim()["verdict"] == "CONTRADICTED"


def test_judge_items_as_replicates():
    paper = Paper(unit="item", items="none: items are the replicates").arm("method", [80], salt=1)
    paper.arm("opponent", [60], salt=2)
    row = paper.claim("cpu")
    assert row["n"] == ITEMS and row["verdict"] == "SUPPORTED for this model (scaled down)"
    assert row["effect"] == pytest.approx(0.2) and rules.plain(row["verdict"]) == "SUPPORTED"
    assert row["p_for"] == pytest.approx(row["flip_for"], abs=1e-3)


def test_judge_reported():
    def entry(name, value, **more):
        return {
            "id": name,
            "value": value,
            "std": None,
            "origin": "paper",
            "higher_is_better": True,
            "setting": {},
            **more,
        }

    def target(name, **more):
        return {
            "reported": name,
            "arm": "method",
            "task": "task",
            "metric": "accuracy",
            "reason": "r",
            **more,
        }

    entries = [
        entry("same", 75.5), entry("far", 60), entry("none", None), entry("others", 75, origin="third_party"),
        entry("difference", 5.5), entry("nobody", 1), entry("model", 75), entry("absent", 75),
        entry("epoch", 75.5, setting={"selection": "best"}),
    ]  # fmt: skip
    targets = [
        target("difference", opponent="opponent", tolerance=2.5), target("[snofe]*", tolerance=2.5),
        target("model", deviations=["smaller model"]), target("absent", arm="nothing"),
    ]  # fmt: skip
    rows = case(STRONG).judge(reported={"entries": entries}, targets=targets)["reported"]
    words = {row["id"]: row["verdict"] for row in rows}
    assert words == {
        "same": "REPRODUCED", "far": "BETTER", "none": "NO PUBLISHED VALUE", "others": "CONTEXT",
        "difference": "REPRODUCED", "nobody": "BETTER", "model": "SUBSTITUTED", "absent": "NOT RUN",
        "epoch": "SUBSTITUTED",
    }  # fmt: skip
    without = case(STRONG).judge(reported={"entries": entries[:1]})["reported"][0]
    assert without["verdict"] == "no counterpart" and without["tolerance_reason"]
    assert (
        case(STRONG).judge("cpu", reported={"entries": entries}, targets=targets)["reported"] == []
    )
    unset = case(STRONG).judge(reported={"entries": entries[:1]}, targets=[target("same")])[
        "reported"
    ][0]
    assert unset["tolerance"] == 1.0


def test_judge_gates():
    paper = case(STRONG)
    keys = [node.key for node in paper.nodes]
    listed = [
        {"id": "held", "statement": "a"},
        {"id": "broken", "statement": "b"},
        {"id": "silent", "statement": "c"},
    ]
    listed.append({"id": "elsewhere", "statement": "d", "scales": ["gpu"]})
    recorded = [(key, [{"id": "held", "passed": True, "detail": "x"}]) for key in keys]
    recorded.append((keys[0], [{"id": "broken", "passed": False, "detail": "off by one"}]))
    gates = {g["id"]: g for g in paper.judge(gates=listed, recorded=recorded)["gates"]}
    assert {name: g["passed"] for name, g in gates.items()} == {
        "held": True, "broken": False, "silent": False, "distinct-states": True, "shared-items": True,
    }  # fmt: skip
    assert (
        "off by one" in gates["broken"]["detail"] and "no finished run" in gates["silent"]["detail"]
    )


def test_gate_only_recorded_by_a_diverged_run_fails():
    paper = case(STRONG)
    paper.runs[0]["status"] = "diverged"
    recorded = [(paper.nodes[0].key, [{"id": "g", "passed": True, "detail": ""}])]
    gates = paper.judge(gates=[{"id": "g", "statement": "s"}], recorded=recorded)["gates"]
    assert not gates[0]["passed"]


def test_built_in_gates_notice_copies_and_other_items():
    paper = case(STRONG)
    paper.runs[1]["state_sha256"] = paper.runs[0]["state_sha256"]
    paper.runs[7]["split_sha256"] = "another"
    gates = {g["id"]: g for g in paper.judge()["gates"]}
    assert (
        not gates["distinct-states"]["passed"]
        and "seeds 100 and 101" in gates["distinct-states"]["detail"]
    )
    assert not gates["shared-items"]["passed"]
    shuffled = case(STRONG)
    shuffled.predictions["opponent", "task", 102]["id"] = IDS[::-1]
    judged = shuffled.judge()
    assert not judged["gates"][-1]["passed"] and judged["claims"][0]["reason"] == "items"


def test_claims_file_is_checked(tmp_path):
    good = dict(Paper().spec)

    def refused(change, match):
        with pytest.raises(BadInput, match=match):
            check_claim({**good, **change}, "claims.yaml: claim C1")

    check_claim(good, "claims.yaml: claim C1")
    refused({"treshold": 1}, "did you mean 'threshold'")
    refused({"kind": "diference"}, "did you mean 'difference'")
    refused({"arms": {"method": "a"}}, r"lacks \['opponent'\]")
    refused({"controls": "none"}, "gives no reason")
    refused({"controls": "permuted"}, "list of arms")
    refused({"items": "dev"}, "write test")
    refused({"kind": "spread", "unit": "item"}, "unit item needs")
    four = "\n".join(f"  - {{id: C{i}, statement: s, source: s, kind: exact, role: primary, metric: m, "
                     "arms: {method: a, opponent: b}, controls: 'none: x', items: 'none: x', scales: [cpu]}"
                     for i in range(4))  # fmt: skip
    path = tmp_path / "claims.yaml"
    path.write_text(f"paper: x\nclaims:\n{four}\n")
    with pytest.raises(BadInput, match="4 primary claims at cpu"):
        load_claims(path)
    path.write_text(f"paper: x\nclaim: []\nclaims:\n{four}\n")
    with pytest.raises(BadInput, match="did you mean 'claims'"):
        load_claims(path)


def test_claims_name_arms_and_tasks_of_the_protocol():
    spec = Paper(controls=["control"]).spec
    arms, tasks = {"method", "opponent", "control"}, {"task"}

    def refused(change, match, **top):
        with pytest.raises(BadInput, match=match):
            check_names({"claims": [{**spec, **change}], **top}, arms, tasks, "claims.yaml")

    check_names({"claims": [spec]}, arms, tasks, "claims.yaml")
    refused({"arms": {"method": "methods", "opponent": "opponent"}}, "did you mean 'method'")
    refused({"controls": ["controll"]}, "did you mean 'control'")
    refused({"tasks": {"cpu": ["tasks"]}}, "did you mean 'task'")
    refused({"arms": {"weights": {"method@tusk": 1}}, "kind": "contrast"}, "did you mean 'task'")
    refused(
        {}, "did you mean 'opponent'", targets=[{"reported": "x", "arm": "oponent", "task": "task"}]
    )
    refused({}, "did you mean 'task'", tasks={"taks": {}})
