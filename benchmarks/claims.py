"""claims.yaml: what is claimed, fixed before any run. Reading refuses what the judge cannot use."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from shared.protocol import SCALES, load_yaml, read_as, unknown

Number = int | Annotated[float, Field(allow_inf_nan=False)]
Scale = Literal["cpu", "gpu", "paper", "rehearsal"]
NEEDED_ARMS = {
    "difference": {"method", "opponent"},
    "contrast": {"weights"},
    "spread": {"method", "opponent"},
    "statistic": {"method", "name"},
    "exact": {"method", "opponent"},
}


class Declared(BaseModel):
    """A part of a file that people write: a key that it does not have is a mistake."""

    model_config = ConfigDict(extra="forbid")


class Arms(Declared):
    """The arms of a claim, each 'arm' or 'arm@task'; which are there depends on its kind."""

    method: str | list[str] | None = None
    opponent: str | None = None
    weights: dict[str, Number] | None = None
    name: str | None = None  # of the statistic

    @property
    def methods(self) -> list[str]:
        return [self.method] if isinstance(self.method, str) else self.method or []

    def named(self) -> list[str]:
        """All arms, the method first."""
        return [*self.methods, *([self.opponent] if self.opponent else []), *(self.weights or {})]

    @property
    def sides(self) -> list[str]:
        """The same without the task of 'arm@task'."""
        return [text.partition("@")[0] for text in self.named()]

    @model_serializer(mode="wrap")
    def _without_the_absent(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in dump(self).items() if value is not None}


class Pair(Declared):
    """A positive control: two arms whose difference is known from outside the claim."""

    method: str
    opponent: str


class ClaimSpec(Declared):
    """A claim as it is declared; see the head of verdicts.py for the kinds."""

    id: str
    statement: str
    source: str
    kind: Literal["difference", "contrast", "spread", "statistic", "exact"]
    role: Literal["primary", "secondary", "exhibit"]
    arms: Arms
    tasks: list[str] | dict[Scale, list[str]] = []  # none: all of the scale
    metric: str | None = None
    unit: Literal["points", "raw", "item"] = "points"
    direction: Literal["higher", "lower"] = "higher"
    threshold: Number = 0
    material: Number = 1.0  # the smallest difference that would matter to somebody
    material_reason: str = ""
    sensitivity: Pair | str | None = None
    controls: list[str] | str
    items: str
    scales: list[Scale]
    task_units: dict[str, Number] = {}

    @field_validator("controls", "items", "sensitivity")
    @classmethod
    def _none_has_a_reason(cls, value: Any) -> Any:
        if isinstance(value, str) and value.startswith("none") and not value[4:].lstrip(": "):
            raise ValueError(f"{value!r} gives no reason; write 'none: why'")
        return value

    @model_validator(mode="after")
    def _parts_fit(self) -> ClaimSpec:
        arms = set(self.arms.model_dump())
        for name in arms - NEEDED_ARMS[self.kind]:
            raise unknown(name, NEEDED_ARMS[self.kind], "arms")
        if missing := NEEDED_ARMS[self.kind] - arms:
            raise ValueError(f"arms lacks {sorted(missing)}")
        if self.kind != "statistic" and self.metric is None:
            raise ValueError("'metric' is missing")
        if self.items != "test" and not is_none(self.items):
            raise ValueError(f"items is {self.items!r}; write test or 'none: why'")
        if not self.controls or (isinstance(self.controls, str) and not is_none(self.controls)):
            raise ValueError(f"controls is {self.controls!r}; write a list of arms or 'none: why'")
        if isinstance(self.sensitivity, str) and not is_none(self.sensitivity):
            raise ValueError(
                f"sensitivity is {self.sensitivity!r}; write {{method: A, opponent: B}}, two arms "
                "that are known to differ, or 'none: why'"
            )
        if self.material <= 0:
            raise ValueError(f"material is {self.material}; write a number above 0")
        if self.kind == "exact" and self.control_arms:
            raise ValueError("an exact comparison has no controls; write 'none: why'")
        if self.unit == "item" and self.kind not in ("difference", "contrast"):
            raise ValueError(f"unit item needs kind difference or contrast, not {self.kind}")
        return self

    @property
    def control_arms(self) -> list[str]:
        return [] if isinstance(self.controls, str) else self.controls

    @property
    def positive(self) -> list[str]:
        """The arms of its positive control, the better one first."""
        pair = self.sensitivity
        return [pair.method, pair.opponent] if isinstance(pair, Pair) else []

    def listed_tasks(self) -> list[str]:
        """Every task that it names, at any scale."""
        if isinstance(self.tasks, list):
            return self.tasks
        return [task for tasks in self.tasks.values() for task in tasks]


class GateSpec(Declared):
    id: str
    statement: str
    scales: list[Scale] = ["cpu", "gpu", "paper", "rehearsal"]


class TaskSpec(Declared):
    chance: dict[str, Number] = {}  # metric -> the score of a run that diverged


class Target(Declared):
    """Which of our arms answers a published number; without an arm, why none does."""

    reported: str  # an id, or a pattern of ids
    reason: str
    arm: str | None = None
    opponent: str | None = None
    task: str | list[str] | None = None
    metric: str | None = None
    unit: str = "points"
    tolerance: Number | None = None
    deviations: list[str] = []
    scales: list[Scale] = ["paper"]
    sd_over: str | None = None
    n_paper: int | None = None

    @property
    def tasks(self) -> list[str]:
        return [self.task] if isinstance(self.task, str) else self.task or []


class Claims(Declared):
    paper: str
    claims: list[ClaimSpec]
    revisions: list[dict[str, str]] = []
    gates: list[GateSpec] = []
    tasks: dict[str, TaskSpec] = {}
    targets: list[Target] = []

    @model_validator(mode="after")
    def _few_and_distinct(self) -> Claims:
        ids = [claim.id for claim in self.claims]
        for name in {i for i in ids if ids.count(i) > 1}:
            raise ValueError(f"two claims have the id {name!r}; give each its own")
        for scale in SCALES:
            primary = [c.id for c in self.claims if c.role == "primary" and scale in c.scales]
            if len(primary) > 3:
                raise ValueError(f"{len(primary)} primary claims at {scale} ({primary}); at most 3")
        return self

    def chance(self, task: str) -> dict[str, Number]:
        return self.tasks[task].chance if task in self.tasks else {}


def is_none(text: str) -> bool:
    """Whether it is 'none: why'."""
    return text.startswith("none")


def load_claims(path: Path) -> Claims:
    """claims.yaml, checked: known keys and words, unique ids, at most three primary a scale."""
    return read_as(Claims, load_yaml(path, str(path)) or {}, path.name)


def check_names(claims: Claims, arms: Collection[str], tasks: Collection[str], where: str) -> None:
    """Refuses an arm or task that the protocol does not have: it would only ever read NOT RUN."""
    for claim in claims.claims:
        place = f"{where}: claim {claim.id}"
        for text in [*claim.arms.named(), *claim.control_arms, *claim.positive]:
            arm, _, task = text.partition("@")
            one_of(arm, arms, f"{place}: arms, controls and sensitivity")
            if task:
                one_of(task, tasks, f"{place}: arms")
        for task in claim.listed_tasks():
            one_of(task, tasks, f"{place}: tasks")
    for target in claims.targets:
        place = f"{where}: target {target.reported}"
        for arm in filter(None, (target.arm, target.opponent)):
            one_of(arm, arms, place)
        for task in target.tasks:
            one_of(task, tasks, place)
    for task in claims.tasks:
        one_of(task, tasks, f"{where}: tasks")


def one_of(value: str, valid: Collection[str], where: str) -> None:
    """Refuses a word that is not valid and names the nearest that is."""
    if value not in valid:
        raise unknown(value, valid, where)
