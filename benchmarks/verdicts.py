"""From runs to verdicts: claims, published numbers and gates out of runs and predictions.

The rules themselves are in `rules.py`, the scores and their resamples in `scores.py`. Nothing in
these reads a clock, a file or the network, and every random draw is seeded: the same inputs give
the same digits everywhere.

Kinds of claims: `difference`, method minus opponent; `contrast`, a weighted sum of arms; `spread`,
how much further the opponent's seeds lie from their median; `statistic`, a named function of the
predictions of several arms; `exact`, a comparison of counts without a test.
"""

from __future__ import annotations

import functools
import hashlib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict

import numpy as np

from benchmarks.claims import Claims, ClaimSpec, GateSpec, is_none
from benchmarks.predictions import Arrays, Score
from benchmarks.recorded import Claim, Control, Gate, Judged, RunEntry, RunKey, finite, run_name
from benchmarks.reported import ReportedFile, judge_reported
from benchmarks.rules import (
    FOR_THIS_MODEL,
    SCALED_DOWN,
    TIE,
    Evidence,
    attribute,
    claim_verdict,
    control_outcome,
    evidence,
    exact_verdict,
    holm,
    item_interval,
    spread_differences,
)
from benchmarks.scores import ItemValues, Missing, Scores, Statistic, item_ids, split_arm
from shared.protocol import BadInput, Node

SMALL_SCALES = ("cpu", "gpu")  # their verdicts say "(scaled down)"

Term = tuple[float, str, str | None]  # weight, arm, task (None: the task of the cell)


class Comparison:
    """One claim at one scale: which runs it needs and how its d follow from their scores."""

    def __init__(
        self, spec: ClaimSpec, scale: str, nodes: Collection[RunKey], scores: Scores
    ) -> None:
        self.spec, self.scores, self.nodes = spec, scores, nodes
        self.kind, self.unit = spec.kind, spec.unit
        self.metric = spec.metric or str(spec.arms.name)
        self.t = float(spec.threshold)
        self.material = float(spec.material)
        self.sign = -1.0 if spec.direction == "lower" else 1.0
        # whether condition (c), the interval over test items, applies
        self.items = not (
            is_none(spec.items) or self.kind in ("spread", "exact") or self.unit == "item"
        )
        self.terms = self._terms()
        self.tasks = self._tasks(scale)
        fixed = all(task for _, _, task in self.terms)
        self.cells: list[str | None] = [None] if fixed else list(self.tasks)
        self.seeds = self._seeds()

    def _terms(self) -> list[Term]:
        """Weights of the arms, the method first. For a spread or statistic only the arms matter."""
        arms = self.spec.arms
        if self.kind == "contrast":
            weights = arms.weights or {}
            return [(float(weight), *split_arm(text)) for text, weight in weights.items()]
        if self.kind == "statistic":
            return [(1.0, *split_arm(text)) for text in arms.methods]
        return [(1.0, *split_arm(str(arms.method))), (-1.0, *split_arm(str(arms.opponent)))]

    def _tasks(self, scale: str) -> list[str]:
        """The claim's tasks at this scale: listed per scale, or the listed ones that it has."""
        listed = self.spec.tasks
        declared = {task for _, task, _ in self.nodes}
        if isinstance(listed, Mapping):
            return [task for name, tasks in listed.items() if name == scale for task in tasks]
        fixed = sorted({task for _, _, task in self.terms if task})
        return [task for task in (listed or fixed or sorted(declared)) if task in declared]

    def _seeds(self) -> list[int]:
        tasks = {task or cell for cell in self.cells for _, _, task in self.terms} - {None}
        arms = {arm for _, arm, _ in self.terms}
        by_task = [{s for a, t, s in self.nodes if t == task and a in arms} for task in tasks]
        return sorted(set.intersection(*by_task)) if by_task else []

    @property
    def method(self) -> str:
        """The arm that controls are put in place of: the first one that counts in favour."""
        return next((arm for weight, arm, _ in self.terms if weight > 0), self.terms[0][1])

    def keys(self, terms: Sequence[Term]) -> list[RunKey]:
        cells = {(arm, task or cell) for cell in self.cells for _, arm, task in terms}
        return [
            (arm, str(task), seed) for arm, task in sorted(cells, key=str) for seed in self.seeds
        ]

    def require(self, terms: Sequence[Term]) -> None:
        if not self.seeds:
            raise Missing("no seed is declared for its arms and tasks at this scale")
        for key in self.keys(terms):
            if key not in self.nodes:
                raise Missing(f"{run_name(key)}: not declared for this run of the protocol")
            self.scores.check(key)

    def control_terms(self, control: str) -> list[Term]:
        """method - control: the claim's effect minus that with the control for the method."""
        own = [term for term in self.terms if term[1] == self.method]
        if self.kind == "statistic":
            return [own[0], (-1.0, control, own[0][2])]
        return own + [(-weight, control, task) for weight, _, task in own]

    @functools.cached_property
    def factor(self) -> float:
        """100 for a metric in [-1, 1] (accuracy, F1, correlations) given in points, else 1."""
        if self.unit != "points" or self.kind == "exact":
            return 1.0
        if self.kind == "statistic":
            pairs = [(cell, seed) for cell in self.cells for seed in self.seeds]
            values = [self._statistic(cell, seed, items=False)[0] for cell, seed in pairs]
        else:
            values = [self.scores.value(key, self.metric) for key in self.keys(self.terms)]
        return 100.0 if all(abs(value) <= 1.0 for value in values) else 1.0

    def _statistic(
        self, cell: str | None, seed: int, control: str | None = None, *, items: bool
    ) -> np.ndarray:
        """The named statistic of one seed; a control appears under the name of the first arm."""
        arms: dict[str, RunKey] = {}
        for place, (_, arm, task) in enumerate(self.terms):
            name = arm if task is None else f"{arm}@{task}"
            arms[name] = (control if control and place == 0 else arm, str(task or cell), seed)
        return self.scores.statistic(str(self.spec.arms.name), arms, items)

    def differences(self, control: str | None = None) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """d of shape (seeds, 1 or 1 + RESAMPLES) and the same by task. Raises Missing.

        An opponent or control that diverged never helps: its d is at most 0, and at most t.
        """
        terms = self.terms if control is None else self.control_terms(control)
        self.require([*self.terms, *terms])
        t = self.t if control is None else 0.0
        by_cell: dict[str | None, np.ndarray] = {}
        helped = np.zeros((len(self.seeds), len(self.cells)), dtype=bool)
        if self.kind == "statistic" and control is None:
            rivals = terms[1:]
        else:
            rivals = [term for term in terms if term[0] < 0 or term[1] == control]
        for c, cell in enumerate(self.cells):
            rows = self._cell(cell, terms, control)
            for s, seed in enumerate(self.seeds):
                keys = [(arm, str(task or cell), seed) for _, arm, task in rivals]
                helped[s, c] = any(self._diverged(key) for key in keys)
            rows[helped[:, c]] = np.minimum(rows[helped[:, c]], min(0.0, t))
            by_cell[cell] = rows / float(self.spec.task_units.get(str(cell), 1.0))
        d: np.ndarray = np.mean(np.stack(list(by_cell.values())), axis=0)
        d[helped.any(axis=1)] = np.minimum(d[helped.any(axis=1)], min(0.0, t))
        return d, {str(cell): rows for cell, rows in by_cell.items() if cell is not None}

    def _cell(self, cell: str | None, terms: Sequence[Term], control: str | None) -> np.ndarray:
        """d of one task, before any bound: shape (seeds, 1 or 1 + RESAMPLES)."""
        scale = self.sign * self.factor
        if self.kind == "statistic":
            own = [self._statistic(cell, s, items=self.items) for s in self.seeds]
            if control is None:
                return scale * np.array(own)
            other = [self._statistic(cell, s, control, items=self.items) for s in self.seeds]
            return scale * (np.array(own) - np.array(other))
        columns = [
            np.array([self._score((arm, str(task or cell), s)) for s in self.seeds])
            for _, arm, task in terms
        ]
        if self.kind == "spread":
            return abs(scale) * spread_differences(columns[0], columns[1])
        weights = [weight for weight, _, _ in terms]
        return scale * np.sum([weight * column for weight, column in zip(weights, columns)], axis=0)

    def _score(self, key: RunKey) -> np.ndarray:
        if self.items:
            return self.scores.with_resamples(key, self.metric)
        return np.array([self.scores.value(key, self.metric)])

    def _diverged(self, key: RunKey) -> bool:
        return self.scores.diverged(key, None if self.kind == "statistic" else self.metric)

    def item_differences(self, control: str | None = None) -> np.ndarray:
        """Shape (items,): differences item by item, averaged over seeds, for `unit: item`."""
        terms = self.terms if control is None else self.control_terms(control)
        self.require([*self.terms, *terms])
        if len(self.cells) != 1:
            raise BadInput(
                f"claim {self.spec.id}: unit item needs exactly one task, found {self.tasks}"
            )
        if not self.scores.same_items(self.keys(terms)):
            raise Missing("its arms were scored on different items")
        cell = self.cells[0]
        total = np.zeros(0)
        for weight, arm, task in terms:
            for seed in self.seeds:
                values = self.scores.per_item((arm, str(task or cell), seed), self.metric)
                part = self.sign * weight * values / len(self.seeds)
                total = part if not len(total) else total + part
        rivals = self.keys([term for term in terms if term[0] < 0 or term[1] == control])
        if any(self._diverged(key) for key in rivals):
            total = np.minimum(total, min(0.0, self.t if control is None else 0.0))
        return total

    def failures(self, terms: Sequence[Term]) -> dict[str, int]:
        """Diverged runs by arm."""
        counts: dict[str, int] = {}
        for key in self.keys(terms):
            counts[key[0]] = counts.get(key[0], 0) + self._diverged(key)
        return counts

    def too_many_failures(self, terms: Sequence[Term]) -> bool:
        runs = Counter(arm for arm, _, _ in self.keys(terms))
        return any(count > 0.2 * runs[arm] + TIE for arm, count in self.failures(terms).items())

    def at_chance(self, terms: Sequence[Term]) -> dict[str, int]:
        """Runs that score no better than the declared chance, by arm."""
        counts: dict[str, int] = {}
        if self.kind in ("statistic", "exact"):
            return counts
        for key in self.keys(terms):
            chance = self.scores.claims.chance(key[1]).get(self.metric)
            if chance is not None:
                gain = self.sign * (self.scores.value(key, self.metric) - float(chance))
                counts[key[0]] = counts.get(key[0], 0) + (not gain > TIE)
        return counts

    def judge_control(self, control: str) -> Control:
        """A control that did not run leaves the attribution open."""
        try:
            d, item_ci95, _ = self._d_and_items(control)
        except Missing:
            return Control(arm=control)
        shown = evidence(d)
        outcome = control_outcome(
            shown,
            item_ci95,
            self.material,
            items=self.items,
            kind=self.kind,
            failures=self.too_many_failures(self.control_terms(control)),
        )
        return Control(
            arm=control,
            d=d.tolist(),
            effect=shown.effect,
            ci95=shown.ci95,
            p_for=shown.p_for,
            flip_for=shown.flip_for,
            item_ci95=item_ci95,
            outcome=outcome,
        )

    def _d_and_items(
        self, control: str | None = None
    ) -> tuple[np.ndarray, list[float] | None, dict[str, np.ndarray]]:
        """d, the item interval of its mean, and d by task."""
        if self.unit == "item":
            return self.item_differences(control), None, {}
        d, by_task = self.differences(control)
        terms = self.terms if control is None else [*self.terms, *self.control_terms(control)]
        usable = self.items and self.scores.same_items(self.keys(terms))
        interval = item_interval(d[:, 1:].mean(axis=0)) if usable else None
        return d[:, 0], interval, {task: rows[:, 0] for task, rows in by_task.items()}

    def claim(self) -> tuple[Claim, Evidence | None]:
        """The claim with its numbers, without Holm and verdict; no evidence if it was not run."""
        claim = Claim(
            **self.spec.model_dump(include={"id", "statement", "kind", "role", "direction"}),
            arms=self.spec.arms,
            tasks=self.tasks,
            metric=self.metric,
            unit=self.unit,
            threshold=self.t,
            material=self.material,
        )
        try:
            d, claim.item_ci95, by_task = self._d_and_items()
            shown = evidence(d, self.t)
            claim.controls = [self.judge_control(control) for control in self.spec.control_arms]
            ran = [control.arm for control in claim.controls if control.d]
            terms = [*self.terms, *(term for arm in ran for term in self.control_terms(arm))]
            claim.diverged, claim.at_chance = self.failures(terms), self.at_chance(terms)
        except Missing as missing:
            claim.verdict, claim.reason, claim.controls = "NOT RUN", str(missing), []
            claim.item_ci95 = None
            return claim, None
        claim.d, claim.d_by_task = d.tolist(), {task: x.tolist() for task, x in by_task.items()}
        for name, value in asdict(shown).items():
            setattr(claim, name, value)
        return claim, shown


def judge_claims(
    specs: Sequence[ClaimSpec], scale: str, nodes: Collection[RunKey], scores: Scores
) -> list[Claim]:
    """Every claim declared for the scale: numbers, then Holm within each role, then verdicts."""
    comparisons = [Comparison(spec, scale, nodes, scores) for spec in specs if scale in spec.scales]
    rows = [(comparison, *comparison.claim()) for comparison in comparisons]
    for role in ("primary", "secondary"):
        family = [(c, e) for _, c, e in rows if c.role == role and c.kind != "exact"]
        p_for = holm([1.0 if shown is None else shown.p_for for _, shown in family])
        p_against = holm([1.0 if shown is None else shown.p_against for _, shown in family])
        for (claim, _), p, q in zip(family, p_for, p_against):
            claim.p_holm_for, claim.p_holm_against = p, q
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


def conclude(comparison: Comparison, claim: Claim, shown: Evidence) -> tuple[str, str]:
    """Verdict and reason of a claim whose runs are all there."""
    if claim.kind == "exact":
        return exact_verdict([float(x or 0.0) for x in claim.d], comparison.t), ""
    word, reason = claim_verdict(
        shown,
        comparison.t,
        (float(claim.p_holm_for or 0.0), float(claim.p_holm_against or 0.0)),
        finite(claim.item_ci95) or None,
        items=comparison.items,
        kind=claim.kind,
        failures=comparison.too_many_failures(comparison.terms),
    )
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
) -> Judged:
    """The derived parts of a results file, at full precision (see `rules.tidy`).

    nodes: the runs that the protocol declares at this scale. gates: what each run recorded.
    predictions: as unpacked from the file that is committed. score, statistics, item_values: of
    the paper's evaluate.py.
    """
    scored = {node.key for node in nodes if not node.stage}
    scores = Scores(runs, predictions, score, statistics or {}, item_values, claims)
    entries = reported.entries if reported else []
    return Judged(
        claims=judge_claims(claims.claims, scale, scored, scores),
        reported=judge_reported(entries, claims.targets, scale, scored, scores),
        gates=judge_gates(claims.gates, scale, scored, scores, gates),
    )
