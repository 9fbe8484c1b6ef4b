"""What one call is about to do for a paper: scale, runs, hours, disk. Made without torch."""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks import cells, claims, cluster, plan_n, recorded, reported, rules
from benchmarks.cells import Cell
from benchmarks.claims import Claims
from benchmarks.pool import Key
from benchmarks.predictions import MOST_BYTES, prediction_files
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
    if not text:
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
    measured: dict[Key, float] = field(default_factory=dict)  # seconds of a run
    limit: float | None = None  # seconds after which every run is asked to checkpoint and stop
    notes: tuple[str, ...] = ()  # lines on what BUDGET chose

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
        each = [self.measured[node.key] for node in nodes if node.key in self.measured]
        took = max([sum(each) / self.jobs, *each], default=0.0)
        others = len(nodes) - len(each)
        if others and self.share is None:
            return None
        return took + others * (self.share or 0.0)

    @property
    def origin(self) -> str:
        """Where the expected time comes from."""
        measured = sum(node.key in self.measured for node in self.left)
        if measured == len(self.left):
            return "measured"
        if self.share is None:
            return f"{measured} of {len(self.left)} runs measured" if measured else NOT_MEASURED
        derived = f"{self.share / 3600:.2g} h a run, from what the protocol states for the scale"
        return f"{measured} of {len(self.left)} runs measured, the others {derived}"


def words(text: str | None, name: str, what: str) -> list[str]:
    """'a,b' as a list; given without a word it is refused."""
    listed = list(filter(None, (text or "").split(",")))
    if text and not listed:
        raise BadInput(f"{name}={text} names no {what}; give {what}s separated by commas")
    return listed


@dataclass(frozen=True)
class Request:
    """Which runs a call asks for, by their settings."""

    arms: str = "core"
    only: Sequence[str] = ()
    tasks: Sequence[str] = ()
    seeds: int | None = None
    cells: Sequence[Cell] = ()

    def nodes(self, paper: Protocol, scale: str) -> list[Node]:
        pairs = [pair for cell in self.cells for pair in cell.pairs] if self.cells else None
        return paper.nodes(scale, self.arms, self.only, self.seeds, self.tasks, pairs)

    def covers(self, cell: Cell) -> bool:
        """Whether ONLY and TASK, where they are given, name all that a published number needs."""
        arms, tasks = set(self.only or cell.arms), set(self.tasks or cell.target.tasks)
        return arms >= set(cell.arms) and tasks >= set(cell.target.tasks)


def settings(options: argparse.Namespace, has_core: bool) -> str:
    """The settings of a call that choose a subset or add to it, as make takes them."""
    names = ("CELL", "TASK", "ONLY", "SEEDS", "BUDGET", "PUBLISHED", "METRIC")
    chosen = {name: getattr(options, name.lower()) for name in names}
    chosen["ARMS"] = options.arms if options.arms == "all" and has_core else None
    return " ".join(f"{name}={value}" for name, value in chosen.items() if value is not None)


def plan(name: str, options: argparse.Namespace) -> Plan:
    """The plan of one paper; what cannot be run as asked is refused here."""
    paper = Protocol(ROOT / name)
    declared, published = claims_and_published(paper)  # a mistake is refused now, not afterwards
    limit, budget = seconds_of(options.limit), seconds_of(options.budget, "BUDGET", "h")
    request = Request(
        options.arms or "core",
        words(options.only, "ONLY", "arm"),
        words(options.task, "TASK", "task"),
        options.seeds,
        cells.chosen(words(options.cell, "CELL", "number"), published, declared.targets),
    )
    if request.cells and (request.only or request.tasks):
        raise BadInput("CELL names its arms and tasks itself: leave ONLY and TASK out")
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
    check_given(made, request, options)
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
    return replace(plan, nodes=nodes, left=left, measured=took, cells=request.cells)


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
        f"{len(picked)} of {len(listed)} published numbers fit into {duration(budget)}, those that "
        f"can get a verdict first, then the cheapest; {duration(spent)} expected:"
    ]
    if not picked:
        cell, cost = others[0]
        least = f"the cheapest, {cell.entry.id}, needs {duration(cost)}"
        raise BadInput(f"BUDGET is too small for any published number: {least}")
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


def check_given(plan: Plan, request: Request, options: argparse.Namespace) -> None:
    """PUBLISHED stands beside the scores of one arm on one task, or of one CELL."""
    if options.published is None:
        if options.metric:
            raise BadInput("METRIC says what PUBLISHED is a value of: give PUBLISHED as well")
        return
    one_each = len(request.only) == len(request.tasks) == 1
    if len(request.cells) != 1 and not one_each:
        raise BadInput(
            "PUBLISHED needs CELL=<id>, or TASK= and ONLY= that name one task and one arm"
        )
    if one_each and plan.paper.arm(request.only[0]).stage:
        raise BadInput(f"ONLY={request.only[0]} is a stage: it has no score")
    if options.metric and request.cells:
        raise BadInput("CELL has a metric of its own: leave METRIC out")


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
        files = prediction_files(
            recorded.result_path(plan.paper.directory, scale).with_suffix(".predictions.npz")
        )
        runs = sum(run.predictions_sha256 is not None for run in result.runs)
        if runs:
            return sum(file.stat().st_size for file in files) / runs
    return None


# --- the plan on the terminal ---------------------------------------------------------------------


def different(nodes: Collection[Node], field: str) -> int:
    return len({getattr(node, field) for node in nodes})


def describe(plan: Plan, place: str = "") -> None:
    """Print what is about to happen. `place`: "paper 3 of 7" and the time left over the whole."""
    name, nodes, body = plan.paper.paper, plan.nodes, plan.body
    arms = list(dict.fromkeys(node.arm for node in nodes))
    say(f"{place}{name} at scale {plan.scale} ({plan.why})")
    for line in plan.notes:
        say(f"  {line}")
    say(
        f"  {len(nodes)} runs: {len(arms)} arms x {different(nodes, 'task')} task(s) x up to "
        f"{different(nodes, 'seed')} seeds; {len(nodes) - len(plan.left)} finished before; "
        f"{plan.jobs} worker(s)"
    )
    say(f"  arms: {', '.join(arms)}")
    stops = f"; stops after {duration(plan.limit)}" if plan.limit else ""
    most = "at most " if plan.asked else ""
    origin = f" ({plan.origin})" if plan.seconds is not None and plan.origin != "measured" else ""
    say(
        f"  expected: {duration(plan.seconds, NOT_MEASURED)}{origin}; download "
        f"{most}{body.download_gb:g} GB; disk {most}{body.disk_gb:g} GB{stops}"
    )
    if plan.scale != "rehearsal" and (plan.asked or plan.limit):
        for line in seeds_and_effects(plan):
            say(f"  {line}")
    smaller = SMALLER.get(plan.scale)
    if smaller in plan.paper.document.scales and not plan.asked:
        say(f"  next smaller scale: make reproduce-{name} SCALE={smaller}")


def affordable_seeds(plan: Plan) -> list[int]:
    """The seeds whose runs all end before the limit: runs are made in the order of the plan."""
    left, ahead, ends = {node.key for node in plan.left}, list[Node](), dict[int, float]()
    for node in plan.nodes:
        ahead += [node] if node.key in left else []
        ends[node.seed] = plan.wall(ahead) or 0.0
    return [seed for seed, end in ends.items() if plan.limit is None or end <= plan.limit]


def seeds_and_effects(plan: Plan) -> list[str]:
    """Lines: how many seeds end in time, and the smallest effect that so many can show."""
    seeds, n = different(plan.nodes, "seed"), len(affordable_seeds(plan))
    if plan.limit and plan.seconds is None:
        return [f"seeds: {seeds} asked for; how many end in time is {NOT_MEASURED}"]
    lines = [f"seeds: {n} of {seeds} end in time" if plan.limit else f"seeds: {seeds}"]
    before = cells.latest(plan.paper, plan.scale)
    for claim in claims_of(plan):
        d = next((c.d for r in before for c in r.claims if c.id == claim.id and len(c.d) > 1), [])
        sd = cells.sd_over_seeds(d)
        effect = None if sd is None else rules.detectable(n, sd, float(claim.threshold))
        text = "unknown: no sd was measured" if effect is None else f"{effect:.2f} (sd {sd:.2f})"
        lines.append(f"claim {claim.id}: smallest effect found in 80 % with n = {n}: {text}")
    for cell in plan.cells[:5]:
        rows = [row for r in before for row in r.reported if row.id == cell.entry.id]
        sd = next(filter(None, (cells.sd_over_seeds(row.scores) for row in rows)), None)
        half = cells.half_width(sd, n)
        text = "unknown: no sd was measured" if half is None else f"+- {half:.2f} (sd {sd:.2f})"
        lines.append(f"{cell.entry.id}: published {cell.entry.value}; interval of our mean {text}")
    return lines


def claims_of(plan: Plan) -> list[claims.ClaimSpec]:
    """Primary claims whose arms are all in the plan."""
    planned = {node.arm for node in plan.nodes}
    planned |= {f"{node.arm}@{node.task}" for node in plan.nodes}
    declared = load_claims(plan.paper).claims
    at_scale = [c for c in declared if plan.scale in c.scales and c.role == "primary"]
    return [claim for claim in at_scale if set(claim.arms.named()) <= planned]


def inputs_lacking(plan: Plan) -> list[str]:
    """Lines on the inputs of unfinished runs that are not here, with the commands that fetch them;
    empty if none is missing."""
    lacking = missing_inputs(plan.paper, plan.scale, plan.left)
    return how_to_fetch(lacking)


def grid(plan: Plan) -> None:
    """The plan arm by arm with what its runs took, and the disk that finished runs hold."""
    nodes, seconds = plan.nodes, plan.measured
    width = max(len(node.arm) for node in nodes)
    say(f"  {'arm':<{width}}  runs  tasks x seeds  seconds a run  hours in all")
    for arm in dict.fromkeys(node.arm for node in nodes):
        of_arm = [node for node in nodes if node.arm == arm]
        took = [seconds[node.key] for node in of_arm if node.key in seconds]
        each = f"{fmean(took):.1f}" if took else NOT_MEASURED
        whole = f"{sum(took) / 3600:12.3f}" if len(took) == len(of_arm) else ""
        shape = f"{different(of_arm, 'task')} x {different(of_arm, 'seed')}"
        say(f"  {arm:<{width}}  {len(of_arm):4}  {shape:>13}  {each:>13}  {whole}".rstrip())
    unit = "GPU hours" if plan.scale in {"gpu", "paper"} else "core hours"
    total, hours = sum(seconds.values()) / 3600, plan.body.hours
    line = f"  measured: {total:.2f} {unit} for {len(seconds)} of {len(nodes)} runs"
    if len(seconds) == len(nodes):
        line += f", {total / plan.jobs:.2f} h with {plan.jobs} worker(s)"
    elif hours:
        line += f"; the protocol's figure for the whole scale: {hours:g} h"
        line += f", {duration(plan.seconds)} of it for this plan" if plan.asked else ""
    say(line)
    gigabytes, origin = disk(plan)
    say(f"  disk: {gigabytes:.3g} GB {origin}")
    if size := bytes_predicted(plan):
        in_all = size * sum(not node.stage for node in plan.nodes)
        say(
            f"  predictions to record: about {in_all / 1e6:.1f} MB, "
            f"{-(-in_all // MOST_BYTES):.0f} file(s) of at most {MOST_BYTES / 1e6:g} MB"
        )


def time_left(plans: Sequence[Plan]) -> str:
    """The expected time of these papers in words; one that nobody measured is named as such."""
    unmeasured = [plan.paper.paper for plan in plans if plan.seconds is None]
    text = duration(sum(plan.seconds or 0.0 for plan in plans))
    return text + (f" without {', '.join(unmeasured)} ({NOT_MEASURED})" if unmeasured else "")


def estimate(plans: Mapping[str, Plan | BadInput]) -> None:
    """One table over all papers: runs, what is finished, expected time, disk; when it ends."""

    def row(name: str, scale: str, runs: Any, finished: Any, time: str, disk: Any) -> None:
        say(f"{name:<13} {scale:<9} {runs:>5} {finished:>8} {time:>12} {disk:>8}")

    row("paper", "scale", "runs", "finished", "expected", "disk GB")
    good = [plan for plan in plans.values() if isinstance(plan, Plan)]
    disks = {plan.paper.paper: disk(plan)[0] for plan in good}
    for name, plan in plans.items():
        if isinstance(plan, BadInput):
            say(f"{name:<13} refused: {plan}")
            continue
        done, took = len(plan.nodes) - len(plan.left), duration(plan.seconds, NOT_MEASURED)
        row(name, plan.scale, len(plan.nodes), done, took, f"{disks[name]:.2f}")
    runs, left = sum(len(p.nodes) for p in good), sum(len(p.left) for p in good)
    seconds = sum(plan.seconds or 0.0 for plan in good)
    row("all", "", runs, runs - left, duration(seconds), f"{sum(disks.values()):.2f}")
    end = time.strftime("%Y-%m-%d %H:%M", time.localtime(time.time() + seconds))
    say(f"expected: {time_left(good)}; started now, it would end about {end}")
    say("")


def countdown(plan: Plan, asked: str | None) -> None:
    """A long plan that nobody named waits 10 seconds, and is refused without a terminal."""
    hours = (plan.seconds or 0.0) / 3600 if plan.gpus else 0.0
    gigabytes = plan.body.download_gb
    if asked or (hours <= 1 and gigabytes <= 5):
        return
    if not sys.stdin.isatty():
        raise BadInput(
            f"this plan takes {hours:.1f} hours and {gigabytes:.0f} GB; name it with SCALE=... to "
            "start it without a terminal"
        )
    for left in range(10, 0, -1):
        print(f"\rstarts in {left} s, Ctrl-C stops ", end="", flush=True)
        time.sleep(1)
    print()
