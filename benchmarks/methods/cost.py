"""How the scripts of this folder measure: steps that take turns with plain ones, and the memory that each needs.

A machine that others use too slows neighbours alike, so every step stands between two plain steps and only the ratio of a round
counts: the median over rounds, beside the lowest and the highest. CPU seconds of one thread; wall seconds on a GPU.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.hypergradients.cell import peak

Row = dict[
    str, Any
]  # ratio, lowest, highest; seconds; megabytes above what is held between steps; memory, over the plain step's


def seconds(step: Callable[[], object], device: str = "cpu") -> float:
    """Of one call; on a CPU those of this process, which other processes disturb less."""
    if device == "cpu":
        begun = time.process_time()
        step()
        return time.process_time() - begun
    torch.cuda.synchronize()
    begun = time.perf_counter()
    step()
    torch.cuda.synchronize()
    return time.perf_counter() - begun


def measure(
    plain: Callable[[], object],
    kinds: Mapping[str, Callable[[], object]],
    rounds: int,
    device: str = "cpu",
    work: int = 1,
) -> dict[str, Row]:
    """Kind of step -> row; `plain` and every kind do `work` steps in a call, of which the seconds are per step."""
    torch.set_num_threads(1)
    for step in (plain, *kinds.values()):  # the first step builds optimizer states and warms up
        step()
    ratios: dict[str, list[float]] = {name: [] for name in kinds}
    times: dict[str, list[float]] = {name: [] for name in kinds}
    plain_times = []
    for _ in range(rounds):
        before = seconds(plain, device)
        for name, step in kinds.items():
            own = seconds(step, device)
            after = seconds(plain, device)
            ratios[name].append(2 * own / (before + after))
            times[name].append(own / work)
            plain_times.append(after / work)
            before = after
    held = peak(plain, device)
    rows: dict[str, Row] = {
        "plain": {
            "ratio": 1.0,
            "seconds": round(statistics.median(plain_times), 5),
            "megabytes": round(held, 1),
        }
    }
    for name, step in kinds.items():
        megabytes = peak(step, device)
        rows[name] = {
            "ratio": round(statistics.median(ratios[name]), 3),
            "lowest": round(min(ratios[name]), 3), "highest": round(max(ratios[name]), 3),
            "seconds": round(statistics.median(times[name]), 5),
            "megabytes": round(megabytes, 1), "memory": round(megabytes / held, 2),
        }  # fmt: skip
    return rows


def show(title: str, rows: Mapping[str, Row]) -> None:
    print(f"{title}\n  {'':34}      s   / plain  [lowest, highest]   memory / plain")
    for name, row in rows.items():
        spread = f"[{row['lowest']:.2f}, {row['highest']:.2f}]" if "lowest" in row else ""
        print(
            f"  {name:34} {row['seconds']:6.3f} {row['ratio']:9.2f}  {spread:17} {row.get('memory', 1):9.2f}"
        )


def write(path: str, paper: str, rows: Mapping[str, Row], **settings: Any) -> None:
    """The file that `python -m benchmarks.methods` reads; nothing where the path is empty."""
    if path:
        Path(path).write_text(
            json.dumps({"paper": paper, **settings, "rows": rows}, indent=1) + "\n"
        )


def main(
    paper: str, title: str, about: str | None, steps: Callable[[], dict[str, Callable[[], object]]]
) -> None:
    """The command line of a script that only measures `steps()` on the CPU, `plain` among them."""
    parser = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", default="", help="also write the figures to this file")
    asked = parser.parse_args()
    todo = steps()
    rows = measure(todo.pop("plain"), todo, asked.rounds)
    show(f"{paper}: {title}", rows)
    write(asked.json, paper, rows, device="cpu", rounds=asked.rounds)
