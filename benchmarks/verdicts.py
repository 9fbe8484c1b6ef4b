"""From runs to verdicts: claims, published numbers and gates out of runs and predictions.

The rules themselves are in `rules.py`, a claim's differences in `comparison.py`, the scores and
their resamples in `scores.py`. Nothing in these reads a clock, a file or the network, and every
random draw is seeded: the same inputs give the same digits everywhere.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from benchmarks.claims import Claims, ClaimSpec, GateSpec
from benchmarks.comparison import Comparison
from benchmarks.predictions import Arrays, Score
from benchmarks.recorded import (
    SCHEMA,
    Claim,
    Gate,
    Judged,
    RunEntry,
    RunKey,
    Sensitivity,
    finite,
    run_name,
)
from benchmarks.reported import ReportedFile, judge_reported
from benchmarks.rules import (
    FOR_THIS_MODEL,
    SCALED_DOWN,
    Evidence,
    attribute,
    claim_verdict,
    exact_verdict,
    holm,
)
from benchmarks.scores import ItemValues, Scores, Statistic, item_ids
from shared.protocol import Node

SMALL_SCALES = ("cpu", "gpu")  # their verdicts say "(scaled down)"
JUDGED_ROLES = ("primary", "secondary")  # each a family of its own for Holm


def judge_claims(
    specs: Sequence[ClaimSpec],
    scale: str,
    nodes: Collection[RunKey],
    scores: Scores,
    schema: int = SCHEMA,
) -> list[Claim]:
    """Every claim declared for the scale: numbers, then Holm within each role, then verdicts."""
    declared = [spec for spec in specs if scale in spec.scales]
    comparisons = [Comparison(spec, scale, nodes, scores) for spec in declared]
    rows = [(c, *c.claim(schema, tested(declared, c.spec.role))) for c in comparisons]
    for role in JUDGED_ROLES:
        family = [row for row in rows if row[1].role == role and row[1].kind != "exact"]
        p_for = holm([1.0 if shown is None else shown.p_for for *_, shown in family])
        p_against = holm([1.0 if shown is None else shown.p_against for *_, shown in family])
        for (_, claim, _), p, q in zip(family, p_for, p_against):
            claim.p_holm_for, claim.p_holm_against = p, q
        asked = [(c, e) for of, c, e in family if schema >= 2 and of.margin is not None]
        p_within = holm([1.0 if e is None or e.p_within is None else e.p_within for _, e in asked])
        for (claim, _), p in zip(asked, p_within):
            claim.p_holm_within = p
    for comparison, claim, shown in rows:
        if claim.kind == "exact":
            claim.detectable = claim.p_for = claim.p_against = None
            claim.flip_for = claim.flip_against = None
        if claim.role == "exhibit":
            claim.verdict = None  # shown, no verdict
            continue
        if shown is not None:
            claim.verdict, claim.reason = conclude(comparison, claim, shown)
            claim.verdict += FOR_THIS_MODEL if claim.unit == "item" else ""
        claim.verdict = f"{claim.verdict}{SCALED_DOWN if scale in SMALL_SCALES else ''}"
    return [claim for _, claim, _ in rows]


def tested(specs: Sequence[ClaimSpec], role: str) -> int:
    """How many claims of a role Holm adjusts for; exhibits are not tested."""
    family = [spec for spec in specs if spec.role == role and spec.kind != "exact"]
    return max(1, len(family) if role in JUDGED_ROLES else 1)


def conclude(comparison: Comparison, claim: Claim, shown: Evidence) -> tuple[str, str]:
    """Verdict and reason of a claim whose runs are all there.

    A positive control that was not run is missed only where the verdict rests on it.
    """
    if claim.kind == "exact":
        return exact_verdict([float(x or 0.0) for x in claim.d], comparison.t), ""
    positive = claim.sensitivity or Sensitivity(outcome="none")
    word, reason = claim_verdict(
        shown,
        comparison.t,
        (float(claim.p_holm_for or 0.0), float(claim.p_holm_against or 0.0)),
        finite(claim.item_ci95) or None,
        items=comparison.items,
        kind=claim.kind,
        failures=comparison.too_many_failures(comparison.terms),
        material=comparison.material,
        p_holm_within=1.0 if claim.p_holm_within is None else float(claim.p_holm_within),
        sensitivity=positive.outcome,
    )
    if word == "NO MATERIAL DIFFERENCE" and positive.outcome == "NOT RUN":
        return "NOT RUN", f"its positive control: {positive.reason}"
    return attribute(word, [control.outcome for control in claim.controls]), reason


# --- gates ----------------------------------------------------------------------------------------

UNRECORDED = "no finished run recorded it"
STATES_DIFFER, ITEMS_SHARED = "distinct-states", "shared-items"
UNTRAINED = (None, "", hashlib.sha256().hexdigest())  # how a run says that it trained nothing


def judge_gates(
    listed: Sequence[GateSpec],
    scale: str,
    nodes: Collection[RunKey],
    scores: Scores,
    by_run: Sequence[tuple[RunKey, Sequence[Gate]]],
) -> list[Gate]:
    """Gates of the paper, aggregated over its runs, and the two that hold for every paper."""
    statements = {gate.id: gate.statement for gate in listed if scale in gate.scales}
    times: dict[str, list[tuple[RunKey, Gate]]] = {name: [] for name in statements}
    for key, gates in sorted(by_run, key=lambda pair: pair[0]):
        for gate in gates:
            times.setdefault(gate.id, []).append((key, gate))
    judged = []
    for name, pairs in times.items():
        failed = [(key, gate) for key, gate in pairs if not gate.passed]
        finished = any(scores.runs[key].status == "finished" for key, _ in pairs)
        if failed:
            first = "; ".join(f"{run_name(key)}: {gate.detail}" for key, gate in failed[:3])
            detail = f"failed {len(failed)} of {len(pairs)} times: {first}"
        elif not finished:
            detail = UNRECORDED
        else:
            example = pairs[0][1].detail
            detail = f"held {len(pairs)} times" + (f", e.g. {example}" if example else "")
        passed = finished and not failed
        statement = statements.get(name, name)
        judged.append(Gate(id=name, statement=statement, passed=passed, detail=detail))
    return [*judged, states_differ(nodes, scores), items_shared(nodes, scores)]


def finished_runs(nodes: Collection[RunKey], scores: Scores) -> list[tuple[RunKey, RunEntry]]:
    runs = [(key, scores.runs[key]) for key in sorted(nodes) if key in scores.runs]
    return [(key, run) for key, run in runs if run.status == "finished"]


def states_differ(nodes: Collection[RunKey], scores: Scores) -> Gate:
    """Seeds that end in one and the same state are one replicate counted twice."""
    seed_of: dict[tuple[str, str, str | None], int] = {}
    twins: list[str] = []
    compared = 0
    for (arm, task, seed), run in finished_runs(nodes, scores):
        if run.state_sha256 in UNTRAINED:
            continue
        compared += 1
        first = seed_of.setdefault((arm, task, run.state_sha256), seed)
        if first != seed:
            twins.append(f"{arm} on {task}: seeds {first} and {seed}")
    detail = f"equal: {'; '.join(twins[:3])}" if twins else f"{compared} trained states compared"
    statement = "distinct seeds give distinct trained states"
    return Gate(id=STATES_DIFFER, statement=statement, passed=not twins, detail=detail)


def items_shared(nodes: Collection[RunKey], scores: Scores) -> Gate:
    """Arms of a seed share their split; all arms and seeds of a task share their test items."""
    problems: list[str] = []
    split: dict[tuple[str, int], tuple[str, str | None]] = {}
    tested: dict[str, tuple[RunKey, np.ndarray]] = {}
    for key, run in finished_runs(nodes, scores):
        arm, sha256 = split.setdefault((run.task, run.seed), (run.arm, run.split_sha256))
        if run.split_sha256 != sha256:
            problems.append(
                f"{run.task}, seed {run.seed}: {arm} and {run.arm} were split differently"
            )
        if key in scores.predictions:
            ids = item_ids(scores.predictions[key])
            first, other = tested.setdefault(run.task, (key, ids))
            if not np.array_equal(ids, other):
                problems.append(
                    f"{run.task}: test items of {run.arm}, seed {run.seed} differ from "
                    f"{first[0]}, {first[2]}"
                )
    compared = f"{len(split)} splits and {len(tested)} test sets compared"
    detail = "; ".join(problems[:3]) if problems else compared
    statement = "arms of a seed share split and test items"
    return Gate(id=ITEMS_SHARED, statement=statement, passed=not problems, detail=detail)


def judge(
    *,
    claims: Claims,
    scale: str,
    nodes: Sequence[Node],
    runs: Sequence[RunEntry],
    gates: Sequence[tuple[RunKey, Sequence[Gate]]],
    predictions: Mapping[RunKey, Arrays],
    score: Score,
    statistics: Mapping[str, Statistic] | None = None,
    reported: ReportedFile | None = None,
    item_values: ItemValues | None = None,
    schema: int = SCHEMA,
) -> Judged:
    """The derived parts of a results file, at full precision (see `rules.tidy`).

    schema: of the file, whose time had its own rule; 1: neither *within* nor sensitivity.

    nodes: the runs that the protocol declares at this scale. gates: what each run recorded.
    predictions: as unpacked from the file that is committed. score, statistics, item_values: of
    the paper's evaluate.py.
    """
    scored = {node.key for node in nodes if not node.stage}
    scores = Scores(runs, predictions, score, statistics or {}, item_values, claims)
    entries = reported.entries if reported else []
    return Judged(
        claims=judge_claims(claims.claims, scale, scored, scores, schema),
        reported=judge_reported(entries, claims.targets, scale, scored, scores),
        gates=judge_gates(claims.gates, scale, scored, scores, gates),
    )
