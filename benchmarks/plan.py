"""What one call is about to do for a paper: scale, runs, hours, disk. Made without torch."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import fmean

from benchmarks import cells, claims, cluster, plan_n, recorded, reported, visits
from benchmarks.cells import Cell
from benchmarks.claims import Claims
from benchmarks.pool import Key
from benchmarks.predictions import prediction_files
from benchmarks.subset import Request, check_given, fewer_than_asked, read_request, settings
from benchmarks.words import duration
from shared import protocol
from shared.machine import cuda_devices
from shared.protocol import BadInput, Node, Protocol, Scale

ROOT = Path(__file__).resolve().parent.parent
SMALLER = {"paper": "gpu", "gpu": "cpu"}
NOT_MEASURED = "not measured"


def say(text: str) -> None:
    print(text, flush=True)


def load_claims(paper: Protocol) -> Claims:
    """claims.yaml, which fits the protocol's arms and tasks and the published numbers."""
    return claims_and_published(paper)[0]


def claims_and_published(paper: Protocol) -> tuple[Claims, reported.ReportedFile]:
    """claims.yaml and reported.yaml, which fit each other and the protocol."""
    path, where = paper.directory / "claims.yaml", f"{paper.paper}/claims.yaml"
    if not path.exists():
        raise BadInput(f"{where} is missing")
    declared = claims.load_claims(path)
    tasks = {task for scale in paper.document.scales for task in paper.tasks(scale)}
    claims.check_names(declared, paper.document.arms, tasks, where)
    plan_n.check_plans(declared, paper)
    published = reported.load(paper.directory / "reported.yaml")
    reported.check_targets(declared.targets, published, where)
    return declared, published


# --- which scale ----------------------------------------------------------------------------------


def missing_inputs(paper: Protocol, scale: str, nodes: Sequence[Node]) -> list[tuple[str, str]]:
    """("model" or "data", name) of what these runs need and no folder, cache or hub has."""
    from shared import sources

    inputs = paper.inputs(scale, nodes)
    return [(kind, name) for kind, name in inputs if not sources.available(kind, name)]


def how_to_fetch(lacking: Sequence[tuple[str, str]]) -> list[str]:
    """Lines for the terminal: what is missing, each followed by the command that fetches it."""
    from shared import sources

    by_command: dict[str, list[str]] = {}
    for kind, name in lacking:
        by_command.setdefault(sources.fetch_command(kind, name), []).append(f"{kind} {name}")
    pairs = by_command.items()
    return [line for fetch, names in pairs for line in (f"  {', '.join(names)}", f"    {fetch}")]


def choose_scale(
    paper: Protocol, asked: str | None, executor: str, nodes: Callable[[str], list[Node]]
) -> tuple[str, str]:
    """The scale to run and why; `nodes(scale)`: the runs that are asked for.

    What this machine has says nothing about a cluster's nodes."""
    if executor == "slurm" and not asked:
        raise BadInput(
            "EXECUTOR=slurm needs SCALE=cpu, gpu, paper or rehearsal: the nodes are not this one"
        )
    if asked:
        if asked not in protocol.SCALES:
            raise protocol.unknown(asked, protocol.SCALES, "scale")
        paper.scale(asked)
        if asked == "gpu" and executor == "local" and not cuda_devices():
            raise BadInput(
                "SCALE=gpu needs a CUDA device and none is visible; use SCALE=cpu, or "
                "SCALE=rehearsal to try the paper's protocol"
            )
        return asked, "asked for"
    if not cuda_devices():
        return "cpu", "no CUDA device"

    def lacks(scale: str) -> list[tuple[str, str]]:
        try:
            return missing_inputs(paper, scale, nodes(scale))
        except BadInput:  # it has no such scale, task or arm
            return [("scale", scale)]

    lacking = lacks("paper")
    if not lacking:
        return "paper", "a CUDA device, and every model and data set of the paper is in reach"
    names = ", ".join(map(" ".join, lacking))
    if not lacks("gpu"):
        return "gpu", f"a CUDA device; for scale paper these are missing: {names}"
    return "cpu", f"a CUDA device, but the data of larger scales are missing: {names}"


def seconds_of(text: str | None, name: str = "LIMIT", unit: str = "s") -> float | None:
    """'90', '90s', '9m' or '1.5h' in seconds; a number alone counts in `unit`."""
    if text is None:
        return None
    parts = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text)
    if not parts or not float(parts[1]):
        raise BadInput(f"{name}={text}: expected a number above 0 with s, m or h, e.g. 9m")
    return float(parts[1]) * {"s": 1, "m": 60, "h": 3600}[parts[2] or unit]


def slurm_options(options: argparse.Namespace, scale: str) -> cluster.Options:
    minutes = int(-(-(seconds_of(options.time, "TIME") or 4 * 3600) // 60))
    if minutes < 2:  # Slurm warns up to half a minute early: such a job would stop as it starts
        raise BadInput(f"TIME={options.time}: a job needs at least 2m")
    gpus = int(scale in {"gpu", "paper"}) if options.gpus is None else options.gpus
    return cluster.Options(minutes, gpus, options.partition, options.account)


# --- the plan -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    paper: Protocol
    scale: str
    why: str
    asked: str  # the settings that choose a subset, as they were given; "" for the whole scale
    cells: Sequence[Cell]  # published numbers that were asked for
    gpus: list[str]
    jobs: int
    slurm: cluster.Options | None
    share: float | None  # seconds of a run that nobody measured: the protocol's hours, divided
    nodes: list[Node] = field(default_factory=list)
    left: list[Node] = field(default_factory=list)  # those that have no record that stands
    measured: dict[Key, float] = field(default_factory=dict)  # seconds of a run, from records
    by_steps: dict[Key, float] = field(default_factory=dict)  # of others, from measured steps
    limit: float | None = None  # seconds after which every run is asked to checkpoint and stop
    notes: tuple[str, ...] = ()  # lines on what SEEDS and BUDGET chose

    @property
    def body(self) -> Scale:
        return self.paper.scale(self.scale)

    @property
    def preview(self) -> str | None:
        """Why the result is not one to record."""
        return f"{self.asked} given" if self.asked else None

    @property
    def seconds(self) -> float | None:
        """Expected wall time of `left`; None: nobody measured or stated it."""
        return self.wall(self.left)

    def wall(self, nodes: Sequence[Node]) -> float | None:
        """Wall seconds of these runs: as measured, the others at the protocol's mean per run."""
        took = self.by_steps | self.measured
        each = [took[node.key] for node in nodes if node.key in took]
        others = len(nodes) - len(each)
        if others and self.share is None:
            return None
        return max([sum(each) / self.jobs, *each], default=0.0) + others * (self.share or 0.0)

    @property
    def origin(self) -> str:
        """Where the expected time comes from."""
        return self.origin_of(self.left)

    def origin_of(self, nodes: Sequence[Node]) -> str:
        """'measured', or how many of these runs were, and what is taken for the others."""
        n, measured = len(nodes), sum(node.key in self.measured for node in nodes)
        steps = sum(node.key in self.by_steps.keys() - self.measured.keys() for node in nodes)
        if measured == n:
            return "measured"
        parts = [f"{measured} of {n} runs measured"] if measured or not steps else []
        parts += [f"{steps} of {n} by the steps that make gpu-visit measured"] if steps else []
        if measured + steps < n and self.share is None:
            return ", ".join(parts) if measured + steps else NOT_MEASURED
        if measured + steps < n:
            stated = "from what the protocol states for the scale, divided evenly"
            parts.append(f"the others {(self.share or 0.0) / 3600:.2g} h a run, {stated}")
        return ", ".join(parts)


def plan(name: str, options: argparse.Namespace) -> Plan:
    """The plan of one paper; what cannot be run as asked is refused here."""
    paper = Protocol(ROOT / name)
    declared, published = claims_and_published(paper)  # a mistake is refused now, not afterwards
    limit, budget = seconds_of(options.limit), seconds_of(options.budget, "BUDGET", "h")
    request = read_request(paper, options, declared, published)
    scale, why = options.scale, None
    if not scale and (request.cells or budget):
        scale = cells.scale_of(request.cells)
        why = "where published numbers are compared; SCALE=... names another"
    scale, reason = choose_scale(paper, scale, options.executor, partial(request.nodes, paper))
    for cell in request.cells:
        if scale not in cell.target.scales:
            usable = ", ".join(cell.target.scales)
            raise BadInput(f"CELL={cell.entry.id} is compared at scale {usable}, not {scale}")
    slurm = slurm_options(options, scale) if options.executor == "slurm" else None
    body, gpus = paper.scale(scale), cuda_devices() if scale != "rehearsal" else []
    made = with_nodes(
        Plan(
            paper=paper,
            scale=scale,
            why=why or reason,
            asked=settings(options, body.core is not None),
            cells=request.cells,
            gpus=gpus,
            jobs=options.jobs or (256 if slurm else body.jobs * len(gpus) if gpus else cores()),
            slurm=slurm,
            share=share(paper, scale),
            limit=min(filter(None, [limit, budget]), default=None),
        ),
        request,
    )
    made = replace(made, notes=fewer_than_asked(made.nodes, options.seeds))
    check_given(paper, request, options, declared)
    if budget is None:
        return made
    listed = request.cells or cells.answered(published, declared.targets, scale)
    return affordable(made, request, [cell for cell in listed if request.covers(cell)], budget)


def with_nodes(plan: Plan, request: Request) -> Plan:
    """The plan with the runs of a request, those that do not stand, and what they took before."""
    paper, scale = plan.paper, plan.scale
    nodes = request.nodes(paper, scale)
    code = protocol.code_hashes(paper.directory / "train.py")
    left = [
        node
        for node in nodes
        if protocol.stale(paper.run_directory(scale, node.key), paper.config(scale, node), code)
    ]
    took = measured(paper, scale, nodes)
    steps = visited(paper, scale, nodes)
    return replace(plan, nodes=nodes, left=left, measured=took, by_steps=steps, cells=request.cells)


def affordable(plan: Plan, request: Request, listed: Sequence[Cell], budget: float) -> Plan:
    """The plan of those published numbers among `listed` that fit into `budget` seconds."""
    listed = [cell for cell in listed if cell.entry.value is not None]
    if not listed:
        raise BadInput(
            f"{plan.paper.paper}: no arm answers a published number here at scale {plan.scale}, "
            "so that BUDGET has nothing to choose from; give LIMIT= to stop after a time"
        )
    request = replace(request, only=(), tasks=(), cells=listed)
    whole = with_nodes(plan, request)
    if whole.seconds is None:
        raise BadInput(f"BUDGET needs the hours of a run, and {plan.paper.paper} states none")
    waiting = {node.key for node in whole.left}
    picked, spent, others = cells.within_budget(
        listed,
        budget,
        lambda pairs: plan.paper.nodes(plan.scale, seeds=request.seeds, pairs=pairs),
        lambda node: whole.wall([node]) or 0.0 if node.key in waiting else 0.0,
    )
    notes = [
        *plan.notes,
        f"{len(picked)} of {len(listed)} published numbers fit into {duration(budget)}, those that "
        f"can get a verdict first, then the cheapest; {duration(spent)} expected:",
    ]
    if not picked:
        cell, cost = others[0]
        raise BadInput(
            f"BUDGET is too small for any published number: the cheapest, {cell.entry.id}, needs "
            f"{duration(cost)}; CELL={cell.entry.id} LIMIT={budget / 3600:g}h makes a part of "
            "it, and the same command goes on"
        )
    by_runs: dict[str, list[str]] = {}
    for cell in picked:
        by_runs.setdefault(cell.runs, []).append(cell.entry.id)
    for runs, names in by_runs.items():
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        notes.append(f"  {runs}: {', '.join(names[:3])}{more}")
    if others:
        cell, cost = others[0]
        notes.append(f"  next: {cell.entry.id}, {duration(cost)} more")
    return replace(with_nodes(whole, replace(request, cells=picked)), notes=tuple(notes))


def cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def measured(paper: Protocol, scale: str, nodes: Sequence[Node]) -> dict[Key, float]:
    """Seconds of each run that was measured: here, else as recorded, else its arm's on its task."""
    result = recorded.recorded(paper.directory, scale) if scale != "rehearsal" else None
    seconds = {
        run.key: float(run.seconds) for run in (result.runs if result else []) if run.seconds
    }
    for node in nodes:
        if record := protocol.read_record(paper.run_directory(scale, node.key)):
            seconds[node.key] = record["seconds"]
    of_arm: dict[tuple[str, str], list[float]] = {}
    for (arm, task, _), took in seconds.items():
        of_arm.setdefault((arm, task), []).append(took)
    keys = [node.key for node in nodes if node.key[:2] in of_arm]
    return {key: seconds.get(key, fmean(of_arm[key[:2]])) for key in keys}


def visited(paper: Protocol, scale: str, nodes: Sequence[Node]) -> dict[Key, float]:
    """Seconds of runs by the steps that `make gpu-visit` measured here, at its scale alone."""
    path = protocol.runs_root(ROOT) / visits.VISIT / f"steps-{paper.paper}.jsonl"
    if scale != visits.VISITED or not path.exists():
        return {}
    with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):  # cut off, or edited
        return visits.seconds_of_runs(visits.read(path), nodes)
    return {}


def share(paper: Protocol, scale: str) -> float | None:
    """Seconds of a run when those of the whole scale, as stated or rehearsed, are divided."""
    rehearsal = recorded.rehearsal(paper.directory) if scale == "rehearsal" else None
    hours = paper.scale(scale).hours
    whole = rehearsal.seconds if rehearsal else None if hours is None else hours * 3600
    return None if whole is None else whole / len(paper.nodes(scale))


def disk(plan: Plan) -> tuple[float, str]:
    """GB that the runs of a plan hold once all are finished, and where that figure comes from."""
    folders = [plan.paper.run_directory(plan.scale, node.key) for node in plan.nodes]
    finished = [folder for folder in folders if (folder / "record.json").exists()]
    if not finished:
        return plan.body.disk_gb, "by the protocol; no run of this scale has finished here"
    files = [file for folder in finished for file in folder.rglob("*") if file.is_file()]
    mean = sum(file.stat().st_size for file in files) / len(finished)
    origin = f"of runs, from {len(finished)} finished here ({mean / 1e6:.2f} MB each)"
    return mean * len(plan.nodes) / 1e9, origin


def bytes_predicted(plan: Plan) -> float | None:
    """Bytes of a run's predictions: of those that finished here, else of the recorded ones."""
    places = [plan.paper.run_directory(plan.scale, node.key) for node in plan.nodes]
    sizes = [f.stat().st_size for p in places if (f := p / "predictions.npz").exists()]
    if sizes:
        return fmean(sizes)
    for scale, result in recorded.all_recorded(plan.paper.directory).items():
        path = recorded.result_path(plan.paper.directory, scale)
        files = prediction_files(path.with_suffix(".predictions.npz"))
        if runs := sum(run.predictions_sha256 is not None for run in result.runs):
            return sum(file.stat().st_size for file in files) / runs
    return None
