"""Scores, statistics of the mechanism, probes, figures, and published numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from toy_levels import CPU, TINY

from mlo_mae import analysis, data, evaluate, figures
from shared import protocol

PAPER = Path(evaluate.__file__).parent


def test_score_is_the_share_of_right_answers():
    arrays = {
        "id": np.arange(4),
        "label": np.array([0, 1, 2, 3]),
        "prediction": np.array([0, 1, 2, 0]),
        "probe": np.array([0, 0, 0, 0]),
        "prediction_50": np.array([0, 1, 0, 0]),
    }
    assert evaluate.score(arrays) == {"accuracy": 0.75, "probe": 0.25, "accuracy_50": 0.5}
    twice = arrays | {"prediction": np.array([[0, 0], [1, 0], [2, 2], [0, 3]])}
    assert evaluate.score(twice)["accuracy"] == 0.75
    assert evaluate.item_values(twice)["accuracy"].tolist() == [1.0, 0.5, 1.0, 0.5]
    for name, values in evaluate.item_values(arrays).items():
        assert values.mean() == evaluate.score(arrays)[name]


def test_statistics_of_the_planted_task():
    rows = {
        "masked_code": np.array([1.0, 0.5]),
        "masked_other": np.array([0.5, 0.5]),
        "score_code": np.zeros(2),
        "score_other": np.ones(2),
        "a_code": np.array([2.0, 4.0]),
        "a_other": np.array([1.0, 1.0]),
    }
    assert evaluate.planted_masking({"mlo": rows}) == 0.25
    assert evaluate.planted_score({"mlo": rows}) == -1.0
    assert evaluate.planted_alignment({"mlo": rows}) == pytest.approx(2 / np.std([2, 4, 1, 1]))


def test_softmax_regression_agrees_with_scikit_learn():
    from sklearn.linear_model import LogisticRegression

    problem = data.load(TINY, CPU)
    x, y = problem.train.pixels.flatten(1)[:300], problem.train.labels[:300]
    x_test = problem.test.pixels.flatten(1)
    ours = analysis.softmax_regression(x, y, x_test, 10)
    a, b = (z.numpy() for z in analysis.standardised(x, x_test))
    theirs = LogisticRegression(C=1 / (300 * 1e-3), max_iter=500).fit(a, y.numpy()).predict(b)
    assert (ours == theirs).mean() > 0.98


def test_figures_without_runs():
    claims = [{"id": "derived-descends", "d": [0.1, None, 0.2]}, {"id": "planted-score", "d": []}]
    assert figures.figures({}, {}) == []
    assert [name for name, *_ in figures.figures({"claims": claims}, {})] == ["mechanism"]


def test_published_numbers_are_answered_or_said_to_have_no_counterpart():
    from benchmarks.claims import check_names, load_claims
    from benchmarks.reported import check_targets, load

    claims = load_claims(PAPER / "claims.yaml")
    check_targets(claims.targets, load(PAPER / "reported.yaml"), "claims.yaml")
    paper = protocol.Protocol(PAPER)
    tasks = {t for s in protocol.SCALES for t in paper.tasks(s)}
    check_names(claims, paper.document.arms, tasks, "claims.yaml")
    for target in claims.targets:  # a scaled run is no match for a full-size number
        assert set(target.scales or ["paper"]) == {"paper"}
