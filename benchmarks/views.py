"""What a page of the report shows of a result, beyond the result itself. Nothing is judged here."""

from __future__ import annotations

import contextlib
import importlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import PAPERS, arms, papers, recorded
from benchmarks.claims import Claims, ClaimSpec
from benchmarks.pictures import claim_picture
from benchmarks.plots import Picture
from benchmarks.predictions import unpack_predictions
from benchmarks.recorded import Claim, Reported, Results, RunKey, finite
from benchmarks.reported import Published, ReportedFile, target_of
from benchmarks.rules import ALPHA, collapse_bound, flip_limit
from benchmarks.scores import item_count
from benchmarks.words import (
    METRICS,
    fewer,
    full_verdict,
    interval,
    margin,
    number,
    p_value,
    positive_control,
    seeds_text,
)


@dataclass(frozen=True)
class Result:
    """One scale of one paper. `other`: the committed result where `data` is this machine's own."""

    paper: str
    scale: str
    path: Path
    data: Results
    recorded: bool
    other: Results | None = None

    @property
    def key(self) -> str:
        return f"{self.paper}-{self.scale}"

    def directory_of(self, runs: Path, key: RunKey) -> Path:
        """Where this machine has a run, if it has it."""
        arm, task, seed = key
        return runs / self.paper / self.scale / task / f"seed{seed}" / arm

    def claims(self) -> list[Claim]:
        """The claims, their verdicts in all their words."""
        return [
            claim.model_copy(update={"verdict": full_verdict(claim, self.scale)})
            for claim in self.data.claims
        ]

    def items(self) -> dict[str, int]:
        """task -> test items of one run; {} where no predictions are kept beside the result."""
        path = self.path.with_suffix(".predictions.npz")
        counts: dict[str, int] = {}
        for (_, task, _), arrays in (unpack_predictions(path) if path.exists() else {}).items():
            counts[task] = max(counts.get(task, 0), item_count(arrays))
        return counts


# --- how a verdict was reached --------------------------------------------------------------------


@dataclass(frozen=True)
class Side:
    value: str
    met: bool


@dataclass(frozen=True)
class Condition:
    """One condition of the rule: what was required, what was found on both sides and within."""

    name: str
    rule: str
    favours: Side
    against: Side
    within: Side | None = None
    note: str = ""


def conditions(claim: Claim) -> list[Condition]:
    """(a) to (c) of the rule for claims; none for what is not tested."""
    if claim.kind == "exact" or claim.role == "exhibit" or claim.effect is None:
        return []

    def small(p: float | None, limit: float) -> Side:
        return Side(f"p {p_value(p)}", p is not None and p <= limit)

    threshold, flip = claim.threshold, flip_limit(claim.n) if claim.n else 1.0
    asked, both = claim.p_within is not None, finite(claim.flip_within)
    rows = [
        Condition(
            "(a) t-test over replicates, Holm-adjusted",
            f"p ≤ {ALPHA}",
            small(claim.p_holm_for, ALPHA),
            small(claim.p_holm_against, ALPHA),
            small(claim.p_holm_within, ALPHA) if asked else None,
            f"before Holm: for {p_value(claim.p_for)}, against {p_value(claim.p_against)}"
            + (f", within {p_value(claim.p_within)}" if asked else ""),
        ),
        Condition(
            "(b) exact sign-flip",
            f"p ≤ {flip:.4g}",
            small(claim.flip_for, flip),
            small(claim.flip_against, flip),
            small(max(both), flip) if asked and both else None,
        ),
    ]
    ends = finite(claim.item_ci95)
    if len(ends) == 2:
        text, rule = interval(ends), f"wholly on one side of {number(threshold)}"
        rule += ", or within" if asked else ""
        above, below = Side(text, ends[0] > threshold), Side(text, ends[1] < threshold)
        inside = abs(ends[0] - threshold) < claim.material > abs(ends[1] - threshold)
        within = Side(text, inside) if asked else None
        rows.append(Condition("(c) item interval", rule, above, below, within))
    return rows


def how(claim: Claim, result: Result, items: dict[str, int]) -> list[tuple[str, str]]:
    """How a verdict was reached: rule, data, seeds, intervals, controls; each a sentence."""
    side = f"the threshold {number(claim.threshold or 0)}"
    if claim.role == "exhibit":
        rule = "An exhibit is shown and never judged: it counts neither for nor against the paper."
    elif claim.kind == "exact":
        rule = (
            f"A comparison of counts needs no test: supported if every seed lies above {side}, "
            "else contradicted."
        )
    else:
        within = (
            f"; no material difference if every one holds for d within ±{claim.material:g} and the "
            "positive control shows, insensitive if that does not"
        )
        rule = (
            "Supported if every condition below holds for the claim, contradicted if every one "
            f"holds against it{within if claim.p_within is not None else ''}; else inconclusive. "
            f"p-values are adjusted by Holm over the {claim.role} claims of this scale."
        )
    by_seed = "seeds, tasks averaged within a seed"
    replicates = "test items of one model" if claim.unit == "item" else by_seed
    used = f"the {claim.n} replicates are {replicates}" if claim.n else "none gave a difference"
    rows = [
        ("Rule", rule),
        ("Data", data_of(claim, result, items) or "no predictions are kept beside this result"),
        ("Seeds", f"{seeds_text(arms.seeds_of(claim, result.data))}; {used}"),
    ]
    if claim.n > 1 and claim.kind != "exact":
        again = "another by resampling test items 2,000 times"
        resampled = again if claim.item_ci95 else "items are not resampled"
        rows.append(("Intervals", f"95 % Student t over the replicates; {resampled}"))
    controls = ", ".join(f"{c.arm} {c.outcome}{fewer(c, claim)}" for c in claim.controls)
    beaten = "A control is beaten if method minus control passes the same tests."
    rows.append(("Controls", f"{controls}. {beaten}" if controls else "none declared"))
    positive = positive_control(claim)
    if claim.sensitivity and claim.sensitivity.outcome != "none":
        positive += ". Two arms known beforehand to differ, measured in the same way."
    return [*rows, ("Positive control", positive)] if positive else rows


def data_of(claim: Claim, result: Result, items: dict[str, int]) -> str:
    """The tasks of a claim with their number of test items and the hash of the split."""
    parts = []
    for task in claim.tasks or items:
        size = f", {items[task]:,} test items" if task in items else ""
        split = result.data.splits.get(task, {}).get("test")
        parts.append(f"{task}{size}" + (f" (split {split[:12]})" if split else ""))
    return "; ".join(parts)


def meaning(claim: Claim, paper: str) -> str:
    """What the claim's metric measures, in words: the paper's own, else the first paragraph of
    its statistic's docstring, else what the name means everywhere."""
    name = (claim.metric or "").partition("@")[0]
    own = papers.paper(paper).metrics if paper in PAPERS else {}
    if name in own:
        return own[name]
    if claim.kind == "statistic":
        with contextlib.suppress(ImportError, AttributeError, KeyError):
            function = importlib.import_module(f"{paper}.evaluate").STATISTICS[claim.metric]
            return " ".join((function.__doc__ or "").strip().split("\n\n")[0].split())
    return METRICS.get(name, "")


def by_task(claim: Claim) -> list[tuple[str, str]]:
    """Effect per task, where there are several."""
    rows = []
    for task, d in claim.d_by_task.items():
        usable = finite(d)
        rows.append((task, number(sum(usable) / len(usable) if usable else None, signed=True)))
    return rows if len(rows) > 1 else []


@dataclass(frozen=True)
class ClaimView:
    """What stands beside a claim; `items` and `source` are those that claims.yaml declares."""

    source: str
    items: str
    seeds: str
    meaning: str
    picture: Picture | None
    conditions: list[Condition]
    how: list[tuple[str, str]]
    by_task: list[tuple[str, str]]
    recorded_verdict: str | None
    collapse: str | None  # the smallest rate of collapses that the seeds exclude
    positive: str
    material: str  # the margin, and why it is the one that matters
    level: str  # of `detectable`
    short: str  # why the claim is primary although its seeds may miss what would matter


def level_of(claim: Claim, data: Results) -> str:
    """The level of `detectable`: that of Holm's first step, since schema 2."""
    family = [c for c in data.claims if c.role == claim.role and c.kind != "exact"]
    if data.version < 2 or claim.role == "exhibit" or len(family) < 2:
        return f"at p ≤ {ALPHA}"
    return f"at Holm's first step, p ≤ {ALPHA} / {len(family)}"


def claim_view(
    claim: Claim,
    result: Result,
    spec: ClaimSpec | None,
    items: dict[str, int],
    short: Mapping[str, str],
) -> ClaimView:
    other = [c for c in (result.other.claims if result.other else []) if c.id == claim.id]
    collapses = any([*claim.diverged.values(), *claim.at_chance.values()])
    steady = not collapses and claim.unit != "item" and claim.role != "exhibit"
    return ClaimView(
        source=spec.source if spec else "",
        items=spec.items if spec else "",
        seeds=seeds_text(arms.seeds_of(claim, result.data)),
        meaning=meaning(claim, result.paper),
        picture=claim_picture(claim, result.data, result.key),
        conditions=conditions(claim),
        how=how(claim, result, items),
        by_task=by_task(claim),
        recorded_verdict=full_verdict(other[0], result.scale) if other else None,
        positive=positive_control(claim),
        material=margin(claim) + (f" ({spec.material_reason})" if spec else ""),
        level=level_of(claim, result.data),
        short=short.get(claim.id, ""),
        collapse=f"{100 * collapse_bound(claim.n):.0f} %" if steady and claim.n > 1 else None,
    )


# --- published numbers ----------------------------------------------------------------------------


@dataclass(frozen=True)
class NumberView:
    """A published number as it is on file, beside what the result says of it."""

    entry: Published | None
    ours: Reported
    verdict: str
    reason: str

    @property
    def answered(self) -> bool:
        return self.ours.measured is not None


@dataclass(frozen=True)
class Group:
    """The numbers of one table of a paper."""

    name: str
    rows: list[NumberView]

    @property
    def answered(self) -> int:
        return sum(row.answered for row in self.rows)

    @property
    def tally(self) -> list[tuple[str, int]]:
        return Counter(row.verdict for row in self.rows).most_common()


@dataclass(frozen=True)
class ReportedView:
    groups: list[Group]
    note: str
    not_found: list[str]

    @property
    def rows(self) -> list[NumberView]:
        return [row for group in self.groups for row in group.rows]

    @property
    def tally(self) -> list[tuple[str, int]]:
        return Group("", self.rows).tally


def number_view(
    entry: Published | None, ours: Reported | None, declared: Claims | None
) -> NumberView:
    if entry is None or ours is not None:
        assert ours is not None
        reason = ours.tolerance_reason or ""
        return NumberView(entry, ours, ours.verdict, reason if answerless(ours.verdict) else "")
    target = target_of(entry.id, declared.targets) if declared else None
    if entry.value is None:
        verdict = "NO PUBLISHED VALUE"  # nobody read it
    elif not entry.own:
        verdict = "CONTEXT"
    else:
        verdict = "NOT RUN" if target and target.arm else "NO COUNTERPART"
    row = Reported(
        id=entry.id,
        method=entry.method,
        metric=entry.metric,
        reported=entry.value,
        sd=entry.std,
        source=entry.source,
    )
    reason = target.reason if target else "no target names this number"
    return NumberView(entry, row, verdict, reason if answerless(verdict) else "")


def answerless(verdict: str) -> bool:
    return verdict.upper() == "NO COUNTERPART"


def reported_view(
    data: Results | None, on_file: ReportedFile | None, declared: Claims | None
) -> ReportedView:
    """Every published value by the table it comes from, those that we answer first."""
    entries = {entry.id: entry for entry in on_file.entries} if on_file else {}
    ours = {row.id: row for row in data.reported} if data else {}
    groups: dict[str, list[NumberView]] = {}
    for name in dict.fromkeys([*entries, *ours]):
        entry = entries.get(name)
        place = (entry.table if entry else None) or "no table named"
        groups.setdefault(place, []).append(number_view(entry, ours.get(name), declared))
    views = sorted((Group(*pair) for pair in groups.items()), key=lambda g: -g.answered)
    return ReportedView(
        views, on_file.note if on_file else "", on_file.not_found if on_file else []
    )


# --- the figures above everything else ------------------------------------------------------------


@dataclass(frozen=True)
class Headline:
    gates: int
    gates_passed: int
    runs: int
    diverged: int
    crashed: int
    seeds: str
    n_seeds: int
    seconds: float | None
    cpu_seconds: float | None
    gradient_evaluations: int


def headline(data: Results) -> Headline:
    statuses = Counter(run.status for run in data.runs)
    return Headline(
        gates=len(data.gates),
        gates_passed=sum(gate.passed for gate in data.gates),
        runs=len(data.runs),
        diverged=statuses["diverged"],
        crashed=statuses["crashed"],
        seeds=seeds_text(data.seeds),
        n_seeds=len(data.seeds),
        seconds=data.seconds.wall,
        cpu_seconds=data.seconds.cpu,
        gradient_evaluations=sum(run.gradient_evaluations or 0 for run in data.runs),
    )


def commands(paper: str, result: Result | None) -> list[tuple[str, str]]:
    scale, again = result.scale if result else "cpu", f"make reproduce-{paper}"
    rows = [
        ("Everything on this page, resumable", f"{again} SCALE={scale}"),
        ("What it would do: runs, hours, disk", f"{again} SCALE={scale} DRY=1"),
    ]
    runs = result.data.runs if result else []
    failed = [run for run in runs if run.status != "finished"]
    for run in (failed or runs)[:1]:
        which = f"--arm {run.arm} --task {run.task} --seed {run.seed}"
        where = f"runs/{paper}/{scale}/{run.task}/seed{run.seed}/{run.arm}"
        scores = f"less {where}/log.txt; python -m {paper}.evaluate {where}"
        said = "One run alone" + (" (one that failed)" if failed else "")
        rows.append((said, f"python -m {paper}.train --scale {scale} {which}"))
        rows.append(("Its log; its scores again", scores))
    rehearsal = "Every arm and task of the paper's protocol on tiny models"
    tiny = "The method on a tiny input, in under a minute"
    record = f"make record-{paper} SCALE={scale}"
    return [
        *rows,
        (tiny, f"python -m {paper}.train --tiny"),
        (rehearsal, f"{again} SCALE=rehearsal"),
        ("Derive every number anew from the committed predictions", "make check"),
        ("And train one recorded run of each paper again", "make check RERUN=1"),
        ("Record (maintainers; a clean, committed tree)", record),
        ("This page", f"python -m benchmarks.report {paper}"),
    ]


def troubled(data: Results) -> Sequence[recorded.RunEntry]:
    return [run for run in data.runs if run.status != "finished" or run.attempts > 1]
