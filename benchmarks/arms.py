"""What a result says of each arm: its scores, what a run of it costs, how large it is."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import yaml

from benchmarks.claims import Claims
from benchmarks.recorded import Claim, Results, finite

# Metrics of a run that count parameters rather than say how good it is.
SIZES = ("trainable_parameters", "adapter_parameters", "parameters")


class Point(NamedTuple):
    """The score of one run as it is shown: in points where its metric is a share."""

    seed: int
    value: float
    diverged: bool


Scores = dict[tuple[str, str, str], list[Point]]  # (task, metric, arm) -> by seed


def factors(result: Results) -> dict[tuple[str, str], float]:
    """(task, metric) -> 100 where it is shown in points, else 1."""
    units: dict[str | None, set[str]] = {}
    for claim in result.claims:
        units.setdefault(claim.metric, set()).add(claim.unit)
    values: dict[tuple[str, str], list[float]] = {}
    for run in result.runs:
        for name, value in run.metrics.items():
            values.setdefault((run.task, name), []).extend(finite([value]))
    shares = {
        (task, name)
        for (task, name), of_runs in values.items()
        if name not in SIZES and units.get(name) != {"raw"} and all(-1 <= v <= 1 for v in of_runs)
    }
    return {pair: 100.0 if pair in shares else 1.0 for pair, of_runs in values.items() if of_runs}


def scores(result: Results, claims: Claims | None) -> Scores:
    """Every run's scores; a run that diverged has the chance that `claims` declares for its task.

    Stage runs have no metrics and do not occur.
    """
    factor, points = factors(result), Scores()
    stages = {run.arm for run in result.runs if run.status == "finished" and not run.metrics}
    for run in sorted(result.runs, key=lambda run: run.seed):
        diverged, metrics = run.status == "diverged", dict(run.metrics)
        if diverged and not metrics and claims and run.arm not in stages:
            metrics = dict(claims.chance(run.task))
        for name, value in metrics.items():
            if value is not None and math.isfinite(value) and (run.task, name) in factor:
                point = Point(run.seed, value * factor[run.task, name], diverged)
                points.setdefault((run.task, name, run.arm), []).append(point)
    return points


def metrics_of(result: Results) -> dict[str, list[str]]:
    """task -> the metrics worth a table: those of its claims, else the first that runs recorded."""
    shown: dict[str, list[str]] = {}
    for task in dict.fromkeys(run.task for run in result.runs):
        of_task = [run for run in result.runs if run.task == task]
        names = dict.fromkeys(name for run in of_task for name in run.metrics if name not in SIZES)
        claimed = {c.metric for c in result.claims if not c.tasks or task in c.tasks}
        if names:
            shown[task] = [name for name in names if name in claimed] or list(names)[:1]
    return shown


def arms_of(result: Results) -> list[str]:
    """Arms in the order of the claims (method, opponent, controls), then as they were run."""
    order: list[str] = []
    for claim in result.claims:
        order += [*claim.arms.sides, *(control.arm for control in claim.controls)]
    return list(dict.fromkeys([*order, *(run.arm for run in result.runs)]))


def seeds_of(claim: Claim, result: Results) -> list[int]:
    """The seeds behind a claim's differences: those that its arms share on its tasks."""
    places = [text.partition("@") for text in claim.arms.named()]
    pairs = {(arm, task) for arm, _, at in places for task in ([at] if at else claim.tasks)}
    by_pair = [{r.seed for r in result.runs if (r.arm, r.task) == pair} for pair in pairs]
    seeds = sorted(set.intersection(*by_pair)) if by_pair else []
    return seeds if len(seeds) == claim.n else result.seeds


def parameter_count(result: Results, arm: str) -> int | None:
    """Mean over the seeds of the arm's first task that has it: some arms learn their size."""
    sizes: dict[tuple[str, str], list[float]] = {}
    for run in result.runs:
        for name in SIZES:
            if run.arm == arm and (size := run.metrics.get(name)):
                sizes.setdefault((run.task, name), []).append(size)
    return next((round(statistics.fmean(of_task)) for of_task in sizes.values()), None)


# --- costs ----------------------------------------------------------------------------------------


@dataclass
class Cost:
    """Means over the finished runs of an arm; `in_all` adds the runs that it uses."""

    runs: int
    seconds: float | None
    gradient_evaluations: float | None
    peak_memory_mb: float | None
    seconds_in_all: float | None = None
    gradient_evaluations_in_all: float | None = None


def uses_of(paper_dir: Path) -> dict[str, list[str]]:
    """arm -> the arms that it uses, by protocol.yaml."""
    path = paper_dir / "protocol.yaml"
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    arms = (
        yaml.load(path.read_text(encoding="utf-8"), Loader=loader)["arms"] if path.exists() else {}
    )
    return {arm: body["uses"] for arm, body in arms.items() if body and "uses" in body}


def with_uses(arm: str, uses: dict[str, list[str]]) -> set[str]:
    below = [with_uses(used, uses) for used in uses.get(arm, [])]
    return {arm}.union(*below)


def costs(result: Results, uses: dict[str, list[str]]) -> dict[str, Cost]:
    """arm -> its cost; `uses` is that of `uses_of`."""

    def mean(arm: str, field: str) -> float | None:
        finished = [r for r in result.runs if r.arm == arm and r.status == "finished"]
        values = finite([getattr(run, field) for run in finished])
        return statistics.fmean(values) if values else None

    cost = {}
    for arm in arms_of(result):
        if runs := sum(run.arm == arm for run in result.runs):
            fields = ("seconds", "gradient_evaluations", "peak_memory_mb")
            cost[arm] = Cost(runs, *(mean(arm, field) for field in fields))
    for arm, row in cost.items():
        parts = [cost[used] for used in sorted(with_uses(arm, uses)) if used in cost]
        row.seconds_in_all = total([part.seconds for part in parts])
        counted = mean(arm, "gradient_evaluations_with_uses")
        summed = total([part.gradient_evaluations for part in parts])
        row.gradient_evaluations_in_all = summed if counted is None else counted
    return cost


def total(values: list[float | None]) -> float | None:
    return None if None in values else sum(v for v in values if v is not None)
