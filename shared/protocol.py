"""Which runs a paper consists of, where they live, and whether a finished run still stands.

Reads `protocol.yaml` and the `Config` class of a paper's `train.py` *as text*: nothing here imports torch or a
method, so that a wrong key is refused, and a finished paper is recognised, within a second.

    run        one node (arm, task, seed)            runs/<paper>/<scale>/<task>/seed<k>/<arm>/
    stage      a run without a score that others use
    fingerprint  configuration + code + data read + runs used; a run whose fingerprint moved is made again
"""

from __future__ import annotations

import ast
import contextlib
import difflib
import functools
import hashlib
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

SCALES = ("cpu", "gpu", "paper", "rehearsal")
BLOCK = 100  # verdict seeds of revision r begin at 100 (r + 1); seeds below 100 serve development
PLACE = {
    "out",
    "uses",
    "device",
}  # fields of Config that say where, not what: outside the fingerprint

_TOP = {"paper", "defaults", "scales", "arms", "tiny", "tuning", "note"}
_SCALE = {
    "tasks",
    "seeds",
    "core",
    "set",
    "jobs",
    "needs",
    "hours",
    "download_gb",
    "disk_gb",
    "like",
    "note",
}
_TASK = {
    "seeds",
    "core",
}  # of a task, beside settings; `core: false`: run with ARMS=all (or ONLY=) alone
_ARM = {"stage", "uses", "over", "set", "scales", "tasks", "at", "note"}


class BadInput(ValueError):
    """A file, key or value from the user that cannot be used; the message names it and the remedy."""


def unknown(key: str, valid: Any, where: str) -> BadInput:
    """The error for a key that does not exist, with the nearest one that does."""
    names = sorted(map(str, valid))
    near = difflib.get_close_matches(str(key), names, 1, 0.4)
    hint = f"did you mean '{near[0]}'?" if near else f"valid: {', '.join(names)}"
    return BadInput(f"{where}: unknown key '{key}'; {hint}")


def _check_keys(given: dict[str, Any] | None, valid: Any, where: str) -> dict[str, Any]:
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise BadInput(f"{where}: expected a mapping, got {type(given).__name__} ({given!r})")
    for key in given:
        if key not in valid:
            raise unknown(key, valid, where)
    return given


# --- Config, read as text ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RunConfig:
    """The fields every paper's `Config` begins with."""

    # cpu, gpu, paper or rehearsal: four scales of one protocol
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
    name: str
    annotation: str
    default: Any


def _fields_of(node: ast.ClassDef) -> list[Field]:
    found = []
    for item in node.body:
        if (
            isinstance(item, ast.AnnAssign)
            and isinstance(item.target, ast.Name)
            and item.value is not None
        ):
            try:
                default = ast.literal_eval(item.value)
            except ValueError:  # field(default_factory=dict | list | tuple)
                default = {} if "dict" in ast.unparse(item.value) else ()
            found.append(Field(item.target.id, ast.unparse(item.annotation), default))
    return found


def config_fields(train_py: Path) -> dict[str, Field]:
    """Fields of `Config` in `train_py` (those of RunConfig first), without importing the file."""
    if not train_py.exists():
        raise BadInput(
            f"{train_py} does not exist: '{train_py.parent.name}' is not a paper of this repository"
        )
    own = [
        n
        for n in ast.parse(train_py.read_text()).body
        if isinstance(n, ast.ClassDef) and n.name == "Config"
    ]
    if not own:
        raise BadInput(f"{train_py}: no class Config")
    base = [
        n
        for n in ast.parse(Path(__file__).read_text()).body
        if isinstance(n, ast.ClassDef) and n.name == "RunConfig"
    ]
    return {f.name: f for f in _fields_of(base[0]) + _fields_of(own[0])}


_SIMPLE: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (int, float),
    "str": (str,),
    "bool": (bool,),
    "None": (type(None),),
}


def _check_type(name: str, value: Any, annotation: str, where: str) -> Any:
    """Refuse a value that does not fit the annotation; integers given for floats become floats."""
    parts = [p.strip() for p in annotation.split("|")]
    if any(p not in _SIMPLE for p in parts):
        if annotation.startswith("Literal["):
            choices = ast.literal_eval("(" + annotation[len("Literal[") : -1] + ",)")
            if value not in choices:
                raise BadInput(
                    f"{where}: {name} = {value!r} is not one of {', '.join(map(str, choices))}"
                )
        return tuple(value) if isinstance(value, list) else value
    if isinstance(value, str) and "float" in parts and "str" not in parts:
        with contextlib.suppress(ValueError):
            value = float(value)  # YAML reads 1e-4 as text
    allowed = tuple(t for p in parts for t in _SIMPLE[p])
    if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed):
        raise BadInput(
            f"{where}: {name} = {value!r} is {type(value).__name__}, expected {annotation}"
        )
    return (
        float(value)
        if "float" in parts and "int" not in parts and isinstance(value, int)
        else value
    )


# --- nodes -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Node:
    """One run: `key` identifies it within a scale; `settings` are the resolved fields of Config."""

    arm: str
    task: str
    seed: int
    stage: bool
    settings: dict[str, Any] = field(hash=False, compare=False, default_factory=dict)
    uses: tuple[tuple[str, str, int], ...] = ()

    @property
    def key(self) -> tuple[str, str, int]:
        return (self.arm, self.task, self.seed)


class Protocol:
    """`protocol.yaml` of one paper: arms, tasks, seeds and settings for each scale."""

    def __init__(self, directory: Path):
        self.directory = Path(directory).resolve()
        self.root = self.directory.parent
        self.paper = self.directory.name
        self.path = self.directory / "protocol.yaml"
        self.fields = config_fields(self.directory / "train.py")
        if not self.path.exists():
            raise BadInput(f"{self.paper}/protocol.yaml is missing")
        try:
            self.document = yaml.safe_load(self.path.read_text()) or {}
        except yaml.YAMLError as error:
            raise BadInput(f"{self.paper}/protocol.yaml is not valid YAML: {error}") from error
        self._check()

    # -- reading and refusing

    def _check(self) -> None:
        where = f"{self.paper}/protocol.yaml"
        _check_keys(self.document, _TOP, where)
        if self.document.get("paper") != self.paper:
            raise BadInput(
                f"{where}: paper is '{self.document.get('paper')}', expected '{self.paper}'"
            )
        self._check_settings(self.document.get("defaults"), f"{where}: defaults")
        self.arms: dict[str, dict[str, Any]] = {
            k: v or {} for k, v in (self.document.get("arms") or {}).items()
        }
        for scale, body in (self.document.get("scales") or {}).items():
            if scale not in SCALES:
                raise unknown(scale, SCALES, f"{where}: scales")
            _check_keys(body, _SCALE, f"{where}: scales.{scale}")
            self._check_settings(body.get("set"), f"{where}: scales.{scale}.set")
            for task, values in self._tasks(body).items():
                extra = {k: v for k, v in (values or {}).items() if k not in _TASK}
                self._check_settings(extra, f"{where}: scales.{scale}.tasks.{task}")
            for arm in body.get("core") or []:
                if arm not in self.arms:
                    raise unknown(arm, self.arms, f"{where}: scales.{scale}.core")
        for arm, body in self.arms.items():
            here = f"{where}: arms.{arm}"
            _check_keys(body, _ARM, here)
            self._check_settings(body.get("set"), f"{here}.set")
            for used in body.get("uses") or []:
                if used not in self.arms:
                    raise unknown(used, self.arms, f"{here}.uses")
            for scale, values in _check_keys(body.get("at"), SCALES, f"{here}.at").items():
                plain = {k: v for k, v in (values or {}).items() if k != "tasks"}
                self._check_settings(plain, f"{here}.at.{scale}")
                for task, more in ((values or {}).get("tasks") or {}).items():
                    self._check_settings(more, f"{here}.at.{scale}.tasks.{task}")
            for scale in body.get("scales") or []:
                if scale not in SCALES:
                    raise unknown(scale, SCALES, f"{here}.scales")
        tiny = _check_keys(self.document.get("tiny"), {"arm", "task", "set"}, f"{where}: tiny")
        self._check_settings(tiny.get("set"), f"{where}: tiny.set")

    def _check_settings(self, values: dict[str, Any] | None, where: str) -> dict[str, Any]:
        values = _check_keys(
            values, set(self.fields) - {"scale", "arm", "task", "seed", "out", "uses"}, where
        )
        return self.check_numbers(
            {k: _check_type(k, v, self.fields[k].annotation, where) for k, v in values.items()},
            where,
        )

    def check_numbers(self, values: dict[str, Any], where: str) -> dict[str, Any]:
        """`values`, or BadInput: a number must be finite, and at least 0 unless its default in Config is negative."""
        for key, value in values.items():
            if isinstance(value, int | float):
                default = self.fields[key].default
                negative_too = isinstance(default, int | float) and default < 0
                if not math.isfinite(value) or (value < 0 and not negative_too):
                    least = "" if negative_too else " of at least 0"
                    raise BadInput(
                        f"{where}: {key} = {value} must be a finite number{least} (its default is {default})"
                    )
        return values

    @staticmethod
    def _tasks(body: dict[str, Any]) -> dict[str, dict[str, Any]]:
        tasks = body.get("tasks") or {}
        return (
            {t: {} for t in tasks}
            if isinstance(tasks, list)
            else {t: v or {} for t, v in tasks.items()}
        )

    def scale(self, name: str) -> dict[str, Any]:
        """The scale's description; `like: paper` supplies what is not given."""
        scales = self.document.get("scales") or {}
        if name not in scales:
            raise BadInput(f"{self.paper} has no scale '{name}'; it has {', '.join(scales)}")
        body = dict(scales[name])
        if "like" not in body:
            return body
        costs = {
            "needs",
            "hours",
            "download_gb",
            "disk_gb",
            "jobs",
        }  # those of the other scale do not hold here
        return {**{k: v for k, v in scales[body["like"]].items() if k not in costs}, **body}

    def _chain(self, scale: str) -> list[str]:
        like = (self.document.get("scales") or {}).get(scale, {}).get("like")
        return [like, scale] if like else [scale]

    # -- what is to be run

    def tasks(self, scale: str) -> list[str]:
        return list(self._tasks(self.scale(scale)))

    def revision(self) -> int:
        claims = self.directory / "claims.yaml"
        if not claims.exists():
            return 0
        return len((yaml.safe_load(claims.read_text()) or {}).get("revisions") or [])

    def seeds(self, scale: str, task: str | None = None) -> list[int]:
        """Verdict seeds: n consecutive integers from 100 (r + 1); a rehearsal takes development seeds."""
        body = self.scale(scale)
        tasks = self._tasks(body)
        count = body.get("seeds", 1)
        counts = [tasks[t].get("seeds", count) for t in ([task] if task else tasks)]
        first = 0 if scale == "rehearsal" else BLOCK * (self.revision() + 1)
        return list(range(first, first + max(counts, default=count)))

    def arm(self, name: str) -> dict[str, Any]:
        if name not in self.arms:
            raise unknown(name, self.arms, f"{self.paper}: arm")
        return self.arms[name]

    def at_scale(self, arm: str, scale: str) -> bool:
        allowed = self.arm(arm).get("scales")
        return scale == "tiny" or allowed is None or any(s in allowed for s in self._chain(scale))

    def arm_tasks(self, arm: str, scale: str) -> list[str]:
        own = self.arm(arm).get("tasks")
        return [t for t in self.tasks(scale) if own is None or t in own]

    def settings(self, scale: str, arm: str, task: str) -> dict[str, Any]:
        """Fields of Config for one run: later entries of this list win (see CONTRIBUTING, the protocol)."""
        layers: list[dict[str, Any] | None] = [self.document.get("defaults")]
        if scale == "tiny":
            layers += [self.arm(arm).get("set"), (self.document.get("tiny") or {}).get("set")]
        else:
            for step, name in enumerate(self._chain(scale)):
                body = (self.document["scales"])[name]
                of_task = {
                    k: v for k, v in self._tasks(body).get(task, {}).items() if k not in _TASK
                }
                at = (self.arm(arm).get("at") or {}).get(name) or {}
                layers += [body.get("set"), of_task]
                layers += [self.arm(arm).get("set")] if step == 0 else []
                layers += [
                    {k: v for k, v in at.items() if k != "tasks"},
                    (at.get("tasks") or {}).get(task),
                ]
        merged: dict[str, Any] = {}
        for layer in layers:
            merged.update(self._check_settings(layer, f"{self.paper}/protocol.yaml"))
        return merged

    def node(self, scale: str, arm: str, task: str, seed: int) -> Node:
        """One run with its resolved settings and the keys of the runs it uses."""
        body = self.arm(arm)
        if scale != "tiny" and task not in self.tasks(scale):
            raise unknown(task, self.tasks(scale), f"{self.paper}: task at scale {scale}")
        if not self.at_scale(arm, scale):
            raise BadInput(
                f"{self.paper}: arm '{arm}' is not run at scale {scale} (only {', '.join(body['scales'])})"
            )
        uses = tuple(self._used(scale, used, task, seed) for used in body.get("uses") or [])
        return Node(arm, task, seed, bool(body.get("stage")), self.settings(scale, arm, task), uses)

    def _used(self, scale: str, arm: str, task: str, seed: int) -> tuple[str, str, int]:
        over = self.arm(arm).get("over") or {}
        if over.get("seed") == "one":
            seed -= seed % BLOCK
        if over.get("task") == "one" and scale != "tiny":
            task = self.arm_tasks(arm, scale)[0]
        return (arm, task, seed)

    def selected(self, scale: str, arms: str = "core") -> list[str]:
        """Arms with a score that are run: the scale's `core` list, or all that the scale has."""
        core = self.scale(scale).get("core")
        names = core if arms == "core" and core is not None else list(self.arms)
        return [a for a in names if self.at_scale(a, scale) and not self.arm(a).get("stage")]

    def nodes(
        self,
        scale: str,
        arms: str = "core",
        only: list[str] | None = None,
        seeds: int | None = None,
    ) -> list[Node]:
        """All runs of a scale, stages before their users, seed by seed."""
        names = self.selected(scale, arms)
        for name in only or []:
            if not self.at_scale(name, scale):
                self.node(scale, name, self.tasks(scale)[0], 0)  # raises the right message
        names = list(only) if only else names
        found: dict[tuple[str, str, int], Node] = {}

        def add(arm: str, task: str, seed: int) -> None:
            if (arm, task, seed) not in found:
                node = self.node(scale, arm, task, seed)
                for used in node.uses:
                    add(*used)
                found[node.key] = node

        per_task = {
            t: self.seeds(scale, t)[:seeds]
            if only or arms != "core" or values.get("core", True)
            else []
            for t, values in self._tasks(self.scale(scale)).items()
        }
        for seed in sorted({seed for seeds_ in per_task.values() for seed in seeds_}):
            for name in names:
                for task in self.arm_tasks(name, scale):
                    if seed in per_task[task]:
                        add(name, task, seed)
        return list(found.values())

    def config(self, scale: str, node: Node) -> dict[str, Any]:
        """Every field of Config for a node, as JSON values."""
        values = {name: f.default for name, f in self.fields.items()}
        values.update(node.settings)
        values.update(scale=scale, arm=node.arm, task=node.task, seed=node.seed)
        values["uses"] = {k[0]: str(self.run_directory(scale, k)) for k in node.uses}
        return values

    def run_directory(self, scale: str, key: tuple[str, str, int]) -> Path:
        arm, task, seed = key
        return runs_root(self.root) / self.paper / scale / task / f"seed{seed}" / arm


def runs_root(root: Path) -> Path:
    return Path(os.environ.get("REPRO_RUNS") or root / "runs")


# --- fingerprints --------------------------------------------------------------------------------------------------


def sha256_json(value: Any) -> str:
    return hashlib.sha256(
        json.dumps(value, sort_keys=True, separators=(",", ":"), default=list).encode()
    ).hexdigest()


@functools.lru_cache(maxsize=4096)
def _sha256_of_state(path: str, size: int, modified: int) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_file(path: Path | str) -> str:
    """sha256 of a file's bytes; asked twice of an untouched file, it is read once."""
    state = os.stat(path)
    return _sha256_of_state(str(path), state.st_size, state.st_mtime_ns)


def config_sha256(config: dict[str, Any]) -> str:
    return sha256_json({k: v for k, v in config.items() if k not in PLACE})


def code_files(train_py: Path) -> list[str]:
    """The repository's own files that `train_py` imports, directly or not (also inside functions), and itself.

    Found in the text, so the answer does not depend on what a process happened to import before."""
    root = train_py.parent.parent
    seen: set[Path] = set()
    todo = [train_py]
    while todo:
        path = todo.pop()
        if path in seen or not path.exists():
            continue
        seen.add(path)
        package = path.parent.name
        for node in ast.walk(ast.parse(path.read_text())):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [a.name for a in node.names]
            elif isinstance(node, ast.ImportFrom):
                module = (
                    f"{package}.{node.module or ''}".strip(".") if node.level else node.module or ""
                )
                names = [module] + [f"{module}.{a.name}" for a in node.names]
            for name in names:
                parts = name.split(".")
                if parts[0] in {train_py.parent.name, "shared"}:
                    todo.append(root / parts[0] / "__init__.py")
                    todo.append(root.joinpath(*parts).with_suffix(".py"))
    return sorted(str(p.relative_to(root)) for p in seen)


def code_hashes(train_py: Path) -> dict[str, str]:
    root = train_py.parent.parent
    return {name: sha256_file(root / name) for name in code_files(train_py)}


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
    """Hash of what a run found; times, memory, machine and places are left out, so that equal runs have equal hashes."""
    found = {k: v for k, v in record.items() if k not in VOLATILE}
    seen = record.get("fingerprint") or {}
    found["fingerprint"] = {
        **seen,
        "data": {k: v["sha256"] for k, v in (seen.get("data") or {}).items()},
    }
    return sha256_json(found)


def read_record(directory: Path) -> dict[str, Any] | None:
    """The run's record, or None if there is none that can be read."""
    try:
        found = json.loads((directory / "record.json").read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def stale(directory: Path, config: dict[str, Any], code: dict[str, str]) -> str | None:
    """Why the run in `directory` must be made (again); None if its record stands. `code`: `code_hashes(train.py)`."""
    record = read_record(directory)
    if record is None:
        return (
            "no record"
            if not (directory / "record.json").exists()
            else "record.json cannot be read"
        )
    if any(record.get(k) != config[k] for k in ("arm", "task", "seed")):
        return "record.json is that of another run"
    print_of = record.get("fingerprint") or {}
    if print_of.get("config") != config_sha256(config):
        old = record.get("config") or {}
        moved = [
            k
            for k in config
            if k not in PLACE and sha256_json(old.get(k)) != sha256_json(config[k])
        ]
        return f"settings changed: {', '.join(f'{k} {old.get(k)!r} -> {config[k]!r}' for k in moved) or 'fields'}"
    if print_of.get("code") != code:
        old_code = print_of.get("code") or {}
        return f"code changed: {', '.join(sorted(k for k in set(code) | set(old_code) if code.get(k) != old_code.get(k)))}"
    for name, seen in (print_of.get("data") or {}).items():
        path = seen.get("path")
        if path and Path(path).exists() and sha256_file(Path(path)) != seen["sha256"]:
            return f"data changed: {name}"
    for arm, seen in (print_of.get("uses") or {}).items():
        used = read_record(Path(config["uses"][arm])) if arm in config["uses"] else None
        if used is None or record_sha256(used) != seen:
            return f"the run it uses changed: {arm}"
    predictions = directory / "predictions.npz"
    if record.get("predictions_sha256") and (
        not predictions.exists() or sha256_file(predictions) != record["predictions_sha256"]
    ):
        return "predictions.npz does not match its record"
    return None


# --- documents as models ------------------------------------------------------------------------


Model = TypeVar("Model", bound=BaseModel)

# The beginning of pydantic's name of an error -> what belongs there instead.
_WRITE = {
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "string": "text",
    "list": "a list",
    "tuple": "a list",
    "dict": "a mapping",
    "model": "a mapping",
}


def read_as(model: type[Model], document: Any, where: str) -> Model:
    """`document`, as YAML or JSON gives it, as a `model`.

    BadInput names the place below `where` and the remedy: the nearest key or word, what is
    missing, or what to write. The elements of a list are named by their id where they have one.
    """
    try:
        return model.model_validate(document)
    except ValidationError as error:
        # a misspelt key is also a missing one: the misspelling is what helps
        first = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
    *above, last = first["loc"] or ("",)
    kind, value = first["type"], first["input"]
    if kind == "extra_forbidden":
        keys = _keys_at(model, above)
        raise unknown(str(last), keys, _place(where, document, above))
    if kind in ("missing", "string_too_short") or (value is None and kind != "value_error"):
        raise BadInput(f"{_place(where, document, above)}: {str(last)!r} is missing")
    place = _place(where, document, first["loc"])
    if kind == "literal_error":
        raise unknown(str(value), re.findall(r"'([^']*)'", first["ctx"]["expected"]), place)
    if kind == "value_error":
        raise BadInput(f"{place}: {first['ctx']['error']}")
    remedy = _WRITE.get(kind.split("_")[0])
    raise BadInput(f"{place} is {value!r}; {f'write {remedy}' if remedy else first['msg']}")


def _place(where: str, document: Any, keys: Sequence[str | int]) -> str:
    """'claims.yaml: claims.C1.kind': the path of `keys` in `document`."""
    names = []
    for key in keys:
        if isinstance(document, list) and isinstance(key, int):
            document = document[key]
        elif isinstance(document, Mapping) and key in document:
            document = document[key]
        else:  # the name of a union's member, which is nowhere in the file
            continue
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
    inside = place[1:] if get_origin(kind) in (list, dict, tuple) else place
    return [key for part in get_args(kind) for key in _keys_at(part, inside)]
