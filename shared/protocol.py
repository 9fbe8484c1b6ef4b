"""Which runs a paper consists of, where they live, and whether a finished run still stands.

Reads `protocol.yaml` and `config.py` of a paper. Nothing here imports torch or a method, so that a
wrong key is refused, and a finished paper is recognised, within a second.

    run          one node (arm, task, seed)            runs/<paper>/<scale>/<task>/seed<k>/<arm>/
    stage        a run without a score that others use
    fingerprint  configuration, code, data, runs used; where it moved the run is made again
"""

from __future__ import annotations

import ast
import contextlib
import difflib
import functools
import hashlib
import importlib
import importlib.util
import json
import math
import os
import re
import sys
import time
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    ValidationError,
    ValidationInfo,
    create_model,
    field_validator,
    model_validator,
)

from shared import inputs
from shared.inputs import file_sha256 as sha256_file

SCALES = ("cpu", "gpu", "paper", "rehearsal")
BLOCK = 100  # verdict seeds of revision r begin at 100 (r + 1); seeds below 100 serve development
FEWEST = 5  # seeds that a verdict needs
# fields of Config that say where, not what; a device's kind stands elsewhere in the fingerprint
PLACE = {"out", "uses", "device"}

Key = tuple[str, str, int]  # arm, task, seed
Pair = tuple[str, str]  # arm, task
Import = tuple[int, str, tuple[str, ...]]  # level, module, names


class BadInput(ValueError):
    """A file, key or value of the user's that cannot be used; names it and the remedy."""


def unknown(key: object, valid: Iterable[object], where: str) -> BadInput:
    """The error for a key that does not exist, with the nearest one that does."""
    names = sorted(map(str, valid))
    near = difflib.get_close_matches(str(key), names, 1, 0.4)
    hint = f"did you mean '{near[0]}'?" if near else f"valid: {', '.join(names)}"
    return BadInput(f"{where}: unknown key '{key}'; {hint}")


def check_name(what: str, name: str) -> None:
    """Refuse what is no name of a folder: it could lead out of runs/."""
    if not re.fullmatch(r"\w[\w.+-]*", name):
        raise BadInput(f"{what} '{name}' is no name: letters and digits, with . _ + - inside")


# --- YAML files, read into typed models -------------------------------------------------------


class Document(BaseModel):
    """Base of what a YAML file holds. Unknown keys are refused; an empty value is a default."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _without_empty(cls, value: Any) -> Any:
        if not isinstance(value, Mapping | None):
            return value
        return {key: v for key, v in (value or {}).items() if v is not None}


D = TypeVar("D", bound=BaseModel)

# the beginning of pydantic's name of an error -> what belongs there instead
_WRITE = {
    "bool": "true or false", "int": "a whole number", "float": "a number", "string": "text",
    "list": "a list", "tuple": "a list", "dict": "a mapping", "model": "a mapping",
}  # fmt: skip


def read_as(
    model: type[D], document: Any, where: str, context: Any = None, strict: bool | None = None
) -> D:
    """`document`, as YAML or JSON gives it, as a `model`.

    BadInput names the place below `where` and the remedy: the nearest key or word, what is missing,
    or what to write. The elements of a list are named by their id where they have one.
    """
    try:
        return model.model_validate(document, strict=strict, context=context)
    except ValidationError as error:
        # a misspelt key is also a missing one: the misspelling is what helps
        errors = sorted(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
    first = errors[0]
    *above, last = first["loc"] or ("",)
    kind, value = first["type"], first["input"]
    if kind == "extra_forbidden":
        raise unknown(str(last), _keys_at(model, above), _place(where, document, above))
    if kind in ("missing", "string_too_short") or (value is None and kind != "value_error"):
        raise BadInput(f"{_place(where, document, above)}: {str(last)!r} is missing")
    # the members of a union fail one by one, at one place or below it
    at = [_place(where, document, e["loc"]) for e in errors]
    place = max((name for name in at if f"{name}.".startswith(f"{at[0]}.")), key=len)
    members = [e for e, name in zip(errors, at) if name == place]
    kind, value = members[0]["type"], members[0]["input"]
    if kind == "literal_error":
        choices = members[0]["ctx"]["expected"].replace("'", "").replace(" or ", ", ").split(", ")
        near = difflib.get_close_matches(str(value), choices, 1, 0.4)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise BadInput(f"{place}: '{value}' is not one of {', '.join(choices)}{hint}")
    if kind == "value_error":
        raise BadInput(f"{place}: {str(members[0]['ctx']['error']).removeprefix(': ')}")
    remedies = {_WRITE.get(e["type"].split("_")[0], "") for e in members} - {""}
    if "a number" in remedies:
        remedies -= {"a whole number"}
    remedy = " or ".join(sorted(remedies))
    raise BadInput(f"{place} is {value!r}; {f'write {remedy}' if remedy else members[0]['msg']}")


def _place(where: str, document: Any, keys: Sequence[str | int]) -> str:
    """'claims.yaml: claims.C1.kind': the path of `keys` in `document`."""
    names = []
    for key in keys:
        there = range(len(document)) if isinstance(document, list) else document
        if not isinstance(there, range | Mapping) or key not in there:
            continue  # the name of a union's member, which is nowhere in the file
        document = document[key]
        named = isinstance(key, int) and isinstance(document, Mapping)
        names.append(str(document.get("id", key)) if named else str(key))
    return ": ".join(filter(None, [where, ".".join(names)]))


def _keys_at(kind: Any, place: Sequence[str | int]) -> list[str]:
    """The keys that the annotation `kind` allows at `place` below it."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        fields = {f.alias or name: f.annotation for name, f in kind.model_fields.items()}
        if not place:
            return list(fields)
        return _keys_at(fields.get(str(place[0])), place[1:])
    origin = typing.get_origin(kind)
    inside = place[1:] if origin in (list, dict, tuple) else place
    return [key for part in typing.get_args(kind) for key in _keys_at(part, inside)]


class _Loader(yaml.SafeLoader):
    """YAML in which 1e-4 is a number (YAML 1.1 wants 1.0e-4), and a key is there once."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if twice := [name for name in names if names.count(name) > 1]:
            what = f"the key {twice[0]!r} is there twice"
            raise yaml.constructor.ConstructorError(problem=what, problem_mark=node.start_mark)
        return super().construct_mapping(node, deep)


_EXPONENT = re.compile(r"[-+]?[0-9]+(?:\.[0-9]*)?[eE][-+]?[0-9]+$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+0123456789"))


def load_yaml(path: Path, name: str) -> Any:
    """What a YAML file holds; BadInput, with the file's `name`, if it is missing or is not YAML."""
    if not path.exists():
        raise BadInput(f"{name} is missing")
    try:
        document = yaml.load(path.read_text(encoding="utf-8-sig"), _Loader)
        if _size(document, {}) > LARGEST_DOCUMENT:
            raise ValueError("its aliases unfold to more than a person can read")
    except (yaml.YAMLError, OSError, ValueError, RecursionError) as error:
        raise BadInput(f"{name} is not valid YAML: {error}") from error
    return document


LARGEST_DOCUMENT = 1_000_000  # entries


def _size(value: Any, sizes: dict[int, int]) -> int:
    """Entries of a document with its aliases unfolded; one that holds itself ends in an error."""
    if not isinstance(value, dict | list):
        return 1
    if id(value) not in sizes:
        sizes[id(value)] = LARGEST_DOCUMENT  # while it is being counted: it holds itself
        parts = value.values() if isinstance(value, dict) else value
        sizes[id(value)] = 1 + sum(_size(part, sizes) for part in parts)
    return sizes[id(value)]


# --- Config -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class RunConfig:
    """Which run this is, and where it is made."""

    # one protocol at four scales: cpu, gpu, paper or rehearsal
    scale: str = "cpu"
    # what is trained: the method, an opponent, a control or a stage; protocol.yaml lists them
    arm: str = ""
    # the data it is trained on; protocol.yaml lists them
    task: str = ""
    # 0-99 serve development, verdict seeds begin at 100
    seed: int = 0
    # auto, cpu, cuda or cuda:N
    device: str = "auto"
    # directory of the run; default runs/<paper>/<scale>/<task>/seed<k>/<arm>
    out: str = ""
    # directories of the runs that this one reads, by arm
    uses: dict[str, str] = field(default_factory=dict)


def config_class(config_py: Path) -> type[RunConfig]:
    """`Config` of a paper, from its `config.py`, which imports no method."""
    if not config_py.exists():
        folder = config_py.parent
        papers = [path.parent.name for path in folder.parent.glob("*/config.py")]
        raise unknown(folder.name, papers, f"{folder} is no paper of this repository")
    name = f"_config_of_{config_py.parent.name}"
    spec = importlib.util.spec_from_file_location(name, config_py)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses look their annotations up
    spec.loader.exec_module(module)
    return module.Config


def settings_model(config: type[RunConfig]) -> type[Document]:
    """The fields of `config` that a protocol may set, all optional, with their types there."""
    fields: dict[str, Any] = {}
    for name, hint in typing.get_type_hints(config).items():
        if name not in {"scale", "arm", "task", "seed", "out", "uses"}:
            default = getattr(config, name, None)
            number = AfterValidator(partial(_number, default))
            fields[name] = Annotated[hint, BeforeValidator(_as_tuple), number], default
    return create_model("Settings", __base__=Document, **fields)


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _number(default: Any, value: Any) -> Any:
    """A number must be finite, and at least 0 unless its default in Config is negative."""
    if isinstance(value, int | float):
        negative_too = isinstance(default, int | float) and default < 0
        if not math.isfinite(value) or (value < 0 and not negative_too):
            number = "finite number" + ("" if negative_too else " of at least 0")
            raise BadInput(f"{value} must be a {number} (its default is {default})")
    return value


# --- protocol.yaml ----------------------------------------------------------------------------


def _as_config_has_them(settings: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
    model = info.context or Document
    chosen = read_as(model, settings, "", strict=True)
    return {key: getattr(chosen, key) for key in settings if settings[key] is not None}


ScaleName = Literal["cpu", "gpu", "paper", "rehearsal"]
Settings = Annotated[dict[str, Any], AfterValidator(_as_config_has_them)]  # some fields of Config


class WithSettings(Document):
    """A mapping in which settings stand beside a few keys of other meaning."""

    set: Settings = {}

    @model_validator(mode="before")
    @classmethod
    def _without_empty(cls, value: Any) -> Any:
        value = value or {}
        settings = {k: v for k, v in value.items() if k not in cls.model_fields}
        return {"set": settings, **{k: v for k, v in value.items() if k not in settings}}


class Task(WithSettings):
    """A task of a scale. `core: false`: run with ARMS=all (or ONLY=) alone."""

    seeds: int | None = None
    core: bool = True


class At(WithSettings):
    """What an arm sets at one scale, also for single tasks."""

    tasks: dict[str, Settings] = {}


class Needs(Document):
    """What the runs of a scale need that is not bundled: names for `sources.available`.

    A run needs an input whose name (`glue/RTE`: also `rte`), or one of the words given after it,
    is its task or a value of its settings; an input that no run of the scale names, all need."""

    models: dict[str, list[str]] = {}
    data: dict[str, list[str]] = {}

    @field_validator("models", "data", mode="before")
    @classmethod
    def _names_alone(cls, names: Any) -> Any:
        return {name: [] for name in names} if isinstance(names, list) else names


class Scale(Document):
    """One scale. `like`: the scale that supplies what is not given, but for costs."""

    tasks: dict[str, Task] = {}
    seeds: int = 1
    core: list[str] | None = None
    set: Settings = {}
    jobs: int = 1
    needs: Needs = Needs()
    hours: float | None = None
    download_gb: float = 0.0
    disk_gb: float = 0.2
    like: ScaleName | None = None
    note: str = ""

    @field_validator("tasks", mode="before")
    @classmethod
    def _names_alone(cls, tasks: Any) -> Any:
        return {name: {} for name in tasks} if isinstance(tasks, list) else tasks


class Arm(Document):
    """A method, opponent, control or stage."""

    stage: bool = False
    uses: list[str] = []
    over: dict[Literal["task", "seed"], Literal["one"]] = {}
    set: Settings = {}
    scales: list[ScaleName] | None = None
    tasks: list[str] | None = None
    seeds: int | None = None  # the first so many of its tasks' seeds; else all of them
    at: dict[ScaleName, At] = {}
    note: str = ""


class Tiny(Document):
    """What `--tiny` runs."""

    arm: str
    task: str
    set: Settings = {}


class Plan(Document):
    """What the seeds of a primary claim can find (docs/verdicts.md, section 1)."""

    seeds: str  # of the pilot
    sd: float  # of its differences
    n: int
    detectable: float
    source: str
    short: str = ""  # why it is primary although it may miss what would matter


class ProtocolFile(Document):
    """protocol.yaml."""

    paper: str
    defaults: Settings = {}
    scales: dict[ScaleName, Scale] = {}
    arms: dict[str, Arm] = {}
    tiny: Tiny | None = None
    tuning: list[dict[str, Any]] = []
    plan: dict[ScaleName, dict[str, Plan]] = {}  # scale -> claim -> its plan
    note: str = ""

    @model_validator(mode="after")
    def _arms_exist(self) -> ProtocolFile:
        for arm in self.arms:
            check_name("arms: ", arm)
        for task in [task for scale in self.scales.values() for task in scale.tasks]:
            check_name("tasks: ", task)
        named = {f"arms.{name}.uses": arm.uses for name, arm in self.arms.items()}
        named |= {f"scales.{name}.core": scale.core or [] for name, scale in self.scales.items()}
        for place, arms in named.items():
            for arm in arms:
                if arm not in self.arms:
                    raise unknown(arm, self.arms, place)
        used = {arm for body in self.arms.values() for arm in body.uses}
        for arm, body in self.arms.items():
            if body.seeds is not None and arm in used:
                raise ValueError(f"arms.{arm}.seeds: others use its runs on all their seeds")
            if body.seeds is not None and body.seeds < FEWEST:
                raise ValueError(f"arms.{arm}.seeds is {body.seeds}; a verdict needs {FEWEST}")
        return self


COSTS = ("needs", "hours", "download_gb", "disk_gb", "jobs")  # not taken over by `like`


@dataclass(frozen=True)
class Node:
    """One run: `key` identifies it within a scale; `settings` are the resolved fields of Config."""

    arm: str
    task: str
    seed: int
    stage: bool
    settings: dict[str, Any] = field(hash=False, compare=False, default_factory=dict)
    uses: tuple[Key, ...] = ()

    @property
    def key(self) -> Key:
        return (self.arm, self.task, self.seed)


class Protocol:
    """`protocol.yaml` of one paper: arms, tasks, seeds and settings for each scale."""

    def __init__(self, directory: Path):
        self.directory = Path(directory).resolve()
        self.root = self.directory.parent
        self.paper = self.directory.name
        self.path = self.directory / "protocol.yaml"
        config = config_class(self.directory / "config.py")
        self.defaults = vars(config())  # every field of Config
        self._model = settings_model(config)
        where = f"{self.paper}/protocol.yaml"
        self.document = read_as(
            ProtocolFile, load_yaml(self.path, where), where, self._model, strict=True
        )
        if self.document.paper != self.paper:
            raise BadInput(f"{where}: paper is '{self.document.paper}', expected '{self.paper}'")

    def check(self, config: RunConfig) -> None:
        """Refuse values of a Config that a protocol could not give it."""
        values = {k: v for k, v in vars(config).items() if k in self._model.model_fields}
        read_as(self._model, values, "command line", strict=True)

    # -- what is to be run

    def scale(self, name: str) -> Scale:
        """The scale's description; `like: paper` supplies what is not given, but for costs."""
        scales: dict[Any, Scale] = dict(self.document.scales)
        if name not in scales:
            raise BadInput(f"{self.paper} has no scale '{name}'; it has {', '.join(scales)}")
        body = scales[name]
        if body.like is None:
            return body
        own = {key: getattr(body, key) for key in body.model_fields_set}
        base = {key: getattr(Scale(), key) for key in COSTS}
        return scales[body.like].model_copy(update=base | own)

    def _chain(self, scale: str) -> list[str]:
        """The scale, after the one that it is like."""
        like = self.scale(scale).like
        return [like, scale] if like else [scale]

    def tasks(self, scale: str) -> list[str]:
        return list(self.scale(scale).tasks)

    def revision(self) -> int:
        """How often claims or protocol were changed after scores had been seen."""
        return self._revision

    @functools.cached_property
    def _revision(self) -> int:
        claims = self.directory / "claims.yaml"
        if not claims.exists():
            return 0
        state = claims.stat()
        return _revisions(claims, state.st_size, state.st_mtime_ns)

    def seeds(self, scale: str, task: str | None = None, arm: str | None = None) -> list[int]:
        """Verdict seeds: n integers from 100 (r + 1) on; a rehearsal takes development seeds.

        Of the scale, or of a task, or of an arm there, which may take fewer."""
        body = self.scale(scale)
        counts = [body.tasks[t].seeds or body.seeds for t in ([task] if task else body.tasks)]
        first = 0 if scale == "rehearsal" else BLOCK * (self.revision() + 1)
        most = self.arm(arm).seeds if arm else None
        return list(range(first, first + max(counts, default=body.seeds)))[:most]

    def arm(self, name: str) -> Arm:
        if name not in self.document.arms:
            raise unknown(name, self.document.arms, f"{self.paper}: arm")
        return self.document.arms[name]

    def at_scale(self, arm: str, scale: str) -> bool:
        allowed = self.arm(arm).scales
        return scale == "tiny" or allowed is None or any(s in allowed for s in self._chain(scale))

    def arm_tasks(self, arm: str, scale: str) -> list[str]:
        only = self.arm(arm).tasks
        return [t for t in self.tasks(scale) if only is None or t in only]

    def settings(self, scale: str, arm: str, task: str) -> dict[str, Any]:
        """Fields of Config for one run: later layers win (see CONTRIBUTING, the protocol)."""
        of_arm, layers = self.arm(arm), [self.document.defaults]
        if scale == "tiny":
            layers += [of_arm.set, self.document.tiny.set if self.document.tiny else {}]
        else:
            scales: dict[Any, Scale] = dict(self.document.scales)
            for i, name in enumerate(self._chain(scale)):
                at = dict[Any, At](of_arm.at).get(name, At())
                layers += [scales[name].set, scales[name].tasks.get(task, Task()).set]
                layers += [of_arm.set] if i == 0 else []
                layers += [at.set, at.tasks.get(task, {})]
        return {key: value for layer in layers for key, value in layer.items()}

    def node(self, scale: str, arm: str, task: str, seed: int) -> Node:
        """One run with its resolved settings and the keys of the runs it uses."""
        body = self.arm(arm)
        check_name("task", task)
        self.check_task(scale, task)
        if not self.at_scale(arm, scale):
            only = ", ".join(body.scales or [])
            raise BadInput(f"{self.paper}: arm '{arm}' is not run at scale {scale} (only {only})")
        uses = tuple(self._used(scale, used, task, seed) for used in body.uses)
        return Node(arm, task, seed, body.stage, self.settings(scale, arm, task), uses)

    def _used(self, scale: str, arm: str, task: str, seed: int) -> Key:
        over = self.arm(arm).over
        if "seed" in over:
            seed -= seed % BLOCK
        if "task" in over and scale != "tiny":
            task = self.arm_tasks(arm, scale)[0]
        return (arm, task, seed)

    def selected(self, scale: str, arms: str = "core") -> list[str]:
        """Arms with a score that are run: the scale's `core` list, or all that the scale has."""
        core = self.scale(scale).core
        names = core if arms == "core" and core is not None else list(self.document.arms)
        return [a for a in names if self.at_scale(a, scale) and not self.arm(a).stage]

    def pairs(
        self, scale: str, arms: str = "core", only: Sequence[str] = (), tasks: Sequence[str] = ()
    ) -> list[Pair]:
        """(arm, task) of the runs with a score: a scale's core, or these arms, or these tasks."""
        for name in only:
            if not self.at_scale(name, scale):
                self.node(scale, name, self.tasks(scale)[0], 0)  # raises the right message
        for task in tasks:
            self.check_task(scale, task)
        whole = bool(only) or arms != "core"
        bodies = self.scale(scale).tasks
        chosen = tasks or [name for name, body in bodies.items() if whole or body.core]
        names = only or self.selected(scale, arms)
        on = {name: self.arm_tasks(name, scale) for name in names}
        pairs = [(name, task) for task in chosen for name in names if task in on[name]]
        if not pairs and (only or tasks):
            remedy = f"has tasks {', '.join(self.tasks(scale))}"
            listed = f"{', '.join(names)} on {', '.join(chosen)}"
            raise BadInput(f"{self.paper}: no run of {listed} at scale {scale}, which {remedy}")
        return pairs

    def check_task(self, scale: str, task: str) -> None:
        """Refuse a task that the scale does not have; name a scale that has it, or the nearest."""
        if scale == "tiny" or task in self.tasks(scale):
            return
        where = f"{self.paper}: task at scale {scale}"
        if others := [name for name in self.document.scales if task in self.tasks(name)]:
            tasks = ", ".join(self.tasks(scale))
            raise BadInput(f"{where}: not '{task}' but {tasks}; SCALE={others[0]} has '{task}'")
        raise unknown(task, self.tasks(scale), where)

    def nodes(
        self,
        scale: str,
        arms: str = "core",
        only: Sequence[str] = (),
        seeds: int | None = None,
        tasks: Sequence[str] = (),
        pairs: Sequence[Pair] | None = None,
    ) -> list[Node]:
        """The runs of these pairs, by default of the scale, and all that they use.

        Seed by seed, and in a seed task by task, stages first: what is compared ends together.
        """
        pairs = self.pairs(scale, arms, only, tasks) if pairs is None else pairs
        of_pair = {pair: self.seeds(scale, pair[1], pair[0])[:seeds] for pair in pairs}
        nodes: dict[Key, Node] = {}
        for seed in sorted({seed for chosen in of_pair.values() for seed in chosen}):
            for task in dict.fromkeys(task for _, task in pairs):
                group: dict[Key, Node] = {}
                for arm in (a for (a, of), s in of_pair.items() if of == task and seed in s):
                    self._add((arm, task, seed), scale, nodes, group)
                nodes |= sorted(group.items(), key=lambda item: not item[1].stage)
        return list(nodes.values())

    def _add(self, key: Key, scale: str, nodes: dict[Key, Node], group: dict[Key, Node]) -> None:
        """Put a run into `group` after those that it uses, unless `nodes` has it."""
        if key not in nodes and key not in group:
            node = self.node(scale, *key)
            for used in node.uses:
                self._add(used, scale, nodes, group)
            group[key] = node

    def inputs(self, scale: str, nodes: Iterable[Node]) -> list[tuple[str, str]]:
        """("model" or "data", name) of what these runs need and is not bundled, see `Needs`."""
        needs = self.scale(scale).needs
        listed = [("model", *item) for item in needs.models.items()]
        listed += [("data", *item) for item in needs.data.items()]
        if not listed:
            return []
        asked, anywhere = self._words(nodes), self._words(self.nodes(scale, "all"))

        def needed(name: str, words: list[str]) -> bool:
            names = {_plain(word) for word in (name, name.rpartition("/")[2], *words)}
            return bool(names & asked) or not names & anywhere

        return [(kind, name) for kind, name, words in listed if needed(name, words)]

    def _words(self, nodes: Iterable[Node]) -> set[str]:
        """Tasks and values of settings of these runs; one run for all tasks is of no task."""
        words: set[str] = set()
        for node in nodes:
            words |= {_plain(node.task)} if "task" not in self.arm(node.arm).over else set()
            for value in node.settings.values():
                several = value if isinstance(value, list | tuple) else [value]
                words |= {_plain(word) for word in several if isinstance(word, str)}
        return words

    def config(self, scale: str, node: Node) -> dict[str, Any]:
        """Every field of Config for a node, as JSON values."""
        values = self.defaults | node.settings
        uses = {key[0]: str(self.run_directory(scale, key)) for key in node.uses}
        run = {"scale": scale, "arm": node.arm, "task": node.task, "seed": node.seed, "uses": uses}
        return values | run

    def run_directory(self, scale: str, key: Key) -> Path:
        arm, task, seed = key
        return runs_root(self.root) / self.paper / scale / task / f"seed{seed}" / arm


def _plain(word: str) -> str:
    return re.sub(r"[-_]", "", word).casefold()


@functools.lru_cache
def _revisions(claims: Path, size: int, modified: int) -> int:
    return len((load_yaml(claims, claims.name) or {}).get("revisions") or [])


def _without(values: Mapping[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    return {k: v for k, v in values.items() if k not in keys}


def runs_root(root: Path) -> Path:
    return Path(os.environ.get("REPRO_RUNS") or inputs.writable(root) / "runs")


# --- fingerprints -----------------------------------------------------------------------------


def sha256_json(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=list)
    return hashlib.sha256(text.encode()).hexdigest()


def sha256_yaml(path: Path) -> str:
    """sha256 of what a YAML file says: not its comments and layout, nor any `note` or `source`."""

    def meaning(value: Any) -> Any:
        if isinstance(value, Mapping):
            decisive = (k for k in value if k not in {"note", "source"})
            return {str(k): meaning(value[k]) for k in decisive}
        return list(map(meaning, value)) if isinstance(value, list) else repr(value)

    return sha256_json(meaning(load_yaml(path, path.name)))


def config_sha256(config: dict[str, Any]) -> str:
    return sha256_json(_without(config, PLACE))


def _meaning(node: Any) -> Any:
    """A syntax tree as nested lists: no docstrings and other bare strings, comments, layout."""
    if isinstance(node, ast.AST):
        fields = [[n, _meaning(v)] for n, v in ast.iter_fields(node) if n not in {"kind", "ctx"}]
        return [type(node).__name__, *(f for f in fields if f[1] not in (None, []))]
    if isinstance(node, list):
        return [_meaning(n) for n in node if not _is_words(n)]
    return None if node is None else f"{type(node).__name__} {node!r}"


def _is_words(node: Any) -> bool:
    value = getattr(node, "value", None) if isinstance(node, ast.Expr) else None
    return isinstance(value, ast.Constant) and isinstance(value.value, str)


@functools.lru_cache(maxsize=1024)
def _parsed(path: str, size: int, modified: int) -> tuple[str, list[Import]]:
    """(sha256 of what a Python file means, its imports)."""
    tree = ast.parse(Path(path).read_text(encoding="utf-8"))
    imports: list[Import] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imports += [(0, alias.name, ()) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            imports.append((node.level, node.module or "", tuple(a.name for a in node.names)))
    return sha256_json(_meaning(tree)), imports


def _parsed_file(path: Path) -> tuple[str, list[Import]]:
    state = path.stat()
    return _parsed(str(path), state.st_size, state.st_mtime_ns)


def code_files(train_py: Path) -> list[str]:
    """`train_py` and the repository's own files that it imports, directly or not.

    Read in the text: the answer does not depend on what a process happened to import before."""
    root, files, todo = train_py.parent.parent, set(), [train_py]
    while todo:
        path = todo.pop()
        if path in files or not path.exists():
            continue
        files.add(path)
        for level, module, names in _parsed_file(path)[1]:
            module = f"{path.parent.name}.{module}".strip(".") if level else module
            for name in (module, *(f"{module}.{n}" for n in names)):
                parts = name.split(".")
                if parts[0] in {train_py.parent.name, "shared"}:
                    todo += [
                        root / parts[0] / "__init__.py",
                        root.joinpath(*parts).with_suffix(".py"),
                    ]
    return sorted(str(p.relative_to(root)) for p in files)


def code_hashes(train_py: Path) -> dict[str, str]:
    """sha256 of the meaning of each file that a run imports: words and layout do not change it."""
    root = train_py.parent.parent
    return {name: _parsed_file(root / name)[0] for name in code_files(train_py)}


def _sources() -> dict[Path, str | None]:
    """Text of the repository's files; None for one edited since this process began."""
    try:
        ticks = int(Path("/proc/self/stat").read_text("utf-8").rsplit(")", 1)[1].split()[19])
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
        age -= 0.02  # as exact as these clocks are; Python needs longer to read its first file
    except (OSError, AttributeError):  # off Linux
        age = 0.0
    now = time.time()
    packages = [train_py.parent for train_py in inputs.ROOT.glob("*/train.py")]
    files = [path for p in [inputs.ROOT / "shared", *packages] for path in p.rglob("*.py")]
    edited = {path for path in files if now - age < path.stat().st_mtime <= now}
    return {path: None if path in edited else path.read_text("utf-8") for path in files}


_AS_IMPORTED = _sources()  # taken while the process imports: later edits do not run in it


@functools.cache
def imported_code(train_py: Path) -> dict[str, str]:
    """`code_hashes` of what this process imported: taken once, whatever is edited later.

    All of it is imported here, so that nothing is read later. BadInput if a file was edited while
    the process began: then nobody knows which of the two was imported."""
    hashes, root = code_hashes(train_py), train_py.parent.parent
    for name in hashes:
        path = root / name
        if path in _AS_IMPORTED and _AS_IMPORTED[path] != path.read_text("utf-8"):
            what = f"{name} was edited while this process began"
            raise BadInput(f"{what}; give the same command again")
        module = name.removesuffix(".py").replace("/", ".")
        if path != train_py and name.endswith(".py") and not name.endswith("__init__.py"):
            with contextlib.suppress(ImportError):  # of a package that is not installed
                importlib.import_module(module)
    return hashes


VOLATILE = {
    *("created", "commit", "environment", "seconds", "cpu_seconds", "peak_memory_mb"),
    "files",  # `state_sha256` says what a run trained; these may hold times
}


def record_sha256(record: dict[str, Any]) -> str:
    """Hash of a run's outcome, without times, memory, machine and places."""
    fingerprint = record.get("fingerprint") or {}
    data = {name: source["sha256"] for name, source in (fingerprint.get("data") or {}).items()}
    outcome = {**_without(fingerprint, {"asked"}), "data": data}
    return sha256_json(_without(record, {*VOLATILE, "config"}) | {"fingerprint": outcome})


def read_record(directory: Path) -> dict[str, Any] | None:
    """The run's record, or None if there is none that can be read."""
    try:
        record = json.loads((directory / "record.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def stale(directory: Path, config: dict[str, Any], code: dict[str, str]) -> str | None:
    """Why the run in `directory` must be made (again); None if its record stands.

    code: `code_hashes(train.py)`."""
    record = read_record(directory)
    if record is None:
        return "record.json cannot be read" if (directory / "record.json").exists() else "no record"
    if any(record.get(k) != config[k] for k in ("scale", "arm", "task", "seed")):
        return "record.json is that of another run"
    try:
        return _stale(directory, record, config, code)
    except BadInput:
        raise
    except (LookupError, TypeError, AttributeError, ValueError, OSError):  # whatever it holds
        return "record.json is not as a run writes it"


def _stale(
    directory: Path, record: dict[str, Any], config: dict[str, Any], code: dict[str, str]
) -> str | None:
    fingerprint, old = record["fingerprint"], {**(record.get("config") or {})}
    read = inputs.ReadLog(fingerprint.get("data") or {}, fingerprint.get("asked") or {})
    texts = [*(entry["sha256"] for entry in read.values()), *read.asked.values()]
    texts += [gate["id"] for gate in record["gates"]] + [*{**record["splits"]}]
    numeric = all(isinstance(number, float | int) for number in {**record["metrics"]}.values())
    "".join(texts)  # raises for a hash or a name that is no text
    if not numeric or record["status"] not in ("finished", "diverged"):
        raise TypeError("no outcome")
    if fingerprint.get("config") != config_sha256(config):
        moved = [
            k for k in _without(config, PLACE) if sha256_json(old.get(k)) != sha256_json(config[k])
        ]
        changes = ", ".join(f"{k} {old.get(k)!r} -> {config[k]!r}" for k in moved)
        return f"settings changed: {changes or 'fields'}"
    old_code = {**(fingerprint.get("code") or {})}
    if old_code != code:
        files = sorted(k for k in {*code, *old_code} if code.get(k) != old_code.get(k))
        return f"code changed: {', '.join(files)}"
    from shared import machine  # which needs this file

    now = machine.fingerprint(config["device"])
    if reason := machine.moved(fingerprint.get("machine") or {}, now):
        return reason
    if reason := inputs.changed(read, config):
        return reason
    for arm, sha256 in (fingerprint.get("uses") or {}).items():
        used = read_record(Path(config["uses"][arm])) if arm in config["uses"] else None
        if used is None or record_sha256(used) != sha256:
            return f"the run it uses changed: {arm}"
    expected, predictions = record.get("predictions_sha256"), directory / "predictions.npz"
    if expected and not (predictions.is_file() and sha256_file(predictions) == expected):
        return "predictions.npz does not match its record"
    return altered(directory, record)


def unusable(directory: Path, paper: str, arm: str) -> str | None:
    """Why the run in `directory` cannot be what another one uses as `arm`; None if it can."""
    record = read_record(directory) or {}
    if record.get("status") != "finished":
        return str(record.get("status", "not finished"))
    if (record.get("paper"), record.get("arm")) != (paper, arm):
        return f"is arm {record.get('arm')} of {record.get('paper')}"
    try:
        record_sha256(record), record["fingerprint"]["code"]
        record["gradient_evaluations_with_uses"] + 0
        return altered(directory, record)
    except (LookupError, TypeError, AttributeError, OSError):
        return "has a record that no run wrote"


def altered(directory: Path, record: dict[str, Any]) -> str | None:
    """The first file of a run, in words, that is not as it was when the record was written."""
    for name, sha256 in {**(record.get("files") or {})}.items():
        path = directory / name
        if not path.is_file() or inputs.file_sha256(path) != sha256:
            return f"{name} does not match its record"
    return None
