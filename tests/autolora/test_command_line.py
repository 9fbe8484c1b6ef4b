"""`python -m autolora.train --tiny`, killed and given again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from autolora import train
from autolora.config import Config
from shared import protocol

ROOT = Path(__file__).resolve().parents[2]
TINY = [sys.executable, "-m", "autolora.train", "--tiny", "--device", "cpu"]


def test_tiny_command_survives_a_kill_and_gives_the_same(tmp_path, record):
    root = str(tmp_path / "killed")
    environment = os.environ | {"REPRO_RUNS": root, "REPRO_CHECKPOINT_SECONDS": "0"}
    quiet = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    process = subprocess.Popen(TINY, cwd=ROOT, env=environment, **quiet)
    folder = tmp_path / "killed" / "autolora" / "tiny" / "tiny" / "seed0"
    checkpoints = folder / "search" / "checkpoint"
    until = time.monotonic() + 200
    while len(list(checkpoints.glob("step-*"))) < 2 and time.monotonic() < until:
        assert process.poll() is None, process.stdout.read().decode()
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    again = subprocess.run(TINY, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "continues at step" in again.stdout

    paper = protocol.Protocol(ROOT / "autolora")
    values = paper.config("tiny", paper.node("tiny", "search", "tiny", 0))
    clean = train.run(Config(**values | {"out": str(tmp_path / "clean"), "device": "cpu"}))
    assert record(clean)["state_sha256"] == record(folder / "search")["state_sha256"]
    assert json.loads((folder / "search" / "ranks.json").read_text())["budget"] >= 2

    score = [sys.executable, "-m", "autolora.evaluate", str(folder / "autolora")]
    shown = subprocess.run(score, cwd=ROOT, capture_output=True, text=True).stdout
    assert f"accuracy = {record(folder / 'autolora')['metrics']['accuracy']:.4f}" in shown
