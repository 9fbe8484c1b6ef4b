"""Streams, packed files, cached values: named draws, damage found, nothing lost on a full disk."""

from __future__ import annotations

import os
import random
import resource
import subprocess
import sys

import pytest
import torch

from shared import runs
from shared.runs import BadInput

# --- streams ----------------------------------------------------------------------------------


def test_streams_are_named_and_independent():
    draw = lambda *names: torch.rand(4, generator=runs.stream(*names))  # noqa: E731
    assert torch.equal(draw(1, "split"), draw(1, "split"))
    assert not torch.equal(draw(1, "split"), draw(1, "head"))
    assert not torch.equal(draw(1, "split"), draw(2, "split"))
    assert not torch.equal(draw(1, "a", "b"), draw(1, "ab"))
    runs.seed_global(3, "dropout", 7)
    first = torch.nn.functional.dropout(torch.ones(50))
    runs.seed_global(3, "dropout", 7)
    assert torch.equal(first, torch.nn.functional.dropout(torch.ones(50)))


# --- checkpoints ------------------------------------------------------------------------------


def test_every_bit_flip_is_caught():
    payload = runs.pack({"w": torch.randn(300), "step": 4})
    assert torch.equal(runs.unpack(payload, "x")["w"], runs.unpack(payload, "x")["w"])
    rng = random.Random(0)
    for _ in range(200):
        damaged = bytearray(payload)
        damaged[rng.randrange(len(payload))] ^= 1 << rng.randrange(8)
        with pytest.raises(BadInput, match="sha256"):
            runs.unpack(bytes(damaged), "x")
    for share in (0.0, 0.01, 0.5, 0.99):
        with pytest.raises(BadInput, match="truncated or damaged"):
            runs.unpack(payload[: int(share * len(payload))], "x")


def test_a_planted_pickle_never_runs(tmp_path):
    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "ran"),))

    with pytest.raises(Exception, match=r"[Ww]eights.only"):
        runs.unpack(runs.pack(Evil()), "x")
    assert not (tmp_path / "ran").exists()


def test_full_disk_leaves_the_old_file(tmp_path):
    path = tmp_path / "step.pt"
    runs.write_bytes(path, b"old")
    code = f"""
import resource, signal, sys
sys.path.insert(0, {os.path.dirname(os.path.dirname(runs.__file__))!r})
from pathlib import Path
from shared import runs
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
runs.write_bytes(Path({str(path)!r}), b'x' * 100000)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (
        done.returncode != 0 and "100,000 bytes" in done.stderr and "free disk space" in done.stderr
    )
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 4096


def test_a_missing_checkpoint_field_is_named():
    with pytest.raises(BadInput, match="lacks 'optimizer'"):
        runs.Saved({"model": 1})["optimizer"]


def test_cached_values(tmp_path, monkeypatch):
    monkeypatch.setenv("REPRO_CACHE", str(tmp_path))
    calls = []

    def make():
        calls.append(1)
        return {"x": torch.arange(3), "words": ["a", "b"]}

    assert runs.cached(("k", 1), make)["words"] == ["a", "b"]
    assert torch.equal(runs.cached(("k", 1), make)["x"], torch.arange(3)) and len(calls) == 1
    runs.cached(("k", 2), make)
    assert len(calls) == 2
    for entry in (tmp_path / "values").glob("*.pt"):  # a damaged entry is made again
        entry.write_bytes(entry.read_bytes()[:-1] + b"?")
    assert runs.cached(("k", 1), make)["words"] == ["a", "b"] and len(calls) == 3
