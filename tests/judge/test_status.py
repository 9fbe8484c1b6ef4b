"""`make status`: what stands in the runs folder, in words, without holding anything."""

from __future__ import annotations

import json
import os
import shutil
import socket
import time

import pytest

from benchmarks import locks, status


@pytest.fixture
def here(finished, tmp_path):
    """The toy paper with all its runs, as a copy."""
    shutil.copytree(finished[0], tmp_path / "here")
    return tmp_path / "here"


def of(root) -> status.Status:
    return status.status("toy", "cpu", root, root / "runs")


def test_a_finished_scale_has_its_verdicts_and_nothing_left(here):
    one = of(here)
    assert one.done == one.planned > 10 and not one.failed and one.owner is None
    head, who, last = status.lines(one)
    assert head == f"toy at cpu: {one.done} of {one.planned} runs done"
    assert who == "  nobody works on it now"
    assert last.startswith("  last verdicts (this machine, 2") and "SUPPORTED" in last


def test_runs_that_are_missing_under_way_or_silent(here):
    before = of(here)
    folders = list(status.run_folders(here / "runs" / "toy" / "cpu"))
    (folders[0] / "record.json").unlink()
    (folders[0] / "log.txt").write_text("12:00:00 begun\n12:00:10 training: 30/300, 12 s left\n")
    shutil.rmtree(folders[1])
    one = of(here)
    assert one.done == before.done - 2
    arm, task, seed = status.key_of(folders[0])
    assert one.under_way == [f"{arm} {task} seed {seed}: training: 30/300, 12 s left"]
    assert f"; 2 left, about {one.seconds_left:.1f} s at this pace" in status.lines(one)[0]
    hour = time.time() - 3600
    for file in folders[0].glob("*"):
        os.utime(file, (hour, hour))
    assert not of(here).under_way


def test_who_works_is_told_without_a_lock(here):
    folder = here / "runs" / "toy" / "cpu"
    with locks.alone(folder, "a test"):
        assert str(os.getpid()) in (of(here).owner or "")
    lock = folder / locks.NAME
    lock.write_text(f"process 999999999 on {socket.gethostname()} since 2026-01-01")
    assert of(here).owner is None  # it died
    lock.write_text("process 7 on another-machine since 2026-01-01")
    assert "another-machine" in (of(here).owner or "")
    with locks.alone(folder, "a test"):  # nobody holds it
        pass


def test_damaged_files_stop_nothing(here):
    folder = here / "runs" / "toy" / "cpu"
    (folder / status.PLAN).write_text("{")
    record = next(status.run_folders(folder)) / "record.json"
    record.write_text(json.dumps([]))
    one = of(here)
    assert one.planned is None and one.done > 10


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("REPRO_RUNS", str(tmp_path / "none"))
    assert status.main(["autolora"]) == 0
    said = capsys.readouterr().out
    assert "autolora at cpu: not run here" in said and "last verdicts (recorded, 2" in said
    assert "make reproduce-autolora begins" in said
    assert status.main(["autolore"]) == 2
    assert "did you mean 'autolora'?" in capsys.readouterr().err
