"""One published number at a time: which runs it needs, which fit into a budget, a reader's own.

A *cell* is an entry of reported.yaml that an arm of ours answers (`targets` of claims.yaml).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from benchmarks import recorded, reported, rules
from benchmarks.claims import Target
from benchmarks.recorded import Results
from benchmarks.reported import Published
from shared import protocol
from shared.protocol import BadInput, Node, Pair, Protocol


@dataclass(frozen=True)
class Cell:
    entry: Published
    target: Target

    @property
    def arms(self) -> list[str]:
        return [arm for arm in (self.target.arm, self.target.opponent) if arm]

    @property
    def pairs(self) -> list[Pair]:
        return [(arm, task) for task in self.target.tasks for arm in self.arms]

    @property
    def judged(self) -> bool:
        """Whether it can get a verdict: the paper's own number, answered without a deviation."""
        return self.entry.own and not self.target.deviations

    @property
    def runs(self) -> str:
        """'mixup - plain on rte, mrpc': in a line."""
        tasks = self.target.tasks
        named = ", ".join(tasks[:2]) + (f" and {len(tasks) - 2} more" if len(tasks) > 2 else "")
        return f"{' - '.join(self.arms)} on {named}"


def answered(
    published: reported.ReportedFile, targets: Sequence[Target], scale: str | None = None
) -> list[Cell]:
    """Every published number that an arm answers (at this scale), in the order of the file."""
    usable = [target for target in targets if scale is None or scale in target.scales]
    pairs = [(entry, reported.target_of(entry.id, usable)) for entry in published.entries]
    return [Cell(entry, target) for entry, target in pairs if target and target.arm and target.task]


FROM_ELSEWHERE = {
    "baseline_paper": "another paper's result",
    "third_party": "a rerun by others",
    "context": "context from elsewhere",
}


def why_unanswered(entry: Published, targets: Sequence[Target]) -> str:
    """Why no arm answers a published number."""
    if target := reported.target_of(entry.id, targets):
        return target.reason
    if entry.own:
        return "claims.yaml has no target for it"
    return f"{FROM_ELSEWHERE[entry.origin]}; no arm is set beside it"


def scale_of(cells: Sequence[Cell]) -> str:
    """The scale at which cells are judged unless another is asked for: paper where all have it."""
    scales = [set(cell.target.scales) for cell in cells] or [{"paper"}]
    common = set.intersection(*scales)
    return "paper" if "paper" in common or not common else sorted(common)[0]


def within_budget(
    cells: Sequence[Cell],
    budget: float,
    nodes: Callable[[Sequence[Pair]], list[Node]],
    seconds: Callable[[Node], float],
) -> tuple[list[Cell], float, list[tuple[Cell, float]]]:
    """Whole cells that fit into `budget` seconds, what they take, and the others with their price.

    Those that can get a verdict come first, then the cheapest. A run that a chosen cell has, or
    that stands (`seconds` is 0), costs the next cell nothing."""
    left, picked, spent = list(cells), list[Cell](), 0.0
    runs = {pairs: nodes(pairs) for pairs in {tuple(cell.pairs) for cell in cells}}
    paid: set[protocol.Key] = set()

    def price(cell: Cell) -> float:
        return sum(seconds(node) for node in runs[tuple(cell.pairs)] if node.key not in paid)

    while fitting := [cell for cell in left if spent + price(cell) <= budget]:
        best = min(fitting, key=lambda cell: (not cell.judged, price(cell)))
        spent += price(best)
        paid |= {node.key for node in runs[tuple(best.pairs)]}
        # many numbers come from the same runs
        free = [cell for cell in left if cell.judged == best.judged and not price(cell)]
        picked += free
        left = [cell for cell in left if cell not in free]
    return picked, spent, sorted(((cell, price(cell)) for cell in left), key=lambda pair: pair[1])


# --- what was measured before ---------------------------------------------------------------------


def latest(paper: Protocol, scale: str) -> list[Results]:
    """Results of a scale: of the last call here, of the last whole one here, as recorded."""
    folder = protocol.runs_root(paper.root) / paper.paper / scale
    results: list[Results] = []
    for path in (folder / "preview.json", folder / "results.json"):
        if path.exists():
            with contextlib.suppress(BadInput):  # a damaged one below runs/ stops no run
                results.append(recorded.read(path))
    return [*results, *filter(None, [recorded.recorded(paper.directory, scale)])]


def sd_over_seeds(values: Sequence[float | None]) -> float | None:
    numbers = recorded.finite(values)
    return float(np.std(numbers, ddof=1)) if len(numbers) > 1 else None


def half_width(sd: float | None, n: int) -> float | None:
    """Half the 95 % t interval of the mean of n scores."""
    if sd is None or n < 2:
        return None
    return float(special.stdtrit(n - 1, 0.975)) * sd / math.sqrt(n)


# --- a number that is not on file -----------------------------------------------------------------


def prediction_interval(scores: Sequence[float]) -> tuple[float, float] | None:
    """95 %: mean +- t s sqrt(1 + 1/n). One more run of the same kind falls inside in 19 of 20."""
    n = len(scores)
    if n < 2:
        return None
    spread = float(np.std(scores, ddof=1)) * math.sqrt(1 + 1 / n)
    half = float(special.stdtrit(n - 1, 0.975)) * spread
    mean = float(np.mean(scores))
    return mean - half, mean + half


def judge_given(value: float, scores: Sequence[float]) -> str:
    """A sentence on a number that a reader supplies, beside our scores in its unit."""
    interval = prediction_interval(scores)
    if interval is None or len(scores) < 3:
        return f"INCONCLUSIVE: {len(scores)} of our scores; a prediction interval needs 3"
    low, high = interval
    word = "CONSISTENT" if low - rules.TIE <= value <= high + rules.TIE else "NOT CONSISTENT"
    return (
        f"{word}: ours {float(np.mean(scores)):.4g} (n = {len(scores)}); one more run like these "
        f"would lie in {low:.4g} to {high:.4g} (95 %, mean +- t s sqrt(1 + 1/n))"
    )
