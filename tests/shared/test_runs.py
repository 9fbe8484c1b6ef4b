"""Runs: records, exact resume, damaged checkpoints, full disks, NaN, leaks, the command line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from toy import command, module, record

from shared import runs
from shared.runs import BadInput


@pytest.fixture(autouse=True)
def by_hand(monkeypatch):
    """As on a terminal, whatever a test before this one in the same process made of the module."""
    monkeypatch.setattr(runs, "_worker", False)
    monkeypatch.setattr(runs, "_stop_asked", lambda: False)


# --- a run ------------------------------------------------------------------------------------


def config(train, root, **changes):
    return train.Config(
        scale="cpu", arm="noisy", task="line", out=str(root / "out"), noise=1.0, **changes
    )


def test_repeat_is_bitwise_and_finished_runs_stand(toy, monkeypatch):
    train = module(toy, monkeypatch)
    first = record(train.run(config(train, toy)))
    predictions = (toy / "out" / "predictions.npz").read_bytes()
    assert first["status"] == "finished" and first["gradient_evaluations"] == 20
    stamp = (toy / "out" / "record.json").stat().st_mtime_ns
    train.run(config(train, toy))
    assert (toy / "out" / "record.json").stat().st_mtime_ns == stamp  # not made again
    (toy / "out" / "record.json").unlink()
    again = record(train.run(config(train, toy)))
    assert again["state_sha256"] == first["state_sha256"]
    assert (toy / "out" / "predictions.npz").read_bytes() == predictions
    assert record(train.run(config(train, toy, seed=1)))["state_sha256"] != first["state_sha256"]


def rewrite(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize("stop_at", [1, 10, 19])
def test_resume_is_bitwise(toy, monkeypatch, stop_at):
    train = module(toy, monkeypatch)
    whole = record(train.run(config(train, toy)))
    log = (toy / "out" / "metrics.jsonl").read_text()
    (toy / "out" / "record.json").unlink()
    count = iter(range(1000))
    monkeypatch.setattr(runs, "_stop_asked", lambda: next(count) == stop_at - 1)
    with pytest.raises(runs.Stopped):
        train.run(config(train, toy))
    assert (toy / "out" / "checkpoint").exists() and not (toy / "out" / "record.json").exists()
    monkeypatch.setattr(runs, "_stop_asked", lambda: False)
    resumed = record(train.run(config(train, toy)))
    assert (
        resumed["state_sha256"] == whole["state_sha256"]
        and (toy / "out" / "metrics.jsonl").read_text() == log
    )
    assert not (toy / "out" / "checkpoint").exists()


def test_a_damaged_checkpoint_falls_back_to_an_older_one(toy, monkeypatch, capsys):
    train = module(toy, monkeypatch)
    whole = record(train.run(config(train, toy)))
    (toy / "out" / "record.json").unlink()
    monkeypatch.setenv("REPRO_CHECKPOINT_SECONDS", "0")
    count = iter(range(1000))
    monkeypatch.setattr(runs, "_stop_asked", lambda: next(count) == 9)
    with pytest.raises(runs.Stopped):
        train.run(config(train, toy))
    monkeypatch.setattr(runs, "_stop_asked", lambda: False)
    checkpoints = sorted((toy / "out" / "checkpoint").glob("*.pt"))
    assert len(checkpoints) == 2
    checkpoints[-1].write_bytes(checkpoints[-1].read_bytes()[:-3])
    assert record(train.run(config(train, toy)))["state_sha256"] == whole["state_sha256"]
    assert "sha256 does not match" in capsys.readouterr().out


@pytest.mark.parametrize(
    "edit, reason",
    [
        (
            lambda root: (root / "out" / "predictions.npz").write_bytes(b"other"),
            "predictions.npz does not match",
        ),
        (lambda root: (root / "out" / "record.json").write_text("{"), "record.json cannot be read"),
        (
            lambda root: (root / "out" / "record.json").write_text("[1, 2]"),
            "record.json cannot be read",
        ),
        (
            lambda root: rewrite(root / "out" / "record.json", seed=99),
            "record.json is that of another run",
        ),
    ],
)
def test_what_makes_a_run_again(toy, monkeypatch, capsys, edit, reason):
    train = module(toy, monkeypatch)
    train.run(config(train, toy))
    edit(toy)
    train.run(config(train, toy))
    assert reason in capsys.readouterr().out


def test_what_does_not(toy, monkeypatch):
    train = module(toy, monkeypatch)
    train.run(config(train, toy))
    stamp = (toy / "out" / "record.json").stat().st_mtime_ns
    (toy / "toy" / "README.md").write_text("other")
    (toy / "toy" / "figures.py").write_text("# other\n")
    (toy / "benchmarks" / "reproduce.py").write_text("# other\n")
    train.run(config(train, toy))
    assert (toy / "out" / "record.json").stat().st_mtime_ns == stamp


def test_a_file_in_the_place_of_the_folder_is_named(toy, monkeypatch):
    train = module(toy, monkeypatch)
    (toy / "out").write_text("mine")
    with pytest.raises(
        runs.BadInput, match=r"out: a file is in the place of a folder; move it away"
    ):
        train.run(config(train, toy))
    assert (toy / "out").read_text() == "mine"


def test_nan_stops_at_once_and_is_recorded(toy, monkeypatch):
    train = module(toy, monkeypatch)
    monkeypatch.setenv("REPRO_CHECKPOINT_SECONDS", "0")
    with pytest.raises(
        runs.Diverged, match=r"only level: value nan at step 7, batch items \[0, 1, 2\]"
    ):
        train.run(config(train, toy, nan_at=7))
    stopped = record(toy / "out")
    assert stopped["status"] == "diverged" and stopped["chosen_step"] == 7
    assert len((toy / "out" / "metrics.jsonl").read_text().splitlines()) == 7


def test_leaks_and_ragged_predictions_are_refused(toy, monkeypatch):
    train = module(toy, monkeypatch)
    with runs.start(config(train, toy), train.__file__) as run:
        with pytest.raises(BadInput, match="item 4 is both in 'train' and in 'test'"):
            run.splits(train=[1, 4], test=[4, 5])
        with pytest.raises(BadInput, match="'test' of the data is empty"):
            run.splits(train=[1, 4], test=[])
        with pytest.raises(BadInput, match="different numbers of items"):
            run.predictions(id=np.arange(3), label=np.arange(2))


# --- the real command line --------------------------------------------------------------------


def test_command_line(toy):
    done = command(toy, "--tiny")
    assert done.returncode == 0, done.stderr
    assert "A tiny run of arm 'good'" in done.stdout and "accuracy" in done.stdout
    done = command(
        toy,
        "--scale",
        "cpu",
        "--arm",
        "noisy",
        "--task",
        "plane",
        "--seed",
        "3",
        "--steps",
        "5",
        "--out",
        "mine",
    )
    assert done.returncode == 0, done.stderr
    assert record(toy / "mine")["config"]["steps"] == 5
    for words, texts in (
        (["--arm", "godo"], ["unknown key 'godo'", "did you mean 'good'"]),
        (["--scale", "cpuu"], ["cpuu"]),
        (["--lr", "-1"], ["lr = -1.0 must be positive"]),
        (["--noise", "-1"], ["noise: -1.0", "at least 0"]),
        (["--stpes", "3"], ["stpes"]),
        (["--device", "cuda"], ["cuda", "--device cpu"]),
    ):
        done = command(toy, *words)
        said = done.stderr + done.stdout
        assert done.returncode != 0 and all(t in said for t in texts) and "Traceback" not in said, (
            said
        )


def test_kill_and_continue(toy):
    """SIGKILL in the middle, the same command: the same bits. SIGTERM: a clean stop, status 130."""
    words = ["--arm", "noisy", "--task", "line", "--seed", "5", "--steps", "3000", "--noise", "1.0"]
    assert command(toy, *words, "--out", "whole").returncode == 0
    checkpoints = lambda: set((toy / "cut" / "checkpoint").glob("step-*.pt"))  # noqa: E731
    for number, status in ((signal.SIGKILL, -9), (signal.SIGTERM, 130)):
        before = checkpoints()
        silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        line = [sys.executable, "-m", "toy.train", *words, "--out", "cut"]
        env = {**os.environ, "REPRO_CHECKPOINT_SECONDS": "0"}
        process = subprocess.Popen(line, cwd=toy, env=env, **silent)
        while not checkpoints() - before:
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(number)
        assert process.wait(60) == status
    done = command(toy, *words, "--out", "cut")
    assert done.returncode == 0 and "continues at step" in done.stdout
    assert record(toy / "cut")["state_sha256"] == record(toy / "whole")["state_sha256"]
    lines = [
        json.loads(x)["step"] for x in (toy / "cut" / "metrics.jsonl").read_text().splitlines()
    ]
    assert lines == list(range(3000))


def test_import_shared_is_light():
    code = "import sys, shared; sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    assert (
        subprocess.run(
            [sys.executable, "-c", code], cwd=os.path.dirname(os.path.dirname(runs.__file__))
        ).returncode
        == 0
    )
    code = "import sys; import shared.protocol; sys.exit('torch' in sys.modules)"
    assert (
        subprocess.run(
            [sys.executable, "-c", code], cwd=os.path.dirname(os.path.dirname(runs.__file__))
        ).returncode
        == 0
    )
