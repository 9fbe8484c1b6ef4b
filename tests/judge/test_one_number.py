"""One published number of AutoLoRA: planned, its inputs named, run on tiny ones, judged."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from autolora import rehearsal
from shared import glue, runs

CELL = "lora-readme-rte-lora"
ENTRY = """  - {id: invented-gain, table: T, method: AutoLoRA - LoRA, metric: accuracy, value: 1.5,
     higher_is_better: true, confidence: read, origin: paper, source: invented}
printed_settings:"""
TARGET = """
  - {reported: invented-gain, arm: autolora, opponent: uniform_8, task: rte, metric: accuracy,
     tolerance: 3.0, reason: invented}
"""
SHORTER = {
    "search_steps: 3760": "search_steps: 3",
    "epochs: 30 ": "epochs: 1 ",
    "max_length: 512\n      search_steps": "max_length: 64\n      search_steps",
    "    seeds: 5\n    core: [autolora, autolora_again": "    seeds: 3\n    core: [autolora, "
    "autolora_again",
}


def reproduce(root: Path, *words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", **environ}
    command = [sys.executable, "-m", "benchmarks.reproduce", "autolora", *words]
    return subprocess.run(command, cwd=root, env=env, capture_output=True, text=True)


@pytest.fixture(scope="module")
def checkout(root, tmp_path_factory) -> Path:
    """The judge and AutoLoRA, whose paper scale takes a few steps, and one number more."""
    path = tmp_path_factory.mktemp("one_number")
    for name in ("shared", "benchmarks", "autolora"):
        shutil.copytree(root / name, path / name, ignore=shutil.ignore_patterns("__pycache__"))
    protocol = path / "autolora" / "protocol.yaml"
    text = protocol.read_text(encoding="utf-8")
    for old, new in SHORTER.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    protocol.write_text(text, encoding="utf-8")
    reported, claims = path / "autolora" / "reported.yaml", path / "autolora" / "claims.yaml"
    reported.write_text(
        reported.read_text("utf-8").replace("printed_settings:", ENTRY), encoding="utf-8"
    )
    claims.write_text(claims.read_text("utf-8").rstrip() + TARGET, encoding="utf-8")
    glue.write_sample(path / "data", "rte", 24, runs.stream(0, "one number"))
    texts = [file.read_text("utf-8") for file in (path / "data").rglob("*") if file.is_file()]
    rehearsal.write_models(path / "models", texts)
    shutil.rmtree(path / "models" / "openai-community")  # no run of RTE may ask for it
    return path


def test_the_plan_asks_for_roberta_and_rte_alone(root, tmp_path):
    environ = {"REPRO_RUNS": str(tmp_path), "HF_HOME": str(tmp_path)}
    done = reproduce(root, "--dry", "--scale", "paper", "--cell", CELL, **environ)
    assert done.returncode == 0, done.stderr
    assert "5 runs: 1 arms x 1 task(s)" in done.stdout
    inputs = done.stdout.partition("inputs: missing")[2].splitlines()[1:]
    assert [line.strip() for line in inputs[::2]] == [
        "model FacebookAI/roberta-base",
        "data glue/RTE",
    ]
    assert "hf download FacebookAI/roberta-base" in inputs[1]


def test_a_number_is_run_and_judged_on_local_folders(checkout):
    folders = {"REPRO_DATA": str(checkout / "data"), "REPRO_MODELS": str(checkout / "models")}
    done = reproduce(checkout, "--cell", f"{CELL},invented-gain", "--jobs", "1", **folders)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "9 runs: 3 arms" in done.stdout and "[9/9]" in done.stdout
    started = [line.split() for line in done.stdout.splitlines() if line.startswith("[")]
    seeds = [words[words.index("seed") + 1] for words in started]
    assert seeds == sorted(seeds), "a seed is complete before the next one begins"
    assert f"{CELL}  CONTEXT [preview: CELL={CELL},invented-gain]" in done.stdout
    verdicts = ("REPRODUCED", "NOT REPRODUCED", "BETTER", "INCONCLUSIVE")
    said = next(line for line in done.stdout.splitlines() if "  invented-gain  " in line)
    assert said.split("  ")[2].split(" [")[0] in verdicts
    assert "as recorded" not in done.stdout
