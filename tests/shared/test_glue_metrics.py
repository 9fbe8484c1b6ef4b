"""Metrics against scikit-learn and scipy; level splits."""

import math

import numpy as np
import pytest
import torch

from shared import glue


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- metrics


def test_metrics_equal_scikit_learn_and_scipy():
    from scipy import stats
    from sklearn import metrics

    rng = np.random.default_rng(0)
    for n, k in ((40, 2), (60, 3), (200, 5)):
        y, p = rng.integers(0, k, n), rng.integers(0, k, n)
        p = np.where(rng.random(n) < 0.4, y, p)
        assert math.isclose(glue.accuracy(y, p), metrics.accuracy_score(y, p))
        assert math.isclose(glue.matthews(y, p), metrics.matthews_corrcoef(y, p))
        assert math.isclose(glue.f1_macro(y, p), metrics.f1_score(y, p, average="macro"))
        assert math.isclose(glue.f1(y == 1, p == 1), metrics.f1_score(y == 1, p == 1))
        x = np.round(rng.random(n) * 5, 1)  # many ties
        z = np.round(x + rng.normal(size=n), 1)
        assert math.isclose(glue.pearson(x, z), stats.pearsonr(x, z).statistic)
        assert math.isclose(glue.spearman(x, z), stats.spearmanr(x, z).statistic)


def test_collapsed_predictions_score_zero():
    y, ones = np.array([0, 1, 1, 0]), np.ones(4, dtype=np.int64)
    assert (
        glue.matthews(y, ones)
        == 0
        == glue.pearson(y / 2, ones * 0.1)
        == glue.spearman(y / 2, ones * 0.1)
    )
    assert glue.f1(y, np.zeros(4)) == 0 and glue.f1(np.zeros(4), np.zeros(4)) == 0


def test_scores_of_grouped_tasks():
    groups, label = np.array([0, 0, 1, 1, 1]), np.array([1, 0, 0, 1, 0])
    result = glue.score("multirc", label, np.array([1, 0, 0, 1, 1]), groups)
    assert result == {"f1": pytest.approx(0.8), "exact_match": 0.5}
    values = np.array([1.0, 0.0, 0.5, 1.0, 0.2])
    chosen = np.array([0.9, 0.1, 0.7, 0.2, 0.7])  # right; wrong, the first one of equals
    assert glue.score("record", label, chosen, groups, values) == {"f1": 0.75, "exact_match": 0.5}
    mnli = glue.score(
        "mnli", np.array([0, 1, 2, 0]), np.array([0, 1, 1, 1]), np.array([0, 0, 0, 1])
    )
    assert mnli == {"accuracy": 0.5, "accuracy_m": pytest.approx(2 / 3), "accuracy_mm": 0.0}
    assert set(glue.score("mrpc", label, label)) == {"accuracy", "f1"}
    assert set(glue.score("stsb", values, chosen)) == {"pearson", "spearman"}
    with pytest.raises(ValueError, match="3 predictions for 5 labels"):
        glue.score("rte", label, label[:3])


def test_answers_are_compared_as_words():
    assert glue.normalise("The U.S.  Navy!") == "us navy"
    assert (
        glue.token_f1("the cat sat", "cat") == pytest.approx(2 / 3)
        and glue.token_f1("dog", "cat") == 0
    )


# --- level splits


def test_level_split_is_stratified_disjoint_complete_and_drawn_by_the_stream():
    labels = np.array([0] * 700 + [1] * 200 + [2] * 100)
    inner, outer = glue.level_split(labels, [0.8, 0.2], stream(1))
    assert (len(inner), len(outer)) == (800, 200)
    assert sorted(np.concatenate([inner, outer]).tolist()) == list(range(1000))
    assert np.abs(np.bincount(labels[outer]) - [140, 40, 20]).max() <= 1
    again, other = (glue.level_split(labels, [0.8, 0.2], stream(s))[1] for s in (1, 2))
    assert outer.tolist() == again.tolist() != other.tolist()
    three = glue.level_split(labels, [0.5, 0.25, 0.05], stream())
    assert [len(level) for level in three] == [500, 250, 50] and len(
        np.unique(np.concatenate(three))
    ) == 800


def test_level_split_of_scores_covers_their_range():
    values = np.linspace(0, 5, 400)
    for level in glue.level_split(values, [0.5, 0.5], stream()):
        assert len(level) == 200 and abs(values[level].mean() - 2.5) < 0.05


def test_each_row_is_equally_likely_in_each_level():
    counts = np.zeros(30)
    for seed in range(600):
        counts[glue.level_split(np.arange(30) % 3, [0.7, 0.3], stream(seed))[1]] += 1
    assert np.abs(counts / 600 - 0.3).max() < 0.09  # 5 standard errors


@pytest.mark.parametrize("fractions", [[], [0.5, 0.6], [1.0, 0.0], [-0.1]])
def test_bad_fractions(fractions):
    with pytest.raises(ValueError, match="must be positive and sum to at most 1"):
        glue.level_split(np.zeros(10, dtype=int), fractions, stream())


def test_empty_level_is_refused():
    with pytest.raises(ValueError, match=r"level 1 of \[0.9, 0.1\] is empty for 3 rows"):
        glue.level_split(np.zeros(3, dtype=int), [0.9, 0.1], stream())
