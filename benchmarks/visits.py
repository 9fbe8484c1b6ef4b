"""What short runs of each arm took on a machine (`short_runs.py`), and the hours that follow."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

from shared.protocol import Key, Node

VISIT, VISITED = "gpu-visit", "gpu"  # where below runs/ make gpu-visit writes, and its scale


@dataclass
class Phase:
    """Of one phase: steps of the protocol, seconds of a step (median), and of one step the FLOPs
    of its products and convolutions and the tokens and images that its forward passes read."""

    steps: int
    taken: int = 0
    seconds: float = 0.0
    flops: float = 0.0
    tokens: int = 0
    images: int = 0


@dataclass
class Short:
    """One run. seconds: wall seconds of the run as it was cut."""

    arm: str
    task: str
    stage: bool
    precision: str
    uses: list[str]
    seconds: float = 0.0
    phases: dict[str, Phase] = field(default_factory=dict)
    error: str = ""

    @property
    def whole(self) -> float:
        """Seconds of the whole run: what was not a step once, each phase at its own pace."""
        stepping = sum(phase.taken * phase.seconds for phase in self.phases.values())
        return max(0.0, self.seconds - stepping) + sum(
            phase.steps * phase.seconds for phase in self.phases.values()
        )


def read(path: Path) -> list[Short]:
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    rows = [json.loads(line) for line in lines]
    return [
        Short(**{**row, "phases": {k: Phase(**p) for k, p in row["phases"].items()}})
        for row in rows
    ]


def seconds_of_runs(runs: Sequence[Short], nodes: Sequence[Node]) -> dict[Key, float]:
    """Seconds of each run whose arm was measured: on its task, else on the others."""
    of: dict[str, dict[str, float]] = {}
    for short in runs:
        if not short.error:
            of.setdefault(short.arm, {})[short.task] = short.whole
    return {
        node.key: of[node.arm].get(node.task, fmean(of[node.arm].values()))
        for node in nodes
        if node.arm in of
    }
