"""From a paper's protocol to its verdicts: plan, train what is missing, judge, report.

    python -m benchmarks.reproduce autolora                 scale chosen from what this machine has
    python -m benchmarks.reproduce autolora --scale gpu     a named scale
    python -m benchmarks.reproduce autolora --dry           the plan alone
    python -m benchmarks.reproduce                          all papers: one estimate, one summary
    python -m benchmarks.reproduce autolora --record        (maintainers) keep the result in autolora/results/

Exit status: 0 all runs finished and gates hold, whatever the verdicts; 1 a gate failed or a run crashed; 2 inputs
missing or refused; 3 (--strict) a primary claim is not plainly supported; 75 stopped, give the same command again.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

from benchmarks import PAPERS, claims, cluster
from benchmarks.pool import Key, Outcome, Pool
from shared import protocol
from shared.protocol import BadInput, Node, Protocol, Scale

ROOT = Path(__file__).resolve().parent.parent
STOPPED = 75
SMALLER = {"paper": "gpu", "gpu": "cpu", "cpu": None, "rehearsal": None}


# --- which scale -------------------------------------------------------------------------------------------------


def cuda_devices() -> list[str]:
    """Identifiers of the CUDA devices that this process may use, found without importing torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [d for d in visible.split(",") if d.strip() not in {"", "-1"}]
    if not shutil.which("nvidia-smi"):
        return []
    listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True)
    return [
        str(i) for i, _ in enumerate(x for x in listing.stdout.splitlines() if x.startswith("GPU"))
    ]


def missing_inputs(paper: Protocol, scale: str) -> list[tuple[str, str]]:
    """("model" or "data", name) of what a scale needs and is neither in a folder nor at a hub that answers."""
    from shared import sources

    needs = paper.scale(scale).needs
    named = [("model", m) for m in needs.models] + [("data", d) for d in needs.data]
    return [(kind, name) for kind, name in named if not sources.available(kind, name)]


def how_to_fetch(lacking: list[tuple[str, str]]) -> list[str]:
    """Lines for the terminal: what is missing, each followed by the command that fetches it."""
    from shared import sources

    by_command: dict[str, list[str]] = {}
    for kind, name in lacking:
        by_command.setdefault(sources.fetch_command(kind, name), []).append(f"{kind} {name}")
    return [
        line
        for command, names in by_command.items()
        for line in (f"  {', '.join(names)}", f"    {command}")
    ]


def choose_scale(paper: Protocol, asked: str | None, executor: str = "local") -> tuple[str, str]:
    """The scale to run and why. What this machine has says nothing about a cluster's nodes."""
    if executor == "slurm" and not asked:
        raise BadInput(
            "EXECUTOR=slurm needs SCALE=cpu, gpu, paper or rehearsal: the nodes are not this machine"
        )
    if asked:
        if asked not in protocol.SCALES:
            raise protocol.unknown(asked, protocol.SCALES, "scale")
        paper.scale(asked)
        if asked == "gpu" and executor == "local" and not cuda_devices():
            raise BadInput(
                "SCALE=gpu needs a CUDA device and none is visible; use SCALE=cpu, or SCALE=rehearsal to try the paper's protocol"
            )
        return asked, "asked for"
    if not cuda_devices():
        return "cpu", "no CUDA device"
    have = set(paper.document.scales)
    lacking = missing_inputs(paper, "paper") if "paper" in have else [("scale", "paper")]
    if not lacking:
        return "paper", "a CUDA device, and every model and data set of the paper is in reach"
    names = ", ".join(map(" ".join, lacking))
    if "gpu" in have and not missing_inputs(paper, "gpu"):
        return "gpu", f"a CUDA device; for scale paper these are missing: {names}"
    return "cpu", f"a CUDA device, but the data of larger scales are missing: {names}"


def seconds_of(text: str | None, name: str = "LIMIT") -> float | None:
    """'90', '90s', '9m' or '1.5h' in seconds."""
    if not text:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text)
    if not found or not float(found[1]):
        raise BadInput(f"{name}={text}: expected a number above 0 with s, m or h, e.g. 9m")
    return float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[found[2]]


# --- plan -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """What one call is about to do for one paper. Made without torch, and before anything is trained."""

    paper: Protocol
    scale: str
    why: str
    nodes: list[Node]
    left: list[Node]  # those of `nodes` that have no record that stands
    preview: str | None
    gpus: list[str]
    jobs: int
    slurm: cluster.Options | None
    seconds: float | None  # expected wall time of `left`; None: neither measured nor estimated
    disk: tuple[float, str] = field(
        default=(0.0, "")
    )  # GB of the whole scale, and where the figure comes from

    @property
    def body(self) -> Scale:
        return self.paper.scale(self.scale)


def plan(name: str, options: argparse.Namespace) -> Plan:
    """The plan of one paper; what cannot be run as asked is refused here."""
    paper = Protocol(ROOT / name)
    slurm = slurm_options(options) if options.executor == "slurm" else None
    scale, why = choose_scale(paper, options.scale, options.executor)
    load_claims(paper)  # a mistake in it is refused now, not after the runs
    seconds_of(options.limit)
    only = [a for a in (options.only or "").split(",") if a]
    if options.only and not only:
        raise BadInput(
            f"ONLY={options.only} names no arm; give arms separated by commas, or leave ONLY out"
        )
    body = paper.scale(scale)
    nodes = paper.nodes(scale, options.arms or "core", only, options.seeds)
    reasons = [f"{flag}" for flag, on in (("SEEDS", options.seeds), ("ONLY", only)) if on]
    if options.arms == "all" and body.core is not None:
        reasons.append("ARMS=all")
    preview = " and ".join(reasons) + " given" if reasons else None
    gpus = cuda_devices() if scale != "rehearsal" else []
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    jobs = options.jobs or (body.jobs * len(gpus) if gpus else cores)
    if slurm:
        jobs = options.jobs or 256
        slurm = replace(
            slurm, gpus=int(scale in {"gpu", "paper"}) if options.gpus is None else options.gpus
        )
    code = protocol.code_hashes(paper.directory / "train.py")
    left = [
        n
        for n in nodes
        if protocol.stale(paper.run_directory(scale, n.key), paper.config(scale, n), code)
    ]
    seconds = expected(paper, scale, nodes, left, jobs)
    return Plan(
        paper,
        scale,
        why,
        nodes,
        left,
        preview,
        gpus,
        jobs,
        slurm,
        seconds,
        disk(paper, scale, nodes),
    )


def expected(
    paper: Protocol, scale: str, nodes: list[Node], left: list[Node], jobs: int
) -> float | None:
    """Wall seconds of the runs that are left: as they were measured, else their share of what the whole scale takes."""
    measured = costs(paper, scale, nodes)
    if all(n.key in measured for n in left):
        own = [measured[n.key] for n in left]
        return max([sum(own) / jobs, *own], default=0.0)
    path = paper.directory / "results" / f"{scale}.json"
    whole = (
        json.loads(path.read_text()).get("seconds") if path.exists() else None
    )  # a number: a rehearsal
    if not isinstance(whole, int | float):
        hours = paper.scale(scale).hours
        whole = None if hours is None else hours * 3600
    return None if whole is None else whole * len(left) / len(nodes)


def describe(plan: Plan, limit: str | None, place: str = "") -> None:
    """Print what is about to happen. `place`: "paper 3 of 7" and the time left, where several papers are asked for."""
    paper, nodes, body = plan.paper, plan.nodes, plan.body
    arms = list(dict.fromkeys(n.arm for n in nodes))
    say(f"{place}{paper.paper} at scale {plan.scale} ({plan.why})")
    say(
        f"  {len(nodes)} runs: {len(arms)} arms x {len({n.task for n in nodes})} task(s) x up to {len({n.seed for n in nodes})} seeds; {len(nodes) - len(plan.left)} finished before; {plan.jobs} worker(s)"
    )
    say(f"  arms: {', '.join(arms)}")
    say(
        f"  expected: {_duration(plan.seconds)}; download {body.download_gb:g} GB; disk {body.disk_gb:g} GB"
        + (f"; stops after {limit}" if limit else "")
    )
    smaller = SMALLER.get(plan.scale)
    if smaller and smaller in paper.document.scales:
        say(f"  next smaller scale: make reproduce-{paper.paper} SCALE={smaller}")


def time_left(plans: Sequence[Plan]) -> str:
    """The expected time of these papers in words; one that nobody measured is named as such."""
    unknown = [p.paper.paper for p in plans if p.seconds is None]
    text = _duration(sum(p.seconds or 0.0 for p in plans))
    return text + (f" without {', '.join(unknown)} (not measured)" if unknown else "")


def estimate(plans: dict[str, Plan | BadInput]) -> None:
    """One table over all papers: runs, what is finished, expected time, disk; then the whole and when it ends."""
    say(f"{'paper':<13} {'scale':<9} {'runs':>5} {'finished':>8} {'expected':>12} {'disk GB':>8}")
    for name, found in plans.items():
        if isinstance(found, BadInput):
            say(f"{name:<13} refused: {found}")
            continue
        done = len(found.nodes) - len(found.left)
        say(
            f"{name:<13} {found.scale:<9} {len(found.nodes):>5} {done:>8} {_duration(found.seconds):>12} {found.disk[0]:>8.2f}"
        )
    good = [p for p in plans.values() if isinstance(p, Plan)]
    runs, left = sum(len(p.nodes) for p in good), sum(len(p.left) for p in good)
    seconds, gigabytes = sum(p.seconds or 0.0 for p in good), sum(p.disk[0] for p in good)
    say(
        f"{'all':<13} {'':<9} {runs:>5} {runs - left:>8} {_duration(seconds):>12} {gigabytes:>8.2f}"
    )
    end = time.strftime("%Y-%m-%d %H:%M", time.localtime(time.time() + seconds))
    say(f"expected: {time_left(good)}; started now, it would end about {end}")
    say("")


def costs(paper: Protocol, scale: str, nodes: list[Node]) -> dict[Key, float]:
    """Seconds of each run of the plan that was measured: here, else as recorded, else the mean of its arm and task."""
    path = paper.directory / "results" / f"{scale}.json"
    entries = json.loads(path.read_text()).get("runs") if path.exists() else None
    found = {(r["arm"], r["task"], r["seed"]): r["seconds"] for r in entries if r.get("seconds")} if isinstance(entries, list) else {}  # fmt: skip
    for node in nodes:
        if record := protocol.read_record(paper.run_directory(scale, node.key)):
            found[node.key] = record["seconds"]
    mean: dict[tuple[str, str], list[float]] = {}
    for (arm, task, _), seconds in found.items():
        mean.setdefault((arm, task), []).append(seconds)
    known = {k: sum(v) / len(v) for k, v in mean.items()}
    return {n.key: found.get(n.key, known.get(n.key[:2], 0.0)) for n in nodes if n.key[:2] in known}


def grid(plan: Plan) -> None:
    """The plan arm by arm with what its runs took when they were measured, and the disk that finished runs hold."""
    nodes, jobs = plan.nodes, plan.jobs
    seconds = costs(plan.paper, plan.scale, nodes)
    width = max(len(n.arm) for n in nodes)
    say(f"  {'arm':<{width}}  runs  tasks x seeds  seconds a run  hours in all")
    for arm in dict.fromkeys(n.arm for n in nodes):
        own = [n for n in nodes if n.arm == arm]
        measured = [seconds[n.key] for n in own if n.key in seconds]
        each = f"{sum(measured) / len(measured):13.1f}" if measured else f"{'not measured':>13}"
        whole = f"{sum(measured) / 3600:12.3f}" if len(measured) == len(own) else ""
        shape = f"{len({n.task for n in own})} x {len({n.seed for n in own})}"
        say(f"  {arm:<{width}}  {len(own):4}  {shape:>13}  {each}  {whole}".rstrip())
    unit = "GPU hours" if plan.scale in {"gpu", "paper"} else "core hours"
    missing = len(nodes) - len(seconds)
    body = plan.body
    total = sum(seconds.values()) / 3600
    say(f"  measured: {total:.2f} {unit} for {len(seconds)} of {len(nodes)} runs"
        + (f", {total / jobs:.2f} h with {jobs} worker(s)" if not missing else "")
        + (f"; the protocol's own figure for the whole scale: {body.hours} h" if missing and body.hours else ""))  # fmt: skip
    say(f"  disk: {plan.disk[0]:.3g} GB {plan.disk[1]}")


def disk(paper: Protocol, scale: str, nodes: list[Node]) -> tuple[float, str]:
    """GB that the runs of a plan hold once all are finished, and where that figure comes from."""
    folders = [paper.run_directory(scale, n.key) for n in nodes]
    sizes = [
        sum(f.stat().st_size for f in d.rglob("*") if f.is_file())
        for d in folders
        if (d / "record.json").exists()
    ]
    if not sizes:
        whole = paper.scale(scale).disk_gb
        return whole, "by the protocol; no run of this scale has finished here"
    mean = sum(sizes) / len(sizes)
    whole = mean * len(nodes) / 1e9
    return whole, f"of runs, from {len(sizes)} finished here ({mean / 1e6:.2f} MB each)"


def countdown(hours: float, gigabytes: float, asked: str | None) -> None:
    """A long plan that nobody named waits 10 seconds on a terminal and is refused where there is none."""
    if asked or (hours <= 1 and gigabytes <= 5):
        return
    if not sys.stdin.isatty():
        raise BadInput(
            f"this plan takes {hours:.1f} hours and {gigabytes:.0f} GB; name it with SCALE=... to start it without a terminal"
        )
    for left in range(10, 0, -1):
        print(f"\rstarts in {left} s, Ctrl-C stops ", end="", flush=True)
        time.sleep(1)
    print()


def say(text: str) -> None:
    print(text, flush=True)


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "not measured"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


# --- train ----------------------------------------------------------------------------------------------------------


class Told:
    """Prints one line per finished run, with the time that is left."""

    def __init__(self, paper: Protocol, scale: str, total: int, jobs: int):
        self.paper, self.scale, self.total, self.jobs = paper, scale, total, jobs
        self.count, self.begun = 0, time.monotonic()

    def __call__(self, node: Node, outcome: Outcome) -> None:
        self.count += 1
        rate = (time.monotonic() - self.begun) / self.count
        record = (
            protocol.read_record(self.paper.run_directory(self.scale, node.key))
            if outcome.status == "finished"
            else None
        )
        scores = ", ".join(
            f"{k} {v:.4g}" for k, v in list((record or {}).get("metrics", {}).items())[:3]
        )
        detail = scores or outcome.detail.strip().splitlines()[-1:] or ""
        if isinstance(detail, list):
            detail = detail[0]
        say(f"[{self.count}/{self.total}] {node.arm} {node.task} seed {node.seed}: {outcome.status} in {outcome.seconds:.1f} s"
            f"{'; ' + detail if detail else ''}; {_duration(rate * (self.total - self.count))} left")  # fmt: skip


def train(
    paper: Protocol,
    scale: str,
    nodes: list[Node],
    jobs: int,
    limit: float | None,
    slurm: cluster.Options | None = None,
) -> dict[Key, Outcome]:
    """Make every run that does not stand yet. Returns the outcome of each run of the plan."""
    code = protocol.code_hashes(paper.directory / "train.py")

    def settings(node: Node) -> dict[str, Any]:
        return paper.config(scale, node)

    standing: set[Key] = set()
    for node in nodes:  # uses come before users
        directory = paper.run_directory(scale, node.key)
        reason = protocol.stale(directory, settings(node), code)
        if reason is None and all(u in standing for u in node.uses):
            standing.add(node.key)
        elif reason not in {None, "no record"}:
            say(f"  made again: {node.arm} {node.task} seed {node.seed}: {reason}")
    left = [n for n in nodes if n.key not in standing]
    outcomes = {
        k: Outcome(
            str(
                (protocol.read_record(paper.run_directory(scale, k)) or {}).get(
                    "status", "finished"
                )
            )
        )
        for k in standing
    }
    if left:
        if not standing:  # from the beginning: nothing of the time spent before counts
            (protocol.runs_root(ROOT) / paper.paper / scale / "wall.json").unlink(missing_ok=True)
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
            os.environ[name] = "1"
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        told = Told(paper, scale, len(left), jobs)
        logs = protocol.runs_root(ROOT) / paper.paper / scale
        deadline = time.monotonic() + limit if limit else None
        begun = time.monotonic()
        executor: Pool | cluster.Cluster
        if slurm:
            executor = cluster.Cluster(ROOT, paper.paper, jobs, settings, told, slurm, deadline)
        else:
            executor = Pool(ROOT, paper.paper, jobs, logs, settings, told, cuda_devices(), deadline)
        made = executor.run(left, {k for k, o in outcomes.items() if o.status == "finished"})
        outcomes.update(made)
        _add_wall(
            logs,
            time.monotonic() - begun,
            sum(o.seconds for o in made.values()),
            min(jobs, len(left)),
        )
    return outcomes


def _wall(folder: Path) -> dict[str, float]:
    """wall.json, {} where there is none. One that cannot be read costs the time of earlier calls, never a run."""
    path = folder / "wall.json"
    if not path.exists():
        return {}
    try:
        return {k: float(v) for k, v in json.loads(path.read_text()).items()}
    except (ValueError, TypeError, AttributeError):
        path.unlink()
        say(
            f"  {_short(path)} cannot be read and is deleted: the time of earlier calls is not counted"
        )
        return {}


def _add_wall(folder: Path, wall: float, runs: float, workers: int) -> None:
    """Add a call to wall.json (seconds: `wall`, `runs`: sum of run times, `offered`: wall x workers); say the efficiency."""
    folder.mkdir(parents=True, exist_ok=True)
    before = _wall(folder)
    added = {"wall": wall, "runs": runs, "offered": wall * workers}
    (folder / "wall.json").write_text(
        json.dumps({k: before.get(k, 0.0) + v for k, v in added.items()})
    )
    say(f"  workers busy {runs / (wall * workers):.0%}: {_duration(runs)} of runs in {_duration(wall)} x {workers} worker(s)")  # fmt: skip


# --- judge ----------------------------------------------------------------------------------------------------------


def run_entry(record: dict[str, Any], attempts: int) -> dict[str, Any]:
    """What results.json keeps of a run (docs/verdicts.md, section 8)."""
    kept = ("arm", "task", "seed", "status", "config_sha256", "split_sha256", "state_sha256", "selection", "chosen_step",
            "validation", "metrics", "seconds", "gradient_evaluations", "gradient_evaluations_with_uses", "peak_memory_mb",
            "predictions_sha256")  # fmt: skip
    entry = {k: record.get(k) for k in kept}
    entry["reason"] = record.get("reason", "")
    return {**entry, "attempts": attempts, "record_sha256": protocol.record_sha256(record)}


def collect(
    paper: Protocol, scale: str, nodes: list[Node], outcomes: dict[Key, Outcome]
) -> list[tuple[Node, dict[str, Any], dict[str, Any]]]:
    """(node, entry of results.json, full record) of every declared run; one that did not end is `crashed`.

    A run whose stage diverged diverged with it."""
    found = []
    diverged: set[Key] = set()
    for node in nodes:
        record = protocol.read_record(paper.run_directory(scale, node.key))
        outcome = outcomes.get(node.key, Outcome("blocked"))
        if outcome.status in {"finished", "diverged"} and record:
            entry = run_entry(record, outcome.attempts)
        else:
            record = {}
            status = "diverged" if any(u in diverged for u in node.uses) else "crashed"
            entry = {"arm": node.arm, "task": node.task, "seed": node.seed, "status": status, "attempts": outcome.attempts,
                     "metrics": {}, "validation": {}, "reason": outcome.detail.strip()[-300:]}  # fmt: skip
        if entry["status"] == "diverged":
            diverged.add(node.key)
        found.append((node, entry, record))
    return found


def load_claims(paper: Protocol) -> dict[str, Any]:
    """claims.yaml, held against the protocol's arms and tasks and against the published numbers its targets name."""
    from benchmarks import reported

    path = paper.directory / "claims.yaml"
    if not path.exists():
        raise BadInput(f"{paper.paper}/claims.yaml is missing")
    found = claims.load_claims(path)
    tasks = {task for scale in paper.document.scales for task in paper.tasks(scale)}
    claims.check_names(found, paper.document.arms, tasks, f"{paper.paper}/claims.yaml")
    published = reported.load(paper.directory / "reported.yaml")
    reported.check_targets(found.get("targets") or [], published, f"{paper.paper}/claims.yaml")
    return found


def assemble(
    paper: Protocol,
    scale: str,
    nodes: list[Node],
    outcomes: dict[Key, Outcome],
    preview: str | None,
) -> tuple[dict[str, Any], Path]:
    """Verdicts from runs: writes results.json and its compact predictions, returns them with the file's path."""
    from benchmarks import check, reported, rules, verdicts
    from shared import runs

    found = collect(paper, scale, nodes, outcomes)
    folder = protocol.runs_root(ROOT) / paper.paper / scale
    name = "preview" if preview else "results"
    arrays = {n.key: runs.load_arrays(paper.run_directory(scale, n.key) / "predictions.npz")
              for n, entry, _ in found if entry["status"] == "finished" and not n.stage}  # fmt: skip
    evaluate = importlib.import_module(f"{paper.paper}.evaluate")
    packed = folder / f"{name}.predictions.npz"
    predictions_sha256 = check.pack_predictions(packed, arrays, evaluate.score)
    arrays = check.unpack_predictions(packed)  # what is committed is what is judged
    records = [r for _, _, r in found if r]
    data = {
        k: v["sha256"] for r in records for k, v in (r["fingerprint"].get("data") or {}).items()
    }
    wall = _wall(folder).get("wall", 0.0)
    judged = verdicts.judge(
        claims=load_claims(paper), scale=scale, nodes=nodes, runs=[e for _, e, _ in found], gates=[(n.key, r.get("gates", [])) for n, _, r in found],
        predictions=arrays, score=evaluate.score, statistics=getattr(evaluate, "STATISTICS", {}),
        reported=reported.load(paper.directory / "reported.yaml"), item_values=getattr(evaluate, "item_values", None),
    )  # fmt: skip
    if preview:  # a gate of runs that were not asked for has not failed
        judged["gates"] = [g for g in judged["gates"] if g["detail"] != verdicts.UNRECORDED]
    results = {
        "schema": 1, "paper": paper.paper, "scale": scale, "preview": preview,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "commit": runs.commit(ROOT),
        "claims_sha256": protocol.sha256_file(paper.directory / "claims.yaml"),
        "protocol_sha256": protocol.sha256_file(paper.path),
        "reported_sha256": protocol.sha256_file(paper.directory / "reported.yaml"), "predictions_sha256": predictions_sha256,
        "code_sha256": protocol.sha256_json(protocol.code_hashes(paper.directory / "train.py")),
        "revision": paper.revision(), "revisions": load_claims(paper).get("revisions") or [], "earlier": earlier(paper, scale, predictions_sha256),
        "environment": records[-1]["environment"] if records else {}, "data": data,
        "splits": {r["task"]: r["splits"] for r in records if r.get("splits")},
        "seeds": paper.seeds(scale), "development_seeds": "0-99", "tuning": paper.document.tuning,
        "seconds": {"wall": round(wall, 1), "runs": round(sum(r["seconds"] for r in records), 1),
                    "cpu": round(sum(r["cpu_seconds"] for r in records), 1)},
        **judged, "runs": [e for _, e, _ in found],
    }  # fmt: skip
    path = folder / f"{name}.json"
    results = rules.tidy(results)
    path.write_text(json.dumps(results, indent=1, allow_nan=False) + "\n")
    return results, path


def earlier(paper: Protocol, scale: str, predictions_sha256: str) -> list[dict[str, Any]]:
    """Verdicts recorded before, from other seeds (a revision) or other predictions (another processor); they stay listed."""
    path = paper.directory / "results" / f"{scale}.json"
    if not path.exists():
        return []
    old = json.loads(path.read_text())
    listed = list(old.get("earlier") or [])
    if (
        old.get("revision") != paper.revision()
        or old.get("predictions_sha256") != predictions_sha256
    ):
        claims_ = old.get("claims", [])
        listed.append({"commit": old.get("commit"), "created": old.get("created"), "revision": old.get("revision"),
                       "processor": (old.get("environment") or {}).get("processor"),
                       "verdicts": {c["id"]: c["verdict"] for c in claims_}, "effects": {c["id"]: c.get("effect") for c in claims_}})  # fmt: skip
    return listed


def show(paper: Protocol, scale: str, results: dict[str, Any]) -> None:
    """The verdicts on the terminal, beside the recorded ones."""
    path = paper.directory / "results" / f"{scale}.json"
    recorded = (
        {c["id"]: c["verdict"] for c in json.loads(path.read_text())["claims"]}
        if path.exists()
        else {}
    )
    say("")
    if results["preview"]:
        say(f"PREVIEW ({results['preview']}): never recorded")
    width = max((len(claim["id"]) for claim in results["claims"]), default=0)
    for claim in results["claims"]:
        verdict, before = claim["verdict"] or "shown", recorded.get(claim["id"], "")
        beside = (
            "" if not before else "; as recorded" if before == verdict else f"; RECORDED: {before}"
        )
        effect = "" if claim.get("effect") is None else f"{claim['effect']:+.2f}"
        if effect and claim.get("ci95"):
            effect += f" ({claim['ci95'][0]:+.2f} to {claim['ci95'][1]:+.2f})"
        say(f"  {claim['id']:<{width}}  {verdict}{beside}")
        say(f"  {'':<{width}}  {claim['role']}; {effect or 'no effect'}; {claim['statement']}")
    for gate in results["gates"]:
        if not gate["passed"]:
            say(f"  gate {gate['id']} FAILED: {gate['detail']}")
    say(f"  gates: {sum(g['passed'] for g in results['gates'])} of {len(results['gates'])} hold")


# --- one paper --------------------------------------------------------------------------------------------------------


def reproduce(plan: Plan, options: argparse.Namespace) -> tuple[int, dict[str, Any] | None]:
    """Train what a plan lacks, judge, report: the exit status, and the result that this call came to."""
    paper, scale, nodes = plan.paper, plan.scale, plan.nodes
    name = paper.paper
    if plan.slurm:
        cluster.require()
    if plan.left:
        hours = (plan.seconds or 0.0) / 3600
        countdown(hours if plan.gpus else 0, plan.body.download_gb, options.scale)
        if lacking := missing_inputs(paper, scale):
            say(
                f"NOT RUN: missing for scale {scale} (README, 'Data and models', has every layout):"
            )
            for line in how_to_fetch(lacking):
                say(line)
            return 2, None
    outcomes = train(paper, scale, nodes, plan.jobs, seconds_of(options.limit), plan.slurm)
    bad = {k: o for k, o in outcomes.items() if o.status not in {"finished", "diverged"}}
    for key, outcome in list(bad.items())[:5]:
        say(f"{' '.join(map(str, key))}: {outcome.status}: {outcome.detail.strip()}")
        say(
            f"  alone: python -m {name}.train --scale {scale} --arm {key[0]} --task {key[1]} --seed {key[2]}"
        )
    if any(o.status == "stopped" for o in bad.values()):
        say(
            f"stopped; what is finished is kept. Continue with: make reproduce-{name} SCALE={scale}"
            + (f" LIMIT={options.limit}" if options.limit else "")
        )
        return STOPPED, None
    if scale == "rehearsal":
        return _rehearsal(
            paper, nodes, {k: o for k, o in outcomes.items() if o.status != "finished"}
        )
    results, path = assemble(paper, scale, nodes, outcomes, plan.preview)
    show(paper, scale, results)
    say(f"results: {_short(path)}")
    _report(name)
    if any(o.status in {"missing", "refused"} for o in bad.values()):
        return 2, results
    if bad or not all(g["passed"] for g in results["gates"]):
        return 1, results
    primary = [c for c in results["claims"] if c["role"] == "primary"]
    plain = all(c["verdict"].removesuffix(" (scaled down)") == "SUPPORTED" for c in primary)
    return (3 if options.strict and not plain else 0), results


def slurm_options(options: argparse.Namespace) -> cluster.Options:
    minutes = int(-(-(seconds_of(options.time, "TIME") or 4 * 3600) // 60))
    if (
        minutes < 2
    ):  # Slurm warns up to half a minute early: such a job would be asked to stop as it starts
        raise BadInput(f"TIME={options.time}: a job needs at least 2m")
    return cluster.Options(minutes, 0, options.partition, options.account)


def _short(path: Path) -> str:
    return os.path.relpath(path)


def _report(name: str) -> None:
    try:
        from benchmarks import report
    except ImportError as error:  # ENV=none on a machine without matplotlib or jinja2
        return say(
            f"report:  not written, package {error.name} is missing; `make report` writes it from the results"
        )
    say(f"report:  {_short(report.render(ROOT, [name]))}")


def _rehearsal(
    paper: Protocol, nodes: list[Node], bad: dict[Key, Outcome]
) -> tuple[int, dict[str, Any]]:
    """Every arm and task of the paper ran for a few steps: passed or not, never a verdict."""
    from shared import runs

    folder = protocol.runs_root(ROOT) / paper.paper / "rehearsal"
    wall = _wall(folder).get("wall", 0.0)
    result = {"paper": paper.paper, "scale": "rehearsal", "passed": not bad, "runs": len(nodes),
              "arms": sorted({n.arm for n in nodes}), "tasks": sorted({n.task for n in nodes}), "seconds": round(wall, 1),
              "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "commit": runs.commit(ROOT)}  # fmt: skip
    (folder / "results.json").write_text(json.dumps(result, indent=1) + "\n")
    say(
        f"rehearsal of {paper.paper}: {len(nodes) - len(bad)} of {len(nodes)} runs finished"
        + ("" if not bad else " - FAILED")
    )
    return (2 if any(o.status == "missing" for o in bad.values()) else 1 if bad else 0), result


# --- record -----------------------------------------------------------------------------------------------------------


def record(name: str, scale: str) -> int:
    """Copy a finished result into `<paper>/results/` and write the README tables. Maintainers only."""
    from benchmarks import readme
    from shared import runs

    paper = Protocol(ROOT / name)
    paper.scale(scale)
    now = runs.commit(ROOT)
    if now is None or now.endswith("+changes"):
        raise BadInput("recording needs a clean, committed tree: commit or stash first")
    folder = protocol.runs_root(ROOT) / name / scale
    source = folder / "results.json"
    if not source.exists():
        raise BadInput(
            f"{_short(source)} does not exist: run make reproduce-{name} SCALE={scale} first"
        )
    result = json.loads(source.read_text())
    target = paper.directory / "results"
    target.mkdir(exist_ok=True)
    if scale == "rehearsal":
        if not result["passed"]:
            raise BadInput("the rehearsal did not pass")
    else:
        if result["preview"]:
            raise BadInput(f"a preview is never recorded ({result['preview']})")
        for part, path in (
            ("claims_sha256", paper.directory / "claims.yaml"),
            ("protocol_sha256", paper.path),
        ):
            if result[part] != protocol.sha256_file(path):
                raise BadInput(
                    f"{path.name} changed since these runs; repeat make reproduce-{name}"
                )
        if result["code_sha256"] != protocol.sha256_json(
            protocol.code_hashes(paper.directory / "train.py")
        ):
            raise BadInput(
                f"the code changed since these runs; repeat make reproduce-{name} SCALE={scale}"
            )
        if any(r["status"] == "crashed" for r in result["runs"]):
            raise BadInput("a declared run did not end; repeat it first")
        shutil.copyfile(folder / "results.predictions.npz", target / f"{scale}.predictions.npz")
    result["commit"] = now
    (target / f"{scale}.json").write_text(json.dumps(result, indent=1) + "\n")
    readme.write_readmes(ROOT, [name])
    say(f"recorded: {_short(target / f'{scale}.json')}; now commit it")
    return 0


class Arguments(argparse.ArgumentParser):
    """Refuses in one line; `--help` has the usage."""

    def error(self, message: str) -> NoReturn:
        print(f"error: {message}; see python -m benchmarks.reproduce --help", file=sys.stderr)
        sys.exit(2)


def at_least(least: int) -> Callable[[str], int]:
    def whole_number(text: str) -> int:
        if not re.fullmatch(r"[0-9]+", text) or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text}: expected a whole number, at least {least}")
        return int(text)

    return whole_number


def main(argv: list[str] | None = None) -> int:
    parser = Arguments(
        prog="python -m benchmarks.reproduce",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "paper", nargs="*", help=f"one of {', '.join(PAPERS)}; default: all that are built"
    )
    parser.add_argument(
        "--scale",
        help="cpu, gpu, paper or rehearsal; default: what this machine and its data allow",
    )
    parser.add_argument("--seeds", type=at_least(1), help="fewer seeds (a preview)")
    parser.add_argument(
        "--jobs",
        type=at_least(1),
        help="runs side by side; default: one per core, or as the protocol says per GPU",
    )
    parser.add_argument("--only", help="these arms alone, separated by commas (a preview)")
    parser.add_argument(
        "--arms",
        choices=["core", "all"],
        help="core: the arms of the claims; all: the other baselines too",
    )
    parser.add_argument("--limit", help="checkpoint and stop after this time, e.g. 9m")
    parser.add_argument(
        "--executor", choices=["local", "slurm"], default="local", help="where runs are trained"
    )
    parser.add_argument(
        "--time",
        help="slurm: time limit of a job, e.g. 90m; a run continues in the next (default 4h)",
    )
    parser.add_argument(
        "--gpus", type=at_least(0), help="slurm: GPUs of a job; default: 1 at gpu and paper, else 0"
    )
    parser.add_argument("--partition", help="slurm: partition")
    parser.add_argument("--account", help="slurm: account that is charged")
    parser.add_argument("--dry", action="store_true", help="print the plan and stop")
    parser.add_argument(
        "--strict",
        action="store_true",
        help="exit 3 unless every primary claim is plainly supported",
    )
    parser.add_argument(
        "--record", action="store_true", help="keep a finished result in the repository"
    )
    options = parser.parse_args(argv)
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    names = [
        n.replace("-", "_")
        for n in options.paper or PAPERS
        if options.paper or (ROOT / n / "train.py").exists()
    ]
    statuses = record_all(names, options) if options.record else reproduce_all(names, options)
    return next((status for status in statuses.values() if status), 0)


def record_all(names: list[str], options: argparse.Namespace) -> dict[str, int]:
    statuses = dict.fromkeys(names, 2)
    for name in names:
        with refusals():
            statuses[name] = record(name, options.scale or "cpu")
    return statuses


@contextlib.contextmanager
def refusals() -> Iterator[None]:
    """What cannot be done is told in a line with its remedy, and the next paper goes on."""
    from shared import sources

    try:
        yield
    except (BadInput, sources.MissingInput) as error:
        print(f"error: {error}", file=sys.stderr)
    except OSError as error:  # a folder that cannot be written, a file in its place, a full disk
        where = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        print(
            f"error: {where}\n  remedy:  make room there, or name another folder with REPRO_RUNS=... (runs) or REPRO_CACHE=... (caches)",
            file=sys.stderr,
        )


def reproduce_all(names: list[str], options: argparse.Namespace) -> dict[str, int]:
    """Each paper in turn, with an estimate before the first and a summary after the last if there are several."""
    plans: dict[str, Plan | BadInput] = {}
    for name in names:
        try:
            plans[name] = plan(name, options)
        except BadInput as error:
            plans[name] = error
    several = len(names) > 1
    if several and not options.dry:
        estimate(plans)
    statuses: dict[str, int] = {}
    results: dict[str, dict[str, Any] | None] = {}
    for i, (name, one) in enumerate(plans.items()):
        ahead = [p for p in list(plans.values())[i:] if isinstance(p, Plan)]
        place = (
            f"paper {i + 1} of {len(names)}, {time_left(ahead)} left over the whole: "
            if several
            else ""
        )
        statuses[name] = 2
        with refusals():
            if isinstance(one, BadInput):
                raise one
            describe(one, options.limit, place)
            if options.dry:
                grid(one)
                statuses[name] = 0
            else:
                statuses[name], results[name] = reproduce(one, options)
        if several:
            say("")
        if statuses[name] == STOPPED:
            break
    if several and options.dry:
        estimate(plans)
    elif several:
        summary(plans, statuses, results)
    return statuses


MEANING = {
    0: "done",
    1: "a gate failed or a run crashed",
    2: "inputs missing or refused",
    3: "done; not all primary claims are plainly supported",
    STOPPED: "stopped",
}


def summary(
    plans: dict[str, Plan | BadInput],
    statuses: dict[str, int],
    results: dict[str, dict[str, Any] | None],
) -> None:
    """How each paper ended, its primary claims by verdict and the others as counts, gates, seconds, gradient evaluations."""
    ended: Counter[str] = Counter()
    verdicts: Counter[str] = Counter()
    seconds, passes = 0.0, 0
    say(f"summary of {len(plans)} papers")
    for name, one in plans.items():
        result = results.get(name) or {}
        claims = result.get("claims") or []
        how = MEANING.get(statuses.get(name, -1), "not started")
        if result.get("scale") == "rehearsal":
            how = "passed" if result["passed"] else "FAILED"
        ended[how] += 1
        facts = [how]
        if claims:
            facts.append(
                f"gates: {sum(g['passed'] for g in result['gates'])} of {len(result['gates'])} hold"
            )
        if result:
            wall = (
                result["seconds"] if result["scale"] == "rehearsal" else result["seconds"]["wall"]
            )
            facts.append(f"{wall:.0f} s")
            seconds += wall
        if claims:
            own = sum(r.get("gradient_evaluations") or 0 for r in result["runs"])
            facts.append(f"{own:,} gradient evaluations")
            passes += own
        say(f"{name:<13} {one.scale if isinstance(one, Plan) else '':<9} {'; '.join(facts)}")
        primary = [c for c in claims if c["role"] == "primary"]
        width = max((len(c["verdict"]) for c in primary), default=0)
        for claim in primary:
            say(f"  {claim['verdict']:<{width}}  {claim['id']}: {claim['statement']}")
        verdicts += Counter(_plain(c) for c in primary)
        if others := Counter(_plain(c) for c in claims if c["role"] == "secondary"):
            say(f"  secondary: {_counts(others)}")
    say(
        f"all: {_counts(ended)}; {_duration(seconds)}"
        + (
            f"; {passes:,} gradient evaluations; primary claims: {_counts(verdicts)}"
            if verdicts
            else ""
        )
    )
    report = ROOT / "report" / "index.html"
    if verdicts and report.exists():
        say(f"report: {_short(report)}")


def _plain(claim: dict[str, Any]) -> str:
    return str(claim["verdict"]).removesuffix(" (scaled down)")


def _counts(counted: Counter[str]) -> str:
    return ", ".join(f"{n} {words}" for words, n in counted.most_common())


if __name__ == "__main__":
    sys.exit(main())
