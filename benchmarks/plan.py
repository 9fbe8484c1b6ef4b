"""What one call is about to do for a paper: scale, runs, hours, disk. Made without torch."""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks import claims, cluster, plan_n, recorded, reported
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
    path, where = paper.directory / "claims.yaml", f"{paper.paper}/claims.yaml"
    if not path.exists():
        raise BadInput(f"{where} is missing")
    declared = claims.load_claims(path)
    tasks = {task for scale in paper.document.scales for task in paper.tasks(scale)}
    claims.check_names(declared, paper.document.arms, tasks, where)
    plan_n.check_plans(declared, paper)
    published = reported.load(paper.directory / "reported.yaml")
    reported.check_targets(declared.targets, published, where)
    return declared


# --- which scale ----------------------------------------------------------------------------------


def missing_inputs(paper: Protocol, scale: str) -> list[tuple[str, str]]:
    """("model" or "data", name) of what is neither in a folder nor at a hub that answers."""
    from shared import sources

    needs = paper.scale(scale).needs
    inputs = [("model", name) for name in needs.models] + [("data", name) for name in needs.data]
    return [(kind, name) for kind, name in inputs if not sources.available(kind, name)]


def how_to_fetch(lacking: Sequence[tuple[str, str]]) -> list[str]:
    """Lines for the terminal: what is missing, each followed by the command that fetches it."""
    from shared import sources

    by_command: dict[str, list[str]] = {}
    for kind, name in lacking:
        by_command.setdefault(sources.fetch_command(kind, name), []).append(f"{kind} {name}")
    pairs = by_command.items()
    return [line for fetch, names in pairs for line in (f"  {', '.join(names)}", f"    {fetch}")]


def choose_scale(paper: Protocol, asked: str | None, executor: str = "local") -> tuple[str, str]:
    """The scale to run and why. What this machine has says nothing about a cluster's nodes."""
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
    has = paper.document.scales
    lacking = missing_inputs(paper, "paper") if "paper" in has else [("scale", "paper")]
    if not lacking:
        return "paper", "a CUDA device, and every model and data set of the paper is in reach"
    names = ", ".join(map(" ".join, lacking))
    if "gpu" in has and not missing_inputs(paper, "gpu"):
        return "gpu", f"a CUDA device; for scale paper these are missing: {names}"
    return "cpu", f"a CUDA device, but the data of larger scales are missing: {names}"


def seconds_of(text: str | None, name: str = "LIMIT") -> float | None:
    """'90', '90s', '9m' or '1.5h' in seconds."""
    if not text:
        return None
    parts = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text)
    if not parts or not float(parts[1]):
        raise BadInput(f"{name}={text}: expected a number above 0 with s, m or h, e.g. 9m")
    return float(parts[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[parts[2]]


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
    nodes: list[Node]
    left: list[Node]  # those of `nodes` that have no record that stands
    preview: str | None  # why the result is not one to record
    gpus: list[str]
    jobs: int
    slurm: cluster.Options | None
    measured: dict[Key, float]  # seconds of a run
    seconds: float | None = None  # expected wall time of `left`; None: nobody measured it

    @property
    def body(self) -> Scale:
        return self.paper.scale(self.scale)


def plan(name: str, options: argparse.Namespace) -> Plan:
    """The plan of one paper; what cannot be run as asked is refused here."""
    paper = Protocol(ROOT / name)
    scale, why = choose_scale(paper, options.scale, options.executor)
    slurm = slurm_options(options, scale) if options.executor == "slurm" else None
    load_claims(paper)  # a mistake in it is refused now, not after the runs
    seconds_of(options.limit)
    only = [arm for arm in (options.only or "").split(",") if arm]
    if options.only and not only:
        raise BadInput(
            f"ONLY={options.only} names no arm; give arms separated by commas, or leave ONLY out"
        )
    body = paper.scale(scale)
    nodes = paper.nodes(scale, options.arms or "core", only, options.seeds)
    given = {"SEEDS": options.seeds, "ONLY": only}
    given["ARMS=all"] = options.arms == "all" and body.core is not None
    overridden = [name for name, value in given.items() if value]
    gpus = cuda_devices() if scale != "rehearsal" else []
    code = protocol.code_hashes(paper.directory / "train.py")
    left = [
        node
        for node in nodes
        if protocol.stale(paper.run_directory(scale, node.key), paper.config(scale, node), code)
    ]
    by_default = 256 if slurm else body.jobs * len(gpus) if gpus else cores()
    made = Plan(
        paper=paper,
        scale=scale,
        why=why,
        nodes=nodes,
        left=left,
        preview=f"{' and '.join(overridden)} given" if overridden else None,
        gpus=gpus,
        jobs=options.jobs or by_default,
        slurm=slurm,
        measured=measured(paper, scale, nodes),
    )
    return replace(made, seconds=expected(made))


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


def expected(plan: Plan) -> float | None:
    """Wall seconds of what is left: as measured, else its share of what the whole scale takes."""
    if all(node.key in plan.measured for node in plan.left):
        each = [plan.measured[node.key] for node in plan.left]
        return max([sum(each) / plan.jobs, *each], default=0.0)
    rehearsal = recorded.rehearsal(plan.paper.directory) if plan.scale == "rehearsal" else None
    hours = plan.body.hours
    whole = rehearsal.seconds if rehearsal else None if hours is None else hours * 3600
    return None if whole is None else whole * len(plan.left) / len(plan.nodes)


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


def describe(plan: Plan, limit: str | None, place: str = "") -> None:
    """Print what is about to happen. `place`: "paper 3 of 7" and the time left over the whole."""
    name, nodes, body = plan.paper.paper, plan.nodes, plan.body
    arms = list(dict.fromkeys(node.arm for node in nodes))
    say(f"{place}{name} at scale {plan.scale} ({plan.why})")
    say(
        f"  {len(nodes)} runs: {len(arms)} arms x {different(nodes, 'task')} task(s) x up to "
        f"{different(nodes, 'seed')} seeds; {len(nodes) - len(plan.left)} finished before; "
        f"{plan.jobs} worker(s)"
    )
    say(f"  arms: {', '.join(arms)}")
    say(
        f"  expected: {duration(plan.seconds, NOT_MEASURED)}; download {body.download_gb:g} GB; "
        f"disk {body.disk_gb:g} GB" + (f"; stops after {limit}" if limit else "")
    )
    smaller = SMALLER.get(plan.scale)
    if smaller in plan.paper.document.scales:
        say(f"  next smaller scale: make reproduce-{name} SCALE={smaller}")


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
        line += f"; the protocol's own figure for the whole scale: {hours:g} h"
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
