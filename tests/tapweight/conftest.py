"""One thread, a cache of made-up inputs, and the folder of `tapweight_problems.py` on the path."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def rehearsal_cache(tmp_path_factory):
    """A cache of its own, so that the made-up inputs are written by this code."""
    cache = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REPRO_CACHE", str(cache))
        yield cache
