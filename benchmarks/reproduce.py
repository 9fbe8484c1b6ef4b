"""From a paper's protocol to its verdicts: plan, train what is missing, judge, report.

    python -m benchmarks.reproduce autolora                 scale chosen from what this machine has
    python -m benchmarks.reproduce autolora --scale gpu     a named scale
    python -m benchmarks.reproduce autolora --dry           the plan alone
    python -m benchmarks.reproduce autolora --cell ID       what one published number needs
    python -m benchmarks.reproduce                          all papers: one estimate, one summary
    python -m benchmarks.reproduce autolora --record        (maintainers) into autolora/results/

Exit status: 0 all runs finished and gates hold, whatever the verdicts; 1 a gate failed or a run
crashed; 2 inputs missing or refused, or another process is at this paper and scale; 3 (--strict) a
primary claim is not plainly supported; 75 stopped, give the same command again.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from benchmarks import PAPERS, assemble, cluster, locks, recorded, status
from benchmarks.assemble import short
from benchmarks.plan import ROOT, Plan, plan, say
from benchmarks.pool import Key, Outcome, Pool
from benchmarks.recorded import Rehearsal, Results
from benchmarks.terminal import (
    countdown,
    counts,
    describe,
    estimate,
    grid,
    inputs_lacking,
    on_fewer,
    show_given,
    show_lacking,
    show_published,
    time_left,
)
from benchmarks.words import duration, machines, stated
from shared import inputs, protocol
from shared.protocol import BadInput, Node, Protocol

ONE_PAPER = ("cell", "budget", "published")  # options that several papers cannot share
DONE, FAILED, REFUSED, NOT_SUPPORTED, STOPPED = 0, 1, 2, 3, 75
MEANING = {
    DONE: "done",
    FAILED: "a gate failed or a run crashed",
    REFUSED: "inputs missing or refused",
    NOT_SUPPORTED: "done; not all primary claims are plainly supported",
    STOPPED: "stopped",
}


# --- train ----------------------------------------------------------------------------------------


@dataclass
class Progress:
    """Prints one line per run that ends, with the time that is left."""

    paper: Protocol
    scale: str
    total: int
    count: int = 0
    begun: float = field(default_factory=time.monotonic)

    def __call__(self, node: Node, outcome: Outcome) -> None:
        self.count += 1
        each = (time.monotonic() - self.begun) / self.count
        record = protocol.read_record(self.paper.run_directory(self.scale, node.key)) or {}
        metrics = record.get("metrics", {}) if outcome.status == "finished" else {}
        scores = ", ".join(f"{name} {value:.4g}" for name, value in list(metrics.items())[:3])
        detail = scores or "".join(outcome.detail.strip().splitlines()[-1:])
        say(
            f"[{self.count}/{self.total}] {node.arm} {node.task} seed {node.seed}: "
            f"{outcome.status} in {outcome.seconds:.1f} s{'; ' + detail if detail else ''}; "
            f"{duration(each * (self.total - self.count))} left"
        )


def standing_runs(plan: Plan) -> dict[Key, Outcome]:
    """The runs of a plan whose records stand, and those of the runs that they use."""
    paper, scale = plan.paper, plan.scale
    code = protocol.code_hashes(paper.directory / "train.py")
    standing: dict[Key, Outcome] = {}
    for node in plan.nodes:  # uses come before users
        place = paper.run_directory(scale, node.key)
        reason = protocol.stale(place, paper.config(scale, node), code)
        if reason is None and all(used in standing for used in node.uses):
            record = protocol.read_record(place) or {}
            standing[node.key] = Outcome(str(record.get("status", "finished")))
        elif reason not in {None, "no record"}:
            say(f"  made again: {node.arm} {node.task} seed {node.seed}: {reason}")
    return standing


def train(plan: Plan) -> dict[Key, Outcome]:
    """Make every run that does not stand yet. Returns the outcome of each run of the plan."""
    paper, scale = plan.paper, plan.scale
    outcomes = standing_runs(plan)
    left = [node for node in plan.nodes if node.key not in outcomes]
    folder = protocol.runs_root(ROOT) / paper.paper / scale
    status.write_plan(folder, [node.key for node in plan.nodes], plan.jobs)
    if not left:
        return outcomes
    if not outcomes:  # from the beginning: nothing of the time spent before counts
        (folder / "wall.json").unlink(missing_ok=True)
    os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    begun = time.monotonic()
    common: dict[str, Any] = {
        "root": ROOT,
        "paper": paper.paper,
        "jobs": plan.jobs,
        "config": lambda node: paper.config(scale, node),
        "ended": Progress(paper, scale, len(left)),
        "deadline": begun + plan.limit if plan.limit else None,
    }
    if plan.slurm:
        executor: Pool | cluster.Cluster = cluster.Cluster(**common, options=plan.slurm)
    else:
        executor = Pool(**common, logs=folder, gpus=plan.gpus)
    made = executor.run(left, {k for k, o in outcomes.items() if o.status == "finished"})
    took, workers = time.monotonic() - begun, min(plan.jobs, len(left))
    spent = sum(outcome.seconds for outcome in made.values())
    assemble.add_wall(folder, took, spent, workers)
    say(
        f"  workers busy {spent / (took * workers):.0%}: {duration(spent)} of runs in "
        f"{duration(took)} x {workers} worker(s)"
    )
    return outcomes | made


# --- one paper ------------------------------------------------------------------------------------


def show(plan: Plan, results: Results) -> None:
    """The verdicts on the terminal, beside the recorded ones; those of a subset say which."""
    old = recorded.recorded(plan.paper.directory, results.scale)
    before = {claim.id: claim.verdict for claim in old.claims} if old else {}
    say("")
    subset = f" [preview: {plan.asked}]" if results.preview else ""
    if subset:
        say(f"PREVIEW ({results.preview}): never recorded")
    judged = [c for c in results.claims if not subset or c.d]
    width = max((len(claim.id) for claim in judged), default=0)
    for claim in judged:
        verdict, was = claim.verdict or "shown", before.get(claim.id)
        same = "" if subset else "; as recorded"
        beside = "" if not was else same if was == verdict else f"; RECORDED: {was}"
        effect = "no effect" if claim.effect is None else f"{claim.effect:+.2f}"
        ends = recorded.finite(claim.ci95)
        if claim.effect is not None and ends:
            effect += f" ({ends[0]:+.2f} to {ends[1]:+.2f})"
        say(f"  {claim.id:<{width}}  {verdict}{on_fewer(plan, claim)}{subset}{beside}")
        say(f"  {'':<{width}}  {claim.role}; {effect}; {claim.statement}")
    if others := len(results.claims) - len(judged):
        say(f"  {others} claim(s) need runs that were not asked for: NOT RUN")
    show_published(plan, results, subset)
    for gate in results.gates:
        if not gate.passed:
            say(f"  gate {gate.id} FAILED: {gate.detail}")
    say(f"  gates: {gates_text(results)}")
    if mixed := machines(results):
        say(f"  {mixed}")


def gates_text(results: Results) -> str:
    return f"{sum(gate.passed for gate in results.gates)} of {len(results.gates)} hold"


def reproduce(plan: Plan, options: argparse.Namespace) -> tuple[int, Results | Rehearsal | None]:
    """Train what a plan lacks, judge, report: the exit status, and what this call came to."""
    paper, scale, name = plan.paper, plan.scale, plan.paper.paper
    if plan.slurm:
        cluster.require()
    if plan.left:
        countdown(plan, options.scale or options.cell or options.budget)
        if inputs_lacking(plan):
            say(f"NOT RUN: inputs are missing for scale {scale}")
            show_lacking(plan)
            return REFUSED, None
    outcomes = train(plan)
    bad = {k: o for k, o in outcomes.items() if o.status not in {"finished", "diverged"}}
    for (arm, task, seed), outcome in list(bad.items())[:5]:
        alone = f"python -m {name}.train --scale {scale} --arm {arm} --task {task} --seed {seed}"
        say(f"{arm} {task} {seed}: {outcome.status}: {outcome.detail.strip()}")
        say(f"  alone: {alone}")
    statuses = {outcome.status for outcome in bad.values()}
    if "stopped" in statuses:
        limit = f" LIMIT={options.limit}" if options.limit else ""
        subset = f" {plan.asked}" if plan.asked else ""
        again = f"make reproduce-{name} SCALE={scale}{subset}{limit}"
        say(f"stopped; what is finished is kept. Continue with: {again}")
        return STOPPED, None
    if scale == "rehearsal":
        failed = sum(outcome.status != "finished" for outcome in outcomes.values())
        finished = f"{len(plan.nodes) - failed} of {len(plan.nodes)} runs finished"
        say(f"rehearsal of {name}: {finished}{' - FAILED' if failed else ''}")
        status = REFUSED if "missing" in statuses else FAILED if failed else DONE
        return status, assemble.rehearse(paper, plan.nodes, not failed)
    results, path = assemble.assemble(paper, scale, plan.nodes, outcomes, plan.preview)
    show(plan, results)
    if options.published is not None:
        show_given(plan, options, results)
    say(f"results: {short(path)}")
    write_report(name)
    if statuses & {"missing", "refused"}:
        return REFUSED, results
    if bad or not all(gate.passed for gate in results.gates):
        return FAILED, results
    primary = [claim for claim in results.claims if claim.role == "primary"]
    supported = all(verdict_of(claim) == "SUPPORTED" for claim in primary)
    return (NOT_SUPPORTED if options.strict and not supported else DONE), results


def verdict_of(claim: recorded.Claim) -> str:
    return str(claim.verdict).removesuffix(" (scaled down)")


def write_report(name: str) -> None:
    """The pages; what cannot be written, or read of another paper, costs no verdict."""
    later = "`make report` writes it from the results"
    try:
        from benchmarks import report

        say(f"report:  {short(report.render(ROOT, [name]))}")
    except ModuleNotFoundError as error:  # ENV=none on a machine without matplotlib or jinja2
        say(f"report:  not written, package {error.name} is missing; {later}")
    except (BadInput, OSError) as error:
        why = no_room(error) if isinstance(error, OSError) else str(error)
        say(f"report:  not written; the results stand, and {later}\n  {why}")


# What is written outside the checkout where a variable says so.
PLACES = {"REPRO_RUNS": "runs", "REPRO_CACHE": ".cache", "REPRO_REPORT": "report"}


def no_room(error: OSError) -> str:
    """A folder that cannot be written, a file in its place, a full disk: what to do about it."""
    where = f"{error.filename}: {error.strerror}" if error.filename else str(error)
    home = inputs.writable(ROOT)
    folders = {name: Path(os.environ.get(name) or home / place) for name, place in PLACES.items()}
    named = [name for name, folder in folders.items() if str(folder.absolute()) in where]
    unset = [name for name in PLACES if not os.environ.get(name)]
    others = " or ".join(f"{name}=..." for name in named or unset or PLACES)
    return f"{where}\n  remedy:  make room there, or name another folder with {others}"


# --- several papers -------------------------------------------------------------------------------


@contextlib.contextmanager
def refusals() -> Iterator[None]:
    """What cannot be done is told in a line with its remedy, and the next paper goes on."""
    from shared import sources

    try:
        yield
    except (BadInput, sources.MissingInput) as error:
        print(f"error: {error}", file=sys.stderr)
    except OSError as error:
        print(f"error: {no_room(error)}", file=sys.stderr)


def reproduce_all(names: Sequence[str], options: argparse.Namespace) -> dict[str, int]:
    """Each paper in turn; several have an estimate before the first and a summary at the end."""
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
    results: dict[str, Results | Rehearsal | None] = {}
    for i, (name, one) in enumerate(plans.items()):
        ahead = [p for p in list(plans.values())[i:] if isinstance(p, Plan)]
        place = f"paper {i + 1} of {len(names)}, {time_left(ahead)} left over the whole: "
        statuses[name] = REFUSED
        with refusals():
            if isinstance(one, BadInput):
                raise one
            describe(one, place if several else "")
            if options.dry:
                grid(one)
                show_lacking(one)
                statuses[name] = DONE
            else:
                folder = protocol.runs_root(ROOT) / name / one.scale
                with locks.alone(folder, f"{name} at scale {one.scale}"):
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


def summary(
    plans: Mapping[str, Plan | BadInput],
    statuses: Mapping[str, int],
    results: Mapping[str, Results | Rehearsal | None],
) -> None:
    """How each paper ended: primary claims by verdict, the others counted, gates and costs."""
    ended: Counter[str] = Counter()
    verdicts: Counter[str] = Counter()
    seconds, passes = 0.0, 0
    say(f"summary of {len(plans)} papers")
    for name, one in plans.items():
        result, claims = results.get(name), list[recorded.Claim]()
        facts = [MEANING.get(statuses.get(name, -1), "not started")]
        if isinstance(result, Rehearsal):
            facts = ["passed" if result.passed else "FAILED", f"{result.seconds:.0f} s"]
            seconds += result.seconds
        elif result:
            wall, claims = result.seconds.wall or 0.0, result.claims
            spent = sum(run.gradient_evaluations or 0 for run in result.runs)
            facts += [f"gates: {gates_text(result)}", f"{wall:.0f} s"]
            facts.append(f"{spent:,} gradient evaluations")
            seconds, passes = seconds + wall, passes + spent
        ended[facts[0]] += 1
        say(f"{name:<13} {one.scale if isinstance(one, Plan) else '':<9} {'; '.join(facts)}")
        primary = [claim for claim in claims if claim.role == "primary"]
        width = max((len(str(claim.verdict)) for claim in primary), default=0)
        for claim in primary:
            say(f"  {claim.verdict:<{width}}  {claim.id}: {stated(claim)}")
        verdicts += Counter(verdict_of(claim) for claim in primary)
        if others := Counter(verdict_of(c) for c in claims if c.role == "secondary"):
            say(f"  secondary: {counts(others)}")
    line = f"all: {counts(ended)}; {duration(seconds)}"
    if verdicts:
        line += f"; {passes:,} gradient evaluations; primary claims: {counts(verdicts)}"
    say(line)
    report = recorded.report_root(ROOT) / "index.html"
    if verdicts and report.exists():
        say(f"report: {short(report)}")


# --- the command line -----------------------------------------------------------------------------


class Arguments(argparse.ArgumentParser):
    """Refuses in one line; `--help` has the usage."""

    def error(self, message: str) -> NoReturn:
        if word := re.match(r"unrecognized arguments: --([\w-]+)", message):
            options = {name[2:] for name in self._option_string_actions if name[:2] == "--"}
            message = str(protocol.unknown(word[1], options, "options"))
        print(f"error: {message}; see python -m benchmarks.reproduce --help", file=sys.stderr)
        sys.exit(2)


def at_least(least: int) -> Callable[[str], int]:
    def whole_number(text: str) -> int:
        if not re.fullmatch(r"[0-9]+", text) or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text}: expected a whole number, at least {least}")
        return int(text)

    return whole_number


def number_given(text: str) -> float:
    if not re.fullmatch(r"[+-]?\d+(\.\d+)?", text):  # not nan, inf or 1_0
        raise argparse.ArgumentTypeError(f"{text}: expected a number, e.g. 81.2")
    return float(text)


def arguments() -> Arguments:
    parser = Arguments(
        prog="python -m benchmarks.reproduce",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # --seed would be taken for --seeds
    )
    add, number, on = parser.add_argument, at_least, "store_true"
    papers = f"one of {', '.join(PAPERS)}; default: all that are built"
    scale = "cpu, gpu, paper or rehearsal; default: what this machine and its data allow"
    jobs = "runs side by side; default: one per core, or as the protocol says per GPU"
    arms = "core: the arms of the claims; all: the other baselines too"
    time_ = "slurm: time limit of a job, e.g. 90m; a run continues in the next (default 4h)"
    published = "a number of your own, judged by a prediction interval (--cell, or --task --only)"
    gpus = "slurm: GPUs of a job; default: 1 at gpu and paper, else 0"
    add("paper", nargs="*", help=papers)
    add("--scale", help=scale)
    add("--seeds", type=number(1), help="fewer seeds (a preview)")
    add("--jobs", type=number(1), help=jobs)
    add("--only", help="these arms alone, separated by commas (a preview)")
    add("--task", help="these tasks alone, separated by commas (a preview)")
    add("--cell", help="what these published numbers need and no more: ids of `make list-X`")
    add(
        "--budget", help="the published numbers that fit into so many hours, e.g. 8h; stops in time"
    )
    add("--published", type=number_given, help=published)
    add("--metric", help="what --published is a value of (with --task and --only)")
    add("--arms", choices=["core", "all"], help=arms)
    add("--limit", help="checkpoint and stop after this time, e.g. 9m")
    add("--executor", choices=["local", "slurm"], default="local", help="where runs are trained")
    add("--time", help=time_)
    add("--gpus", type=number(0), help=gpus)
    add("--partition", help="slurm: partition")
    add("--account", help="slurm: account that is charged")
    add("--dry", action=on, help="print the plan and stop")
    add("--strict", action=on, help="exit 3 unless every primary claim is plainly supported")
    add("--record", action=on, help="keep a finished result in the repository")
    return parser


def main(argv: list[str] | None = None) -> int:
    options = arguments().parse_args(argv)
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    built = [name for name in PAPERS if (ROOT / name / "train.py").exists()]
    names = [name.replace("-", "_") for name in options.paper] or built
    if len(names) > 1 and (single := next(filter(options.__dict__.get, ONE_PAPER), None)):
        return arguments().error(f"{single.upper()} is about one paper: name it")
    statuses = dict.fromkeys(names, REFUSED)
    if options.record:
        for name in names:
            with refusals():
                statuses[name] = assemble.record(name, options.scale or "cpu")
    else:
        statuses = reproduce_all(names, options)
    return next((status for status in statuses.values() if status), DONE)


if __name__ == "__main__":
    sys.exit(main())
