"""Training again: which runs are drawn, and how their agreement is said."""

from __future__ import annotations

import argparse
import shutil

import numpy as np
import pytest
import toy as toy_paper
from recorded_toy import predictions_of, record

from benchmarks import PAPERS, check, recorded, rerun
from benchmarks.predictions import unpack_predictions
from benchmarks.recorded import result_path
from shared.protocol import Protocol


@pytest.mark.parametrize("paper", PAPERS)
def test_the_draw_is_the_reviewers_and_has_the_method(root, paper):
    result = recorded.read(result_path(root / paper, "cpu"))
    packed = unpack_predictions(root / paper / "results" / "cpu.predictions.npz")

    def draw(number, seed):
        return [r.key for r in rerun.drawn(root / paper, "cpu", result, packed, number, seed)]

    primary = [claim for claim in result.claims if claim.role == "primary"]
    methods = {rerun.method_of(claim.arms).partition("@")[0] for claim in primary}
    draws = [draw(3, str(seed)) for seed in range(8)]
    assert {keys[0][0] for keys in draws} <= methods and draw(3, "7") == draws[7]
    assert all(len(set(keys)) == 3 for keys in draws) and len({tuple(k) for k in draws}) > 5
    assert draw(1, "7") == draws[7][:1] and sorted(draw(0, "x")) == sorted(packed)


def test_how_far_arrays_agree_is_said():
    old = {"prediction": np.arange(10), "p": np.linspace(0, 1, 10), "gone": np.zeros(2)}
    new = {"prediction": np.arange(10), "p": old["p"] + 1e-5, "gone": np.zeros(3)}
    assert rerun.distance("prediction", new, old) == "" == rerun.distance("p", new, old)
    assert rerun.distance("gone", new, old) == "gone has the shape (3,), recorded (2,)"
    new["prediction"] = new["prediction"].copy()
    new["prediction"][:3] += 1
    new["p"] = old["p"] + 0.5
    assert rerun.distance("prediction", new, old) == "prediction in 3 of 10"
    assert rerun.distance("p", new, old) == "p by up to 0.5"
    assert rerun.distance("other", {"other": np.zeros(1)}, {}) == "other is only here"


@pytest.mark.parametrize(
    "text, number", [("1", 1), ("12", 12), ("all", 0), ("0", None), ("x", None)]
)
def test_how_many_runs(text, number):
    if number is None:
        with pytest.raises(argparse.ArgumentTypeError, match="RERUN="):
            rerun.parse(text)
    else:
        assert rerun.parse(text) == number


def test_a_run_made_again_shows_what_was_invented(toy, finished, monkeypatch, capsys):
    """Equal bits for what the toy's code gives; invented predictions differ, and by how much."""
    folder = toy / "toy"
    record(folder)
    shutil.rmtree(folder / "__pycache__", ignore_errors=True)
    result = recorded.read(result_path(folder, "cpu"))
    packed = predictions_of(Protocol(folder))
    run = next(r for r in result.runs if r.key == ("noisy", "line", 101))
    said, agrees = rerun.repeat(folder, "cpu", run, packed[run.key], toy / "again", "cpu")
    assert not agrees and said.startswith("differs: label in") and "of 100" in said
    again = toy / "again" / "runs" / "toy" / "cpu" / "line" / "seed101" / "noisy"
    trained = toy_paper.record(again)
    run.predictions_sha256, run.state_sha256 = (
        trained["predictions_sha256"],
        trained["state_sha256"],
    )
    said, agrees = rerun.repeat(folder, "cpu", run, packed[run.key], toy / "again", "cpu")
    assert agrees and said == "equal bits, and the same weights"
    assert check.saved_sha256(dict(np.load(again / "predictions.npz"))) == run.predictions_sha256
    monkeypatch.setattr(rerun, "cuda_devices", list)
    said, agrees = rerun.repeat(folder, "cpu", run, packed[run.key], toy / "again", "an H100")
    assert not agrees and "recorded on an H100, and no CUDA device is here" in said
