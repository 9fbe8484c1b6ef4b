"""What a call is about to do, and how published numbers came out, in lines on the terminal."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from statistics import fmean
from typing import Any

from benchmarks import cells, claims, plan_n, recorded, rules
from benchmarks.plan import (
    NOT_MEASURED,
    SMALLER,
    Plan,
    bytes_predicted,
    disk,
    how_to_fetch,
    load_claims,
    missing_inputs,
    say,
)
from benchmarks.predictions import MOST_BYTES
from benchmarks.recorded import Results
from benchmarks.subset import USUAL, words
from benchmarks.words import duration
from shared import protocol
from shared.protocol import BadInput, Node

LAYOUTS = "(docs/data.md has every layout)"

# --- before the start -----------------------------------------------------------------------------


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
    left = {node.key for node in plan.left}
    ends = {
        seed: plan.wall([n for n in plan.nodes if n.seed <= seed and n.key in left]) or 0.0
        for seed in sorted({node.seed for node in plan.nodes})
    }
    return [seed for seed, end in ends.items() if plan.limit is None or end <= plan.limit]


def seeds_and_effects(plan: Plan) -> list[str]:
    """Lines: how many seeds end in time, and the smallest effect that so many can show."""
    seeds, n = different(plan.nodes, "seed"), len(affordable_seeds(plan))
    if plan.limit and plan.seconds is None:
        return [f"seeds: {seeds} asked for; how many end in time is {NOT_MEASURED}"]
    lines = [f"seeds: {n} of {seeds} end in time" if plan.limit else f"seeds: {seeds}"]
    lines[0] += "; a claim needs 5, a published number 3" if n < 5 else ""
    before = cells.latest(plan.paper, plan.scale)
    plans = next((p for at, p in plan.paper.document.plan.items() if at == plan.scale), {})
    for claim in claims_of(plan):
        d = next((c.d for r in before for c in r.claims if c.id == claim.id and len(c.d) > 1), [])
        pilot = plans.get(claim.id)
        sd = cells.sd_over_seeds(d) or (pilot.sd if pilot else None)
        family, t = len(tested(plan)), float(claim.threshold)
        own = min(n, plan_n.seeds_of(plan.paper, claim, plan.scale))
        effect = None if sd is None else rules.detectable(own, sd, t, claims=family)
        text = "unknown: no sd was measured" if effect is None else f"{effect:.2f} (sd {sd:.2f})"
        lines.append(f"claim {claim.id}: smallest effect found in 80 % with n = {own}: {text}")
    for cell in plan.cells[:5]:
        rows = [row for r in before for row in r.reported if row.id == cell.entry.id]
        sd = next(filter(None, (cells.sd_over_seeds(row.scores) for row in rows)), None)
        of_arms = [len(plan.paper.seeds(plan.scale, task, arm)) for arm, task in cell.pairs]
        half = cells.half_width(sd, min([n, *of_arms]))
        text = "unknown: no sd was measured" if half is None else f"+- {half:.2f} (sd {sd:.2f})"
        lines.append(f"{cell.entry.id}: published {cell.entry.value}; interval of our mean {text}")
    return lines


def claims_of(plan: Plan) -> list[claims.ClaimSpec]:
    """Of the primary claims with a test those whose arms are all in the plan."""
    planned = {node.arm for node in plan.nodes}
    planned |= {f"{node.arm}@{node.task}" for node in plan.nodes}
    return [claim for claim in tested(plan) if set(claim.arms.named()) <= planned]


def tested(plan: Plan) -> list[claims.ClaimSpec]:
    """All primary claims of the scale that have a test: those that Holm adjusts for."""
    return plan_n.primary(load_claims(plan.paper), plan.scale)


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


def show_lacking(plan: Plan) -> None:
    lacking = inputs_lacking(plan)
    say(f"  inputs: {f'missing {LAYOUTS}:' if lacking else 'all are in reach'}")
    for line in lacking:
        say(f"  {line}")


# --- published numbers, afterwards ----------------------------------------------------------------


def on_fewer(plan: Plan, claim: recorded.Claim) -> str:
    """' on rte alone' where a claim was judged on fewer tasks than it declares at this scale."""
    (spec,) = (spec for spec in load_claims(plan.paper).claims if spec.id == claim.id)
    tasks = spec.tasks
    by_scale = {} if isinstance(tasks, list) else {str(name): of for name, of in tasks.items()}
    listed = tasks if isinstance(tasks, list) else by_scale.get(plan.scale, [])
    fixed = [task for _, _, task in (text.partition("@") for text in spec.arms.named()) if task]
    core = [name for name, body in plan.body.tasks.items() if body.core]
    declared = set(listed or fixed or core) & set(plan.paper.tasks(plan.scale))
    return f" on {', '.join(claim.tasks)} alone" if declared - set(claim.tasks) else ""


def show_published(plan: Plan, results: Results, subset: str) -> None:
    """Published numbers beside ours: of a subset those that it answers, else a tally."""
    asked = {cell.entry.id: cell for cell in plan.cells}
    rows = [row for row in results.reported if row.measured is not None or row.id in asked]
    if not subset:
        if rows:
            tally = counts(Counter(row.verdict for row in rows))
            say(f"  published numbers beside ours: {tally} (`make list-{plan.paper.paper}`)")
        return
    for row in rows if not asked else [row for row in rows if row.id in asked]:
        ours = "no run" if row.measured is None else f"{row.measured:.4g} (n = {len(row.scores)})"
        gap = "" if row.gap is None else f"; gap {row.gap:+.2f}"
        if ends := recorded.finite(row.ci95):
            gap += f" ({ends[0]:+.2f} to {ends[1]:+.2f})"
        limit = "" if row.tolerance is None else f"; tolerance {row.tolerance:g}"
        say(f"  {row.id}  {row.verdict}{subset}")
        say(f"    {row.method}, {row.metric}: published {row.reported}; ours {ours}{gap}{limit}")
        for deviation in row.deviations:
            say(f"    differs: {deviation}")


def show_given(plan: Plan, options: argparse.Namespace, results: Results) -> None:
    """The number that a reader supplied, beside our scores; it is not written anywhere."""
    value = options.published
    if plan.cells:
        (row,) = (row for row in results.reported if row.id == plan.cells[0].entry.id)
        scores, what = recorded.finite(row.scores), f"{row.metric}, {plan.cells[0].runs}"
        what += ", in points" if row.unit == "points" else ""
    else:
        (arm,), (task,) = words(options.only, "ONLY", "arm"), words(options.task, "TASK", "task")
        runs = [run for run in results.runs if (run.arm, run.task) == (arm, task)]
        names = {name for run in runs for name in run.metrics}
        metric = options.metric or next((n for n in USUAL if n in names), "")
        if runs and metric not in names:
            raise (
                protocol.unknown(metric, names, "METRIC")
                if metric
                else BadInput(f"METRIC= is missing; {arm} on {task} has {', '.join(sorted(names))}")
            )
        scores = recorded.finite([run.metrics.get(metric) for run in runs])
        if abs(value) > 1 and all(abs(score) <= 1 for score in scores):  # points
            scores = [100 * score for score in scores]
        what = f"{metric}, {arm} on {task}"
    say(f"  YOUR NUMBER {value:g} ({what}; supplied, not published, never recorded)")
    say(f"    {cells.judge_given(value, scores)} [{plan.asked}]")


def counts(counted: Counter[str]) -> str:
    return ", ".join(f"{n} {words}" for words, n in counted.most_common())
