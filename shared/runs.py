"""One run, from its first line to its record: random streams, checkpoints, progress, gates, cache, command line.

    with runs.start(config, __file__) as run:
        saved = run.resume()
        for step in run.steps(saved["step"] if saved else 0, config.steps, save=lambda: {...}):
            ...
        run.finish(metrics=..., state=[...])

A run is finished when `record.json`, written last and by one rename, is there and its fingerprint still holds
(`protocol.stale`). Until then the newest good checkpoint continues it, bit for bit.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import json
import os
import platform
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from shared import processes, protocol, sources
from shared.protocol import BadInput, RunConfig

__all__ = ["BadInput", "Diverged", "Run", "RunConfig", "Stopped", "cached", "command_line", "device",
           "generator_states", "restore_generators", "seed_global", "start", "stream"]  # fmt: skip

CHECKPOINT_SECONDS = 60.0  # how much work an unannounced kill may cost; never moves a score


class Stopped(Exception):
    """The run was asked to stop; its checkpoint is written and the same command continues it."""


class Diverged(Exception):
    """A loss or vector is not finite. Names the level, the step and the batch."""

    def __init__(self, level: str, step: int, batch: Any = None, value: float = float("nan")):
        self.level, self.step, self.batch = level, step, batch
        items = "" if batch is None else f", batch items {np.asarray(batch).ravel()[:16].tolist()}"
        super().__init__(
            f"{level} level: value {value} at step {step}{items}; lower the learning rate or look at these items"
        )


# --- randomness ----------------------------------------------------------------------------------------------------


def _number(seed: int, names: Iterable[Any]) -> int:
    text = "\x1f".join([str(int(seed)), *map(str, names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def stream(seed: int, *names: Any) -> torch.Generator:
    """A CPU generator for one purpose (`"split"`, `"head"`, `"batches"`, ...), independent of every other.

    Leave the arm's name out where arms of a seed should share the draw."""
    return torch.Generator().manual_seed(_number(seed, names))


def seed_global(seed: int, *names: Any) -> None:
    """Set torch's global generators, which dropout draws from: the same masks for all arms at the same step."""
    number = _number(seed, names)
    if torch.cuda.is_available():
        torch.manual_seed(number)
    else:  # the same CPU state; torch.manual_seed also formats a traceback for a CUDA that may come: 1 ms a call
        torch.default_generator.manual_seed(number)


def generator_states(*generators: torch.Generator) -> list[torch.Tensor]:
    return [g.get_state() for g in generators]


def restore_generators(states: list[torch.Tensor], *generators: torch.Generator) -> None:
    for generator, state in zip(generators, states, strict=True):
        generator.set_state(state)


# --- stopping ------------------------------------------------------------------------------------------------------

_stop_asked: Callable[[], bool] = lambda: False  # noqa: E731  (a worker puts its event's `is_set` here)
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
        if (
            number in asked
        ):  # a launcher of several processes hands Ctrl-C on as SIGTERM: that is not the second time
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        asked.append(number)
        print("\nstopping after this step (again: at once)", file=sys.stderr, flush=True)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handler)
    _stop_asked = lambda: bool(asked)  # noqa: E731


# --- files -----------------------------------------------------------------------------------------------------------


def write_bytes(path: Path, payload: bytes) -> None:
    """Write by one rename: a kill or a full disk leaves the old file as it was."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as stream_:
            stream_.write(payload)
            stream_.flush()
            os.fsync(stream_.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise OSError(error.errno, f"could not write {len(payload):,} bytes to {path} ({error.strerror}); "
                      "the file that was there is untouched: free disk space and give the same command again") from error  # fmt: skip


def write_json(path: Path, value: Any) -> None:
    write_bytes(path, (json.dumps(value, indent=1, default=_plain) + "\n").encode())


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor | np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")


def pack(value: Any) -> bytes:
    """Tensors, arrays, numbers, text, lists and dicts as bytes, the sha256 of the rest in front."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    body = buffer.getvalue()
    return hashlib.sha256(body).hexdigest().encode() + b"\n" + body


def unpack(payload: bytes, name: str) -> Any:
    """The value that `pack` packed; BadInput if a single bit moved. Never runs code from the file."""
    head, body = payload[:64], payload[65:]
    if payload[64:65] != b"\n" or hashlib.sha256(body).hexdigest().encode() != head:
        raise BadInput(
            f"{name}: the sha256 does not match its content (truncated or damaged); delete it and repeat"
        )
    return torch.load(io.BytesIO(body), weights_only=True, map_location="cpu")


def save_arrays(path: Path, arrays: dict[str, Any]) -> str:
    """Write an npz with the same bytes for the same content; returns its sha256."""
    buffer = io.BytesIO()
    plain: dict[str, Any] = {k: np.asarray(v) for k, v in sorted(arrays.items())}
    np.savez_compressed(buffer, **plain)
    write_bytes(path, buffer.getvalue())
    return hashlib.sha256(buffer.getvalue()).hexdigest()


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as archive:
        return {k: archive[k] for k in archive.files}


def cache_root() -> Path:
    return Path(os.environ.get("REPRO_CACHE") or Path(__file__).resolve().parent.parent / ".cache")


def cached(key: Any, make: Callable[[], Any]) -> Any:
    """`make()`, or what it returned before under this key. The key holds all that determines the value.

    Made once even if several processes ask; a damaged entry is made again; safe to delete at any time."""
    digest = hashlib.sha256(repr(key).encode()).hexdigest()[:32]
    path = cache_root() / "values" / f"{digest}.pt"
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if path.exists():
            with contextlib.suppress(BadInput):
                return unpack(path.read_bytes(), str(path))
        with processes.alone():  # the others wait, and read it
            value = make()
        write_bytes(path, pack(value))
        return value


# --- machine ---------------------------------------------------------------------------------------------------------


def device(config: RunConfig) -> torch.device:
    """The device of a run. CPU runs use one thread, so that a score depends on neither machine nor neighbours."""
    name = config.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise BadInput(
            f"device '{name}' asked for, but torch {torch.__version__} sees no CUDA device; use --device cpu"
        )
    if name == "cpu":
        torch.set_num_threads(1)
    return torch.device(name)


def environment() -> dict[str, Any]:
    from importlib import metadata

    def version(name: str) -> str | None:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            return None

    names = [
        "torch",
        "transformers",
        "peft",
        "numpy",
        "scipy",
        "scikit-learn",
        "safetensors",
        "tokenizers",
    ]
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "packages": {n: v for n in names if (v := version(n))},
    }


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()


def commit(root: Path) -> str | None:
    """The checkout's commit, with `+changes` if tracked files differ from it; None outside git."""

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(root), *words], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + (
            "+changes" if git("status", "--porcelain", "-uno") else ""
        )
    except (OSError, subprocess.CalledProcessError):
        return None


def _peak_memory_mb(reset: bool = False) -> float:
    """Largest resident size of this process since the last reset, in MB (Linux; else since its start)."""
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        line = next(
            x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM")
        )
        host = int(line.split()[1]) / 1024
    except (OSError, StopIteration):
        host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if torch.cuda.is_available():
        if reset:
            torch.cuda.reset_peak_memory_stats()
        return max(
            host if not torch.cuda.is_initialized() else 0.0,
            torch.cuda.max_memory_allocated() / 2**20,
        )
    return host


def state_sha256(tensors: Iterable[torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        plain = tensor.detach().cpu().contiguous()
        digest.update(f"{plain.dtype}{tuple(plain.shape)}".encode())
        digest.update(plain.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


# --- a run ------------------------------------------------------------------------------------------------------------


class Saved(dict[str, Any]):
    """A checkpoint's content; a missing field is an error that names it."""

    def __missing__(self, key: str) -> Any:
        raise BadInput(
            f"the checkpoint lacks '{key}' (it has {', '.join(map(str, self))}); delete checkpoint/ to start over"
        )


class Run:
    """What a run writes: config.json, metrics.jsonl, log.txt, splits.npz, predictions.npz, checkpoint/, record.json."""

    def __init__(self, config: RunConfig, file: str):
        self.config = config
        self.train_py = Path(file).resolve()
        self.paper = self.train_py.parent.name
        self.root = self.train_py.parent.parent
        key = (config.arm, config.task, config.seed)
        default = (
            protocol.runs_root(self.root)
            / self.paper
            / config.scale
            / config.task
            / f"seed{config.seed}"
            / config.arm
        )
        self.directory = Path(config.out) if config.out else default
        self.name = " ".join(map(str, [self.paper, config.scale, *key]))
        self.fields = json.loads(json.dumps(asdict(config), default=_plain))
        self.code = protocol.code_hashes(self.train_py)
        self.finished = False
        self.gates: list[dict[str, Any]] = []
        self.read: dict[
            str, dict[str, str]
        ] = {}  # what the loaders of shared/ note while the run is open
        self._data: dict[str, dict[str, Any]] = {}
        self._spent = {"seconds": 0.0, "cpu_seconds": 0.0}
        self._hashes: dict[str, str | None] = {"split_sha256": None, "predictions_sha256": None}
        self._written: dict[str, Any] = {}

    # -- opening

    def open(self) -> None:
        for arm, used in self.config.uses.items():
            status = (protocol.read_record(Path(used)) or {}).get("status", "not finished")
            if status != "finished":
                raise BadInput(
                    f"{self.name}: the run it uses, {arm}, {status} in {used}; train it first or give --uses.{arm} DIR"
                )
        reason = protocol.stale(self.directory, self.fields, self.code)
        if reason is None:
            self.finished = True
            if not _worker:
                print(
                    f"{self.name}: finished before; {self.directory}/record.json holds", flush=True
                )
            return
        begun = {"config": self.fields, "code": self.code, "uses": self._used_hashes()}
        old = None
        with contextlib.suppress(OSError, ValueError):
            old = json.loads((self.directory / "config.json").read_text())
        if reason == "no record" and old and {k: old.get(k) for k in begun} == begun:
            pass  # interrupted: its checkpoint is good
        else:
            present = [item for item in self.directory.iterdir() if item.name != ".lock"]
            present.sort(
                key=lambda item: item.name == "config.json"
            )  # last: without it the rest would look foreign
            if present and not old:
                raise BadInput(
                    f"{self.directory} holds files that are no run of this project; move them away, or give another --out"
                )
            for item in present:
                shutil.rmtree(item) if item.is_dir() else item.unlink()
            if present:
                why = (
                    "settings or code changed since it was interrupted"
                    if reason == "no record"
                    else reason
                )
                self.say(f"{self.name}: made again, {why}")
        write_json(self.directory / "config.json", begun)
        _peak_memory_mb(reset=True)
        self._clock = time.time(), time.process_time()

    def _used_hashes(self) -> dict[str, str]:
        return {
            a: protocol.record_sha256(protocol.read_record(Path(d)) or {})
            for a, d in self.config.uses.items()
        }

    # -- telling

    def say(self, text: str) -> None:
        """One line in log.txt, and on the terminal when run by hand."""
        if self.directory.exists():
            with open(self.directory / "log.txt", "a") as log:
                log.write(f"{time.strftime('%H:%M:%S')} {text}\n")
        if not _worker and processes.rank() == 0:
            print(text, flush=True)

    def log(self, **values: Any) -> None:
        """One line of metrics.jsonl; every key is explained in the method's README."""
        with open(self.directory / "metrics.jsonl", "a") as log:
            log.write(json.dumps(values, default=_plain) + "\n")

    def gate(self, id: str, passed: bool, detail: str = "") -> None:
        """Record a mechanical check that claims.yaml lists (VERDICTS section 7)."""
        self.gates.append({"id": id, "passed": bool(passed), "detail": detail})
        if not passed:
            self.say(f"gate {id} FAILED: {detail}")

    def finite(self, value: torch.Tensor | float, level: str, step: int, batch: Any = None) -> None:
        """Stop at once if a loss or vector is not finite, naming level, step and batch."""
        ok = torch.isfinite(value).all() if isinstance(value, torch.Tensor) else np.isfinite(value)
        if not ok:
            raise Diverged(
                level, step, batch, float(torch.as_tensor(value).detach().double().sum())
            )

    # -- data

    def data(self, name: str, source: str | Path) -> None:
        """Note a file that was read (its path), or a value's sha256."""
        path = Path(source)
        if path.exists():
            self._data[name] = {"sha256": protocol.sha256_file(path), "path": str(path.resolve())}
        else:
            self._data[name] = {"sha256": str(source), "path": None}

    def splits(self, **parts: Any) -> None:
        """Store which items each level sees. Parts must be disjoint: a shared item would leak."""
        arrays = {k: np.asarray(v) for k, v in parts.items()}
        seen: dict[Any, str] = {}
        for name, ids in arrays.items():
            if len(ids) == 0:
                raise BadInput(f"{self.name}: the part '{name}' of the data is empty")
            for item in ids.tolist():
                if seen.setdefault(item, name) != name:
                    raise BadInput(
                        f"{self.name}: item {item!r} is both in '{seen[item]}' and in '{name}'"
                    )
        save_arrays(self.directory / "splits.npz", arrays)
        self._written["splits"] = {k: protocol.sha256_json(v.tolist()) for k, v in arrays.items()}
        self._hashes["split_sha256"] = protocol.sha256_json(self._written["splits"])

    # -- checkpoints

    def resume(self) -> Saved | None:
        """The newest checkpoint whose sha256 holds, or None. Several processes get the one that process 0 read."""
        return processes.from_first(self._resume() if processes.rank() == 0 else None)

    def _resume(self) -> Saved | None:
        for path in sorted((self.directory / "checkpoint").glob("step-*.pt"), reverse=True):
            try:
                saved = Saved(unpack(path.read_bytes(), str(path)))
            except BadInput as error:
                self.say(f"{error}; trying an older checkpoint")
                continue
            self._spent = saved["_spent"]
            self._cut_log(saved["step"])
            self.say(f"{self.name}: continues at step {saved['step']}")
            return saved
        with contextlib.suppress(OSError):
            (self.directory / "metrics.jsonl").unlink()
        return None

    def _cut_log(self, step: int) -> None:
        """Drop the lines of metrics.jsonl that the continued run will write again."""
        path = self.directory / "metrics.jsonl"
        if path.exists():
            lines = []
            for line in path.read_text().splitlines():
                with contextlib.suppress(ValueError):
                    if json.loads(line).get("step", -1) < step:
                        lines.append(line)
            write_bytes(path, "".join(x + "\n" for x in lines).encode())

    def checkpoint(self, step: int, state: dict[str, Any]) -> None:
        """Write `state` (continue at `step`) and keep the last two."""
        if processes.rank():
            return
        directory = self.directory / "checkpoint"
        write_bytes(
            directory / f"step-{step:09d}.pt", pack({**state, "step": step, "_spent": self._time()})
        )
        for old in sorted(directory.glob("step-*.pt"))[:-2]:
            old.unlink()

    def _time(self) -> dict[str, float]:
        wall, cpu = time.time() - self._clock[0], time.process_time() - self._clock[1]
        return {
            "seconds": self._spent["seconds"] + wall,
            "cpu_seconds": self._spent["cpu_seconds"] + cpu,
        }

    def steps(
        self, start: int, total: int, save: Callable[[], dict[str, Any]], name: str = "steps"
    ) -> Iterator[int]:
        """Count from `start` to `total`: progress, a checkpoint every minute, a clean stop when asked."""
        interval = float(os.environ.get("REPRO_CHECKPOINT_SECONDS", CHECKPOINT_SECONDS))
        last_save = last_line = begun = time.monotonic()
        with _bar(name, start, total) as advance:
            for step in range(start, total):
                yield step
                now, done = time.monotonic(), step + 1
                stop, due = processes.agreed(_stop_asked(), now - last_save >= interval)
                if stop:
                    self.checkpoint(done, save())
                    self.say(
                        f"{self.name}: stopped after step {done} of {total}; the same command continues it"
                    )
                    raise Stopped(str(self.directory))
                if due:
                    self.checkpoint(done, save())
                    last_save = now
                if advance:
                    advance(done)
                elif now - last_line >= 10 or done == total:
                    left = (now - begun) / (done - start) * (total - done)
                    self.say(
                        f"{name}: {done}/{total}" + (f", {left:.0f} s left" if done < total else "")
                    )
                    last_line = now

    # -- the end

    def predictions(self, **arrays: Any) -> None:
        """Predictions per test item: every array has one row per item, but for names that begin with `_`."""
        plain = {
            k: (v.detach().cpu().numpy() if isinstance(v, torch.Tensor) else np.asarray(v))
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
        """Write the record. `state`: trained tensors, hashed; `details`: anything small worth keeping."""
        used = [protocol.read_record(Path(d)) or {} for d in self.config.uses.values()]
        own = state_sha256(state)
        if processes.several():
            equal = len(set(processes.gathered(own))) == 1
            details["processes"] = {"number": processes.world(), "equal": equal}
            if not equal:
                self.say(
                    f"{self.name}: warning: the processes ended with different weights; process 0's are kept"
                )
        self._record(
            status="finished",
            metrics={k: float(v) for k, v in (metrics or {}).items()},
            validation={k: float(v) for k, v in (validation or {}).items()},
            state_sha256=own,
            gradient_evaluations=int(gradient_evaluations),
            gradient_evaluations_with_uses=int(
                gradient_evaluations + sum(r.get("gradient_evaluations_with_uses", 0) for r in used)
            ),
            selection=selection,
            chosen_step=chosen_step,
            exports=list(exports),
            details=details,
        )
        self.say(f"{self.name}: finished in {self._time()['seconds']:.0f} s -> {self.directory}")
        for key, value in (metrics or {}).items():
            self.say(f"  {key} = {float(value):.4f}")

    def _record(self, **values: Any) -> None:
        config = self.config
        data = {**self.read, **self._data}
        write_json(self.directory / "record.json", {
            "paper": self.paper, "scale": config.scale, "arm": config.arm, "task": config.task, "seed": config.seed,
            **values, **self._hashes, "gates": self.gates, "splits": self._written.get("splits", {}),
            "config": self.fields, "config_sha256": protocol.config_sha256(self.fields),
            "fingerprint": {"config": protocol.config_sha256(self.fields), "code": self.code, "data": data,
                            "uses": self._used_hashes()},
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "commit": commit(self.root),
            **self._time(), "peak_memory_mb": round(_peak_memory_mb(), 1), "environment": environment(),
        })  # fmt: skip
        if not os.environ.get("KEEP"):
            shutil.rmtree(self.directory / "checkpoint", ignore_errors=True)


@contextlib.contextmanager
def start(config: RunConfig, file: str) -> Iterator[Run]:
    """Open the run of `config`; `file` is `__file__` of train.py. A divergence is recorded, then raised."""
    with contextlib.ExitStack() as held:
        run = Run(held.enter_context(processes.joined(config)), file)
        try:
            run.directory.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise BadInput(
                f"{run.directory}: a file is in the place of a folder; move it away, or give another --out"
            ) from error
        _hold(held.enter_context(open(run.directory / ".lock", "w")), run.directory)
        run.open()
        run.finished = processes.from_first(run.finished)
        try:
            with sources.recording() as run.read:
                yield run
        except Diverged as error:
            run.say(f"{run.name}: diverged: {error}")
            run._record(status="diverged", reason=str(error), metrics={}, validation={}, state_sha256=None,
                        gradient_evaluations=0, gradient_evaluations_with_uses=0, selection="none", chosen_step=error.step,
                        exports=[], details={})  # fmt: skip
            raise


def _hold(lock: Any, directory: Path, patience: float = 5.0) -> None:
    """One process writes a run at a time; one that was just killed has a moment to go."""
    begun = time.monotonic()
    while True:
        try:
            return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if time.monotonic() - begun > patience:
                raise BadInput(
                    f"{directory} is being written by another process; wait for it or give --out"
                ) from error
            time.sleep(0.2)


@contextlib.contextmanager
def _bar(name: str, start_at: int, total: int) -> Iterator[Callable[[int], None] | None]:
    """A progress bar on a terminal; None where there is none (lines are printed instead)."""
    if _worker or processes.rank() or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn(name), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(name, total=total, completed=start_at)
        yield lambda done: progress.update(task, completed=done)


# --- command line -----------------------------------------------------------------------------------------------------


def _option(argv: list[str], name: str) -> str | None:
    """Value of `--name VALUE` or `--name=VALUE` in argv."""
    for i, word in enumerate(argv):
        if word == f"--{name}" and i + 1 < len(argv):
            return argv[i + 1]
        if word.startswith(f"--{name}="):
            return word.split("=", 1)[1]
    return None


def command_line(
    config_class: type, run: Callable[[Any], Path], doc: str | None, file: str
) -> None:
    """`python -m <paper>.train`: choose a run of the protocol, change what you like, train it (and what it uses)."""
    argv = sys.argv[1:]
    if int(os.environ.get("RANK", "0")):  # one of several processes, which say the same
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    try:
        paper = protocol.Protocol(Path(file).resolve().parent)
        tiny = "--tiny" in argv
        argv = [a for a in argv if a != "--tiny"]
        small = paper.document.get("tiny") or {}
        scale = "tiny" if tiny else _option(argv, "scale") or "cpu"
        if tiny:
            print((doc or "").strip().split("\n\n")[0], flush=True)
            print(
                f"A tiny run of arm '{small['arm']}' on task '{small['task']}': random or bundled model, no download.",
                flush=True,
            )
        arm = _option(argv, "arm") or (small["arm"] if tiny else paper.selected(scale)[0])
        task = _option(argv, "task") or (small["task"] if tiny else paper.arm_tasks(arm, scale)[0])
        seed = _option(argv, "seed") or "0"
        if not seed.isdecimal():
            raise BadInput(f"--seed {seed}: expected a whole number of at least 0")
        node = paper.node(scale, arm, task, int(seed))
        chosen = paper.config(scale, node)
        chosen["uses"] = {
            k[0]: _option(argv, f"uses.{k[0]}") or chosen["uses"][k[0]] for k in node.uses
        }
        import tyro

        prog = f"python -m {paper.paper}.train"
        config = tyro.cli(
            config_class, prog=prog, default=config_class(**chosen), args=argv, description=doc
        )
        paper.check_numbers({f: getattr(config, f) for f in paper.fields}, "command line")
        _stop_on_signals()
        for key in node.uses:
            if _option(argv, f"uses.{key[0]}") is None:
                _train_used(paper, scale, key, config_class, run)
        run(config)
    except (BadInput, sources.MissingInput) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except Diverged as error:
        sys.exit(f"diverged: {error}")
    except Stopped:
        sys.exit(130)


def _train_used(
    paper: protocol.Protocol,
    scale: str,
    key: tuple[str, str, int],
    config_class: type,
    run: Callable[[Any], Path],
) -> None:
    """Train the run `key` (and what it uses in turn) unless its record stands."""
    node = paper.node(scale, *key)
    for used in node.uses:
        _train_used(paper, scale, used, config_class, run)
    print(f"uses: {' '.join(map(str, key))}", flush=True)
    run(config_class(**paper.config(scale, node)))
