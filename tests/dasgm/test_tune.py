"""The tuning of A's rate: on D_val alone, and it continues."""

from __future__ import annotations

import json
import sys

import pytest
import torch
import yaml

from dasgm import data, truth_table, tune


def test_a_cell_is_scored_on_the_validation_half_alone(monkeypatch):
    """Trained on D_tr, and no image of D_te is in reach."""
    seen = {}

    def train_cell(cell, seed, problem):
        seen["train"] = {*problem.train.ids.tolist(), *problem.validation.ids.tolist()}
        seen["test"] = set(problem.test.ids.tolist())
        return truth_table.np.ones(4, bool)

    monkeypatch.setattr(truth_table, "train_cell", train_cell)
    assert tune.on_validation("a cell", 3) == 1.0
    p = data.load("digits", 3)
    assert seen["train"] == set(p.train.ids.tolist())
    assert seen["test"] == set(p.validation.ids.tolist())


def test_a_generator_is_scored_by_what_its_images_teach(monkeypatch):
    """After each length, on D_val, and trained on generated images alone."""
    calls = []

    def on_validation(cell, seed, images):
        calls.append((len(images), float(images.pixels.min()) >= 0, images.labels))
        return len(calls) / 10

    monkeypatch.setattr(tune, "LENGTHS", (1, 3))
    monkeypatch.setattr(tune, "on_validation", on_validation)
    assert tune.generator_scores(3) == [0.1, 0.2]
    assert [(n, black) for n, black, _ in calls] == [(900, True)] * 2
    assert not torch.equal(calls[0][2], calls[1][2])


def test_it_continues_where_it_was(tmp_path, monkeypatch, capsys):
    trials = [(a, r, s) for s in tune.SEEDS for a in tune.ARMS for r in tune.RATES]
    lines = [json.dumps([*trial, 0.5]) for trial in trials[:-1]]
    path = tmp_path / "tuning.jsonl"
    path.write_text("\n".join(lines) + "\n")
    made = []
    monkeypatch.setattr(tune, "searched", lambda *trial: made.append(trial[:3]) or "a cell")
    monkeypatch.setattr(tune, "on_validation", lambda cell, seed: 0.8)
    monkeypatch.setattr(sys, "argv", ["tune", "--out", str(path)])
    tune.main()
    assert made == [trials[-1]]
    tuning = yaml.safe_load(capsys.readouterr().out)["tuning"]
    assert [line["arm"] for line in tuning] == list(tune.ARMS)
    assert tuning[0]["scores"] == {"0.0003": 50.0, "0.001": 50.0, "0.003": 50.0, "0.01": 50.0}
    assert tuning[0]["chosen"] == "0.001"  # equal means: the usual rate
    assert tuning[-1]["scores"]["0.01"] == 60.0 and tuning[-1]["chosen"] == "0.01"
    assert json.loads(path.read_text().splitlines()[-1]) == [*trials[-1], pytest.approx(0.8)]
