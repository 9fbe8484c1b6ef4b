"""From runs to verdicts: `judge` reads claims, runs and predictions and answers with the parts of a results file.

The rules themselves are in `rules.py`, the scores and their resamples in `scores.py`. Nothing here reads a clock,
a file or the network, and every random draw is seeded: the same inputs give the same digits everywhere.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.claims import is_none
from benchmarks.reported import judge_reported
from benchmarks.rules import (
    TIE,
    attribute,
    claim_verdict,
    control_outcome,
    evidence,
    exact_verdict,
    holm,
    item_interval,
    spread_differences,
)
from benchmarks.scores import (
    Arrays,
    ItemValues,
    Missing,
    NodeKey,
    Score,
    Scores,
    Statistic,
    item_ids,
    split_arm,
)
from shared.protocol import BadInput, Node

SCALED_DOWN = ("cpu", "gpu")

Term = tuple[float, str, str | None]  # weight, arm, task (None: the task of the cell)


class Claim:
    """One claim at one scale: which runs it needs and how its d follow from their scores."""

    def __init__(
        self, spec: Mapping[str, Any], scale: str, nodes: Collection[NodeKey], scores: Scores
    ) -> None:
        self.spec, self.scores, self.nodes = spec, scores, nodes
        self.kind: str = spec["kind"]
        self.metric: str | None = spec.get("metric")
        self.unit: str = spec.get("unit", "points")
        self.t = float(spec.get("threshold", 0) or 0)
        self.material = float(spec.get("material", 1.0))
        self.sign = -1.0 if spec.get("direction", "higher") == "lower" else 1.0
        where = f"claim {spec['id']}"
        self.controls: list[str] = (
            [] if is_none(spec["controls"], where) else list(spec["controls"])
        )
        self.items = not (
            is_none(spec["items"], where) or self.kind in ("spread", "exact") or self.unit == "item"
        )
        self.terms = self._terms()
        self.tasks = self._tasks(scale)
        fixed = all(task for _, _, task in self.terms)
        self.cells: list[str | None] = [None] if fixed else list(self.tasks)
        self.seeds = self._seeds()

    def _terms(self) -> list[Term]:
        """Weights of the arms, the method first. For a spread or statistic only the arms matter."""
        arms = self.spec["arms"]
        if self.kind == "contrast":
            return [(float(weight), *split_arm(text)) for text, weight in arms["weights"].items()]
        if self.kind == "statistic":
            method = arms["method"]
            return [
                (1.0, *split_arm(text))
                for text in ([method] if isinstance(method, str) else method)
            ]
        return [(1.0, *split_arm(arms["method"])), (-1.0, *split_arm(arms["opponent"]))]

    def _tasks(self, scale: str) -> list[str]:
        """The claim's tasks at this scale: listed per scale, or the listed ones that the scale has."""
        listed = self.spec.get("tasks")
        declared = {task for _, task, _ in self.nodes}
        if isinstance(listed, Mapping):
            return list(listed.get(scale) or [])
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

    def keys(self, terms: Sequence[Term]) -> list[NodeKey]:
        cells = {(arm, task or cell) for cell in self.cells for _, arm, task in terms}
        return [
            (arm, str(task), seed) for arm, task in sorted(cells, key=str) for seed in self.seeds
        ]

    def require(self, terms: Sequence[Term]) -> None:
        if not self.seeds:
            raise Missing("no seed is declared for its arms and tasks at this scale")
        for key in self.keys(terms):
            if key not in self.nodes:
                raise Missing(
                    f"{key[0]} on {key[1]}, seed {key[2]}: not declared for this run of the protocol"
                )
            self.scores.check(key)

    def control_terms(self, control: str) -> list[Term]:
        """method - control: the claim's own effect minus that with the control in place of the method."""
        own = [term for term in self.terms if term[1] == self.method]
        if self.kind == "statistic":
            return [own[0], (-1.0, control, own[0][2])]
        return own + [(-weight, control, task) for weight, _, task in own]

    @functools.cached_property
    def factor(self) -> float:
        """100 for a metric that lies in [-1, 1] (accuracy, F1, correlations) given in points, else 1."""
        if self.unit != "points" or self.kind == "exact":
            return 1.0
        if self.kind == "statistic":
            values = [
                self.scores.statistic(
                    self.spec["arms"]["name"], self.statistic_arms(cell, seed, None), False
                )[0]
                for cell in self.cells
                for seed in self.seeds
            ]
        else:
            values = [self.scores.value(key, str(self.metric)) for key in self.keys(self.terms)]
        return 100.0 if all(abs(value) <= 1.0 for value in values) else 1.0

    def statistic_arms(
        self, cell: str | None, seed: int, control: str | None
    ) -> dict[str, NodeKey]:
        """What the statistic's function is given; a control appears under the name of the first arm."""
        given: dict[str, NodeKey] = {}
        for place, (_, arm, task) in enumerate(self.terms):
            name = arm if task is None else f"{arm}@{task}"
            given[name] = (control if control and place == 0 else arm, str(task or cell), seed)
        return given

    def differences(self, control: str | None = None) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """d of shape (seeds, 1 or 1 + RESAMPLES) and the same by task. Raises Missing.

        An opponent or control that diverged never helps: its d is at most 0 (and at most the threshold).
        """
        terms = self.terms if control is None else self.control_terms(control)
        self.require([*self.terms, *terms])
        t = self.t if control is None else 0.0
        by_cell: dict[str | None, np.ndarray[Any, Any]] = {}
        helped = np.zeros((len(self.seeds), len(self.cells)), dtype=bool)
        for c, cell in enumerate(self.cells):
            rows = self._cell(cell, terms, control)
            constant = float((self.spec.get("task_units") or {}).get(cell, 1.0))
            for s, seed in enumerate(self.seeds):
                keys = [
                    (arm, str(task or cell), seed)
                    for weight, arm, task in terms
                    if weight < 0 or arm == control
                ]
                if self.kind == "statistic" and control is None:
                    keys = [(arm, str(task or cell), seed) for _, arm, task in terms[1:]]
                helped[s, c] = any(self._diverged(key) for key in keys)
            rows[helped[:, c]] = np.minimum(rows[helped[:, c]], min(0.0, t))
            by_cell[cell] = rows / constant
        d: np.ndarray = np.mean(np.stack(list(by_cell.values())), axis=0)
        d[helped.any(axis=1)] = np.minimum(d[helped.any(axis=1)], min(0.0, t))
        return d, {str(cell): rows for cell, rows in by_cell.items() if cell is not None}

    def _cell(self, cell: str | None, terms: Sequence[Term], control: str | None) -> np.ndarray:
        """d of one task, before any bound: shape (seeds, 1 or 1 + RESAMPLES)."""
        scale = self.sign * self.factor
        if self.kind == "statistic":
            name = self.spec["arms"]["name"]
            own = [
                self.scores.statistic(name, self.statistic_arms(cell, s, None), self.items)
                for s in self.seeds
            ]
            if control is None:
                return scale * np.array(own)
            other = [
                self.scores.statistic(name, self.statistic_arms(cell, s, control), self.items)
                for s in self.seeds
            ]
            return scale * (np.array(own) - np.array(other))
        columns = [
            np.array([self._score((arm, str(task or cell), s)) for s in self.seeds])
            for _, arm, task in terms
        ]
        if self.kind == "spread":
            return abs(scale) * spread_differences(columns[0], columns[1])
        weights = [weight for weight, _, _ in terms]
        return scale * np.sum([weight * column for weight, column in zip(weights, columns)], axis=0)

    def _score(self, key: NodeKey) -> np.ndarray:
        if self.items:
            return self.scores.with_resamples(key, str(self.metric))
        return np.array([self.scores.value(key, str(self.metric))])

    def _diverged(self, key: NodeKey) -> bool:
        return self.scores.diverged(key, None if self.kind == "statistic" else self.metric)

    def item_differences(self, control: str | None = None) -> np.ndarray:
        """Shape (items,): differences item by item, averaged over seeds, for `unit: item`."""
        terms = self.terms if control is None else self.control_terms(control)
        self.require([*self.terms, *terms])
        if len(self.cells) != 1:
            raise BadInput(
                f"claim {self.spec['id']}: unit item needs exactly one task, found {self.tasks}"
            )
        if not self.scores.same_items(self.keys(terms)):
            raise Missing("its arms were scored on different items")
        cell = self.cells[0]
        total = np.zeros(0)
        for weight, arm, task in terms:
            for seed in self.seeds:
                values = self.scores.per_item((arm, str(task or cell), seed), str(self.metric))
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
        keys = self.keys(terms)
        runs = {arm: sum(key[0] == arm for key in keys) for arm, _, _ in keys}
        return any(count > 0.2 * runs[arm] + TIE for arm, count in self.failures(terms).items())

    def at_chance(self, terms: Sequence[Term]) -> dict[str, int]:
        """Runs that score no better than the declared chance, by arm."""
        counts: dict[str, int] = {}
        if self.kind in ("statistic", "exact"):
            return counts
        for key in self.keys(terms):
            chance = (self.scores.chance.get(key[1]) or {}).get(str(self.metric))
            if chance is not None:
                better = (
                    self.sign * (self.scores.value(key, str(self.metric)) - float(chance)) > TIE
                )
                counts[key[0]] = counts.get(key[0], 0) + (not better)
        return counts

    def judge_control(self, control: str) -> dict[str, Any]:
        """One row of `controls`. A control that did not run leaves the attribution open."""
        row: dict[str, Any] = {
            "arm": control,
            "d": [],
            "effect": None,
            "ci95": None,
            "p_for": None,
            "flip_for": None,
        }
        row |= {"item_ci95": None, "outcome": "OPEN"}
        terms = self.control_terms(control)
        try:
            d, items, _ = self._d_and_items(control)
        except Missing:
            return row
        found = evidence(d)
        row |= {
            "d": d,
            **{key: found[key] for key in ("effect", "ci95", "p_for", "flip_for")},
            "item_ci95": items,
        }
        row["outcome"] = control_outcome(
            found,
            items,
            self.material,
            items=self.items,
            kind=self.kind,
            failures=self.too_many_failures(terms),
        )
        return row

    def _d_and_items(
        self, control: str | None = None
    ) -> tuple[np.ndarray, list[float] | None, dict[str, Any]]:
        """d, the item interval of its mean, and d by task."""
        if self.unit == "item":
            return self.item_differences(control), None, {}
        d, by_task = self.differences(control)
        terms = self.terms if control is None else [*self.terms, *self.control_terms(control)]
        usable = self.items and self.scores.same_items(self.keys(terms))
        interval = item_interval(d[:, 1:].mean(axis=0)) if usable else None
        return d[:, 0], interval, {task: rows[:, 0] for task, rows in by_task.items()}

    def numbers(self) -> dict[str, Any]:
        """The claim's row without Holm and verdict. Raises Missing."""
        d, items, by_task = self._d_and_items()
        found = evidence(d, self.t)
        controls = [self.judge_control(control) for control in self.controls]
        ran = [row["arm"] for row in controls if len(row["d"])]
        shown = [*self.terms, *(term for control in ran for term in self.control_terms(control))]
        return {
            **found,
            "d": d,
            "d_by_task": by_task,
            "item_ci95": items,
            "diverged": self.failures(shown),
            "at_chance": self.at_chance(shown),
            "controls": controls,
        }


CLAIM_ROW = (  # the order of a claim's fields in the file
    *(
        "id",
        "statement",
        "kind",
        "role",
        "arms",
        "tasks",
        "metric",
        "unit",
        "direction",
        "threshold",
        "material",
        "n",
        "d",
    ),
    *(
        "d_by_task",
        "effect",
        "median",
        "ci95",
        "detectable",
        "p_for",
        "p_against",
        "p_holm_for",
        "p_holm_against",
    ),
    *(
        "flip_for",
        "flip_against",
        "item_ci95",
        "wins_ties_losses",
        "diverged",
        "at_chance",
        "verdict",
        "reason",
    ),
    "controls",
)


def judge_claims(
    specs: Sequence[Mapping[str, Any]], scale: str, nodes: Collection[NodeKey], scores: Scores
) -> list[dict[str, Any]]:
    """A row per claim declared for the scale: numbers, then Holm within each role, then verdicts."""
    claims = [Claim(spec, scale, nodes, scores) for spec in specs if scale in spec["scales"]]
    rows: list[dict[str, Any]] = []
    for claim in claims:
        row: dict[str, Any] = dict.fromkeys(CLAIM_ROW)
        row |= {key: claim.spec[key] for key in ("id", "statement", "kind", "role", "arms")}
        row |= {
            "tasks": claim.tasks,
            "metric": claim.metric or claim.spec["arms"]["name"],
            "unit": claim.unit,
            "direction": claim.spec.get("direction", "higher"),
        }
        row |= {"threshold": claim.t, "material": claim.material, "n": 0, "d": [], "d_by_task": {}}
        row |= {
            "wins_ties_losses": [0, 0, 0],
            "diverged": {},
            "at_chance": {},
            "controls": [],
            "reason": "",
        }
        try:
            row |= claim.numbers()
        except Missing as missing:
            row |= {"verdict": "NOT RUN", "reason": str(missing)}
        rows.append(row)
    for role in ("primary", "secondary"):
        family = [row for row in rows if row["role"] == role and row["kind"] != "exact"]
        for side in ("for", "against"):
            p = [1.0 if row["verdict"] == "NOT RUN" else row[f"p_{side}"] for row in family]
            for row, adjusted in zip(family, holm(p)):
                row[f"p_holm_{side}"] = adjusted
    for claim, row in zip(claims, rows):
        if row["kind"] == "exact":
            row |= dict.fromkeys(("detectable", "p_for", "p_against", "flip_for", "flip_against"))
        if row["role"] == "exhibit":
            row["verdict"] = None  # shown, no verdict
            continue
        if row["verdict"] is None:
            row["verdict"], row["reason"] = conclude(claim, row)
        row["verdict"] += (
            " for this model" if claim.unit == "item" and row["verdict"] != "NOT RUN" else ""
        )
        row["verdict"] += " (scaled down)" if scale in SCALED_DOWN else ""
    return rows


def conclude(claim: Claim, row: Mapping[str, Any]) -> tuple[str, str]:
    """Verdict and reason of a claim whose runs are all there."""
    if claim.kind == "exact":
        return exact_verdict(row["d"], claim.t), ""
    word, reason = claim_verdict(
        row,
        claim.t,
        (row["p_holm_for"], row["p_holm_against"]),
        row["item_ci95"],
        items=claim.items,
        kind=claim.kind,
        failures=claim.too_many_failures(claim.terms),
    )
    return attribute(word, [control["outcome"] for control in row["controls"]]), reason


# ---------------------------------------------------------------- gates

UNRECORDED = "no finished run recorded it"
BUILT_IN_GATES = ("distinct-states", "shared-items")
UNTRAINED = (None, "", hashlib.sha256().hexdigest())  # how a run says that it trained nothing


def judge_gates(
    listed: Sequence[Mapping[str, Any]],
    scale: str,
    nodes: Collection[NodeKey],
    scores: Scores,
    recorded_gates: Sequence[tuple[NodeKey, Sequence[Mapping[str, Any]]]],
) -> list[dict[str, Any]]:
    """Gates of the paper, aggregated over its runs, and the two that hold for every paper."""
    statements = {g["id"]: g["statement"] for g in listed if scale in g.get("scales", [scale])}
    recorded: dict[str, list[tuple[NodeKey, bool, str]]] = {name: [] for name in statements}
    finished: set[str] = set()
    for key, of_run in sorted(recorded_gates, key=lambda pair: pair[0]):
        for gate in of_run:
            recorded.setdefault(gate["id"], []).append(
                (key, bool(gate["passed"]), str(gate.get("detail") or ""))
            )
            if scores.runs[key]["status"] == "finished":
                finished.add(gate["id"])
    gates = []
    for name, seen in recorded.items():
        failed = [(key, detail) for key, passed, detail in seen if not passed]
        if failed:
            shown = "; ".join(
                f"{key[0]} on {key[1]}, seed {key[2]}: {detail}" for key, detail in failed[:3]
            )
            detail = f"failed {len(failed)} of {len(seen)} times: {shown}"
        elif name not in finished:
            detail = UNRECORDED
        else:
            detail = f"held {len(seen)} times" + (f", e.g. {seen[0][2]}" if seen[0][2] else "")
        passed = not failed and name in finished
        gates.append(
            {
                "id": name,
                "statement": statements.get(name, name),
                "passed": passed,
                "detail": detail,
            }
        )
    return [*gates, states_differ(nodes, scores), items_shared(nodes, scores)]


def states_differ(nodes: Collection[NodeKey], scores: Scores) -> dict[str, Any]:
    """Seeds that end in one and the same state are one replicate counted twice."""
    seen: dict[tuple[str, str, str], int] = {}
    twins: list[str] = []
    compared = 0
    for key in sorted(nodes):
        run = scores.runs.get(key)
        if run is None or run["status"] != "finished" or run.get("state_sha256") in UNTRAINED:
            continue
        compared += 1
        first = seen.setdefault((key[0], key[1], run["state_sha256"]), key[2])
        if first != key[2]:
            twins.append(f"{key[0]} on {key[1]}: seeds {first} and {key[2]}")
    detail = f"equal: {'; '.join(twins[:3])}" if twins else f"{compared} trained states compared"
    statement = "distinct seeds give distinct trained states"
    return {"id": BUILT_IN_GATES[0], "statement": statement, "passed": not twins, "detail": detail}


def items_shared(nodes: Collection[NodeKey], scores: Scores) -> dict[str, Any]:
    """Arms of a seed share their split; all arms and seeds of a task share their test items."""
    problems: list[str] = []
    split: dict[tuple[str, int], tuple[str, Any]] = {}
    tested: dict[str, tuple[NodeKey, np.ndarray]] = {}
    for key in sorted(nodes):
        run = scores.runs.get(key)
        if run is None or run["status"] != "finished":
            continue
        arm, value = split.setdefault((key[1], key[2]), (key[0], run.get("split_sha256")))
        if run.get("split_sha256") != value:
            problems.append(f"{key[1]}, seed {key[2]}: {arm} and {key[0]} were split differently")
        if key in scores.predictions:
            ids = item_ids(scores.predictions[key])
            first, other = tested.setdefault(key[1], (key, ids))
            if not np.array_equal(ids, other):
                problems.append(
                    f"{key[1]}: test items of {key[0]}, seed {key[2]} differ from {first[0]}, {first[2]}"
                )
    detail = (
        "; ".join(problems[:3])
        if problems
        else f"{len(split)} splits and {len(tested)} test sets compared"
    )
    statement = "arms of a seed share split and test items"
    return {
        "id": BUILT_IN_GATES[1],
        "statement": statement,
        "passed": not problems,
        "detail": detail,
    }


def judge(
    *,
    claims: Mapping[str, Any],
    scale: str,
    nodes: Sequence[Node],
    runs: Sequence[Mapping[str, Any]],
    gates: Sequence[tuple[NodeKey, Sequence[Mapping[str, Any]]]],
    predictions: Mapping[NodeKey, Arrays],
    score: Score,
    statistics: Mapping[str, Statistic] | None = None,
    reported: Mapping[str, Any] | None = None,
    item_values: ItemValues | None = None,
) -> dict[str, list[dict[str, Any]]]:
    """The `claims`, `reported` and `gates` parts of a results file, at full precision (see `tidy`).

    claims: the content of claims.yaml (`load_claims`). nodes: the runs that the protocol declares at this scale.
    runs: their entries (arm, task, seed, status, metrics, state_sha256, split_sha256, selection). gates: what
    each run recorded. predictions: as unpacked from the file that is committed. score, statistics, item_values:
    of the paper's evaluate.py.
    """
    scored = {node.key for node in nodes if not node.stage}
    chance = {
        task: (value or {}).get("chance") or {}
        for task, value in (claims.get("tasks") or {}).items()
    }
    scores = Scores(runs, predictions, score, statistics or {}, item_values, chance)
    entries, targets = (reported or {}).get("entries") or [], claims.get("targets") or []
    return {
        "claims": judge_claims(claims["claims"], scale, scored, scores),
        "reported": judge_reported(entries, targets, scale, scored, scores),
        "gates": judge_gates(claims.get("gates") or [], scale, scored, scores, gates),
    }
