"""The Markdown tables of one paper, out of its committed results alone: no run of a machine."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks import arms, recorded, reported
from benchmarks.arms import Point
from benchmarks.claims import Claims, load_claims
from benchmarks.recorded import Reported, Results
from benchmarks.reported import ReportedFile
from benchmarks.words import (
    cell,
    day,
    fewer,
    full_verdict,
    interval,
    machines,
    number,
    positive_control,
    seeds_text,
    table,
)


def declared_claims(paper_dir: Path) -> Claims | None:
    path = paper_dir / "claims.yaml"
    return load_claims(path) if path.exists() else None


def published_numbers(paper_dir: Path) -> ReportedFile | None:
    path = paper_dir / "reported.yaml"
    return reported.load(path) if path.exists() else None


# --- the state of a paper -------------------------------------------------------------------------


def implemented(paper_dir: Path) -> str:
    result = recorded.rehearsal(paper_dir)
    if result is None:
        return "not yet"
    word = "yes" if result.passed else "FAILED"
    return f"{word}: rehearsal of {number(result.runs)} runs, {day(result.created)}"


def checked(paper_dir: Path, scale: str | None) -> str:
    """Whether `make check` passed; a stamp holds for the very bytes it names."""
    if scale is None or scale not in recorded.stamps(paper_dir):
        return "not yet"
    if (stamp := recorded.stamped(paper_dir, scale)) is None:
        return "results changed since"
    return f"{'yes' if stamp.passed else 'FAILED'}, {day(stamp.created)}"


def heading(result: Results) -> str:
    commit = f", commit `{result.commit[:10]}`" if result.commit else ""
    seeds = seeds_text(result.seeds)
    head = f"Scale `{result.scale}`, recorded {day(result.created)}{commit}, seeds {seeds}."
    return f"{head} {cell(machines(result))}".rstrip()


# --- claims and scores ----------------------------------------------------------------------------


def claims_table(result: Results, short: Mapping[str, str]) -> str:
    """`short`: claim -> why it is primary although its seeds may miss what would matter."""
    rows = []
    for claim in result.claims:
        verdict = full_verdict(claim, result.scale)
        verdict = f"**{verdict}**" if claim.role == "primary" else verdict
        if claim.reason not in ("", "sensitivity") and "SUPPORTED" not in verdict:
            verdict += f": {cell(claim.reason)}"
        if claim.id in short:
            verdict += f"<br>planned short: {cell(short[claim.id])}"
        what = f"{cell(claim.statement)} (`{claim.id}`, {claim.role})"
        values = [number(claim.effect, signed=True), interval(claim.ci95)]
        values += [f"{claim.material:g}", number(claim.n)]
        controls = "<br>".join(
            f"{cell(c.arm)}: {c.outcome}{fewer(c, claim)}" for c in claim.controls
        )
        controls = controls or "none"
        rows.append([what, verdict, *values, controls, cell(positive_control(claim))])
    head = ["claim", "verdict", "effect", "95 % interval", "material", "n", "controls"]
    return table([*head, "positive control"], rows, right=(2, 3, 4, 5))


def results_table(result: Results, uses: Mapping[str, list[str]], claims: Claims | None) -> str:
    """Arm x (task, metric): mean and sd over seeds; then what the arm costs, with all it uses."""
    metrics = arms.metrics_of(result)
    columns = [(task, metric) for task, names in metrics.items() for metric in names]
    points, cost = arms.scores(result, claims), arms.costs(result, dict(uses))
    sizes = {arm: arms.parameter_count(result, arm) for arm in cost}
    with_sizes = any(sizes.values())
    head = ["arm", *(f"{cell(task)}: {cell(metric)}" for task, metric in columns)]
    head += (["parameters"] if with_sizes else []) + ["gradient evaluations", "seconds"]
    rows = []
    for arm, price in cost.items():
        cells = [mean_sd(points.get((task, metric, arm), [])) for task, metric in columns]
        if not any(cells):
            continue  # a stage: its cost is within the arms that use it
        size = [number(sizes[arm])] if with_sizes else []
        spent = (price.gradient_evaluations_in_all, price.seconds_in_all)
        in_all = [number(None if x is None else round(x)) for x in spent]
        rows.append([f"`{arm}`", *cells, *size, *in_all])
    return table(head, rows, right=range(1, len(head)))


def mean_sd(points: Sequence[Point]) -> str:
    values = [point.value for point in points]
    if not values:
        return ""
    sd = f" ± {number(statistics.stdev(values))}" if len(values) > 1 else ""
    diverged = sum(point.diverged for point in points)
    bad = f", {diverged} diverged" if diverged else ""
    return f"{number(statistics.fmean(values))}{sd} (n {len(values)}{bad})"


# --- published numbers ----------------------------------------------------------------------------


def reported_table(on_file: ReportedFile | None, results: Mapping[str, Results]) -> str:
    """Entries that an arm of ours answers; a tally in one line where there is none."""
    entries = {entry.id: entry for entry in on_file.entries} if on_file else {}
    result = next(iter(results.values()), None)
    judged = result.reported if result else []
    tally = Counter(entry.verdict for entry in judged)
    words = ", ".join(f"{n} {verdict}" for verdict, n in sorted(tally.items()))
    values = [e.value for e in entries.values()] or [e.reported for e in judged]
    line = (
        f"{len(values)} published values on file ({values.count(None)} without a value): "
        f"{words or 'none compared yet'}."
    )
    unanswered = ("CONTEXT", "NO COUNTERPART")
    rows = []
    for entry in judged:
        if entry.task and entry.verdict.upper() not in unanswered:
            place = entries[entry.id].table if entry.id in entries else None
            rows.append(reported_cells(entry, place or ""))
    if not rows:
        return line
    head = ["entry", "table", "reported", "ours", "gap", "95 % interval", "tolerance", "verdict"]
    return line + "\n\n" + table(head, rows, right=(2, 3, 4, 5, 6))


def reported_cells(entry: Reported, place: str) -> list[str]:
    sd = f" ± {number(entry.sd)}" if entry.sd is not None else ""
    none = entry.reported is None
    theirs = "NO PUBLISHED VALUE" if none else number(entry.reported) + sd
    what = ", ".join(cell(part or "") for part in (entry.method, entry.task, entry.metric))
    return [
        f"`{entry.id}`<br>{what}",
        cell(place),
        theirs,
        number(entry.measured),
        number(entry.gap, signed=True),
        interval(entry.ci95),
        number(entry.tolerance),
        entry.verdict,
    ]
