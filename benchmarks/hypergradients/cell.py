"""One cell of the benchmark in a process of its own; prints one line of JSON.

    python -m benchmarks.hypergradients.cell accuracy SIDE CONDITION ONLY        a side on one toy
    python -m benchmarks.hypergradients.cell cost SIDE MODEL NAME ROUNDS DEVICE  one estimator

SIDE is `ours`, `hand` or `peers` (the latter with the peers' interpreter). Memory: the peak of what
torch's allocator hands out over two steps, above the weights and batches, on a CPU as on CUDA.
Time, made for a shared machine: CPU seconds of one thread (CUDA: events), a plain SGD step before
and after each bilevel step, and the ratio of each round.
"""

from __future__ import annotations

import importlib
import json
import math
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
ENOUGH = 10.0  # seconds of bilevel steps after which three rounds will do


def accuracy(side: str, condition: float, only: str) -> list[dict[str, Any]]:
    toy, rows = Toy(condition), []
    exact, kappa = toy.exact, (toy.eigenvalues.max() / toy.eigenvalues.min()).item()
    module = importlib.import_module(f"benchmarks.hypergradients.{side}")
    for name, (kind, estimate) in module.ACCURACY.items():
        if only not in name:
            continue
        row: dict[str, Any] = {"toy": condition, "kappa": kappa, "name": name, "kind": kind}
        try:
            g = estimate(toy).detach()
            best = (g @ exact) / (g @ g)
            row["relative_error"] = ((g - exact).norm() / exact.norm()).item()
            row["rescaled"] = ((best * g - exact).norm() / exact.norm()).item()
            row["cosine"] = torch.cosine_similarity(g, exact, dim=0).item()
        except Exception as error:  # a library that breaks is a result
            row["failed"] = f"{type(error).__name__}: {error}"[:200]
        rows.append(row)
    return rows


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


def peak(step: Callable[[], object], device: str) -> float:
    """Megabytes by which two steps raise the peak."""
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        for _ in range(2):
            step()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    # Bytes that torch's allocator hands out, event by event: what a GPU's memory statistics would
    # say. (The resident size would count pages of libraries, which differ between environments.)
    cpu = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=cpu, profile_memory=True) as profile:
        for _ in range(2):
            step()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = highest = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        highest = max(highest, now)
    return highest / 2**20


def cost(side: str, model: str, name: str, rounds: int, device: str) -> dict[str, Any]:
    task = Task(model, device)
    kind, make = "plain", plain_sgd
    if name != PLAIN:
        kind, make = importlib.import_module(f"benchmarks.hypergradients.{side}").COST[name]
    step = make(task)
    megabytes = peak(step, device)
    plain = plain_sgd(Task(model, device))
    for warm_up in (plain, plain, step):  # allocator and lazily built parts
        warm_up()
    ratios: list[float] = []
    times: list[float] = []
    plain_times = [seconds(plain, device)]
    while len(ratios) < rounds and (len(ratios) < 3 or sum(times) < ENOUGH):
        times.append(seconds(step, device))
        plain_times.append(seconds(plain, device))
        ratios.append(2 * times[-1] / (plain_times[-2] + plain_times[-1]))
    finite = all(math.isfinite(p.sum().item()) for p in [*task.theta, *task.lam])
    row = {"kind": kind, "megabytes": megabytes, "seconds": statistics.median(times)}
    return row | {"ratios": sorted(ratios), "finite": finite}


def main(what: str, side: str, first: str, *rest: str) -> Any:
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    if what == "accuracy":
        return accuracy(side, float(first), rest[0])
    name, rounds, device = rest
    return cost(side, first, name, int(rounds), device)


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
