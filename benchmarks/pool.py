"""Workers that train the runs of a paper side by side.

A worker is a spawned process with one thread that imports `<paper>.train` once (seconds) and then
calls `run` for one node after another. A worker whose run crashes leaves, since its CUDA context
may be lost with it; one that leaves or dies is replaced and the run given once more. Nothing that
moves a score depends on how many workers there are or on the order in which they end.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import multiprocessing as mp
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from shared.protocol import Node

Key = tuple[str, str, int]
ATTEMPTS = 2  # a crash is not an outcome: the same run is given this often in one call


@dataclass
class Outcome:
    """finished, diverged, stopped, crashed, refused, missing or blocked (by one it uses)."""

    status: str
    detail: str = ""
    attempts: int = 1
    seconds: float = 0.0


@dataclass
class _Worker:
    process: Any
    connection: Connection
    number: int
    log: Path
    key: Key | None = None
    since: float = 0.0
    ready: bool = False


def _serve(
    connection: Connection, stop: Any, root: str, paper: str, log: str, gpu: str | None
) -> None:
    """The worker's process: receives settings, answers (status, detail)."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the parent decides; it sets `stop`
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # Linux: go when the parent goes
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1), os.dup2(output, 2)
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    sys.path.insert(0, root)
    try:
        module = importlib.import_module(f"{paper}.train")
        from shared import runs

        runs.be_worker(stop.is_set)
    except Exception:
        connection.send(("broken", traceback.format_exc()))
        return
    connection.send(("ready", ""))
    with contextlib.suppress(EOFError, KeyboardInterrupt):
        status = ""
        while status != "crashed" and (settings := connection.recv()) is not None:
            status, detail = attempt(module, settings)
            connection.send((status, detail))


def attempt(module: Any, settings: dict[str, Any]) -> tuple[str, str]:
    """Train one run with `module.run`; (status, detail) as in Outcome."""
    from shared import inputs, machine, runs  # torch comes with it: only where runs are trained

    try:
        module.run(module.Config(**settings))
        machine.free_memory()
        return "finished", ""
    except runs.Diverged as error:
        return "diverged", str(error)
    except runs.Stopped:
        return "stopped", ""
    except inputs.MissingInput as error:
        return "missing", str(error)
    except (runs.BadInput, OSError) as error:
        return "refused", inputs.in_words(error)
    except Exception:
        print(traceback.format_exc(), flush=True)
        return "crashed", traceback.format_exc()


@dataclass
class Pool:
    """Trains runs with `jobs` workers.

    `config(node)` gives a run's settings; `ended(node, outcome)` is called at the end of each.
    """

    root: Path
    paper: str
    jobs: int
    logs: Path
    config: Callable[[Node], dict[str, Any]]
    ended: Callable[[Node, Outcome], None]
    gpus: Sequence[str] = ()
    # time.monotonic() at which every run is asked to checkpoint and stop
    deadline: float | None = None
    workers: list[_Worker] = field(default_factory=list)
    outcomes: dict[Key, Outcome] = field(default_factory=dict)

    def run(self, nodes: Sequence[Node], finished: set[Key]) -> dict[Key, Outcome]:
        """Outcome of each of `nodes`; `finished`: runs that stand already and may be used."""
        context = mp.get_context("spawn")
        self.stop = context.Event()
        self._signals = 0
        waiting = {n.key: n for n in nodes}
        by_key = {n.key: n for n in nodes}
        done = set(finished)
        attempts: dict[Key, int] = {}
        old = {s: signal.signal(s, self._on_signal) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            while waiting or any(w.key for w in self.workers):
                if self.deadline and time.monotonic() > self.deadline:
                    self.stop.set()
                self._hand_out(context, waiting, done, attempts)
                busy = any(w.key or not w.ready for w in self.workers)
                if not busy and not self._startable(waiting, done):
                    break
                self._listen(by_key, waiting, done, attempts)
            status = "stopped" if self.stop.is_set() else "blocked"
            self.outcomes |= {key: Outcome(status, "not started") for key in waiting}
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)
            self._close()
        return self.outcomes

    def _on_signal(self, number: int, frame: Any) -> None:
        self._signals += 1
        self.stop.set()
        if self._signals > 1:
            for worker in self.workers:
                worker.process.kill()
            print("\nstopped at once", file=sys.stderr, flush=True)
            os._exit(128 + number)
        said = "stopping: each run finishes its step and checkpoints (again: at once)"
        print(f"\n{said}", file=sys.stderr, flush=True)

    def _startable(self, waiting: dict[Key, Node], done: set[Key]) -> list[Node]:
        if self.stop.is_set():
            return []
        return [n for n in waiting.values() if all(u in done for u in n.uses)]

    def _hand_out(
        self, context: Any, waiting: dict[Key, Node], done: set[Key], attempts: dict[Key, int]
    ) -> None:
        ready = self._startable(waiting, done)  # in the order of the plan: a seed after another
        most = 0 if self.stop.is_set() else min(self.jobs, len(waiting))
        while len(self.workers) < most:
            taken = {worker.number for worker in self.workers}
            free = next(n for n in range(most) if n not in taken)  # its log and its GPU are free
            self.workers.append(self._start(context, free))
        for worker in self.workers:
            if ready and worker.ready and worker.key is None:
                node = ready.pop(0)
                attempts[node.key] = attempts.get(node.key, 0) + 1
                worker.key, worker.since = node.key, time.monotonic()
                del waiting[node.key]
                worker.connection.send(self.config(node))

    def _start(self, context: Any, number: int) -> _Worker:
        ours, theirs = context.Pipe()
        log = self.logs / f"worker{number}.log"
        self.logs.mkdir(parents=True, exist_ok=True)
        gpu = self.gpus[number % len(self.gpus)] if self.gpus else None
        arguments = (theirs, self.stop, str(self.root), self.paper, str(log), gpu)
        process = context.Process(target=_serve, args=arguments, daemon=True)
        process.start()
        theirs.close()
        return _Worker(process, ours, number, log)

    def _listen(
        self,
        by_key: dict[Key, Node],
        waiting: dict[Key, Node],
        done: set[Key],
        attempts: dict[Key, int],
    ) -> None:
        handles: dict[Any, _Worker] = {w.connection: w for w in self.workers}
        for handle in wait(list(handles), timeout=1.0):
            worker = handles[handle]
            try:
                status, detail = worker.connection.recv()
            except (EOFError, ConnectionError):
                worker.process.join(5)
                exitcode = worker.process.exitcode
                detail = f"the worker died (exit status {exitcode}); see {worker.log}"
                status = "crashed"
            if status == "crashed":
                self.workers.remove(worker)
                self._leave(worker)
            if status == "ready":
                worker.ready = True
                continue
            if status == "broken":
                raise RuntimeError(f"{self.paper}.train cannot be imported:\n{detail}")
            if worker.key is None:
                raise RuntimeError(f"{self.paper}: {detail}")
            node, tried = by_key[worker.key], attempts[worker.key]
            outcome = Outcome(status, detail, tried, time.monotonic() - worker.since)
            worker.key = None
            if status == "crashed" and tried < ATTEMPTS:
                waiting[node.key] = node
                continue
            if status == "finished":
                done.add(node.key)
            self.outcomes[node.key] = outcome
            self.ended(node, outcome)

    def _close(self) -> None:
        for worker in self.workers:
            with contextlib.suppress(OSError):
                worker.connection.send(None)
        for worker in self.workers:
            self._leave(worker)

    @staticmethod
    def _leave(worker: _Worker) -> None:
        worker.process.join(2)
        if worker.process.is_alive():
            worker.process.kill()
