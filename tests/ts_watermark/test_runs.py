"""Whole runs: the command, and runs that were stopped or killed in each of their phases."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from shared import bundled, protocol, runs
from ts_watermark import evaluate, train
from ts_watermark.config import Config
from ts_watermark.detect import Detector

ROOT = Path(__file__).resolve().parents[2]


def test_tiny_run_from_the_command_line(tmp_path):
    """The real command: stage, generators, texts, scores; a second call does nothing."""
    environment = {
        **os.environ,
        "REPRO_RUNS": str(tmp_path / "runs"),
        "REPRO_CACHE": str(tmp_path / "cache"),
    }
    command = [sys.executable, "-m", "ts_watermark.train", "--tiny", "--device", "cpu"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    seed = tmp_path / "runs/ts_watermark/tiny/tiny/seed0"
    record = json.loads((seed / "ts/record.json").read_text())
    assert record["status"] == "finished" and all(g["passed"] for g in record["gates"])
    with np.load(seed / "ts/predictions.npz") as stored:
        again = evaluate.score(dict(stored))
    assert again == pytest.approx(record["metrics"])
    folder = seed / "generators/export/0.25_2.0"
    assert Detector.load(folder).watermark.about["arm"] == "generators"
    second = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert "finished before" in second.stdout


@pytest.mark.slow
def test_networks_for_a_model_of_ones_own(tmp_path):
    """The command of README, on a small GPT-2 of SmolLM2's tokens: what it exports is loaded."""
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(bundled.smollm2())
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 128}
    config = transformers.GPT2Config(vocab_size=len(tokenizer), **sizes)
    mine = tmp_path / "gpt2"
    transformers.GPT2LMHeadModel(config).save_pretrained(mine)
    tokenizer.save_pretrained(mine)
    said = (ROOT / "ts_watermark/README.md").read_text(encoding="utf-8")
    (line,) = (x for x in said.splitlines() if x.endswith("--model FOLDER --out mine"))
    words = line.replace("FOLDER", str(mine)).replace("--out mine", f"--out {tmp_path / 'mine'}")
    short = (
        "--device cpu --train-steps 3 --train-prompts 12 --test-prompts 4 --validation-prompts 4"
    )
    command = [sys.executable, *words.split()[1:], *short.split()]
    places = {"REPRO_RUNS": str(tmp_path / "runs")}
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, **places}
    )
    assert done.returncode == 0, done.stderr
    detector = Detector.load(tmp_path / "mine/export/0.25_2.0")
    assert len(detector.watermark.gamma) == len(tokenizer)
    assert detector.score("Nobody has marked this sentence, which somebody wrote.").p_value > 1e-3


def configs(folder, monkeypatch) -> list[dict]:
    """The tiny stage, generators and arm, with two strengths and two batches of each."""
    monkeypatch.setenv("REPRO_RUNS", str(folder / "runs"))
    monkeypatch.setenv("REPRO_CACHE", str(folder / "cache"))
    paper = protocol.Protocol(ROOT / "ts_watermark")
    nodes = [paper.node("tiny", arm, "tiny", 0) for arm in ("base", "generators", "ts")]
    changed = {
        "device": "cpu",
        "inits": ("0.25_2.0", "0.25_1.0"),
        "train_prompts": 20,
        "validation_prompts": 8,
        "train_steps": 4,
        "eval_batch": 6,
        "attacks": ("copy_paste_1", "delete_0.2"),
    }
    return [paper.config("tiny", node) | changed for node in nodes]


def outcome(config) -> tuple:
    """What a finished run left: hashes, metrics and log."""
    directory = train.run(Config(**config))
    record = json.loads((directory / "record.json").read_text())
    log = directory / "metrics.jsonl"
    hashes = record["state_sha256"], record["predictions_sha256"]
    return *hashes, record["metrics"], log.read_text() if log.exists() else ""


def phases_of(config) -> list[str]:
    """Lines of a run's log that say where it was stopped."""
    lines = (train.run(Config(**config)) / "log.txt").read_text().splitlines()
    return [line.rsplit("(", 1)[1].split(")")[0] for line in lines if "stopped after" in line]


def test_stopped_after_every_step_it_is_the_same_run(tmp_path, monkeypatch):
    """Asked to stop once a step, in every phase of the generators and of an arm."""
    whole = [outcome(config) for config in configs(tmp_path / "whole", monkeypatch)]
    base, *others = configs(tmp_path / "cut", monkeypatch)
    cut, phases = [outcome(base)], []
    for config in others:
        monkeypatch.setattr(runs, "_stop_asked", lambda: True)
        for _ in range(100):
            try:
                train.run(Config(**config))
                break
            except runs.Stopped:
                continue
        monkeypatch.setattr(runs, "_stop_asked", bool)
        cut.append(outcome(config))
        phases.append(phases_of(config))
    assert cut == whole
    of_generators, of_arm = phases
    inits = [f"generators {init}" for init in others[0]["inits"]]
    assert list(dict.fromkeys(of_generators)) == ["references", *inits, "values in use"]
    assert list(dict.fromkeys(of_arm)) == ["unwatermarked", "test"]
    steps = 2 * 2 * 7  # strengths, batches, and the text and six measurements of each
    assert of_arm.count("test") == steps


KILLED_AT = """
import json, os, signal, sys
from shared import runs
from ts_watermark import train
from ts_watermark.config import Config

config, phase, step, checkpoint = json.loads(sys.argv[1]), *sys.argv[2:], runs.Run._checkpoint

def checkpoint_and_die(run, name, done, work):
    checkpoint(run, name, done, work)
    if (name, done) == (phase, int(step)):
        os.kill(os.getpid(), signal.SIGKILL)

runs.Run._checkpoint = checkpoint_and_die
config = {key: tuple(v) if isinstance(v, list) else v for key, v in config.items()}
train.run(Config(**config))
"""


def test_killed_and_resumed_it_is_the_same_run(tmp_path, monkeypatch):
    """SIGKILL while the second pair of networks trains, and in the second of two strengths."""
    whole = [outcome(config) for config in configs(tmp_path / "whole", monkeypatch)]
    base, generators, ts = configs(tmp_path / "cut", monkeypatch)
    monkeypatch.setenv("REPRO_CHECKPOINT_SECONDS", "0")
    cut = [outcome(base)]
    for config, phase, step in ((generators, "generators 0.25_1.0", 3), (ts, "test", 17)):
        words = [sys.executable, "-c", KILLED_AT, json.dumps(config), phase, str(step)]
        killed = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
        assert killed.returncode == -signal.SIGKILL, killed.stdout + killed.stderr
        cut.append(outcome(config))
        log = (train.run(Config(**config)) / "log.txt").read_text()
        assert f"continues at step {step} ({phase})" in log, log
    assert cut == whole
