"""Short trainings on a CUDA device, real or pretended (tests/pretend_cuda.py)."""

from __future__ import annotations

import math

import pytest
import torch


@pytest.fixture(scope="session")
def made_up(tmp_path_factory):
    """A folder for REPRO_DATA with what scale `gpu` of every paper reads."""
    import short_gpu

    from benchmarks import PAPERS

    folder = tmp_path_factory.mktemp("data") / "data"
    short_gpu.write_data(folder, PAPERS)
    return folder


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def cuda():
    """The device's name; afterwards kernels without an order are allowed again."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    yield "cuda"
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def device(cuda, made_up, shared_cache, monkeypatch):
    """The same, where runs find their made-up data and repeat bit for bit."""
    import reliable

    monkeypatch.setenv("REPRO_DATA", str(made_up))
    monkeypatch.setenv("REPRO_CACHE", str(shared_cache))
    monkeypatch.setenv("DETERMINISTIC", "1")
    # a few steps teach a language model nothing, which the watermark would refuse
    monkeypatch.setattr("ts_watermark.language_model.UNIGRAM_SHARE", math.inf)
    with reliable.by_hand():
        yield cuda
