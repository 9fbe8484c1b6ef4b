"""The runs of a paper as jobs of a Slurm cluster: what `pool.py` does with workers, by submitit.

The plan is cut into levels: a run stands one level above the highest run that it uses. Each level
is one job array that may begin when the level below has ended. A job trains one run. Asked to stop,
it finishes its step and checkpoints:

- SIGUSR2 comes `WARNING` seconds before the time limit: submitit requeues the job, which continues
  at its checkpoint;
- SIGTERM comes from preemption and `scontrol requeue` (Slurm starts the job again by itself) and
  from `scancel`.

A job that ends without an answer has crashed and is submitted once more, with what waited for it.
The repository, `runs/` and `.cache/` must lie on a file system that the nodes share. What is not an
option here is set by Slurm's own SBATCH_* variables (`SBATCH_QOS`, `SBATCH_MEM_PER_NODE`, ...).
"""

from __future__ import annotations

import importlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.pool import ATTEMPTS, Key, Outcome, attempt
from shared import protocol
from shared.protocol import BadInput, Node

ARRAY = 1000  # jobs of an array; Slurm's default limit is 1001
POLL = 2.0  # seconds between two looks at the queue
GONE = 5  # looks without a queued job or an answer: it ended without (answers are late over NFS)
WARNING = 90  # seconds between SIGUSR2 and the time limit, enough for a step and a checkpoint
REQUEUES = 1000  # time limits that one run may meet


@dataclass(frozen=True)
class Job:
    """One run, as a node of the cluster calls it; returns (status, detail, seconds)."""

    root: str
    paper: str
    settings: dict[str, Any]

    def __call__(self) -> tuple[str, str, float]:
        begun, asked = time.monotonic(), list[int]()
        requeue: Any = signal.getsignal(signal.SIGUSR2)  # submitit's, only between two steps
        for number in (signal.SIGUSR2, signal.SIGTERM):
            signal.signal(number, lambda number, frame: asked.append(number))
        lacking = [
            d
            for d in self.settings["uses"].values()
            if (protocol.read_record(Path(d)) or {}).get("status") != "finished"
        ]
        if lacking:
            return "blocked", f"not finished: {', '.join(lacking)}", 0.0
        sys.path.insert(0, self.root)
        from shared import runs

        module = importlib.import_module(f"{self.paper}.train")
        runs.be_worker(lambda: bool(asked))
        status, detail = attempt(module, self.settings)
        if status == "stopped":
            if signal.SIGTERM not in asked:
                requeue(signal.SIGUSR2, None)  # keeps this job (`checkpoint`) and exits
            sys.exit(128 + signal.SIGTERM)  # Slurm decides whether the job starts again
        return status, detail, time.monotonic() - begun

    def checkpoint(self) -> Any:
        """What submitit starts after a requeue: the same call, which knows where to continue."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


@dataclass(frozen=True)
class Options:
    """What each job asks of Slurm."""

    minutes: int
    gpus: int = 0
    partition: str | None = None
    account: str | None = None


def require() -> None:
    """BadInput unless Slurm's commands and submitit are there."""
    commands = ("sbatch", "srun", "squeue", "scancel", "scontrol")
    if lacking := [command for command in commands if not shutil.which(command)]:
        raise BadInput(
            f"EXECUTOR=slurm needs Slurm's commands and {', '.join(lacking)} is not on PATH; "
            "start it on a login node of the cluster, or leave EXECUTOR out to run here"
        )
    try:
        importlib.import_module("submitit")
    except ImportError:
        raise BadInput("EXECUTOR=slurm needs the package submitit: pip install submitit") from None


def levels(nodes: Sequence[Node]) -> list[list[Node]]:
    """`nodes` by the longest chain of uses among them; runs that stand count for nothing."""
    height: dict[Key, int] = {}
    for node in nodes:  # uses come before users
        height[node.key] = 1 + max((height[u] for u in node.uses if u in height), default=-1)
    tall = max(height.values(), default=-1)
    return [[n for n in nodes if height[n.key] == h] for h in range(tall + 1)]


@dataclass
class Cluster:
    """Trains runs as Slurm jobs, at most `jobs` of a level at a time; its fields as in Pool."""

    root: Path
    paper: str
    jobs: int
    config: Callable[[Node], dict[str, Any]]
    ended: Callable[[Node, Outcome], None]
    options: Options
    deadline: float | None = None
    outcomes: dict[Key, Outcome] = field(default_factory=dict)

    def run(self, nodes: Sequence[Node], finished: set[Key]) -> dict[Key, Outcome]:
        """Outcome of each of `nodes`. Ctrl-C and the deadline cancel the jobs: they checkpoint."""
        self.stopping = False
        stamp = f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
        self.folder = protocol.runs_root(self.root) / ".slurm" / stamp
        paths = [str(self.root), os.environ.get("PYTHONPATH")]
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        old = {s: signal.signal(s, self._on_signal) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            left = list(nodes)
            for tried in range(1, ATTEMPTS + 1):
                self._wait(self._submit(left), tried)
                left = [n for n in left if self.outcomes[n.key].status in {"crashed", "blocked"}]
                if self.stopping or not any(self.outcomes[n.key].status == "crashed" for n in left):
                    break
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)
        return self.outcomes

    def _on_signal(self, number: int, frame: Any) -> None:
        self.stopping = True

    def _executor(self, after: list[str]) -> Any:
        import submitit

        executor = submitit.AutoExecutor(
            self.folder, cluster="slurm", slurm_max_num_timeout=REQUEUES
        )
        options = self.options
        parameters = {
            **{"name": self.paper, "nodes": 1, "tasks_per_node": 1, "cpus_per_task": 1},
            "timeout_min": options.minutes,
            "gpus_per_node": options.gpus or None,
            "slurm_partition": options.partition,
            "slurm_account": options.account,
            "slurm_array_parallelism": self.jobs,
            "slurm_signal_delay_s": min(WARNING, options.minutes * 20),
            "slurm_dependency": f"afterany:{':'.join(after)}" if after else None,
            "slurm_additional_parameters": {"requeue": True},
        }
        executor.update_parameters(**{k: v for k, v in parameters.items() if v is not None})
        return executor

    def _submit(self, nodes: Sequence[Node]) -> dict[str, tuple[Node, Any]]:
        """Submit every level; {job id: (node, job)}."""
        flying: dict[str, tuple[Node, Any]] = {}
        after: list[str] = []  # the arrays of the level below
        for level in levels(nodes):
            arrays = []
            for k in range(0, len(level), ARRAY):
                part = level[k : k + ARRAY]
                calls = [Job(str(self.root), self.paper, self.config(n)) for n in part]
                jobs = self._executor(after).submit_array(calls)
                arrays.append(jobs[0].job_id.split("_")[0])
                flying.update({job.job_id: (node, job) for node, job in zip(part, jobs)})
            after = arrays
            print(f"  submitted {len(level)} job(s): {', '.join(arrays)}", flush=True)
        return flying

    def _wait(self, flying: dict[str, tuple[Node, Any]], tried: int) -> None:
        """Collect outcomes until no job is left."""
        missed: Counter[str] = Counter()
        cancelled, last = False, time.monotonic()
        while flying:
            if self.deadline and time.monotonic() > self.deadline:
                self.stopping = True
            if self.stopping and not cancelled:
                print("\nstopping: each running job finishes its step and checkpoints", flush=True)
                subprocess.run(["scancel", *flying], check=False)
                cancelled = True
            queue = _queue()
            for job_id, (node, job) in list(flying.items()):
                if job.paths.result_pickle.exists():
                    outcome = _answer(job, tried)
                else:
                    gone = queue is not None and job_id not in queue
                    missed[job_id] = missed[job_id] + 1 if gone else 0
                    if missed[job_id] < (1 if self.stopping else GONE):
                        continue
                    silent = f"the job ended without an answer; see {job.paths.stderr}"
                    outcome = Outcome("crashed", silent, tried)
                    if self.stopping:
                        outcome = Outcome("stopped", "cancelled", tried)
                del flying[job_id]
                self.outcomes[node.key] = outcome
                again = outcome.status == "crashed" and tried < ATTEMPTS
                if outcome.status != "blocked" and not again:
                    self.ended(node, outcome)
            if queue is not None and flying and time.monotonic() - last >= 60:
                last = time.monotonic()
                states = Counter(queue[j] for j in flying if j in queue)
                counted = ", ".join(f"{n} {state}" for state, n in states.most_common())
                print(f"  queue: {counted}", flush=True)
            if flying:
                time.sleep(POLL)


def _queue() -> dict[str, str] | None:
    """{job id: state and reason} of this user's jobs; None if Slurm does not answer."""
    command = ["squeue", "--me", "-h", "-r", "-o", "%i|%T (%r)"]
    answer = subprocess.run(command, capture_output=True, text=True)
    if answer.returncode:
        return None
    return dict(line.strip().split("|", 1) for line in answer.stdout.splitlines() if "|" in line)


def _answer(job: Any, tried: int) -> Outcome:
    try:
        status, detail, seconds = job.result()
    except Exception as error:
        return Outcome("crashed", str(error), tried)
    return Outcome(status, detail, tried, seconds)
