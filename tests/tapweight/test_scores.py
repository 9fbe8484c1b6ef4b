"""Scores from predictions, and figures."""

from __future__ import annotations

import math
import shutil

import numpy as np
import pytest
from tapweight_problems import planted_config

from tapweight import evaluate, figures, train

LABEL, GUESS = np.array([0, 1, 1, 0]), np.array([0, 1, 0, 0])
ACCURACY = {"label": LABEL, "prediction": GUESS, "_kind": np.int64(0)}


def test_scores():
    scores = evaluate.score(ACCURACY)
    assert scores["score"] == scores["accuracy"] == 0.75
    assert np.allclose(evaluate.item_values(ACCURACY)["score"].mean(), 0.75)
    labels = np.array([[1, np.nan], [0, 1], [1, 1], [0, -1]])
    guesses = np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.1, 0.4]])
    auc = evaluate.score({"label": labels, "prediction": guesses, "_kind": np.int64(3)})["auc"]
    assert auc == 0.75
    assert evaluate.rmse(np.array([1.0, 3.0]), np.array([1.0, 1.0])) == pytest.approx(math.sqrt(2))


def test_scores_of_learned_weights():
    planted = {**ACCURACY, "_planted": np.int64(1)}
    even = evaluate.score({**planted, "_weights": np.full(4, 0.25)})
    assert even["weight_of_aligned"] == 0.25 and even["aligned_is_largest"] == 0.25
    aligned = evaluate.score({**planted, "_weights": np.array([0.1, 0.7, 0.1, 0.1])})
    assert aligned["aligned_is_largest"] == 1.0 and aligned["weight_2"] == 0.7


def test_figures_with_and_without_runs(tmp_path):
    directory = train.run(planted_config(tmp_path / "run"))
    run_dirs, results = {("tapweight", "planted", 1): directory}, {"scale": "cpu", "runs": []}
    pictures = figures.figures(results, run_dirs)
    assert [name for name, *_ in pictures] == ["weights", "alignment"]
    assert all(caption and alt for _, caption, alt, _ in pictures)
    shutil.rmtree(directory)
    assert figures.figures(results, run_dirs) == []
    assert figures.figures(results, {}) == []
    metrics = {f"weight_{k + 1}": 0.25 for k in range(4)}
    row = {"arm": "tapweight", "task": "planted", "metrics": metrics}
    ((name, _, alt, _),) = figures.figures({"runs": [row]}, {})
    assert name == "final-weights" and "half-noise 0.25" in alt  # a name, not a number
    rows = [
        {"arm": arm, "task": "planted", "metrics": {"weight_of_aligned": w, "score": score}}
        for arm, w, score in (
            ("tapweight", 0.1, 0.5), ("tapweight", 0.9, 0.9), ("cp-uniform", 0.25, 0.8),
            ("oracle", 1.0, 0.9), ("permuted", 0.0, 0.4),
        )
    ]  # fmt: skip
    ((name, caption, alt, _),) = figures.figures({"runs": rows}, {})
    assert name == "weight-and-score" and "end 1 of 2 seeds of tapweight." in caption
    assert "tapweight 70.0 at weight 0.50" in alt and "permuted 40.0" in alt
    assert figures.figures({"runs": rows[:2]}, {}) == []
    assert figures.objective_names("cola", 3) == ["CL", "MLM", "SOP"]
