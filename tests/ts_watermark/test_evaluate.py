"""Thresholds, scores and frontiers."""

import numpy as np
import pytest

from ts_watermark import evaluate, tune


def test_thresholds():
    human = np.random.default_rng(4).normal(size=500)
    ordered = np.sort(human)[::-1]
    assert evaluate.threshold_at(human, 0.0) == pytest.approx(ordered[0] + 0.001)
    assert evaluate.threshold_at(human, 0.01) == pytest.approx(ordered[5] + 0.001)
    assert evaluate.threshold_at(human[::-1], 0.01) == evaluate.threshold_at(human, 0.01)
    assert evaluate.threshold_at(np.ones(500), 0.01) == pytest.approx(1.001)
    with pytest.raises(ValueError, match="at least 100"):
        evaluate.threshold_at(human[:60], 0.01)
    assert evaluate.auroc(np.array([2.0, 3.0]), np.array([1.0, 2.0])) == pytest.approx(0.875)
    assert evaluate.best_f1(np.array([2.0, 3.0]), np.array([0.0, 1.0])) == 1.0


def test_frontier_gap_of_a_shifted_curve():
    """A method 0.05 above the sweep's line, placed between its points, has a gap of 0.05."""
    z = np.array([1.0, 2.0, 4.0])
    sweep = {"evidence": np.tile(z, (6, 1)), "cosine": np.tile(1 - 0.1 * z, (6, 1))}
    z_of_method = np.array([1.5, 3.0])
    method_ = {"evidence": np.tile(z_of_method, (6, 1))}
    method_["cosine"] = 1 - 0.1 * method_["evidence"] + 0.05
    assert evaluate.frontier_gap({"ts": method_, "kgw": sweep}) == pytest.approx(0.05)
    assert evaluate.frontier_gap({"kgw": sweep, "again": sweep}) == pytest.approx(0.0)


def test_gammas_are_compared_at_equal_evidence_with_the_first():
    z = np.array([1.0, 3.0, 1.5, 2.5])  # two strengths of each gamma, on lines 0.05 apart
    evidence = np.tile(z, (6, 1))
    cosine = 1 - 0.1 * evidence + np.array([0, 0, 0.05, 0.05])
    names = np.array(["0.25_1.0", "0.25_2.0", "0.1_1.25", "0.1_2.25"])
    run = {"id": np.arange(6), "_strengths": names, "evidence": evidence, "cosine": cosine}
    assert tune.gaps(run) == pytest.approx({"0.25": 0.0, "0.1": 0.05})


@pytest.mark.parametrize("strengths", [3, 4, 9])
def test_a_convex_frontier_has_no_gap_to_itself_between_its_strengths(strengths):
    """Chords would show one of 0.03 between three strengths."""

    def frontier(evidence):
        return {"evidence": evidence[None], "cosine": np.exp(-evidence / 4)[None]}

    sweep = frontier(np.linspace(1.0, 7.0, strengths))
    between = frontier(np.array([2.5, 5.5]))
    assert abs(evaluate.frontier_gap({"ts": between, "kgw": sweep})) < 0.005
    assert evaluate.frontier_gap({"kgw": sweep, "again": sweep}) == pytest.approx(0, abs=1e-3)
