"""No item leaks between levels (item 13); without network and data the answer is clear (20)."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from reliable import ROOT, all_records

from benchmarks import PAPERS
from shared import runs


def test_no_item_is_in_two_levels(method, record_property):
    """Parts of a run are disjoint, pair by pair; no stage saw a test item of the scored run."""
    paths = {n.arm: method.directory(n.key) / "splits.npz" for n in method.nodes}
    parts = {arm: runs.load_arrays(path) for arm, path in paths.items() if path.exists()}
    pairs = 0
    for split in parts.values():
        for a, b in itertools.combinations(split, 2):
            assert not np.intersect1d(split[a], split[b]).size, (a, b)
            pairs += 1
    tested = parts[method.nodes[-1].arm]["test"]
    for arm, split in parts.items():
        for name, ids in split.items():
            if name != "test":
                assert not np.intersect1d(tested, ids).size, (arm, name)
                pairs += 1
    assert pairs
    record_property("figure", f"{pairs}/{pairs}")


def without_network() -> list[str]:
    """Words that run a command in a network namespace without routes, where that is allowed."""
    words = ["unshare", "-rn"]
    try:
        allowed = subprocess.run([*words, "true"], capture_output=True).returncode == 0
    except OSError:
        allowed = False
    return words if allowed else []


def cold(tmp_path: Path) -> dict[str, str]:
    """An environment with an empty home and no place for data, models or caches but new ones."""
    places = ("REPRO_", "HF_", "XDG_", "TRANSFORMERS_")
    rest = {k: v for k, v in os.environ.items() if not k.startswith(places)}
    home = tmp_path / "home"
    home.mkdir()
    folders = {f"REPRO_{name.upper()}": str(tmp_path / name) for name in ("runs", "cache")}
    machine = {"HOME": str(home), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return {**rest, **folders, **machine}


@pytest.mark.slow
@pytest.mark.parametrize("paper", PAPERS)
def test_offline_cold_start_trains(paper, tmp_path):
    command = [*without_network(), sys.executable, "-m", f"{paper}.train", "--tiny"]
    done = subprocess.run(command, cwd=ROOT, env=cold(tmp_path), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-2000:]
    assert all_records(tmp_path / "runs")


def without_data(paper: str, tmp_path: Path) -> str:
    """What the judge says of scale paper on a machine without data, models and network."""
    words = ["-m", "benchmarks.reproduce", paper, "--scale", "paper"]
    command = [*without_network(), sys.executable, *words]
    env = cold(tmp_path) | {"REPRO_DATA": str(tmp_path / "home")}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    said = done.stdout + done.stderr
    assert done.returncode == 2 and "Traceback" not in said, said[-3000:]
    assert not list((tmp_path / "runs").rglob("record.json"))
    return said


@pytest.mark.slow
@pytest.mark.parametrize("paper", PAPERS)
def test_offline_the_papers_protocol_names_what_is_missing(paper, tmp_path):
    """A status of its own, no traceback, nothing trained."""
    assert "missing for scale paper" in without_data(paper, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("paper", PAPERS)
def test_offline_the_papers_protocol_says_how_to_fetch_it(paper, tmp_path):
    said = without_data(paper, tmp_path)
    assert "NOT RUN" in said and "hf download" in said, said[-3000:]
