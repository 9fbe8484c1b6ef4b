"""One judge at a time on a paper and scale, one writer of the report; nobody is locked out by a
dead one."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time

import pytest
from commands import reproduce

from benchmarks import locks
from shared.protocol import BadInput

OWNER = """
import sys, time
from pathlib import Path
from benchmarks import locks
with locks.alone(Path(sys.argv[1]), "a test"):
    print("locked", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def owner(root, folder, seconds):
    """A process that is at work in `folder` for so long."""
    command = [sys.executable, "-c", OWNER, str(folder), str(seconds)]
    process = subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"locked\n"
    return process


def test_the_second_is_told_who_works_and_a_dead_owner_locks_nobody_out(root, tmp_path):
    process = owner(root, tmp_path, 60)
    try:
        words = rf"a test is under way: process {process.pid} on .* since 20"
        with pytest.raises(BadInput, match=words), locks.alone(tmp_path, "a test"):
            pass
        assert list(locks.busy(tmp_path)) == [tmp_path]
        process.send_signal(signal.SIGSTOP)  # it still is at work
        assert locks.busy(tmp_path)
    finally:
        process.kill()
        process.wait()
    assert not locks.busy(tmp_path)
    with locks.alone(tmp_path, "a test"):
        assert locks.busy(tmp_path)


def test_the_second_waits_where_that_is_a_moment(root, tmp_path):
    process = owner(root, tmp_path, 0.5)
    begun = time.monotonic()
    with locks.alone(tmp_path, "a report", patience=30):
        assert time.monotonic() - begun > 0.2
    process.wait()


def test_a_second_judge_touches_nothing(toy, finished):
    """Not while it runs, not to record; the report of the first is not written twice either."""
    shutil.copytree(finished[0] / "runs", toy / "runs")
    folder = toy / "runs" / "toy" / "cpu"
    process = owner(toy, folder, 120)
    before = {path: path.stat().st_mtime_ns for path in (toy / "runs").rglob("*.*")}
    try:
        for words in ([], ["--seeds", "2"], ["--record"]):
            done = reproduce(toy, *words)
            assert done.returncode == 2, done.stdout + done.stderr
            assert f"toy at scale cpu is under way: process {process.pid} on" in done.stderr
        assert "23 runs" in reproduce(toy, "--dry").stdout
        command = [sys.executable, "-m", "benchmarks.locks"]
        clean = subprocess.run(command, cwd=toy, capture_output=True, text=True)
        assert clean.returncode == 2 and f"process {process.pid}" in clean.stderr
    finally:
        process.kill()
        process.wait()
    assert before == {path: path.stat().st_mtime_ns for path in (toy / "runs").rglob("*.*")}
    assert not (toy / "report").exists()


def test_a_report_that_cannot_be_written_costs_no_verdict(toy, finished, tmp_path):
    """A file in its place, or a full disk: the results stand and the variable is named."""
    shutil.copytree(finished[0] / "runs", toy / "runs")
    (toy / "runs" / "toy" / "cpu" / "results.json").unlink()
    (toy / "report").write_text("no folder")
    done = reproduce(toy)
    assert done.returncode == 0 and "report:  not written" in done.stdout, done.stderr
    assert "name another folder with REPRO_REPORT=...\n" in done.stdout
    assert (toy / "runs" / "toy" / "cpu" / "results.json").exists()
    done = reproduce(toy, REPRO_REPORT=str(tmp_path / "elsewhere"))
    assert done.returncode == 0 and (tmp_path / "elsewhere" / "toy.html").exists(), done.stderr


def test_the_remedy_names_the_variable_of_the_place(monkeypatch, tmp_path):
    from benchmarks.reproduce import ROOT, no_room

    for name in ("REPRO_RUNS", "REPRO_CACHE", "REPRO_REPORT"):
        monkeypatch.delenv(name, raising=False)
    assert no_room(OSError(28, "full", str(ROOT / "runs" / "x"))).endswith("with REPRO_RUNS=...")
    monkeypatch.setenv("REPRO_RUNS", str(tmp_path))
    monkeypatch.setenv("REPRO_CACHE", str(tmp_path / "cache"))
    assert no_room(OSError(30, "read-only", "/else/where")).endswith("with REPRO_REPORT=...")
