"""What a run can be told: help, choices, and combinations that cannot work."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from ppo_nlu import config as module
from ppo_nlu import tune
from ppo_nlu.config import Config
from shared.protocol import BadInput, RunConfig

PAPER = Path(module.__file__).parent


def sections() -> list[type]:
    return [base for base in Config.__bases__ if base is not RunConfig]


def test_every_field_stands_in_one_section():
    names = [f.name for section in sections() for f in dataclasses.fields(section)]
    assert sorted(names) == sorted(set(names)) and not set(names) & set(RunConfig.__annotations__)
    assert {f.name for f in dataclasses.fields(Config)} == {*names, *RunConfig.__annotations__}
    assert all(section.__doc__ for section in sections())


def test_the_command_line_refuses_a_choice_that_is_none():
    command = [sys.executable, "-m", "ppo_nlu.train", "--tiny", "--parser", "strickt"]
    done = subprocess.run(command, cwd=PAPER.parent, capture_output=True, text=True)
    assert done.returncode == 2
    assert {"strict", "official", "strickt"} <= set(re.findall(r"\w+", done.stderr))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"minibatch": 5}, "multiple of minibatch = 5; set --minibatch 1"),
        ({"minibatch": 0}, "minibatch = 0 must be at least 1"),
        ({"inner_epochs": 0}, "inner_epochs = 0"),
        ({"lr": 0.0}, "lr = 0.0 must be above 0"),
    ],
)
def test_values_that_cannot_work_together_are_refused(values, words):
    with pytest.raises(BadInput, match=words):
        Config(**values)


def test_epochs_count_batches():
    assert Config(epochs=3.0, batch=16).batches(800) == 150
    assert Config(epochs=0.01, batch=16).batches(16) == 1
    assert Config(steps=7).batches(800) == 7


def test_tuning_records_the_value_whose_mean_over_seeds_is_best():
    scores = {3e-4: [0.5, 0.6], 1e-3: [0.8, 0.7], 3e-3: [0.9, 0.5]}
    (record,) = yaml.safe_load(tune.entry("ppo", "movie", "lr", scores, [0, 1]))
    assert record["scores"] == [0.55, 0.75, 0.7] and record["chosen"] == {"lr": 1e-3}
    assert record["trials"] == 3 and record["seeds"] == [0, 1]


def test_trials_that_were_run_are_not_run_again(tmp_path, monkeypatch, capsys):
    done = tmp_path / "tuning.jsonl"
    done.write_text('["sft", "movie", "lr", 0.001, 0, 0.75]\n')
    asked = []
    monkeypatch.setattr(tune, "validation_score", lambda *a: asked.append(a[2].seed) or 0.5)
    words = "--arms sft --values 1e-3 --seeds 0 1 --out"
    monkeypatch.setattr(sys, "argv", ["tune", *words.split(), str(done)])
    tune.main()
    assert asked == [1] and "scores: [0.625]" in capsys.readouterr().out
    assert len(done.read_text().splitlines()) == 2
