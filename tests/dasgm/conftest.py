"""One thread, runs in a temporary folder, and `dasgm_small` to import."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

import dasgm_small


@pytest.fixture(autouse=True)
def one_thread(tmp_path, monkeypatch):
    torch.set_num_threads(1)
    monkeypatch.setenv("REPRO_RUNS", str(tmp_path / "runs"))


@pytest.fixture
def generator(tmp_path) -> dict[str, str]:
    """The `uses` of a run that needs a generator."""
    return {"generator": str(dasgm_small.make(tmp_path, "generator", job="generator"))}
