"""Scores of runs, and of the same runs on resampled test items, each computed once."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import numpy as np

from benchmarks.claims import Claims, one_of
from benchmarks.predictions import Arrays, Score
from benchmarks.recorded import RunEntry, RunKey, run_name
from benchmarks.rules import tidy

RESAMPLES = 2000  # draws of the test items
MOST_COUNTED = 2000  # test items up to which draws are kept as counts: 32 MB

Statistic = Callable[[dict[str, dict[str, np.ndarray]]], float]
ItemValues = Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]


class Missing(Exception):
    """A run or number that the claim declares is not there; the text says which."""


def split_arm(text: str) -> tuple[str, str | None]:
    """'arm@task' -> (arm, task); 'arm' -> (arm, None): evaluated on each task of the claim."""
    arm, _, task = text.partition("@")
    return arm, task or None


def item_draws(ids: np.ndarray) -> Iterator[np.ndarray]:
    """2,000 resamples of the rows of a test set, in blocks of shape (draws, rows).

    Seeded by the item ids: every arm and seed of a task sees the same draws, and so do two tasks
    that share their test items (the same set after 300 and after 1,000 training examples).
    """
    rows = len(ids)
    digest = hashlib.sha256("\n".join(map(str, ids.tolist())).encode()).digest()
    bits = np.random.PCG64(int.from_bytes(digest[:8], "big"))
    block = max(1, min(RESAMPLES, 4_000_000 // max(1, rows)))
    for first in range(0, RESAMPLES, block):
        count = min(block, RESAMPLES - first)
        uniform = (bits.random_raw(count * rows) >> np.uint64(11)) * 2.0**-53
        yield (uniform * rows).astype(np.int64).reshape(count, rows)


def rows_of(predictions: Arrays, index: np.ndarray) -> dict[str, np.ndarray]:
    """The predictions of these items; arrays named '_...' are not per item and stay whole."""
    return {
        name: array if name.startswith("_") else array[index] for name, array in predictions.items()
    }


def item_count(predictions: Arrays) -> int:
    """Number of test items; an error where the arrays of one run disagree."""
    lengths = {name: len(array) for name, array in predictions.items() if not name.startswith("_")}
    if len(set(lengths.values())) != 1:
        raise ValueError(f"predictions need one row per test item in every array, found {lengths}")
    return next(iter(lengths.values()))


def item_ids(predictions: Arrays) -> np.ndarray:
    return predictions["id"] if "id" in predictions else np.arange(item_count(predictions))


class Scores:
    """Scores of runs and of their resampled test items, each computed once."""

    def __init__(
        self,
        runs: Sequence[RunEntry],
        predictions: Mapping[RunKey, Arrays],
        score: Score,
        statistics: Mapping[str, Statistic],
        item_values: ItemValues | None,
        claims: Claims,
    ) -> None:
        self.runs = {run.key: run for run in runs}
        self.predictions = predictions
        self.score, self.statistics = score, statistics
        self.item_values, self.claims = item_values, claims
        self._points: dict[RunKey, dict[str, float]] = {}
        self._resampled: dict[tuple[RunKey, str], np.ndarray] = {}
        self._statistics: dict[tuple[object, ...], np.ndarray] = {}
        self._counted = (np.zeros(0), np.zeros((RESAMPLES, 0)))  # the last items, and their draws

    def check(self, key: RunKey) -> None:
        """Raises Missing unless the run of this node ended, well or by divergence."""
        status = self.runs[key].status if key in self.runs else "missing"
        if status not in ("finished", "diverged"):
            raise Missing(f"{run_name(key)}: {status}")
        if status == "finished" and key not in self.predictions:
            raise Missing(f"{run_name(key)}: no predictions")

    def metrics(self, key: RunKey) -> dict[str, float]:
        """What the run counted, and the scores of its predictions."""
        if key not in self._points:
            recorded = {
                name: math.nan if value is None else value
                for name, value in tidy(self.runs[key].metrics).items()
            }
            fresh = self.score(dict(self.predictions[key])) if key in self.predictions else {}
            self._points[key] = recorded | {name: float(value) for name, value in fresh.items()}
        return self._points[key]

    def chance_of(self, key: RunKey, metric: str) -> float:
        value = self.claims.chance(key[1]).get(metric)
        if value is None:
            raise Missing(
                f"{run_name(key)} diverged or has no finite {metric}, and claims.yaml declares "
                f"no chance for it under tasks.{key[1]}.chance"
            )
        return float(value)

    def diverged(self, key: RunKey, metric: str | None) -> bool:
        """Diverged, or finished with a score that is not a number (which is no better)."""
        self.check(key)
        if self.runs[key].status == "diverged":
            return True
        if metric is None:
            return False
        metrics = self.metrics(key)
        if metric not in metrics:
            raise Missing(f"{run_name(key)}: no metric {metric!r} among {sorted(metrics)}")
        return not math.isfinite(metrics[metric])

    def value(self, key: RunKey, metric: str) -> float:
        if self.diverged(key, metric):
            return self.chance_of(key, metric)
        return self.metrics(key)[metric]

    def with_resamples(self, key: RunKey, metric: str) -> np.ndarray:
        """Shape (1 + RESAMPLES,): the score, then those on drawn items; NaN: not computable."""
        value = self.value(key, metric)
        if self.diverged(key, metric):
            return np.full(1 + RESAMPLES, value)
        if (key, metric) not in self._resampled:
            self._resample(key, metric)
        return np.concatenate([[value], self._resampled[key, metric]])

    def _resample(self, key: RunKey, metric: str) -> None:
        predictions = dict(self.predictions[key])
        per_item = self.item_values(predictions) if self.item_values else {}
        if metric in per_item:
            values = np.asarray(per_item[metric], dtype=np.float64)
            self._same_mean(values, key, metric)
            self._resampled[key, metric] = self._resampled_means(item_ids(predictions), values)
            return
        names = [name for name in self.score(predictions) if name not in per_item]
        table = np.full((len(names), RESAMPLES), np.nan)
        if names:
            drawn = (row for block in item_draws(item_ids(predictions)) for row in block)
            for b, index in enumerate(drawn):
                scores = self.score(rows_of(predictions, index))
                table[:, b] = [scores[name] for name in names]
        for name, row in zip(names, table):
            # undefined, say a correlation on items of one class, is no better than chance
            undefined = ~np.isfinite(row)
            if undefined.any() and name in self.claims.chance(key[1]):
                row[undefined] = self.chance_of(key, name)
            self._resampled[key, name] = row
        # a count has no items behind it
        self._resampled.setdefault((key, metric), np.full(RESAMPLES, np.nan))

    def _resampled_means(self, ids: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Shape (RESAMPLES,): means of the drawn items.

        How often each draw takes each item is counted once for all runs that share their items.
        """
        rows = len(ids)
        if rows > MOST_COUNTED:
            return np.concatenate([values[index].mean(axis=1) for index in item_draws(ids)])
        if not np.array_equal(self._counted[0], ids):
            index = np.concatenate(list(item_draws(ids)))
            places = (index + rows * np.arange(RESAMPLES)[:, None]).ravel()
            times = np.bincount(places, minlength=RESAMPLES * rows).reshape(RESAMPLES, rows)
            self._counted = (ids, times.astype(np.float64))
        means: np.ndarray = self._counted[1] @ values / rows
        return means

    def per_item(self, key: RunKey, metric: str) -> np.ndarray:
        """Shape (items,): the metric item by item, for claims whose replicates are items."""
        self.check(key)
        if self.diverged(key, metric):
            others = [p for k, p in self.predictions.items() if k[1] == key[1]]
            return np.full(item_count(others[0]) if others else 0, self.chance_of(key, metric))
        predictions = dict(self.predictions[key])
        offered = self.item_values(predictions) if self.item_values else {}
        if metric in offered:
            values = np.asarray(offered[metric], dtype=np.float64)
        else:
            rows = range(item_count(predictions))
            values = np.array(
                [self.score(rows_of(predictions, np.array([i])))[metric] for i in rows]
            )
        self._same_mean(values, key, metric)
        return values

    def _same_mean(self, values: np.ndarray, key: RunKey, metric: str) -> None:
        mean, whole = float(np.mean(values)), self.metrics(key)[metric]
        if not math.isclose(mean, whole, rel_tol=1e-9, abs_tol=1e-9):
            raise ValueError(
                f"{metric} of {key} is {whole} but the mean of its items is {mean}: it is not a "
                "mean over items; leave it out of evaluate.item_values, and do not use unit: item "
                "with it"
            )

    def statistic(self, name: str, arms: Mapping[str, RunKey], items: bool) -> np.ndarray:
        """Shape (1,) or (1 + RESAMPLES,): a named function of several arms' predictions.

        `arms` maps the name under which the function finds predictions to their run.
        """
        for key in arms.values():
            self.check(key)
        first = next(iter(arms.values()))
        if any(self.runs[key].status == "diverged" for key in arms.values()):
            return np.full(1 + RESAMPLES if items else 1, self.chance_of(first, name))
        cached = (name, tuple(arms.items()), items)
        if cached not in self._statistics:
            one_of(name, self.statistics, "evaluate.STATISTICS")
            function = self.statistics[name]
            predictions = {arm: dict(self.predictions[key]) for arm, key in arms.items()}
            values = [float(function(predictions))]
            if not math.isfinite(values[0]):
                values[0] = self.chance_of(first, name)
            if items and len({item_count(p) for p in predictions.values()}) > 1:
                values += [math.nan] * RESAMPLES
            elif items:
                blocks = item_draws(item_ids(self.predictions[first]))
                for index in (row for block in blocks for row in block):
                    drawn = {arm: rows_of(p, index) for arm, p in predictions.items()}
                    values.append(float(function(drawn)))
            self._statistics[cached] = np.array(values)
        return self._statistics[cached]

    def same_items(self, keys: Collection[RunKey]) -> bool:
        """Whether the runs of each task among these have the same items in the same order."""
        first: dict[str, np.ndarray] = {}
        for key in sorted(keys):
            if key in self.predictions:
                ids = item_ids(self.predictions[key])
                if not np.array_equal(ids, first.setdefault(key[1], ids)):
                    return False
        return True
