"""One thread, and a digits network that is pretrained in a moment."""

import sys
from pathlib import Path

import pytest
import torch

from weight_mixup import data

sys.path.insert(0, str(Path(__file__).parent))  # mixup_toys.py


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def no_cache(tmp_path_factory, monkeypatch):
    """Pretrain the digits network for one epoch, in a cache of its own."""
    monkeypatch.setenv("REPRO_CACHE", str(tmp_path_factory.mktemp("cache")))
    long = data.pretrain_digits
    monkeypatch.setattr(data, "pretrain_digits", lambda x, y: long(x, y, epochs=1))
