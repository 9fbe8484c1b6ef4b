"""One run, from its first line to its record: phases, checkpoints, gates, cache, command line.

    with runs.start(config, __file__) as run:
        if run.finished:
            return run.directory
        work = runs.Parts(model=model, optimizer=optimizer)
        for step in run.phase("training", config.steps, work):
            ...
        run.finish(metrics=..., state=[...])

Phases stand one after the other. A run that was stopped or killed goes on, bit for bit, in the
phase where its newest good checkpoint is; phases before it are put back at their end and yield
nothing. A run is finished when `record.json`, written last and by one rename, is there and its
fingerprint still holds (`protocol.stale`).
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import dataclasses
import fcntl
import hashlib
import importlib
import json
import math
import os
import re
import shutil
import signal
import sys
import time
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
import torch

import shared
from shared import inputs, machine, processes, protocol
from shared.inputs import cache_root as cache_root
from shared.machine import commit as commit
from shared.machine import device as device
from shared.protocol import PLACE, BadInput, RunConfig
from shared.stored import (
    WRITTEN,
    begun_in,
    changed_at,
    delete_run,
    files_in,
    foreign_in,
    pack,
    plain,
    put_aside,
    put_back,
    refuse_foreign,
    same_run,
    save_arrays,
    state_sha256,
    unpack,
    write_bytes,
    write_json,
)
from shared.stored import Damaged as Damaged
from shared.stored import cached as cached
from shared.stored import load_arrays as load_arrays

CHECKPOINT_SECONDS = 60.0  # how much work an unannounced kill may cost; never moves a score
C = TypeVar("C", bound=RunConfig)
Rows = TypeVar("Rows", np.ndarray, torch.Tensor)


class Stopped(Exception):
    """The run was asked to stop; its checkpoint is written and the same command continues it."""


class Diverged(Exception):
    """A loss or vector is not finite. Names the level, the step and the batch."""

    def __init__(self, level: str, step: int, batch: Any = None, value: float = float("nan")):
        self.level, self.step, self.batch = level, step, batch
        items = "" if batch is None else f", batch items {np.asarray(batch).ravel()[:16].tolist()}"
        advice = "lower the learning rate or look at these items"
        super().__init__(f"{level} level: value {value} at step {step}{items}; {advice}")


# --- randomness, batches, rates ---------------------------------------------------------------


def _number(seed: int, names: Iterable[Any]) -> int:
    text = "\x1f".join([str(int(seed)), *map(str, names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def stream(seed: int, *names: Any) -> torch.Generator:
    """A CPU generator for one purpose (`"split"`, `"head"`, ...), independent of every other.

    Leave the arm's name out where arms of a seed should share the draw."""
    return torch.Generator().manual_seed(_number(seed, names))


def seed_global(seed: int, *names: Any) -> None:
    """Set torch's global generators, which dropout draws from: all arms share a step's masks."""
    number = _number(seed, names)
    if torch.cuda.is_available():
        torch.manual_seed(number)
    else:  # the same state; torch.manual_seed also formats a traceback for a CUDA that may come
        torch.default_generator.manual_seed(number)


class Batches(typing.Generic[Rows]):
    """Rows of the batch of step t: an endless pass over `rows`, reshuffled every epoch.

    rows: (n,) row numbers. names: of the stream that each epoch's order is drawn from. What is left
    after the last whole batch is dropped, or with `keep_last` is a smaller batch of its own.
    BadInput where there is nothing to draw from."""

    def __init__(self, rows: Rows, size: int, seed: int, *names: Any, keep_last: bool = False):
        if len(rows) == 0 or size < 1:
            raise BadInput(f"batches of {size} from {len(rows)} rows: both must be at least 1")
        self.size, self.seed, self.names = min(size, len(rows)), seed, names
        self.per_epoch = -(-len(rows) // self.size) if keep_last else len(rows) // self.size
        self.rows: Rows = rows
        self._order: Rows = rows
        self._epoch = -1

    def __call__(self, step: int) -> Rows:
        epoch, place = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            order = torch.randperm(len(self.rows), generator=stream(self.seed, *self.names, epoch))
            index = order.numpy() if isinstance(self.rows, np.ndarray) else order
            self._epoch, self._order = epoch, self.rows[index]  # type: ignore[index]
        return self._order[place * self.size : (place + 1) * self.size]


def schedule(
    kind: Literal["constant", "linear", "cosine"], step: float, total: float, warmup: float = 0
) -> float:
    """Factor of the learning rate at `step` of `total`: up to 1 within `warmup` steps, then to 0.

    The first step of the warm-up already moves: (step + 1) / warmup. `constant` stays at 1."""
    if step < warmup:
        return (step + 1) / warmup
    if kind == "constant":
        return 1.0
    rest = max(1, total - warmup)
    if kind == "linear":
        return (total - step) / rest
    return (1 + math.cos(math.pi * min(1.0, (step - warmup) / rest))) / 2


# --- stopping ---------------------------------------------------------------------------------

_stop_asked: Callable[[], bool] = bool  # a worker puts its event's `is_set` here
_worker = False  # inside a worker of the judge: lines go to log.txt alone


def be_worker(stop_asked: Callable[[], bool]) -> None:
    """Called once by a worker process: its stop signal, and no progress on the terminal."""
    global _stop_asked, _worker
    _stop_asked, _worker = stop_asked, True


def _stop_on_signals() -> None:
    """First Ctrl-C or SIGTERM: finish the step, checkpoint, leave. The second: at once."""
    global _stop_asked
    asked: list[int] = []

    def handler(number: int, frame: Any) -> None:
        if number in asked:  # a launcher hands Ctrl-C on as SIGTERM: that is not the second time
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        asked.append(number)
        print("\nstopping after this step (again: at once)", file=sys.stderr, flush=True)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handler)
    _stop_asked = lambda: bool(asked)  # noqa: E731


# --- what a phase changes ---------------------------------------------------------------------


class Work(Protocol):
    """All that a phase changes: `state()` is read at a checkpoint, `load(state)` puts it back."""

    def state(self) -> dict[str, Any]: ...

    def load(self, state: Any) -> None: ...


class Parts:
    """The work of a phase, part by part: modules, optimisers, generators, lists of tensors, lists,
    dicts. Tensors are written in place, lists and dicts refilled: all who hold them see the change.
    """

    def __init__(self, **parts: Any):
        self.parts = parts

    def state(self) -> dict[str, Any]:
        return {name: _state_of(part) for name, part in self.parts.items()}

    def load(self, state: Any) -> None:
        for name, part in self.parts.items():
            _load_into(part, state[name])


def _state_of(part: Any) -> Any:
    if isinstance(part, torch.Generator):
        return part.get_state()
    return part.state_dict() if hasattr(part, "state_dict") else part


def _load_into(part: Any, value: Any) -> None:
    if isinstance(part, torch.Generator):
        part.set_state(value)
    elif hasattr(part, "load_state_dict"):
        part.load_state_dict(value)
    elif isinstance(part, list) and part and all(isinstance(x, torch.Tensor) for x in part):
        for tensor, saved in zip(part, value, strict=True):
            tensor.data.copy_(saved)
    elif isinstance(part, list):
        part[:] = value
    elif isinstance(part, dict):
        part.clear()
        part.update(value)
    else:
        kind = type(part).__name__
        raise TypeError(f"a {kind} cannot be part of a checkpoint; use a list or a dict")


class Saved(dict[str, Any]):
    """A checkpoint's content; a missing field is an error that names it."""

    def __missing__(self, key: str) -> Any:
        lacking = f"the checkpoint lacks '{key}' (it has {', '.join(map(str, self))})"
        raise BadInput(f"{lacking}; delete checkpoint/ to start over")


# --- a run ------------------------------------------------------------------------------------


class Run:
    """What a run writes: config.json, metrics.jsonl, log.txt, splits.npz, checkpoint/,
    predictions.npz, record.json."""

    def __init__(self, config: RunConfig, file: str):
        self.config = config
        self.train_py = Path(file).resolve()
        self.paper = self.train_py.parent.name
        self.root = self.train_py.parent.parent
        place = (config.scale, config.task, f"seed{config.seed}", config.arm)
        for name in place if not config.out else ():
            protocol.check_name("scale, task or arm", name)
        default = protocol.runs_root(self.root).joinpath(self.paper, *place)
        self.directory = Path(config.out) if config.out else default
        self.name = f"{self.paper} {config.scale} {config.arm} {config.task} {config.seed}"
        self.fields = json.loads(json.dumps(dataclasses.asdict(config), default=plain))
        self.code = protocol.imported_code(self.train_py)
        self.machine = machine.fingerprint(config.device)
        self.finished = False
        self.gates: list[dict[str, Any]] = []
        self.read = inputs.ReadLog()  # noted by the loaders of shared/
        self._older = self.directory / "older"  # the run before, until this one is recorded
        self._set_aside = False
        self._foreign: dict[str, int] = {}  # files that were there at the beginning: when changed
        self._splits: dict[str, str] = {}
        self._hashes: dict[str, str | None] = {"split_sha256": None, "predictions_sha256": None}
        self._spent = {"seconds": 0.0, "cpu_seconds": 0.0}  # by interrupted calls
        self._saved: dict[str, Any] | None = None  # phases of the checkpoint, once looked for
        self._over: dict[str, tuple[int, Any]] = {}  # phases that are over: steps, state at the end

    # -- opening

    def open(self) -> None:
        """Look at what is there: a finished run, one to go on with, one to make again."""
        for arm, used in self.config.uses.items():
            if status := protocol.unusable(Path(used), self.paper, arm):
                remedy = f"train it first or give --uses.{arm} DIR"
                raise BadInput(f"{self.name}: the run it uses, {arm}, {status} in {used}; {remedy}")
        reason = protocol.stale(self.directory, self.fields, self.code)
        if reason is None:
            self.finished = True
            if not _worker:
                record = self.directory / "record.json"
                print(f"{self.name}: finished before; {record} holds", flush=True)
            return
        device(self.config)  # refused here, where nothing of an older run has been touched
        begun = {"config": self.fields, "code": self.code, "uses": self._used_hashes()}
        begun["machine"] = self.machine
        before = begun_in(self.directory)
        interrupted = reason == "no record" and same_run(before, begun)
        again = bool(before) and not interrupted
        if again:
            self._make_room()
        elif not before and begun_in(self._older):  # killed while it was put aside, or back
            put_aside(self.directory)
        foreign = foreign_in(self.directory)
        self._foreign = {name: changed_at(self.directory / name) for name in foreign}
        write_json(self.directory / "config.json", begun)
        if again:
            changed = "settings, code or packages changed since it was interrupted"
            self.say(f"{self.name}: made again, {changed if reason == 'no record' else reason}")
        machine.peak_memory_mb(self.config.device, reset=True)
        self._clock = time.monotonic(), time.process_time()

    def _make_room(self) -> None:
        """Put an older run aside, until this one is recorded; one that is aside already stays."""
        refuse_foreign(self.directory)
        if self._older.exists():
            delete_run(self.directory, but=("older",))
            return
        put_aside(self.directory)
        self._set_aside = True

    def put_back(self) -> None:
        """The older run takes its place again: this one was refused before it had begun."""
        if self._set_aside:
            delete_run(self.directory, but=("older",))
            put_back(self.directory)

    def list_files(self) -> list[str]:
        """Note what the paper wrote in this run: all that was not there when it began."""
        users = {x for x, when in self._foreign.items() if changed_at(self.directory / x) == when}
        names = [name for name in files_in(self.directory) if name[:6] != "older/"]
        if written := [x for x in names if x not in users and not WRITTEN.fullmatch(x)]:
            write_json(self.directory / "files.json", written)
        return written

    def _used_hashes(self) -> dict[str, str]:
        used = {arm: protocol.read_record(Path(d)) or {} for arm, d in self.config.uses.items()}
        return {arm: protocol.record_sha256(record) for arm, record in used.items()}

    # -- telling

    def say(self, text: str) -> None:
        """One line in log.txt, and on the terminal when run by hand."""
        if self.directory.exists():
            with open(
                self.directory / "log.txt", "a", encoding="utf-8", errors="backslashreplace"
            ) as log:
                log.write(f"{time.strftime('%H:%M:%S')} {text}\n")
        if not _worker and processes.rank() == 0:
            print(text, flush=True)

    def log(self, **values: Any) -> None:
        """One line of metrics.jsonl; every key is explained in the method's README."""
        with open(self.directory / "metrics.jsonl", "a", encoding="utf-8") as log:
            log.write(json.dumps(values, default=plain) + "\n")

    def gate(self, id: str, passed: bool, detail: str = "") -> None:
        """Record a mechanical check that claims.yaml lists (docs/verdicts.md, section 7)."""
        entry = {"id": id, "passed": bool(passed), "detail": detail}
        if entry not in self.gates:  # a run that goes on may meet it again
            self.gates.append(entry)
        if not passed:
            self.say(f"gate {id} FAILED: {detail}")

    def finite(self, value: torch.Tensor | float, level: str, step: int, batch: Any = None) -> None:
        """Stop at once if a loss or vector is not finite, naming level, step and batch."""
        values = value if isinstance(value, torch.Tensor) else torch.as_tensor(value)
        if not torch.isfinite(values).all():
            raise Diverged(level, step, batch, float(values.detach().double().sum()))

    # -- data

    def splits(self, **parts: Any) -> None:
        """Store which items each level sees. Parts must be disjoint: a shared item would leak."""
        arrays = {k: np.asarray(v) for k, v in parts.items()}
        part_of: dict[Any, str] = {}
        for name, ids in arrays.items():
            if len(ids) == 0:
                raise BadInput(f"{self.name}: the part '{name}' of the data is empty")
            for item in ids.tolist():
                if (other := part_of.setdefault(item, name)) != name:
                    both = f"both in '{other}' and in '{name}'"
                    raise BadInput(f"{self.name}: item {item!r} is {both}")
        save_arrays(self.directory / "splits.npz", arrays)
        self._splits = {k: protocol.sha256_json(v.tolist()) for k, v in arrays.items()}
        self._hashes["split_sha256"] = protocol.sha256_json(self._splits)

    # -- phases

    def phase(self, name: str, steps: int, work: Work | None = None) -> Iterator[int]:
        """Steps 0 .. steps - 1 of one phase: progress, a checkpoint every minute, a clean stop.

        `work` holds all that the phase changes. After an interruption the phase goes on where its
        checkpoint is; one that was over is put back at its end and yields nothing. Each phase of a
        run has a name of its own.
        """
        work = work or Parts()
        if self._saved is None:
            self._saved = processes.broadcast(self._resume() if processes.rank() == 0 else {})
        if name in self._over:
            raise ValueError(f"two phases of {self.name} are called '{name}'")
        start, state = self._saved.get(name, (0, None))
        if state is not None:
            work.load(Saved(state))
        yield from self._steps(name, start, steps, work)
        # a copy: later phases may go on with its tensors
        self._over[name] = steps, copy.deepcopy(work.state())

    def _steps(self, name: str, start: int, steps: int, work: Work) -> Iterator[int]:
        interval = float(os.environ.get("REPRO_CHECKPOINT_SECONDS", CHECKPOINT_SECONDS))
        last_save = last_line = begun = time.monotonic()
        with _bar(name, start, steps) as advance:
            for step in range(start, steps):
                yield step
                now, done = time.monotonic(), step + 1
                stop, due = processes.any_rank(_stop_asked(), now - last_save >= interval)
                if stop or due:
                    self._checkpoint(name, done, work)
                    last_save = now
                if stop:
                    where = f"stopped after step {done} of {steps} ({name})"
                    self.say(f"{self.name}: {where}; the same command continues it")
                    raise Stopped(str(self.directory))
                if advance:
                    advance(done)
                elif now - last_line >= 10 or done == steps:
                    left = (now - begun) / (done - start) * (steps - done)
                    self.say(f"{name}: {done}/{steps}" + (f", {left:.0f} s left" if left else ""))
                    last_line = now

    def _checkpoint(self, name: str, step: int, work: Work) -> None:
        """Write where this phase is (the last two stay); how an earlier one ended, once."""
        if processes.rank():
            return
        self.list_files()
        directory, log = self.directory / "checkpoint", self.directory / "metrics.jsonl"
        for i, (_, state) in enumerate(self._over.values()):
            if not (end := directory / f"end-{i}.pt").exists():
                write_bytes(end, pack(state))
        over = {other: steps for other, (steps, _) in self._over.items()}
        content = {
            "over": over, "phase": (name, step, work.state()), "gates": self.gates,
            "spent": self._time(), "log_bytes": log.stat().st_size if log.exists() else 0,
            "read": self.read.parts(),
        }  # fmt: skip
        total = step + sum(over.values())
        write_bytes(directory / f"step-{total:09d}.pt", pack(content))
        for old in sorted(directory.glob("step-*.pt"))[:-2]:
            old.unlink()

    def _resume(self) -> dict[str, Any]:
        """The phases of the newest good checkpoint; metrics.jsonl is cut to where it was then."""
        directory, log = self.directory / "checkpoint", self.directory / "metrics.jsonl"
        for path in sorted(directory.glob("step-*.pt"), reverse=True):
            try:
                saved = Saved(unpack(path.read_bytes(), str(path)))
                phases: dict[str, Any] = {}
                for i, (other, steps) in enumerate(saved["over"].items()):
                    end = directory / f"end-{i}.pt"
                    phases[other] = steps, unpack(end.read_bytes(), str(end))
            except (Damaged, FileNotFoundError) as error:
                self.say(f"{error}; trying an older checkpoint")
                continue
            read = inputs.ReadLog(**saved["read"])
            if changed := _other_data(read, self.read):
                self.say(f"{self.name}: begins again, data changed: {changed}")
                break
            self.read.fill(read)  # of phases that are over
            name, step, state = saved["phase"]
            self._spent, self.gates = saved["spent"], saved["gates"]
            if log.exists():
                write_bytes(log, log.read_bytes()[: saved["log_bytes"]])
            self.say(f"{self.name}: continues at step {step} ({name})")
            return {**phases, name: (step, state)}
        shutil.rmtree(directory, ignore_errors=True)
        log.unlink(missing_ok=True)
        return {}

    def _time(self) -> dict[str, float]:
        wall, cpu = time.monotonic() - self._clock[0], time.process_time() - self._clock[1]
        before = self._spent
        return {"seconds": before["seconds"] + wall, "cpu_seconds": before["cpu_seconds"] + cpu}

    # -- the end

    def predictions(self, **arrays: Any) -> None:
        """Predictions: arrays of one row per test item, but for names with a leading `_`."""
        plain = {
            k: v.detach().cpu().numpy() if isinstance(v, torch.Tensor) else np.asarray(v)
            for k, v in arrays.items()
        }
        rows = {k: len(v) for k, v in plain.items() if not k.startswith("_")}
        if len(set(rows.values())) > 1:
            raise BadInput(f"{self.name}: predictions have different numbers of items: {rows}")
        self._hashes["predictions_sha256"] = save_arrays(self.directory / "predictions.npz", plain)

    def finish(
        self,
        *,
        metrics: dict[str, float] | None = None,
        validation: dict[str, float] | None = None,
        state: Iterable[torch.Tensor] = (),
        gradient_evaluations: int = 0,
        selection: str = "last",
        chosen_step: int | None = None,
        exports: Iterable[str] = (),
        **details: Any,
    ) -> None:
        """Write the record. `state`: trained tensors, hashed; `details`: anything small."""
        sha256 = state_sha256(state)
        if processes.world_size() > 1:
            equal = len(set(processes.gather(sha256))) == 1
            details["processes"] = {"number": processes.world_size(), "equal": equal}
            if not equal:
                warning = "warning: the processes ended with different weights"
                self.say(f"{self.name}: {warning}; those of process 0 count")
        used = [protocol.read_record(Path(d)) or {} for d in self.config.uses.values()]
        of_used = sum(r.get("gradient_evaluations_with_uses", 0) for r in used)
        self._record(
            "finished",
            metrics={k: float(v) for k, v in (metrics or {}).items()},
            validation={k: float(v) for k, v in (validation or {}).items()},
            state_sha256=sha256, gradient_evaluations=int(gradient_evaluations),
            gradient_evaluations_with_uses=int(gradient_evaluations + of_used), selection=selection,
            chosen_step=chosen_step, exports=list(exports), details=details,
        )  # fmt: skip
        self.say(f"{self.name}: finished in {self._time()['seconds']:.0f} s -> {self.directory}")
        for key, value in (metrics or {}).items():
            self.say(f"  {key} = {float(value):.4f}")

    def _diverged(self, error: Diverged) -> None:
        self.say(f"{self.name}: diverged: {error}")
        self._record("diverged", reason=str(error), metrics={}, validation={}, state_sha256=None,
                     gradient_evaluations=0, gradient_evaluations_with_uses=0, selection="none",
                     chosen_step=error.step, exports=[], details={})  # fmt: skip

    def _record(self, status: str, **values: Any) -> None:
        config, used = self.config, self._used_hashes()
        sha256 = protocol.config_sha256(self.fields)
        fingerprint = {"config": sha256, "code": self.code, **self.read.parts(), "uses": used}
        fingerprint["machine"] = self.machine
        on_disk = protocol.code_hashes(self.train_py)
        if edited := sorted({name for name, _ in on_disk.items() ^ self.code.items()}):
            said = "was edited meanwhile; the record holds the hash of what ran"
            self.say(f"{self.name}: {', '.join(edited)} {said}")
        written = [name for name in self.list_files() if not name.endswith(".md")]
        written += ["splits.npz"] if self._splits else []
        paths = {name: self.directory / name for name in written}
        files = {name: inputs.file_sha256(x) for name, x in paths.items() if x.is_file()}
        write_json(self.directory / "record.json", {
            "paper": self.paper, "scale": config.scale, "arm": config.arm, "task": config.task,
            "seed": config.seed, "status": status, **values, **self._hashes, "gates": self.gates,
            "splits": self._splits, "config": self.fields, "config_sha256": sha256,
            "files": files, "fingerprint": fingerprint,
            "environment": machine.environment(config.device), "commit": commit(self.root),
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **self._time(),
            "peak_memory_mb": round(machine.peak_memory_mb(config.device), 1),
        })  # fmt: skip
        if self._older.exists():
            delete_run(self._older)
        if not os.environ.get("KEEP"):
            shutil.rmtree(self.directory / "checkpoint", ignore_errors=True)


def _other_data(before: inputs.ReadLog, now: inputs.ReadLog) -> str:
    """The first input that two parts of one run would read differently, or ""."""

    def hashes(read: inputs.ReadLog) -> dict[str, str]:
        return {name: entry["sha256"] for name, entry in read.items()} | read.caches

    both = hashes(now)
    return next((name for name, sha in hashes(before).items() if both.get(name, sha) != sha), "")


@contextlib.contextmanager
def start(config: RunConfig, file: str) -> Iterator[Run]:
    """Open the run of `config`; `file` is `__file__` of train.py. Divergence is recorded."""
    with contextlib.ExitStack() as stack:
        run = Run(stack.enter_context(processes.joined(config)), file)
        try:
            if not begun_in(run.directory):
                refuse_foreign(run.directory)
            run.directory.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context(open(run.directory / ".lock", "w", encoding="utf-8"))
        except (FileExistsError, NotADirectoryError) as error:
            what = f"{run.directory}: a file is in the place of a folder"
            raise BadInput(f"{what}; move it away, or give another --out") from error
        except PermissionError as error:
            raise BadInput(f"{run.directory} cannot be written; give another --out") from error
        _lock(lock, run.directory)
        run.open()
        run.finished = processes.broadcast(run.finished)
        try:
            with inputs.recording(run.fields) as run.read:
                yield run
        except Diverged as error:
            run._diverged(error)
            raise
        except (BadInput, inputs.MissingInput):
            run.put_back()
            raise
        finally:
            if not run.finished:
                run.list_files()


def _lock(file: Any, directory: Path, patience: float = 5.0) -> None:
    """One process writes a run at a time; one that was just killed has a moment to go."""
    begun = time.monotonic()
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if time.monotonic() - begun > patience:
                what = f"{directory} is being written by another process"
                raise BadInput(f"{what}; wait for it or give --out") from error
            time.sleep(0.2)


@contextlib.contextmanager
def _bar(name: str, begin: int, total: int) -> Iterator[Callable[[int], None] | None]:
    """A progress bar on a terminal; None where there is none (lines are printed instead)."""
    if _worker or processes.rank() or not sys.stderr.isatty():
        yield None
        return
    from rich import progress
    from rich.console import Console

    left = progress.TimeRemainingColumn()
    columns = (progress.TextColumn(name), progress.BarColumn(), progress.MofNCompleteColumn(), left)
    with progress.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(name, total=total, completed=begin)
        yield lambda done: bar.update(task, completed=done)


# --- command line -----------------------------------------------------------------------------


def command_line(
    config_class: type[C], run: Callable[[C], Path], doc: str | None, file: str
) -> None:
    """`python -m <paper>.train`: a run of the protocol, changed as you like, and what it uses."""
    if shared.BEGIN_AGAIN:  # PORTABLE=1: libraries read their switches when they are loaded
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    if int(os.environ.get("RANK", "0")):  # one of several processes, which say the same
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    try:
        import tyro

        paper = protocol.Protocol(Path(file).resolve().parent)

        def train(
            scale: str, node: protocol.Node, words: list[str], changes: Mapping[str, Any]
        ) -> Path:
            default = config_class(**(paper.config(scale, node) | dict(changes)))
            prog = f"python -m {paper.paper}.train"
            config = tyro.cli(config_class, prog=prog, default=default, args=words, description=doc)
            paper.check(config)
            _stop_on_signals()
            return run(_with_used(paper, scale, node, config, run))

        alone = re.fullmatch(r"--tiny( --seed (\d{1,18}))?", " ".join(sys.argv[1:]))
        if alone and "RANK" not in os.environ and (paper.directory / "story.yaml").exists():
            # By name: words and picture are no part of a run, whose files are those it imports.
            importlib.import_module("shared.story").tell(paper, int(alone[2] or 0), train)
        else:
            train(*_chosen_run(paper, doc), {})
    except (BadInput, inputs.MissingInput, OSError) as error:
        print(f"error: {inputs.in_words(error)}", file=sys.stderr)
        sys.exit(2)
    except Diverged as error:
        sys.exit(f"diverged: {error}")
    except Stopped:
        sys.exit(130)


def _chosen_run(paper: protocol.Protocol, doc: str | None) -> tuple[str, protocol.Node, list[str]]:
    """Scale and run that the command line names, by default the first; and the words left."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--tiny", action="store_true")
    for name in ("scale", "arm", "task", "seed"):
        parser.add_argument(f"--{name}")
    chosen, words = parser.parse_known_args()
    tiny = paper.document.tiny if chosen.tiny else None
    if chosen.tiny and chosen.scale:
        raise BadInput(f"--tiny is a scale of its own: leave out --scale {chosen.scale}")
    if tiny:
        print((doc or "").strip().split("\n\n")[0])
        what = f"arm '{tiny.arm}' on task '{tiny.task}'"
        print(f"A tiny run of {what}: random or bundled model, no download.", flush=True)
    scale = "tiny" if tiny else chosen.scale or "cpu"
    arm = chosen.arm or (tiny.arm if tiny else paper.selected(scale)[0])
    task = chosen.task or (tiny.task if tiny else paper.arm_tasks(arm, scale)[0])
    seed = chosen.seed or "0"
    if not re.fullmatch("[0-9]{1,18}", seed):
        raise BadInput(f"--seed {seed}: expected a whole number of at least 0")
    return scale, paper.node(scale, arm, task, int(seed)), words


def _with_used(
    paper: protocol.Protocol, scale: str, node: protocol.Node, config: C, run: Callable[[C], Path]
) -> C:
    """`config` with its folder, after the runs that it uses are trained with the same overrides.

    A run with other settings than the protocol's stands beside the protocol's, in `<arm>+<hash>`.
    """
    own = paper.config(scale, node)
    values = {**vars(config), "device": machine.kind(config.device)}
    overrides = {k: v for k, v in values.items() if k not in PLACE and v != own[k]}
    if values["device"] != machine.kind(own["device"]):
        overrides["device"] = config.device
    uses = dict(config.uses)
    for key in node.uses:
        if uses[key[0]] == own["uses"][key[0]]:
            used = paper.node(scale, *key)
            default = paper.config(scale, used) | overrides
            print(f"uses: {' '.join(map(str, key))}", flush=True)
            made = type(config)(**default)
            uses[key[0]] = str(run(_with_used(paper, scale, used, made, run)))
    foreign = {arm: path for arm, path in config.uses.items() if path != own["uses"].get(arm)}
    changes = ", ".join(f"{k} {own[k]!r} -> {v!r}" for k, v in overrides.items())
    if foreign:
        overrides["uses"] = foreign
        changes = ", ".join(filter(None, [changes, f"uses {' '.join(foreign.values())}"]))
    out, standard = config.out, paper.run_directory(scale, node.key)
    if overrides and not out:
        digest = protocol.sha256_json(json.loads(json.dumps(overrides, default=plain)))[:8]
        out = str(standard.with_name(f"{node.arm}+{digest}"))
        print(f"{node.arm} with {changes}: in {out}; the protocol's own is {standard}", flush=True)
    return dataclasses.replace(config, out=out, uses=uses)
