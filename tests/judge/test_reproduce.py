"""The runner on a paper of twenty lines: verdicts, stops, crashes, previews and refusals."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from commands import reproduce, results


def slow_down(root):
    """Runs of a few seconds, so that a signal meets them in the middle; scores stay equal."""
    path = root / "toy" / "train.py"
    path.write_text(
        path.read_text().replace(
            "            run.log(step=step",
            "            __import__('time').sleep(0.2)\n            run.log(step=step",
        )
    )


def test_from_nothing_to_verdicts_and_again(finished):
    toy, done = finished
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no CUDA device" in done.stdout and "[23/23]" in done.stdout and "report:" in done.stdout
    first = results(toy)
    claim = first["claims"][0]
    assert claim["id"] == "C1" and claim["n"] == 5 and "(scaled down)" in claim["verdict"]
    assert {r["status"] for r in first["runs"]} == {"finished"} and len(first["runs"]) == 23
    assert {g["id"] for g in first["gates"]} >= {"toy-gate"} and all(
        g["passed"] for g in first["gates"]
    )
    good = next(r for r in first["runs"] if r["arm"] == "good")
    assert good["gradient_evaluations_with_uses"] == good["gradient_evaluations"] + 3
    stamps = {p: p.stat().st_mtime_ns for p in toy.glob("runs/toy/cpu/*/*/*/record.json")}
    done = reproduce(toy, "--jobs", "1")
    assert done.returncode == 0 and "23 finished before" in done.stdout and "[1/" not in done.stdout
    assert stamps == {p: p.stat().st_mtime_ns for p in stamps} and results(toy) == first


def test_killed_and_continued_gives_the_same(toy, finished):
    whole = results(finished[0])
    for number, status in ((signal.SIGKILL, -9), (signal.SIGINT, 75)):
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.reproduce", "toy"],
            cwd=toy,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "REPRO_CHECKPOINT_SECONDS": "0"},
        )
        before = len(list(toy.glob("runs/toy/cpu/*/*/*/record.json")))
        while len(list(toy.glob("runs/toy/cpu/*/*/*/record.json"))) < before + 2:
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
        assert process.returncode == status, out + err
    assert "Continue with: make reproduce-toy SCALE=cpu" in out
    done = reproduce(toy, "--jobs", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert results(toy) == whole


def test_limit_stops_and_continues(toy):
    slow_down(toy)
    done = reproduce(toy, "--limit", "4s", "--only", "noisy", "--seeds", "2")
    assert done.returncode == 75 and "LIMIT=4s" in done.stdout, done.stdout + done.stderr
    for _ in range(10):
        done = reproduce(toy, "--limit", "20s", "--only", "noisy", "--seeds", "2")
        if done.returncode != 75:
            break
    assert done.returncode == 0, done.stdout + done.stderr


def test_previews_are_kept_apart(toy):
    done = reproduce(toy, "--seeds", "2")
    assert done.returncode == 0 and "PREVIEW" in done.stdout
    assert not (toy / "runs" / "toy" / "cpu" / "results.json").exists()
    assert (
        results(toy, "preview")["claims"][0]["verdict"].startswith("NOT RUN")
        or "INCONCLUSIVE" in results(toy, "preview")["claims"][0]["verdict"]
    )


def test_a_gate_of_runs_that_a_preview_leaves_out_has_not_failed(toy):
    edit(
        toy,
        "gates: [",
        "gates: [{id: of-others, statement: recorded by other arms}, ",
        "claims.yaml",
    )
    done = reproduce(toy, "--only", "noisy", "--seeds", "2", "--jobs", "1")
    assert done.returncode == 0 and "FAILED" not in done.stdout, done.stdout + done.stderr


def edit(root, old, new, name="protocol.yaml"):
    path = root / "toy" / name
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


def test_a_crash_is_tried_again_and_reported(toy):
    edit(toy, "set: {noise: 3.0}", "set: {noise: 3.0, crash: 103}")
    done = reproduce(toy, "--jobs", "1")
    assert done.returncode == 1
    assert (
        "the worker died (exit status 7)" in done.stdout
        and "alone: python -m toy.train --scale cpu --arm noisy" in done.stdout
    )
    result = results(toy)
    assert result["claims"][0]["verdict"].startswith("NOT RUN")
    crashed = [r for r in result["runs"] if r["arm"] == "noisy" and r["seed"] == 103]
    assert {r["status"] for r in crashed} == {"crashed"} and {r["attempts"] for r in crashed} == {2}
    assert all(r["status"] == "finished" for r in result["runs"] if r["arm"] == "good")


def test_divergence_is_an_outcome(toy):
    edit(toy, "set: {noise: 3.0}", "set: {noise: 3.0, nan_at: 4}")
    done = reproduce(toy)
    assert done.returncode == 0, done.stdout + done.stderr
    claim = results(toy)["claims"][0]
    assert "INCONCLUSIVE" in claim["verdict"] and claim["reason"].startswith("failures")
    assert all(d <= 0 for d in claim["d"])  # a broken opponent never helps
    assert reproduce(toy).returncode == 0 and results(toy)["claims"][0] == claim


def test_a_failed_gate_fails_the_command(toy):
    edit(toy, '"toy-gate", True', '"toy-gate", config.seed != 102', "train.py")
    wall = toy / "runs" / "toy" / "cpu" / "wall.json"
    wall.parent.mkdir(parents=True, exist_ok=True)
    wall.write_text('{"wall": 1e6}')  # spent on runs of other code
    done = reproduce(toy, "--jobs", "1")
    assert json.loads(wall.read_text())["wall"] < 1e6
    assert done.returncode == 1 and "gate toy-gate FAILED" in done.stdout


@pytest.mark.parametrize(
    "words, status, text",
    [
        (["--scale", "gpu"], 2, "has no scale 'gpu'"),
        (["--scale", "cpuu"], 2, "did you mean 'cpu'"),
        (
            ["--scale", "paper"],
            2,
            "hf download nobody/nothing --local-dir $REPRO_MODELS/nobody/nothing",
        ),
        (["--only", "noisi"], 2, "did you mean 'noisy'"),
        (["--limit", "soon"], 2, "LIMIT=soon"),
        (["--limit", "0"], 2, "LIMIT=0: expected a number above 0"),
        (["--only", ","], 2, "ONLY=, names no arm"),
        (["--seeds", "0"], 2, "--seeds: 0: expected a whole number, at least 1"),
        (["--jobs", "-3"], 2, "--jobs: -3: expected a whole number, at least 1"),
        (["--record", "--scale", "cpuu"], 2, "has no scale 'cpuu'"),
    ],
)
def test_bad_requests(toy, words, status, text):
    done = reproduce(toy, *words, HF_HUB_OFFLINE="1")
    assert (
        done.returncode == status
        and text in done.stderr + done.stdout
        and "Traceback" not in done.stderr
    ), done.stderr + done.stdout


def test_a_bad_place_is_named_with_the_remedy(toy, tmp_path):
    (tmp_path / "taken").write_text("a file where runs should go")
    for words, variable, place in (
        ([], "REPRO_RUNS", tmp_path / "taken"),
        (["--scale", "paper"], "REPRO_DATA", tmp_path / "nowhere"),
    ):
        done = reproduce(toy, *words, **{variable: str(place), "HF_HUB_OFFLINE": "1"})
        assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
        assert str(place) in done.stderr and "remedy:" in done.stderr and variable in done.stderr


def test_broken_files_below_runs_stop_no_verdict(toy, finished):
    """wall.json costs the time that it counted; an old result that is not JSON is named."""
    shutil.copytree(finished[0] / "runs", toy / "runs")
    folder = toy / "runs" / "toy" / "cpu"
    (folder / "wall.json").write_text('{"wall": 1')
    done = reproduce(toy)
    assert done.returncode == 0 and "wall.json cannot be read" in done.stdout, (
        done.stdout + done.stderr
    )


def test_dry_prints_the_plan_and_starts_nothing(toy):
    done = reproduce(toy, "--dry")
    assert done.returncode == 0 and "23 runs" in done.stdout and not (toy / "runs").exists()
