"""Damaged files: kills in a save, flipped bits, cuts, full disks, pickles (items 5 to 8, 11)."""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from reliable import ROOT, assert_same, checkpoints, record

from shared import runs

SAVER = """
import sys, time
from pathlib import Path
from shared import runs, stored

class Slow:
    "A file that takes its time, so that a kill meets the middle of a write."
    def __init__(self, file): self.file = file
    def __enter__(self): return self
    def __exit__(self, *error): self.file.close()
    def __getattr__(self, name): return getattr(self.file, name)
    def write(self, payload):
        part = max(1, len(payload) // 100)
        for i in range(0, len(payload), part):
            self.file.write(payload[i : i + part]); self.file.flush(); time.sleep(0.005)

old, new = Path(sys.argv[1]), Path(sys.argv[2])
payload = old.read_bytes()
stored.open = lambda *words: Slow(open(*words))
print("writing", flush=True)
while True:
    runs.write_bytes(new, payload)
    runs.write_bytes(old, payload)
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", range(10))
def test_sigkill_inside_a_save(number, tmp_path):
    """A throttled save, killed at a seeded moment: whatever bears a checkpoint's name is whole."""
    directory = tmp_path / "checkpoint"
    directory.mkdir()
    value = {
        "w": torch.randn(50_000, generator=torch.Generator().manual_seed(number)),
        "step": number,
    }
    (directory / "step-000000001.pt").write_bytes(runs.pack(value))
    code = [sys.executable, "-c", SAVER, *(str(directory / f"step-00000000{i}.pt") for i in (1, 2))]
    process = subprocess.Popen(
        code, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE
    )
    assert process.stdout is not None and process.stdout.readline() == b"writing\n"
    time.sleep(random.Random(number).uniform(0.05, 1.2))
    process.kill()
    process.wait()
    whole = checkpoints(tmp_path)
    for path in whole:
        assert torch.equal(runs.unpack(path.read_bytes(), path.name)["w"], value["w"])
    assert whole
    assert any(p.name.endswith(".tmp") for p in directory.iterdir()), "the kill met no write"


def test_bit_flips_of_its_own_checkpoint_are_caught(half, record_property):
    payload = checkpoints(half[1])[-1].read_bytes()
    rng, caught = random.Random(0), 0
    for _ in range(200):
        damaged = bytearray(payload)
        damaged[rng.randrange(len(payload))] ^= 1 << rng.randrange(8)
        with pytest.raises(runs.BadInput, match="sha256"):
            runs.unpack(bytes(damaged), "x")
        caught += 1
    record_property("figure", f"{caught}/200")


@pytest.mark.slow
def test_a_truncated_checkpoint_is_refused_and_the_run_begins_again(
    method, continued, record_property, capsys
):
    """Cut at 0, 1, 50, 99 %: file and remedy are named; without another one the run starts over."""
    node, out = continued
    path = checkpoints(out)[-1]
    payload = path.read_bytes()
    for share in (0.0, 0.01, 0.5, 0.99):
        with pytest.raises(runs.BadInput, match=rf"{path.name}.*delete it"):
            runs.unpack(payload[: int(share * len(payload))], path.name)
    for other in checkpoints(out):
        other.write_bytes(payload[: len(payload) // 2])
    assert_same(record(method.run(node, out)), method.record(node))
    said = capsys.readouterr().out
    assert "trying an older checkpoint" in said and "continues at step" not in said
    record_property("figure", "4/4")


def test_a_full_disk_keeps_the_old_checkpoint(method, continued, monkeypatch):
    """Half a checkpoint fits: an error says how many bytes were needed, and nothing else moved."""
    node, out = continued
    path = checkpoints(out)[-1]
    before = path.read_bytes()
    # config.json is written before it and has to fit
    limit = max(len(before) // 2, (out / "config.json").stat().st_size + 100)
    assert limit < len(before)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    monkeypatch.setenv("REPRO_CHECKPOINT_SECONDS", "0")
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        with pytest.raises(
            OSError, match=r"could not write [\d,]+ bytes to .*step-.*free disk space"
        ):
            method.run(node, out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert (
        checkpoints(out) == [path]
        and path.read_bytes() == before
        and not (out / "record.json").exists()
    )


class Evil:
    def __init__(self, where: Path):
        self.where = where

    def __reduce__(self):
        return (os.mkdir, (str(self.where),))


def test_a_planted_pickle_in_its_checkpoint_never_runs(method, continued, tmp_path):
    node, out = continued
    path = checkpoints(out)[-1]
    path.with_name("step-999999999.pt").write_bytes(
        runs.pack({"step": 1, "model": Evil(tmp_path / "ran")})
    )
    with pytest.raises(Exception, match=r"[Ww]eights.only"):
        method.run(node, out)
    assert not (tmp_path / "ran").exists()
