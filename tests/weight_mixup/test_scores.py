"""Predictions -> metrics."""

import numpy as np
import pytest

from weight_mixup import evaluate


def score(label, prediction, metric):
    columns = {"label": np.asarray(label), "prediction": np.asarray(prediction)}
    return evaluate.score({**columns, "_metric": np.array(metric)})


def test_scores_are_the_tasks_own():
    values = {m: score([0, 0, 1, 1], [0, 1, 1, 1], m) for m in evaluate.METRICS}
    assert values["accuracy"]["score"] == 0.75
    assert values["f1"]["score"] == pytest.approx(0.8) and values["f1"]["accuracy"] == 0.75
    assert values["matthews"]["score"] == pytest.approx(1 / 3**0.5)
    assert "accuracy" not in values["spearman"]
    with pytest.raises(ValueError, match="bleu"):
        score([0, 1], [0, 1], "bleu")


def test_a_degenerate_run_is_counted_and_scores_no_correlation():
    values = score([0, 1, 1, 0], [1, 1, 1, 1], "matthews")
    assert values["score"] == 0.0 and values["degenerate"] == 1.0
    values = score([0.0, 1.0, 2.0, 3.0], [1.0, 1.0, 1.0, 1.0], "spearman")
    assert values["score"] == 0.0 and values["degenerate"] == 1.0


@pytest.mark.parametrize(
    ("metric", "names"),
    [("accuracy", {"score", "accuracy"}), ("f1", {"accuracy"}), ("spearman", set())],
)
def test_item_values_are_those_whose_mean_is_the_score(metric, names):
    rng = np.random.default_rng(0)
    arrays = {"label": rng.integers(0, 2, 40), "prediction": rng.integers(0, 2, 40)}
    predictions = {**arrays, "_metric": np.array(metric)}
    values, scores = evaluate.item_values(predictions), evaluate.score(predictions)
    assert set(values) == names
    assert all(values[name].mean() == pytest.approx(scores[name]) for name in names)
