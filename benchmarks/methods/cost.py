"""How the scripts of this folder measure: steps that take turns with plain ones, and their memory.

A machine that others use too slows neighbours alike, so every step stands between two plain steps
and only the ratio of a round counts: the median over rounds, beside the lowest and the highest. CPU
seconds of one thread; wall seconds on a GPU.
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

Step = Callable[[], object]
# ratio, lowest, highest; seconds; megabytes above what stays between steps; memory, over plain's
Row = dict[str, Any]


def seconds(step: Step, device: str = "cpu") -> float:
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
    plain: Step, kinds: Mapping[str, Step], rounds: int, device: str = "cpu", work: int = 1
) -> dict[str, Row]:
    """Kind of step -> row, `plain` first. A call does `work` steps; the seconds are per step."""
    torch.set_num_threads(1)
    for step in (plain, *kinds.values()):  # the first step builds optimizer states and warms up
        step()
    ratios: dict[str, list[float]] = {name: [] for name in kinds}
    times: dict[str, list[float]] = {name: [] for name in ("plain", *kinds)}
    for _ in range(rounds):
        before = seconds(plain, device)
        for name, step in kinds.items():
            times[name].append(seconds(step, device))
            after = seconds(plain, device)
            ratios[name].append(2 * times[name][-1] / (before + after))
            times["plain"].append(after)
            before = after
    megabytes = {name: peak(step, device) for name, step in {"plain": plain, **kinds}.items()}
    rows: dict[str, Row] = {"plain": {"ratio": 1.0}}
    for name, values in ratios.items():
        spread = {"lowest": round(min(values), 3), "highest": round(max(values), 3)}
        memory = round(megabytes[name] / megabytes["plain"], 2)
        rows[name] = {"ratio": round(statistics.median(values), 3), **spread, "memory": memory}
    for name, row in rows.items():
        row["seconds"] = round(statistics.median(times[name]) / work, 5)
        row["megabytes"] = round(megabytes[name], 1)
    return rows


def show(title: str, rows: Mapping[str, Row]) -> None:
    print(f"{title}\n  {'':34}      s   / plain  [lowest, highest]   memory / plain")
    for name, row in rows.items():
        spread = f"[{row['lowest']:.2f}, {row['highest']:.2f}]" if "lowest" in row else ""
        figures = f"{row['seconds']:6.3f} {row['ratio']:9.2f}  {spread:17}"
        print(f"  {name:34} {figures} {row.get('memory', 1):9.2f}")


def parser(about: str | None, rounds: int) -> argparse.ArgumentParser:
    """The options of every script; one that can use a GPU adds `--device`."""
    kind = argparse.RawDescriptionHelpFormatter
    options = argparse.ArgumentParser(description=about, formatter_class=kind)
    options.add_argument("--rounds", type=int, default=rounds)
    options.add_argument("--json", default="", help="also write the figures to this file")
    return options


def device_option(options: argparse.ArgumentParser) -> None:
    default = "cuda" if torch.cuda.is_available() else "cpu"
    options.add_argument("--device", default=default)


def write(path: str, paper: str, rows: Mapping[str, Row], **settings: Any) -> None:
    """The file that `python -m benchmarks.methods` reads; nothing where the path is empty."""
    if path:
        text = json.dumps({"paper": paper, **settings, "rows": rows}, indent=1)
        Path(path).write_text(text + "\n", encoding="utf-8")


def main(paper: str, title: str, about: str | None, steps: Callable[[], dict[str, Step]]) -> None:
    """The command line of a script that only measures `steps()` on the CPU, `plain` among them."""
    asked = parser(about, rounds=7).parse_args()
    todo = steps()
    rows = measure(todo.pop("plain"), todo, asked.rounds)
    show(f"{paper}: {title}", rows)
    write(asked.json, paper, rows, device="cpu", rounds=asked.rounds)
