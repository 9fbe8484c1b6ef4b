"""Published numbers: reported.yaml, which of our runs answers which, and the row of each."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from decimal import Decimal, InvalidOperation
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import yaml
from pydantic import Field, field_validator, model_validator

from benchmarks.claims import Declared, Number, Target, one_of
from benchmarks.recorded import Reported, RunKey
from benchmarks.rules import default_tolerance, reported_verdict
from benchmarks.scores import Missing, Scores, item_count
from shared.protocol import BadInput, read_as

Text = Annotated[str, Field(min_length=1)]
OWN_RESULT = ("paper", "official_repository")  # origins that are the paper's own result


class Published(Declared):
    """A number that somebody published, with the place where it stands."""

    id: Text
    table: str | None = None
    claim: int | str | None = None
    method: Text
    metric: Text
    value: Number | None
    std: Number | None = None
    higher_is_better: bool | None = None
    # decimals as printed, of the text in the file (84.90: 2); `exact`: a count, not rounded
    decimals: Annotated[int, Field(ge=0)] | None = None
    exact: bool = False
    confidence: Literal["read", "derived"]
    origin: Literal["paper", "official_repository", "baseline_paper", "third_party", "context"]
    setting: dict[str, Any] = Field(default={})
    source: Text

    @field_validator("value", "std", mode="before")
    @classmethod
    def _number_or_null(cls, value: Any) -> Any:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if value is not None and not (number and math.isfinite(value)):
            raise ValueError(f"is {value!r}; write a number or null")
        return value

    @property
    def own(self) -> bool:
        return self.origin in OWN_RESULT

    @property
    def half(self) -> float:
        """Half of the last printed decimal: `value` stands for everything within it."""
        return 0.0 if self.exact else 0.5 * 10.0 ** -(self.decimals or 0)

    @property
    def printed(self) -> str:
        return "no value" if self.value is None else f"{self.value:.{self.decimals or 0}f}"

    @property
    def sd_over(self) -> str | None:
        """What the sd was taken over, as far as the source says."""
        said: str | None = self.setting.get("sd_over", "seeds" if "seeds" in self.setting else None)
        return said


class ReportedFile(Declared):
    paper: str
    arxiv: str
    note: str
    entries: list[Published]
    printed_settings: dict[str, str] = Field(default={})  # of training, as the paper says them
    not_found: list[str]

    @model_validator(mode="after")
    def _distinct(self) -> ReportedFile:
        ids = [entry.id for entry in self.entries]
        if len(set(ids)) < len(ids):
            twice = next(name for name in ids if ids.count(name) > 1)
            raise ValueError(f"two entries have this id: {twice!r}; give each its own")
        return self


def load(path: Path) -> ReportedFile:
    if not path.exists():
        raise BadInput(
            f"{path} does not exist: every paper lists its published numbers, "
            "or that none was found"
        )
    # by libyaml where it is there: the largest of these files takes seconds without it
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)(path.read_text(encoding="utf-8-sig"))
    try:
        root = loader.get_single_node()
        document = loader.construct_document(root) if root else {}
    except yaml.YAMLError as error:
        raise BadInput(f"{path} is not valid YAML: {error}") from error
    finally:
        loader.dispose()
    name = f"{path.parent.name}/{path.name}"
    if isinstance(document, dict) and isinstance(document.get("entries"), list):
        for entry, node in zip(document["entries"], below(root, "entries").value):
            if isinstance(entry, dict) and (value := below(node, "value")):
                entry.setdefault("decimals", decimals_of(str(value.value)))
    return read_as(ReportedFile, document or {}, name)


def below(node: Any, name: str) -> Any:
    """The node of a key of a mapping: its text still has the zero of 84.90."""
    return next((value for key, value in node.value if key.value == name), None)


def decimals_of(text: str) -> int | None:
    """Decimals of a printed number; None for what is none."""
    try:
        exponent = Decimal(text).as_tuple().exponent
    except InvalidOperation:
        return None
    return max(0, -exponent) if isinstance(exponent, int) else None


def check_targets(targets: Sequence[Target], published: ReportedFile, where: str) -> None:
    """Refuses a target whose id or pattern names no published number."""
    ids = {entry.id for entry in published.entries}
    for target in targets:
        if target.reported in ids:
            continue
        if not any(fnmatchcase(name, target.reported) for name in ids):
            one_of(target.reported, ids, f"{where}: target")


# --- ours beside theirs ---------------------------------------------------------------------------


def target_of(entry_id: str, targets: Sequence[Target]) -> Target | None:
    """The target that names a reported number's id, else the first whose pattern matches it."""
    named = (target for target in targets if target.reported == entry_id)
    matching = (target for target in targets if fnmatchcase(entry_id, target.reported))
    return next(named, None) or next(matching, None)


def judge_reported(
    entries: Sequence[Published],
    targets: Sequence[Target],
    scale: str,
    nodes: Collection[RunKey],
    scores: Scores,
) -> list[Reported]:
    """A row per published number: all at scale paper, elsewhere those whose target names it."""
    usable = [target for target in targets if scale in target.scales]
    pairs = [(entry, target_of(entry.id, usable)) for entry in entries]
    return [
        reported_row(entry, target, nodes, scores)
        for entry, target in pairs
        if target is not None or scale == "paper"
    ]


def reported_row(
    entry: Published, target: Target | None, nodes: Collection[RunKey], scores: Scores
) -> Reported:
    """One published number beside ours."""
    target = target or Target(reported=entry.id, reason="no target names this number")
    row = Reported(
        id=entry.id,
        method=entry.method,
        task=target.task,
        metric=entry.metric,
        unit=target.unit,
        reported=entry.value,
        sd=entry.std,
        sd_over=target.sd_over or entry.sd_over,
        n_paper=target.n_paper or entry.setting.get("seeds"),
        source=entry.source,
        tolerance=target.tolerance,
        tolerance_reason=target.reason,
        deviations=list(target.deviations),
    )
    ours: list[float] = []
    if target.arm:
        ours, rows_tested, selections = our_scores(target, nodes, scores)
        published = entry.setting.get("selection")
        if published and selections and selections != {published}:
            named = ", ".join(sorted(selections))
            row.deviations.append(f"selection: published {published}, ours {named}")
        if row.tolerance is None and row.unit == "points" and rows_tested:
            row.tolerance = default_tolerance(rows_tested, row.sd, row.sd_over, row.n_paper)
    row.verdict, row.gap, interval = reported_verdict(
        entry.value,
        ours,
        row.tolerance,
        higher_is_better=entry.higher_is_better,
        sd=row.sd,
        sd_over=row.sd_over,
        n_paper=row.n_paper,
        own=entry.own,
        deviations=row.deviations,
    )
    row.ci95 = None if interval is None else list(interval)
    row.measured = float(np.mean(ours)) if ours else None
    row.scores = list(ours)
    if not target.arm and row.verdict == "NOT RUN":
        row.verdict = "no counterpart"
    return row


def our_scores(
    target: Target, nodes: Collection[RunKey], scores: Scores
) -> tuple[list[float], int, set[str]]:
    """Our numbers per seed, the number of test rows, and how the runs were selected.

    Differences where the target has an opponent; several tasks are averaged within a seed.
    Empty unless every declared run of the target is there.
    """
    tasks, arms = target.tasks, [arm for arm in (target.arm, target.opponent) if arm]
    pairs = [(arm, task) for arm in arms for task in tasks]
    of_pair = [{s for a, t, s in nodes if (a, t) == pair} for pair in pairs]
    seeds = sorted(set.intersection(*of_pair)) if of_pair else []
    keys = {(arm, task, seed) for arm in arms for task in tasks for seed in seeds}
    try:
        if not keys or not keys <= set(nodes):
            return [], 0, set()
        value = {key: scores.value(key, str(target.metric)) for key in keys}
    except Missing:
        return [], 0, set()
    in_points = target.unit == "points" and all(abs(v) <= 1.0 for v in value.values())
    factor = 100.0 if in_points else 1.0
    mean = {
        (arm, s): factor * float(np.mean([value[arm, task, s] for task in tasks]))
        for arm in arms
        for s in seeds
    }
    ours = [mean[arms[0], s] - (mean[arms[1], s] if len(arms) > 1 else 0.0) for s in seeds]
    counts = [item_count(scores.predictions[key]) for key in keys if key in scores.predictions]
    selections = {scores.runs[key].selection for key in keys}
    return ours, min(counts, default=0), {name for name in selections if name}
