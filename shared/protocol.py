"""Which runs a paper consists of, where they live, and whether a finished run still stands.

Reads `protocol.yaml` and `config.py` of a paper. Nothing here imports torch or a method, so that a wrong key is
refused, and a finished paper is recognised, within a second.

    run          one node (arm, task, seed)            runs/<paper>/<scale>/<task>/seed<k>/<arm>/
    stage        a run without a score that others use
    fingerprint  configuration + code + data read + runs used; a run whose fingerprint moved is made again
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import functools
import hashlib
import importlib.util
import json
import math
import os
import sys
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

SCALES = ("cpu", "gpu", "paper", "rehearsal")
BLOCK = 100  # verdict seeds of revision r begin at 100 (r + 1); seeds below 100 serve development
PLACE = {
    "out",
    "uses",
    "device",
}  # fields of Config that say where, not what: outside the fingerprint

Key = tuple[str, str, int]  # arm, task, seed
Settings = dict[str, Any]  # some fields of Config, as YAML has them


class BadInput(ValueError):
    """A file, key or value from the user that cannot be used; the message names it and the remedy."""


def unknown(key: object, valid: Iterable[object], where: str) -> BadInput:
    """The error for a key that does not exist, with the nearest one that does."""
    names = sorted(map(str, valid))
    near = difflib.get_close_matches(str(key), names, 1, 0.4)
    hint = f"did you mean '{near[0]}'?" if near else f"valid: {', '.join(names)}"
    return BadInput(f"{where}: unknown key '{key}'; {hint}")


# --- YAML files, read into typed models ------------------------------------------------------------------------


class Document(BaseModel):
    """Base of what a YAML file holds. Unknown keys are refused; an empty value is a default."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, value: object) -> object:
        if value is None:
            return {}
        if not isinstance(value, Mapping):
            raise BadInput(f"expected a mapping, got {type(value).__name__} ({value!r})")
        for key in value:
            if key not in cls.model_fields:
                raise unknown(key, cls.model_fields, "")
        return {key: v for key, v in value.items() if v is not None}


D = TypeVar("D", bound=BaseModel)


def read_as(model: type[D], document: object, where: str) -> D:
    """`document` as a `model`, or BadInput with the place, the value and what was expected."""
    try:
        return model.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        place = f"{where}: {'.'.join(str(x) for x in first['loc'] if x != '[key]')}".rstrip(": ")
        refused = first.get("ctx", {}).get("error")
        if isinstance(refused, BadInput):
            raise BadInput(f"{place}: {str(refused).removeprefix(': ')}") from error
        if first["type"] == "missing":
            raise BadInput(f"{place} is missing") from error
        if first["type"] == "literal_error":
            choices = first["ctx"]["expected"].replace("'", "").replace(" or ", ", ").split(", ")
            raise unknown(first["input"], choices, place) from error
        if first["type"] == "dict_type":
            kind = type(first["input"]).__name__
            raise BadInput(
                f"{place}: expected a mapping, got {kind} ({first['input']!r})"
            ) from error
        raise BadInput(f"{place}: {first['input']!r}: {first['msg']}") from error


# --- Config ----------------------------------------------------------------------------------------------------


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


@dataclass(frozen=True)
class Field:
    """One field of a paper's Config. `type`: its annotation, resolved."""

    name: str
    type: Any
    default: Any


def config_fields(config_py: Path) -> dict[str, Field]:
    """Fields of `Config` in a paper's `config.py` (those of RunConfig first). The file imports no method."""
    if not config_py.exists():
        raise BadInput(
            f"{config_py} does not exist: '{config_py.parent.name}' is no paper of this repository"
        )
    name = f"_config_of_{config_py.parent.name}"
    spec = importlib.util.spec_from_file_location(name, config_py)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses look their annotations up
    spec.loader.exec_module(module)
    config = module.Config()
    hints = typing.get_type_hints(module.Config)
    fields = [
        Field(f.name, hints[f.name], getattr(config, f.name)) for f in dataclasses.fields(config)
    ]
    first = [f.name for f in dataclasses.fields(RunConfig)]
    return {f.name: f for f in sorted(fields, key=lambda f: f.name not in first)}


def fitted(value: Any, hint: Any, where: str) -> Any:
    """`value` as the annotation `hint` has it (a list becomes a tuple, 1 becomes 1.0), or BadInput."""
    kind, parts = typing.get_origin(hint), typing.get_args(hint)
    if kind is Literal:
        if value in parts and type(value) in map(type, parts):
            return value
        near = difflib.get_close_matches(str(value), list(map(str, parts)), 1, 0.4)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise BadInput(f"{where} = {value!r} is not one of {', '.join(map(str, parts))}{hint}")
    if kind in (types.UnionType, typing.Union):
        for part in parts:
            try:
                return fitted(value, part, where)
            except BadInput as error:
                refused = error
        raise refused
    if kind is tuple and isinstance(value, list | tuple):
        return tuple(fitted(item, parts[0], where) for item in value)
    if hint is float and isinstance(value, str):  # YAML reads 1e-4 as text
        try:
            return float(value)
        except ValueError:
            pass
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, kind or hint) and not (isinstance(value, bool) and hint is not bool):
        return value
    wanted = getattr(hint, "__name__", str(hint))
    raise BadInput(f"{where} = {value!r} is {type(value).__name__}, expected {wanted}")


# --- protocol.yaml -----------------------------------------------------------------------------------------------

ScaleName = Literal["cpu", "gpu", "paper", "rehearsal"]


class Needs(Document):
    """What a scale needs that is not bundled: names for `sources.available`."""

    models: list[str] = []
    data: list[str] = []


class Scale(Document):
    """One scale of the protocol. A task may have settings of its own, `seeds`, and `core: false`."""

    tasks: dict[str, Settings] = {}
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

    @model_validator(mode="before")
    @classmethod
    def _tasks_without_settings(cls, value: Any) -> Any:
        tasks = value.get("tasks") if isinstance(value, Mapping) else None
        if tasks:
            pairs = (
                tasks.items() if isinstance(tasks, Mapping) else ((name, None) for name in tasks)
            )
            value = {**value, "tasks": {name: settings or {} for name, settings in pairs}}
        return value


class Arm(Document):
    """A method, opponent, control or stage. `at`: settings for one scale, `tasks` among them for one task."""

    stage: bool = False
    uses: list[str] = []
    over: dict[Literal["task", "seed"], Literal["one"]] = {}
    set: Settings = {}
    scales: list[ScaleName] | None = None
    tasks: list[str] | None = None
    at: dict[ScaleName, Settings] = {}
    note: str = ""


class Tiny(Document):
    """What `--tiny` runs."""

    arm: str
    task: str
    set: Settings = {}


class ProtocolFile(Document):
    """protocol.yaml."""

    paper: str
    defaults: Settings = {}
    scales: dict[ScaleName, Scale] = {}
    arms: dict[str, Arm] = {}
    tiny: Tiny | None = None
    tuning: list[dict[str, Any]] = []
    note: str = ""

    @model_validator(mode="before")
    @classmethod
    def _arms_without_words(cls, value: Any) -> Any:
        arms = value.get("arms") if isinstance(value, Mapping) else None
        return {**value, "arms": {k: v or {} for k, v in arms.items()}} if arms else value


OF_TASK = {"seeds", "core"}  # keys of a task that are no settings
COSTS = ("needs", "hours", "download_gb", "disk_gb", "jobs")  # not taken over by `like`


@dataclass(frozen=True)
class Node:
    """One run: `key` identifies it within a scale; `settings` are the resolved fields of Config."""

    arm: str
    task: str
    seed: int
    stage: bool
    settings: Settings = field(hash=False, compare=False, default_factory=dict)
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
        self.fields = config_fields(self.directory / "config.py")
        if not self.path.exists():
            raise BadInput(f"{self.paper}/protocol.yaml is missing")
        self.where = f"{self.paper}/protocol.yaml"
        try:
            document = yaml.safe_load(self.path.read_text(encoding="utf-8"))
        except yaml.YAMLError as error:
            raise BadInput(f"{self.where} is not valid YAML: {error}") from error
        self.document = read_as(ProtocolFile, document, self.where)
        self._check()

    def _check(self) -> None:
        """Names and settings that the document's own types cannot know."""
        if self.document.paper != self.paper:
            raise BadInput(
                f"{self.where}: paper is '{self.document.paper}', expected '{self.paper}'"
            )
        for name, scale in self.document.scales.items():
            for arm in scale.core or []:
                self._arm_named(arm, f"scales.{name}.core")
        for name, body in self.document.arms.items():
            for used in body.uses:
                self._arm_named(used, f"arms.{name}.uses")
        for place, settings in self._blocks():
            self.checked(settings, f"{self.where}: {place}")

    def _arm_named(self, arm: str, place: str) -> None:
        if arm not in self.document.arms:
            raise unknown(arm, self.document.arms, f"{self.where}: {place}")

    def _blocks(self) -> Iterable[tuple[str, Settings]]:
        """Every block of settings in the file, with its place."""
        yield "defaults", self.document.defaults
        for name, scale in self.document.scales.items():
            yield f"scales.{name}.set", scale.set
            for task, settings in scale.tasks.items():
                yield f"scales.{name}.tasks.{task}", _without(settings, OF_TASK)
        for name, arm in self.document.arms.items():
            yield f"arms.{name}.set", arm.set
            for scale_name, settings in arm.at.items():
                yield f"arms.{name}.at.{scale_name}", _without(settings, {"tasks"})
                for task, more in (settings.get("tasks") or {}).items():
                    yield f"arms.{name}.at.{scale_name}.tasks.{task}", more
        if self.document.tiny:
            yield "tiny.set", self.document.tiny.set

    def checked(self, settings: Settings, where: str) -> Settings:
        """`settings` with values as Config has them; unknown keys and values that do not fit are refused.

        A number must be finite, and at least 0 unless its default in Config is negative."""
        fields = _without(self.fields, {"scale", "arm", "task", "seed", "out", "uses"})
        for key in settings:
            if key not in fields:
                raise unknown(key, fields, where)
        values = {k: fitted(v, fields[k].type, f"{where}: {k}") for k, v in settings.items()}
        self.check_numbers(values, where)
        return values

    def check_numbers(self, values: Settings, where: str) -> None:
        for key, value in values.items():
            if isinstance(value, int | float):
                default = self.fields[key].default
                at_least = -math.inf if isinstance(default, int | float) and default < 0 else 0
                if not (math.isfinite(value) and value >= at_least):
                    bound = " of at least 0" if at_least == 0 else ""
                    raise BadInput(
                        f"{where}: {key} = {value} must be a finite number{bound} (its default is {default})"
                    )

    # -- what is to be run

    def scale(self, name: str) -> Scale:
        """The scale's description; `like: paper` supplies what is not given, but for costs."""
        scales: Mapping[str, Scale] = self.document.scales
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
        claims = self.directory / "claims.yaml"
        if not claims.exists():
            return 0
        return len(
            (yaml.safe_load(claims.read_text(encoding="utf-8")) or {}).get("revisions") or []
        )

    def seeds(self, scale: str, task: str | None = None) -> list[int]:
        """Verdict seeds: n consecutive integers from 100 (r + 1); a rehearsal takes development seeds."""
        body = self.scale(scale)
        counts = [body.tasks[t].get("seeds", body.seeds) for t in ([task] if task else body.tasks)]
        first = 0 if scale == "rehearsal" else BLOCK * (self.revision() + 1)
        return list(range(first, first + max(counts, default=body.seeds)))

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

    def settings(self, scale: str, arm: str, task: str) -> Settings:
        """Fields of Config for one run: later layers win (see CONTRIBUTING, the protocol)."""
        of_arm, layers = self.arm(arm), [self.document.defaults]
        if scale == "tiny":
            layers += [of_arm.set, self.document.tiny.set if self.document.tiny else {}]
        else:
            for name in self._chain(scale):
                body: Scale = self.document.scales[name]  # type: ignore[index]
                at = of_arm.at.get(name, {})  # type: ignore[call-overload]
                layers += [body.set, _without(body.tasks.get(task, {}), OF_TASK)]
                layers += [of_arm.set] if name == self._chain(scale)[0] else []
                layers += [_without(at, {"tasks"}), (at.get("tasks") or {}).get(task) or {}]
        merged = {key: value for layer in layers for key, value in layer.items()}
        return self.checked(merged, self.where)

    def node(self, scale: str, arm: str, task: str, seed: int) -> Node:
        """One run with its resolved settings and the keys of the runs it uses."""
        body = self.arm(arm)
        if scale != "tiny" and task not in self.tasks(scale):
            raise unknown(task, self.tasks(scale), f"{self.paper}: task at scale {scale}")
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

    def nodes(
        self,
        scale: str,
        arms: str = "core",
        only: list[str] | None = None,
        seeds: int | None = None,
    ) -> list[Node]:
        """All runs of a scale, stages before their users, seed by seed."""
        names = only or self.selected(scale, arms)
        for name in only or []:
            if not self.at_scale(name, scale):
                self.node(scale, name, self.tasks(scale)[0], 0)  # raises the right message
        nodes: dict[Key, Node] = {}

        def add(key: Key) -> None:
            if key not in nodes:
                node = self.node(scale, *key)
                for used in node.uses:
                    add(used)
                nodes[key] = node

        whole = bool(only) or arms != "core"
        of_task = {
            task: self.seeds(scale, task)[:seeds] if whole or settings.get("core", True) else []
            for task, settings in self.scale(scale).tasks.items()
        }
        for seed in sorted({seed for chosen in of_task.values() for seed in chosen}):
            for name in names:
                for task in self.arm_tasks(name, scale):
                    if seed in of_task[task]:
                        add((name, task, seed))
        return list(nodes.values())

    def config(self, scale: str, node: Node) -> dict[str, Any]:
        """Every field of Config for a node, as JSON values."""
        values = {name: f.default for name, f in self.fields.items()} | node.settings
        uses = {key[0]: str(self.run_directory(scale, key)) for key in node.uses}
        run = {"scale": scale, "arm": node.arm, "task": node.task, "seed": node.seed, "uses": uses}
        return values | run

    def run_directory(self, scale: str, key: Key) -> Path:
        arm, task, seed = key
        return runs_root(self.root) / self.paper / scale / task / f"seed{seed}" / arm


def _without(values: Mapping[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    return {k: v for k, v in values.items() if k not in keys}


def runs_root(root: Path) -> Path:
    return Path(os.environ.get("REPRO_RUNS") or root / "runs")


# --- fingerprints --------------------------------------------------------------------------------------------------


def sha256_json(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=list)
    return hashlib.sha256(text.encode()).hexdigest()


@functools.lru_cache(maxsize=4096)
def _sha256_of_state(path: str, size: int, modified: int) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_file(path: Path | str) -> str:
    """sha256 of a file's bytes; asked twice of an untouched file, it is read once."""
    state = os.stat(path)
    return _sha256_of_state(str(path), state.st_size, state.st_mtime_ns)


def config_sha256(config: dict[str, Any]) -> str:
    return sha256_json(_without(config, PLACE))


def _meaning(node: Any) -> Any:
    """A syntax tree as nested lists, without docstrings and other bare strings, comments, layout and line numbers."""
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
def _parsed(
    path: str, size: int, modified: int
) -> tuple[str, tuple[tuple[int, str, tuple[str, ...]], ...]]:
    """(sha256 of what a Python file means, its imports: level, module, names)."""
    tree = ast.parse(Path(path).read_text(encoding="utf-8"))
    imports = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imports += [(0, alias.name, ()) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            imports.append((node.level, node.module or "", tuple(a.name for a in node.names)))
    return sha256_json(_meaning(tree)), tuple(imports)


def _parsed_file(path: Path) -> tuple[str, tuple[tuple[int, str, tuple[str, ...]], ...]]:
    state = path.stat()
    return _parsed(str(path), state.st_size, state.st_mtime_ns)


def code_files(train_py: Path) -> list[str]:
    """The repository's own files that `train_py` imports, directly or not (also inside functions), and itself.

    Read in the text, so the answer does not depend on what a process happened to import before."""
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


VOLATILE = {
    "created",
    "commit",
    "environment",
    "seconds",
    "cpu_seconds",
    "peak_memory_mb",
    "config",
}


def record_sha256(record: dict[str, Any]) -> str:
    """Hash of a run's outcome, without times, memory, machine and places."""
    fingerprint = record.get("fingerprint") or {}
    data = {name: source["sha256"] for name, source in (fingerprint.get("data") or {}).items()}
    return sha256_json(_without(record, VOLATILE) | {"fingerprint": {**fingerprint, "data": data}})


def read_record(directory: Path) -> dict[str, Any] | None:
    """The run's record, or None if there is none that can be read."""
    try:
        record = json.loads((directory / "record.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None


def stale(directory: Path, config: dict[str, Any], code: dict[str, str]) -> str | None:
    """Why the run in `directory` must be made (again); None if its record stands.

    `code`: `code_hashes(train.py)`."""
    record = read_record(directory)
    if record is None:
        return "record.json cannot be read" if (directory / "record.json").exists() else "no record"
    if any(record.get(k) != config[k] for k in ("arm", "task", "seed")):
        return "record.json is that of another run"
    fingerprint = record.get("fingerprint") or {}
    if fingerprint.get("config") != config_sha256(config):
        old = record.get("config") or {}
        moved = [
            k for k in _without(config, PLACE) if sha256_json(old.get(k)) != sha256_json(config[k])
        ]
        changes = ", ".join(f"{k} {old.get(k)!r} -> {config[k]!r}" for k in moved)
        return f"settings changed: {changes or 'fields'}"
    old_code = fingerprint.get("code") or {}
    if old_code != code:
        files = sorted(k for k in {*code, *old_code} if code.get(k) != old_code.get(k))
        return f"code changed: {', '.join(files)}"
    for name, source in (fingerprint.get("data") or {}).items():
        path = source.get("path")
        if path and Path(path).exists() and sha256_file(Path(path)) != source["sha256"]:
            return f"data changed: {name}"
    for arm, sha256 in (fingerprint.get("uses") or {}).items():
        used = read_record(Path(config["uses"][arm])) if arm in config["uses"] else None
        if used is None or record_sha256(used) != sha256:
            return f"the run it uses changed: {arm}"
    expected, predictions = record.get("predictions_sha256"), directory / "predictions.npz"
    if expected and not (predictions.exists() and sha256_file(predictions) == expected):
        return "predictions.npz does not match its record"
    return None
