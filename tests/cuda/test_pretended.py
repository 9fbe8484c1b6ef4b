"""The tests of `make test-gpu` on a pretended CUDA device, in processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pretend_cuda
import pytest

ROOT = Path(__file__).resolve().parents[2]


def on_the_pretended_device(marks: str, *words: str, **environ: str) -> str:
    """The last line that pytest prints; its whole output is the failure."""
    if reason := pretend_cuda.lacks():
        pytest.skip(reason)
    command = [sys.executable, "-m", "pytest", "-p", "pretend_cuda", "--pretend-cuda"]
    command += ["-p", "no:cacheprovider", "-m", marks, *words, str(Path(__file__).parent)]
    env = {**os.environ, "PYTHONPATH": str(ROOT / "tests"), "CUDA_VISIBLE_DEVICES": "0", **environ}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "skipped" not in done.stdout and "passed" in done.stdout, done.stdout[-2000:]
    return done.stdout


def test_short_trainings_of_every_paper():
    on_the_pretended_device("gpu and not slow")


@pytest.mark.slow
def test_every_arm():
    on_the_pretended_device("gpu and slow", "-k", "not host_draws")


@pytest.mark.slow
def test_a_run_on_the_device_is_a_run_on_the_host():
    on_the_pretended_device("gpu and slow", "-k", "host_draws", PRETEND_CUDA_DRAWS="host")


@pytest.mark.slow
def test_workers_of_the_judge_train_on_it(tmp_path):
    """Processes that a process starts have the device too, and records say which it was."""
    if reason := pretend_cuda.lacks():
        pytest.skip(reason)
    (tmp_path / "site").mkdir()
    env = pretend_cuda.environment(tmp_path / "site") | {"REPRO_RUNS": str(tmp_path / "runs")}
    command = [sys.executable, "-m", "benchmarks.reproduce", "weight_mixup"]
    command += ["--scale", "rehearsal", "--only", "plain", "--task", "rte"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    records = [json.loads(p.read_text()) for p in (tmp_path / "runs").rglob("record.json")]
    devices = {record["environment"]["device"] for record in records}
    assert devices == {pretend_cuda.NAME}, done.stdout[-3000:] + done.stderr[-3000:]
