"""The same bits: twice, after a stop in the middle, after kills (items 1, 2 and 4)."""

from __future__ import annotations

import contextlib
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from reliable import all_records, assert_same, checkpoints, record, stopped, tiny_command

from benchmarks import PAPERS
from shared import runs


@pytest.mark.slow
@pytest.mark.parametrize("paper", PAPERS)
def test_repeat_is_bitwise(paper, tmp_path, record_property):
    """Two fresh processes: every run of the chain has the same states, predictions and splits."""
    records = []
    for name in "ab":
        done = subprocess.run(
            **tiny_command(paper, tmp_path / name), capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-2000:]
        records.append(all_records(tmp_path / name))
    assert records[0] and records[0].keys() == records[1].keys()
    for key, value in records[0].items():
        assert_same(value, records[1][key])


def test_resume_in_the_middle_is_bitwise(method, continued, capsys):
    node, out = continued
    assert_same(record(method.run(node, out)), method.record(node))
    assert "continues at step" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("where", ["first", "last"])
def test_resume_is_bitwise_for_every_run(method, where, tmp_path):
    """Every run of the chain, stopped after its first or before its last step."""
    counted = 0
    for i, node in enumerate(method.nodes):
        steps = method.steps[node.arm]
        if steps < 2:
            continue
        counted += 1
        assert stopped(method, node, tmp_path / f"{i}", 1 if where == "first" else steps - 1)
        assert_same(record(method.run(node, tmp_path / f"{i}")), method.record(node))
    assert counted


def test_a_checkpoint_without_one_field_is_refused(method, continued, tmp_path, record_property):
    """Every field of the checkpoint and of its last phase, left out in turn: the error names it."""
    node, out = continued
    path = checkpoints(out)[-1]
    whole = runs.unpack(path.read_bytes(), path.name)
    phase, step, state = whole["phase"]
    spoilt = {name: {k: v for k, v in whole.items() if k != name} for name in whole}
    for name in state:
        rest = {k: v for k, v in state.items() if k != name}
        spoilt[name] = {**whole, "phase": (phase, step, rest)}
    refused = []
    for name, content in spoilt.items():
        copy = Path(shutil.copytree(out, tmp_path / name))
        checkpoints(copy)[-1].write_bytes(runs.pack(content))
        try:
            assert_same(record(method.run(node, copy)), method.record(node))
        except runs.BadInput as error:
            assert f"lacks '{name}'" in str(error)
            refused.append(name)
    # without a log its length is not asked for; a phase whose outcome is in the cache by now is not
    # entered again, and so misses nothing
    unread = set() if (out / "metrics.jsonl").exists() else {"log_bytes"}
    assert set(refused) | unread in (set(spoilt), set(whole))
    record_property("figure", f"{len(refused)}/{len(refused)}")


KILLS = [(i, PAPERS[i % len(PAPERS)]) for i in range(20)]


@pytest.fixture(scope="module")
def unkilled(tmp_path_factory):
    """paper -> (records of a run that nobody killed, its seconds)."""
    results: dict[str, tuple[dict, float]] = {}

    def of(paper: str) -> tuple[dict, float]:
        if paper not in results:
            home, begun = tmp_path_factory.mktemp("whole"), time.monotonic()
            done = subprocess.run(
                **tiny_command(paper, home, REPRO_CHECKPOINT_SECONDS="0"),
                capture_output=True,
                text=True,
            )
            assert done.returncode == 0, done.stderr[-2000:]
            results[paper] = all_records(home), time.monotonic() - begun
        return results[paper]

    return of


@pytest.mark.slow
@pytest.mark.parametrize("number, paper", KILLS)
def test_sigkill_and_the_same_command_again(number, paper, unkilled, tmp_path):
    """SIGKILL at a seeded moment between start and end, be it import, step, save or scoring."""
    whole, seconds = unkilled(paper)
    moment = random.Random(number).uniform(0.1, 0.9) * seconds
    while True:
        shutil.rmtree(tmp_path / "runs", ignore_errors=True)
        command = tiny_command(paper, tmp_path / "runs", REPRO_CHECKPOINT_SECONDS="0")
        process = subprocess.Popen(**command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(moment)
        if process.poll() is None:
            break
        moment *= 0.7  # it was done before: the machine is faster now
    process.send_signal(signal.SIGKILL)
    assert process.wait(60) == -signal.SIGKILL
    done = subprocess.run(**command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-2000:]
    again = all_records(tmp_path / "runs")
    assert again.keys() == whole.keys()
    for key, value in whole.items():
        assert_same(again[key], value)
