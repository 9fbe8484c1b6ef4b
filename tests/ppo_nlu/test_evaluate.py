"""Scores and metrics by hand."""

from __future__ import annotations

import numpy as np
import pytest

from ppo_nlu import evaluate


def answers_of(label, greedy, sampled, metric="accuracy") -> dict[str, np.ndarray]:
    n = len(label)
    return {
        "id": np.arange(n),
        "label": np.array(label, float),
        "greedy": np.array(greedy, float),
        "sampled": np.array(sampled, float),
        "greedy_reward": np.zeros(n),
        "sampled_reward": np.zeros((n, 2)),
        "group": np.full(n, -1),
        "value": np.zeros(n),
        "_metric": np.array([metric]),
    }


def test_scores_by_hand():
    U = evaluate.UNREADABLE
    s = evaluate.score(answers_of([0, 1, 1, 0], [0, 1, U, 1], [[0, 0], [1, 0], [U, U], [U, 1]]))
    assert s["accuracy_greedy"] == 0.5 and s["invalid_greedy"] == 0.25
    assert s["accuracy_sampled"] == pytest.approx(3 / 8) and s["invalid_sampled"] == pytest.approx(
        3 / 8
    )
    assert s["answer_entropy"] == pytest.approx(np.log(2) / 2) and s["constant_share"] == 0.5
    a = answers_of([0, 1], [0, 1], [[0, 0], [1, 1]])
    b = answers_of([0, 1], [0, 0], [[0, 1], [1, 0]])
    assert evaluate.decoder_confound({"a": a, "b": b}) == pytest.approx((1 - 0.5) - (1 - 0.5))


def test_benchmark_metrics_by_hand():
    U = evaluate.UNREADABLE
    y, a = np.array([1.0, 1, 0, 0]), np.array([1.0, U, 0, 1])
    none = (None, None)
    assert evaluate.accuracy_f1(y, a, *none) == pytest.approx((0.5 + 0.5) / 2)
    assert evaluate.multirc(
        y, np.array([1.0, 1, 0, 1]), np.array([0, 0, 1, 1]), None
    ) == pytest.approx((0.8 + 0.5) / 2)
    group, value = np.array([0, 0, 1, 1]), np.array([1.0, 0.5, 0.2, 1.0])
    gold = np.array([1.0, 0, 0, 1])
    assert evaluate.record(gold, np.array([0.0, 1, 0, 0]), group, value) == pytest.approx(
        (0.25 + 0) / 2
    )
    assert evaluate.correlation(
        np.array([0.0, 2.5, 5.0]), np.array([-3.0, 2.5, 9.0]), *none
    ) == pytest.approx(1)
    assert evaluate.matthews(y, np.full(4, U), *none) == 0


def test_what_the_paper_prints_of_two_numbers():
    a = answers_of([1, 1, 0, 0], [0, 0, 0, 0], [[1, 1], [1, 0], [0, 0], [1, 0]], "accuracy_f1")
    by_hand = (0.8 + 2 / 3) / 2
    assert evaluate.score(a)["printed"] == evaluate.score(a)["f1"] == pytest.approx(by_hand)
    mnli = answers_of([0, 1, 2, 0], [0] * 4, [[0, 0], [1, 0], [0, 0], [0, 0]])
    mnli["group"] = np.array([0, 0, 1, 1])
    scores = evaluate.score(mnli)
    assert (scores["matched"], scores["mismatched"], scores["printed"]) == (0.75, 0.5, 0.625)


@pytest.mark.parametrize("metric", ["accuracy", "matthews"])
def test_item_values_are_those_whose_mean_is_the_score(metric):
    rng = np.random.default_rng(0)
    answers = rng.choice([0, 1, evaluate.UNREADABLE], size=(40, 3))
    predictions = answers_of(rng.integers(0, 2, 40), answers[:, 0], answers, metric)
    values, scores = evaluate.item_values(predictions), evaluate.score(predictions)
    assert {name: v.mean() for name, v in values.items()} == pytest.approx(
        {name: scores[name] for name in values}
    )
    assert ("score_sampled" in values) == (metric == "accuracy")
