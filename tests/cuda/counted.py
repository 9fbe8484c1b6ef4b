"""What the steps of a run's phases ask of the pretended device."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pretend_cuda
import pytest
from short_gpu import Paper

from benchmarks.methods import launch_tables
from shared import protocol, runs


class Steps:
    """Within the block, on the pretended device: what each step of a phase asks for."""

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
                self.note(run.config.arm, name, step)

        self.patch.setattr(runs.Run, "phase", counted)
        return self

    def __exit__(self, *error: object) -> None:
        self.patch.undo()

    def note(self, arm: str, phase: str, step: int) -> None:
        launches, waits = pretend_cuda.names()
        total, trains = pretend_cuda.counts(), any("backward" in name for name in launches)
        row = {k: total[k] for k in ("launches", "waits", "products_16", "products_32")}
        place = {"arm": arm, "phase": phase, "step": step, "trains": trains}
        self.rows.append({**place, **row, "waits_of": waits})

    def later(self) -> list[dict[str, Any]]:
        """The last step of each phase that trains and has more than one: the first may log and
        probe, and makes the state of the optimiser."""
        later = (row for row in self.rows if row["trains"] and row["step"])
        return list({(row["arm"], row["phase"]): row for row in later}.values())

    def others(self) -> list[dict[str, Any]]:
        """The longest step of each phase that does not train."""
        rows = sorted((r for r in self.rows if not r["trains"]), key=lambda r: r["launches"])
        return list({(row["arm"], row["phase"]): row for row in rows}.values())

    def within(self, budget: int | None) -> None:
        if budget is not None:
            over = {row["phase"]: row["waits_of"] for row in self.later() if row["waits"] > budget}
            assert not over, f"more than {budget} waits of the host in a step: {over}"


def hand_over(paper: Paper, node: protocol.Node, steps: Steps, opponent: bool = False) -> None:
    """To `python -m benchmarks.methods.launches`, which asks for the counts by COUNTED_STEPS."""
    if file := os.environ.get("COUNTED_STEPS"):
        listed = [row for row in steps.others() if launch_tables.is_listed(paper.name, row)]
        about = {"paper": paper.name, "task": node.task, "opponent": opponent}
        about["cut"] = paper.numbers_cut(node)
        with Path(file).open("a", encoding="utf-8") as out:
            for row in [*steps.later(), *listed]:
                out.write(json.dumps(about | row) + "\n")
