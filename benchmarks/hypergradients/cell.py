"""One cell of the benchmark in a process of its own; prints one line of JSON.

    python -m benchmarks.hypergradients.cell accuracy SIDE CONDITION NAME
    python -m benchmarks.hypergradients.cell time SIDE MODEL NAME ROUNDS DEVICE
    python -m benchmarks.hypergradients.cell memory SIDE MODEL NAME DEVICE

SIDE is `ours`, `hand` or `peers` (the latter with the peers' interpreter). Times on a shared machine: CPU seconds of one
thread, a plain SGD step before and after each bilevel step, and the ratio of each round; CUDA: events. Memory: growth of the
resident peak over three steps, by an allocator that returns what is freed (run.py sets it); CUDA: max_memory_allocated.
"""

from __future__ import annotations

import importlib
import json
import math
import resource
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.hypergradients.tasks import Task, plain_sgd
from benchmarks.hypergradients.toy import Toy

PLAIN = "plain SGD"


def accuracy(side: str, condition: float, name: str) -> dict[str, Any]:
    toy = Toy(condition)
    kind, estimate = importlib.import_module(f"benchmarks.hypergradients.{side}").ACCURACY[name]
    g, exact = estimate(toy).detach(), toy.exact
    best = (g @ exact) / (g @ g)
    return {
        "kind": kind,
        "relative_error": ((g - exact).norm() / exact.norm()).item(),
        "rescaled": ((best * g - exact).norm() / exact.norm()).item(),
        "cosine": torch.cosine_similarity(g, exact, dim=0).item(),
        "kappa": (toy.eigenvalues.max() / toy.eigenvalues.min()).item(),
    }


def build(side: str, model: str, name: str, device: str) -> tuple[str, Task, Callable[[], None]]:
    task = Task(model, device)
    if name == PLAIN:
        return "plain", task, plain_sgd(task)
    kind, make = importlib.import_module(f"benchmarks.hypergradients.{side}").COST[name]
    return kind, task, make(task)


def seconds(step: Callable[[], None], device: str) -> float:
    if device == "cuda":
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        step()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1000
    before = time.process_time()
    step()
    return time.process_time() - before


def timing(side: str, model: str, name: str, rounds: int, device: str) -> dict[str, Any]:
    kind, task, step = build(side, model, name, device)
    plain = plain_sgd(Task(model, device))
    for _ in range(2):  # warm up allocator and lazily built parts
        plain(), step()
    ratios, times = [], []
    for _ in range(rounds):
        before, own, after = seconds(plain, device), seconds(step, device), seconds(plain, device)
        times.append(own)
        ratios.append(2 * own / (before + after))
    finite = all(math.isfinite(p.sum().item()) for p in [*task.theta, *task.lam])
    return {"kind": kind, "seconds": statistics.median(times), "ratios": sorted(ratios), "finite": finite}


def memory(side: str, model: str, name: str, device: str) -> dict[str, Any]:
    kind, _, step = build(side, model, name, device)
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        for _ in range(3):
            step()
        torch.cuda.synchronize()
        return {"kind": kind, "megabytes": (torch.cuda.max_memory_allocated() - before) / 2**20}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(3):
        step()
    return {"kind": kind, "megabytes": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024}


def main(what: str, side: str, *rest: str) -> dict[str, Any]:
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    if what == "accuracy":
        return accuracy(side, float(rest[0]), rest[1])
    if what == "time":
        return timing(side, rest[0], rest[1], int(rest[2]), rest[3])
    return memory(side, *rest)


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
