"""Whole runs: repeated, stopped and continued, of every kind of arm, on two processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from toy_levels import MAE, TINY, levels, logged, short

from mlo_mae import evaluate, figures, train
from shared import runs, vectors

ROOT = Path(train.__file__).parent.parent


def test_a_run_its_schedule_and_its_repetition(tmp_path):
    settings = {"curve_points": 2, "direction_trials": 2, "export": True}
    one, again = tmp_path / "a", tmp_path / "b"
    record, repeated = short(one, **settings), short(again, **settings)
    assert logged(one) == logged(again) and record["state_sha256"] == repeated["state_sha256"]
    assert record["details"]["updates"] == {"E": 12, "T": 6, "C": 6}
    assert record["gradient_evaluations"] == 12 + 6 + 3 * 6 + 2 * 2
    gates = {g["id"]: g["passed"] for g in record["gates"]}
    names = ("roles", "timm-layout", "cycle", "restored", "hypergradient")
    assert gates == dict.fromkeys(names, True)
    arrays = runs.load_arrays(one / "predictions.npz")
    assert arrays["_directions"].shape == (2, len(evaluate.COLUMNS))
    assert -0.5 <= evaluate.STATISTICS["descent_held"]({"mlo": arrays}) <= 0.5
    shown = runs.load_arrays(one / "masks.npz")
    assert (shown["masks"].sum(-1) == 12).all()
    assert shown["frequency"].sum() == pytest.approx(12)
    made = figures.figures(
        {}, {("mlo", "digits", 0): one, ("mae", "digits", 0): tmp_path / "absent"}
    )
    curves = {"curve-digits-step", "curve-digits-cpu-seconds"}
    assert {name for name, *_ in made} == {"masks-digits", "positions-digits", *curves}
    on_curve = [line["step"] for line in logged(one) if "curve" in line]
    assert on_curve == [6, 12]
    # looking changes nothing: without trials, curves and checks the encoder is the same
    quiet = short(tmp_path / "c", self_checks=False)
    assert quiet["state_sha256"] == record["state_sha256"]


def test_arms_share_starts_and_batches():
    ours, plain = (levels(replace(TINY, **settings)) for settings in ({}, MAE))
    for name in "ED":
        pairs = zip(ours.nets.parts()[name].parameters(), plain.nets.parts()[name].parameters())
        assert all(torch.equal(p, q) for p, q in pairs)
    for k in (7, 40):
        assert torch.equal(ours.batch["first"](k).x, plain.batch["first"](k).x)


@pytest.mark.parametrize(
    "settings",
    [
        {"mask": "random"},
        {"weight": "one"},
        {"hypergrad": "none"},
        {**MAE, "joint_weight": 1.0},
        {**MAE, "uniformity": 0.01},
        {"hypergrad": "official", "official": ("attached_scores", "best_epoch")},
        {"T_arch": "patchwise", "score_noise": "gumbel", "mix_random": 0.5, "pool": "mean"},
        {"normalise_scores": True, "head_path": "none"},
        {"data": "codes", "patch": 4, "labels": 200},
        {"head_path": "identity", "finetune_repeats": 2, "direction_trials": 1},
        {**MAE, "steps": 0, "pixels": True},
    ],
    ids=lambda settings: " ".join(settings),
)
def test_every_kind_of_arm_runs(settings, tmp_path):
    short_of_it = {"steps": 4, "finetune_epochs": 1, "arm": "other"}
    record = short(tmp_path / "run", **{**short_of_it, **settings})
    assert record["status"] == "finished" and all(g["passed"] for g in record["gates"])
    assert 0 <= record["metrics"]["accuracy"] <= 1
    if "best_epoch" in settings.get("official", ()):  # of one epoch the last is the best
        metrics = record["metrics"]
        assert metrics["accuracy_best_epoch"] == metrics["accuracy"]


def test_the_best_epoch_is_the_best_of_all(tmp_path):
    record = short(tmp_path / "run", **MAE, steps=2, finetune_epochs=4, official=("best_epoch",))
    assert record["metrics"]["accuracy_best_epoch"] >= record["metrics"]["accuracy"]
    plain = short(tmp_path / "plain", **MAE, steps=2, finetune_epochs=4)
    assert plain["state_sha256"] == record["state_sha256"]  # looking does not train


def test_stopped_in_any_phase_and_continued_it_is_the_same_run(tmp_path, monkeypatch):
    """In a cycle after a trial of directions, between epochs, in a look at the test set, in a test,
    in the second of two finetunings, in the probe."""
    settings = {"direction_trials": 3, "curve_points": 2, "finetune_labels": (100, 50)}
    settings |= {"official": ("best_epoch",), "finetune_repeats": 2}
    whole = short(tmp_path / "whole", **settings)
    phases: list[str] = []
    steps = runs.Run._steps

    def noted(self, name, start, total, work):
        for step in steps(self, name, start, total, work):
            phases.append(name)
            yield step

    stop_at = ["pretraining", "finetuning 100", "test 100", "validation 100", "finetuning 100 2"]
    stop_at += ["finetuning 50", "test 50", "validation 50", "finetuning 50 2", "probe"]
    monkeypatch.setattr(runs.Run, "_steps", noted)
    for phase in stop_at:
        phases.clear()
        wait = 4 if phase == "finetuning 100" else 1  # of an epoch's 2 training steps and 2 looks
        monkeypatch.setattr(runs, "_stop_asked", lambda p=phase, n=wait: phases.count(p) == n)
        with pytest.raises(runs.Stopped):
            short(tmp_path / "part", **settings)
    monkeypatch.setattr(runs, "_stop_asked", lambda: False)
    part = short(tmp_path / "part", **settings)
    for name in ("state_sha256", "predictions_sha256", "gates", "validation"):
        assert part[name] == whole[name]
    assert part["details"] == whole["details"]
    assert logged(tmp_path / "whole") == logged(tmp_path / "part")


def test_a_loss_that_is_not_finite_names_its_level(tmp_path):
    config = replace(TINY, out=str(tmp_path / "run"), lr_mask=float("inf"))
    with pytest.raises(runs.Diverged, match="first level"):
        train.run(config)
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    assert record["status"] == "diverged" and "step 2" in record["reason"]


def test_imports_without_timm_and_torchvision():
    code = """import sys
sys.modules['timm'] = sys.modules['torchvision'] = None
import mlo_mae.train, mlo_mae.evaluate, mlo_mae.figures
print('transformers' in sys.modules)"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip() == "False", done.stderr[-2000:]


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path):
    """Global batch and averaged gradients: the same encoder up to rounding."""
    from test_processes import launch

    words = ["-m", "mlo_mae.train", "--tiny", "--device", "cpu", "--dropout", "0.0"]
    words += ["--steps", "8", "--direction_trials", "0", "--export", "--out"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *words, str(tmp_path / "one")]
    one = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert one.returncode == 0, one.stderr[-2000:]
    two = launch(*words, str(tmp_path / "two"))
    assert two.returncode == 0, two.stderr[-3000:]
    record = json.loads((tmp_path / "two" / "record.json").read_text())
    assert record["details"]["processes"] == {"number": 2, "equal": True}
    from safetensors.torch import load_file

    a, b = (load_file(tmp_path / n / "export" / "encoder.safetensors") for n in ("one", "two"))
    assert vectors.relative_error([*a.values()], [*b.values()]) < 1e-4
    assert a.keys() == b.keys()
