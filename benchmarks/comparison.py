"""How one claim's differences follow from the scores of its runs, and what they come to.

Kinds of claims: `difference`, method minus opponent; `contrast`, a weighted sum of arms; `spread`,
how much further the opponent's seeds lie from their median; `statistic`, a named function of the
predictions of several arms; `exact`, a comparison of counts without a test.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict
from typing import TypeVar

import numpy as np

from benchmarks.claims import Arms, ClaimSpec, Pair, is_none
from benchmarks.recorded import Claim, Control, RunKey, Sensitivity, run_name
from benchmarks.rules import (
    TIE,
    Evidence,
    asks_within,
    control_outcome,
    evidence,
    item_interval,
    sensitivity_outcome,
    spread_differences,
)
from benchmarks.scores import Missing, Scores, split_arm
from shared.protocol import BadInput

T = TypeVar("T")
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
        # what *within* is asked of; the default of 1.0 means points and nothing else
        stated = self.unit == "points" or "material" in spec.model_fields_set
        self.margin = self.material if stated and asks_within(self.kind, self.t) else None
        self.sign = -1.0 if spec.direction == "lower" else 1.0
        # whether condition (c), the interval over test items, applies
        self.items = not (
            is_none(spec.items) or self.kind in ("spread", "exact") or self.unit == "item"
        )
        self.terms = self._terms()
        self.tasks = self._tasks(scale)
        fixed = all(task for _, _, task in self.terms)
        self.cells: list[str | None] = [None] if fixed else list(self.tasks)
        self.seeds = self.seeds_of(self.terms)

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

    @functools.cached_property
    def _declared(self) -> dict[tuple[str, str], set[int]]:
        """(arm, task) -> its seeds."""
        seeds: dict[tuple[str, str], set[int]] = {}
        for arm, task, seed in self.nodes:
            seeds.setdefault((arm, task), set()).add(seed)
        return seeds

    def seeds_of(self, terms: Sequence[Term]) -> list[int]:
        """The declared seeds that the terms share: an arm or a task may have fewer than others.

        A pair that is not declared at all takes none away: `require` says that it is missing."""
        pairs = {(arm, str(task or cell)) for cell in self.cells for _, arm, task in terms}
        declared = [self._declared[pair] for pair in pairs if pair in self._declared]
        return sorted(set.intersection(*declared)) if declared else []

    @property
    def method(self) -> str:
        """The arm that controls are put in place of: the first one that counts in favour."""
        return next((arm for weight, arm, _ in self.terms if weight > 0), self.terms[0][1])

    def shared(self, terms: Sequence[Term]) -> list[int]:
        """The claim's seeds; where other terms take the place of its own, those they have too."""
        return self.seeds_of([*self.terms, *terms])

    def keys(self, terms: Sequence[Term]) -> list[RunKey]:
        cells = {(arm, task or cell) for cell in self.cells for _, arm, task in terms}
        seeds = self.shared(terms)
        return [(arm, str(task), seed) for arm, task in sorted(cells, key=str) for seed in seeds]

    def require(self, terms: Sequence[Term]) -> None:
        if not self.shared(terms):
            raise Missing("no seed is declared for its arms and tasks at this scale")
        for key in self.keys(terms):
            if key not in self.nodes:
                raise Missing(f"{run_name(key)}: not declared for this run of the protocol")
            self.scores.check(key)

    def positive_terms(self, pair: Pair) -> list[Term]:
        """A - B in the place of the claim's arms, on its tasks; one of 'arm@task' on that."""
        fixed = sorted({task for _, _, task in self.terms if task})
        tasks: list[str | None] = [*fixed] or [None]
        terms: list[Term] = []
        for sign, text in ((1.0, pair.method), (-1.0, pair.opponent)):
            arm, named = split_arm(text)
            places = [named] if named else tasks
            terms += [(sign / len(places), arm, task) for task in places]
        return terms

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

    def differences(
        self, terms: Sequence[Term], rival: str | None = None
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """d of shape (seeds, 1 or 1 + RESAMPLES) and the same by task. Raises Missing.

        `terms`: the claim's own, or others in their place, with the `rival` that must not profit.
        An opponent or rival that diverged never helps: its d is at most 0, and at most t.
        """
        self.require([*self.terms, *terms])
        most = min(0.0, self.t if rival is None else 0.0)
        by_cell: dict[str | None, np.ndarray] = {}
        seeds = self.shared(terms)
        helped = np.zeros((len(seeds), len(self.cells)), dtype=bool)
        rivals = self._rivals(terms, rival)
        for c, cell in enumerate(self.cells):
            rows = self._cell(cell, terms, seeds)
            for s, seed in enumerate(seeds):
                keys = [(arm, str(task or cell), seed) for _, arm, task in rivals]
                helped[s, c] = any(self._diverged(key) for key in keys)
            rows[helped[:, c]] = np.minimum(rows[helped[:, c]], most)
            by_cell[cell] = rows / float(self.spec.task_units.get(str(cell), 1.0))
        d: np.ndarray = np.mean(np.stack(list(by_cell.values())), axis=0)
        d[helped.any(axis=1)] = np.minimum(d[helped.any(axis=1)], most)
        return d, {str(cell): rows for cell, rows in by_cell.items() if cell is not None}

    def _rivals(self, terms: Sequence[Term], rival: str | None) -> list[Term]:
        if self.kind == "statistic" and rival is None:
            return list(terms[1:])
        return [term for term in terms if term[0] < 0 or term[1] == rival]

    def _cell(self, cell: str | None, terms: Sequence[Term], seeds: Sequence[int]) -> np.ndarray:
        """d of one task, before any bound: shape (seeds, 1 or 1 + RESAMPLES)."""
        scale = self.sign * self.factor
        if self.kind == "statistic":
            if terms is self.terms:
                values = [self._statistic(cell, s, items=self.items) for s in seeds]
                return scale * np.array(values)
            columns = [  # each arm in the place of the first
                np.array([self._statistic(cell, s, arm, items=self.items) for s in seeds])
                for _, arm, _ in terms
            ]
        else:
            columns = [
                np.array([self._score((arm, str(task or cell), s)) for s in seeds])
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

    def item_differences(self, terms: Sequence[Term], rival: str | None = None) -> np.ndarray:
        """Shape (items,): differences item by item, averaged over seeds, for `unit: item`."""
        self.require([*self.terms, *terms])
        if len(self.cells) != 1:
            raise BadInput(
                f"claim {self.spec.id}: unit item needs exactly one task, found {self.tasks}"
            )
        if not self.scores.same_items(self.keys(terms)):
            raise Missing("its arms were scored on different items")
        cell, seeds = self.cells[0], self.shared(terms)
        total = np.zeros(0)
        for weight, arm, task in terms:
            for seed in seeds:
                values = self.scores.per_item((arm, str(task or cell), seed), self.metric)
                part = self.sign * weight * values / len(seeds)
                total = part if not len(total) else total + part
        if any(self._diverged(key) for key in self.keys(self._rivals(terms, rival))):
            total = np.minimum(total, min(0.0, self.t if rival is None else 0.0))
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
        terms = self.control_terms(control)
        try:
            d, item_ci95, _ = self._d_and_items(terms, control)
        except Missing:
            return Control(arm=control)
        shown = evidence(d)
        outcome = self._outcome(control_outcome, shown, item_ci95, terms)
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

    def judge_sensitivity(self) -> Sensitivity | None:
        """Whether the positive control shows; None where claims.yaml names none and no reason."""
        pair = self.spec.sensitivity
        if not isinstance(pair, Pair):
            return None if pair is None else Sensitivity(outcome="none", reason=pair)
        row, terms = Sensitivity(arms=Arms(**pair.model_dump())), self.positive_terms(pair)
        try:
            d, item_ci95, _ = self._d_and_items(terms, split_arm(pair.opponent)[0])
        except Missing as missing:
            row.outcome, row.reason = "NOT RUN", str(missing)
            return row
        shown = evidence(d)
        row.d, row.effect, row.ci95 = d.tolist(), shown.effect, shown.ci95
        row.outcome, row.reason = self._outcome(sensitivity_outcome, shown, item_ci95, terms)
        return row

    def _outcome(
        self,
        rule: Callable[..., T],
        shown: Evidence,
        item_ci95: list[float] | None,
        terms: Sequence[Term],
    ) -> T:
        """What a rule without Holm's adjustment says of two other arms on the claim's terms."""
        failures = self.too_many_failures(terms)
        return rule(
            shown, item_ci95, self.material, items=self.items, kind=self.kind, failures=failures
        )

    def _d_and_items(
        self, terms: Sequence[Term], rival: str | None = None
    ) -> tuple[np.ndarray, list[float] | None, dict[str, np.ndarray]]:
        """d, the item interval of its mean, and d by task."""
        if self.unit == "item":
            return self.item_differences(terms, rival), None, {}
        d, by_task = self.differences(terms, rival)
        usable = self.items and self.scores.same_items(self.keys([*self.terms, *terms]))
        interval = item_interval(d[:, 1:].mean(axis=0)) if usable else None
        return d[:, 0], interval, {task: rows[:, 0] for task, rows in by_task.items()}

    def claim(self, schema: int, claims: int) -> tuple[Claim, Evidence | None]:
        """The claim with its numbers, without Holm and verdict; no evidence if it was not run.

        `claims`: those of its role, for the level of `detectable`.
        """
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
            d, claim.item_ci95, by_task = self._d_and_items(self.terms)
            if schema < 2:
                shown = evidence(d, self.t)
            else:
                shown = evidence(d, self.t, self.margin, claims)
                claim.sensitivity = self.judge_sensitivity()
            claim.controls = [self.judge_control(control) for control in self.spec.control_arms]
            ran = [self.control_terms(control.arm) for control in claim.controls if control.d]
            diverged, at_chance = dict[str, int](), dict[str, int]()
            for terms in [*ran, self.terms]:  # the claim's own arms last: on all their seeds
                diverged |= self.failures(terms)
                at_chance |= self.at_chance(terms)
            claim.diverged = dict(sorted(diverged.items()))
            claim.at_chance = dict(sorted(at_chance.items()))
        except Missing as missing:
            claim.verdict, claim.reason, claim.controls = "NOT RUN", str(missing), []
            claim.item_ci95 = None
            return claim, None
        claim.d, claim.d_by_task = d.tolist(), {task: x.tolist() for task, x in by_task.items()}
        for name, value in asdict(shown).items():
            setattr(claim, name, value)
        return claim, shown
