"""A method's tiny configuration, run, stopped and looked at: what tests/reliability/ uses.

Each method runs its `tiny` configuration (protocol.yaml: no download, seconds).
`python -m benchmarks.reliability` counts what passed; the items are those of its table.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import itertools
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared import protocol, runs

ROOT = Path(__file__).resolve().parent.parent
SAME = ("state_sha256", "predictions_sha256", "split_sha256", "metrics", "gradient_evaluations")
SMALLER = {"ppo_nlu": {"steps": 16, "examples": 256}}  # twelve seconds otherwise


class Method:
    """A method's tiny runs in order (stages first), and one finished set of them in `home`."""

    def __init__(self, paper: str, home: Path):
        self.paper, self.home = paper, home
        self.protocol = protocol.Protocol(ROOT / paper)
        self.train = importlib.import_module(f"{paper}.train")
        tiny = self.protocol.document.tiny
        self.nodes: list[protocol.Node] = []

        def add(node: protocol.Node) -> None:
            for key in node.uses:
                add(self.protocol.node("tiny", *key))
            if node not in self.nodes:
                self.nodes.append(node)

        add(self.protocol.node("tiny", tiny.arm, tiny.task, 0))

    def finish(self) -> None:
        """Make what is not finished yet, and note how many steps each run's phases have."""
        with open(self.home / f"{self.paper}.lock", "w") as lock, by_hand():
            fcntl.flock(lock, fcntl.LOCK_EX)
            path = self.home / f"{self.paper}-steps.json"
            self.steps = json.loads(path.read_text()) if path.exists() else {}
            for node in self.nodes:
                with steps_taken() as steps:
                    self.run(node)
                self.steps.setdefault(node.arm, len(steps))
            path.write_text(json.dumps(self.steps))

    def directory(self, key: protocol.Key) -> Path:
        arm, task, seed = key
        return self.home / self.paper / "tiny" / task / f"seed{seed}" / arm

    def run(self, node: protocol.Node, out: Path | None = None, **changes) -> Path:
        """The run, beside the finished ones or in `out`; what it uses are the finished ones."""
        values = self.protocol.config("tiny", node) | {"device": "cpu"}
        values["out"] = str(out or self.directory(node.key))
        values["uses"] = {key[0]: str(self.directory(key)) for key in node.uses}
        values |= {**SMALLER.get(self.paper, {}), **changes}
        return self.train.run(self.train.Config(**values))

    def record(self, node: protocol.Node) -> dict:
        return record(self.directory(node.key))


def record(directory: Path) -> dict:
    return json.loads((directory / "record.json").read_text())


def assert_same(a: dict, b: dict) -> None:
    assert {k: a[k] for k in SAME} == {k: b[k] for k in SAME}


def checkpoints(directory: Path) -> list[Path]:
    return sorted((directory / "checkpoint").glob("step-*.pt"))


@contextlib.contextmanager
def by_hand() -> Iterator[None]:
    """As on a terminal, whatever a test before this one in the same process made of the module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "_worker", False)
        patch.setattr(runs, "_stop_asked", lambda: False)
        yield


@contextlib.contextmanager
def steps_taken(before=lambda number: None) -> Iterator[list[int]]:
    """Within the block a list grows with each step of any phase; `before` hears its number."""
    numbers: list[int] = []
    phase = runs.Run.phase

    def counted(self, *words, **more):
        for step in phase(self, *words, **more):
            before(len(numbers))
            numbers.append(step)
            yield step

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs.Run, "phase", counted)
        yield numbers


def stop_after(patch: pytest.MonkeyPatch, steps: int) -> None:
    """Ask the next run to stop after so many steps, counted over its phases."""
    count = itertools.count(1)
    patch.setattr(runs, "_stop_asked", lambda: next(count) == steps)


def stopped(method: Method, node: protocol.Node, out: Path, steps: int) -> list[Path]:
    """Begin the run in `out`, stop it after so many steps; its checkpoints, or [] if it ended."""
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, steps)
        try:
            method.run(node, out)
        except runs.Stopped:
            assert not (out / "record.json").exists()
            return checkpoints(out)
    return []


def tiny_command(paper: str, home: Path, **environ: str) -> dict:
    """Arguments of subprocess for the command of the README, its runs in `home`."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    words = [sys.executable, "-m", f"{paper}.train", "--tiny", "--device", "cpu"]
    return {"args": words, "cwd": ROOT, "env": {**env, "REPRO_RUNS": str(home), **environ}}


def all_records(home: Path) -> dict[str, dict]:
    paths = sorted(home.rglob("record.json"))
    return {str(p.parent.relative_to(home)): record(p.parent) for p in paths}
