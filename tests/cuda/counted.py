"""What the steps of a run's phases ask of the pretended device."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pretend_cuda
import pytest

from shared import protocol, runs


class Steps:
    """Within the block, on the pretended device: what each step of a training asks for."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def __enter__(self) -> Steps:
        phase, self.patch = runs.Run.phase, pytest.MonkeyPatch()

        def counted(run: runs.Run, name: str, *words: Any, **more: Any) -> Iterator[int]:
            for step in phase(run, name, *words, **more):
                if not pretend_cuda.installed():
                    yield step
                    continue
                pretend_cuda.reset()
                yield step
                self.note(name, step)

        self.patch.setattr(runs.Run, "phase", counted)
        return self

    def __exit__(self, *error: object) -> None:
        self.patch.undo()

    def note(self, phase: str, step: int) -> None:
        launches, waits = pretend_cuda.names()
        if any("backward" in operator for operator in launches):
            total = pretend_cuda.counts()
            row = {k: total[k] for k in ("launches", "waits", "products_16", "products_32")}
            self.rows.append({"phase": phase, "step": step, **row, "waits_of": waits})

    def later(self) -> list[dict[str, Any]]:
        """The last step of each phase that has more than one: the first may log and probe, and
        makes the state of the optimiser."""
        return list({row["phase"]: row for row in self.rows if row["step"]}.values())

    def within(self, budget: int | None) -> None:
        if budget is not None:
            over = {row["phase"]: row["waits_of"] for row in self.later() if row["waits"] > budget}
            assert not over, f"more than {budget} waits of the host in a step: {over}"


def hand_over(paper: str, node: protocol.Node, steps: Steps) -> None:
    """To `python -m benchmarks.methods.launches`, which asks for the counts by COUNTED_STEPS."""
    if file := os.environ.get("COUNTED_STEPS"):
        with Path(file).open("a", encoding="utf-8") as out:
            for row in steps.later():
                row = {"paper": paper, "arm": node.arm, "task": node.task, **row}
                out.write(json.dumps(row) + "\n")
