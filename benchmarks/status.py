"""What runs on this machine, how far it is, what is left, and the last verdicts.

    python -m benchmarks.status            all papers;  make status
    python -m benchmarks.status autolora   one of them

Reads the files that runs write and holds nothing open: it can be asked while anything trains.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import socket
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks import PAPERS, ROOT, locks, recorded
from benchmarks.recorded import SCALES, Results
from benchmarks.words import day, duration, full_verdict
from shared.protocol import read_record, runs_root, unknown

REHEARSAL = "rehearsal"
PLAN = "plan.json"  # what a call of reproduce set out to do
FRESH = 300  # seconds since a run last wrote something, beyond which it is not under way


@dataclass(frozen=True)
class Status:
    """One scale of one paper. owner: who works on it; None: nobody does."""

    paper: str
    scale: str
    owner: str | None
    planned: int | None  # runs of the last call; None: no call of reproduce was made here
    done: int
    failed: int
    seconds_left: float | None
    under_way: list[str]
    results: Results | None
    local: bool  # whether the results are this machine's own

    @property
    def empty(self) -> bool:
        return self.planned is None and not self.done and not self.under_way


def write_plan(folder: Path, keys: Sequence[tuple[str, str, int]], jobs: int) -> None:
    """Note the runs that a call is about to see to, those that stand already among them."""
    plan = {"begun": time.time(), "jobs": jobs, "runs": [list(key) for key in keys]}
    recorded.write_text(folder / PLAN, json.dumps(plan))


def status(paper: str, scale: str, root: Path, runs: Path) -> Status:
    folder = runs / paper / scale
    plan = read(folder / PLAN)
    keys = {tuple(key) for key in plan.get("runs", [])}
    done, seconds, failed, under_way = 0, [], 0, []
    for place in run_folders(folder):
        key = key_of(place)
        if keys and key not in keys:
            continue
        record = read_record(place)
        if record is not None:
            done += 1
            failed += record.get("status") != "finished"
            if isinstance(spent := record.get("seconds"), int | float):
                seconds.append(spent)
        elif line := last_line(place):
            under_way.append(f"{key[0]} {key[1]} seed {key[2]}: {line}")
    left = max(0, len(keys) - done)
    each = fmean(seconds) if seconds else None
    wait = None if each is None else each * left / max(1, plan.get("jobs", 1))
    results, local = last_results(paper, scale, root, folder)
    planned = len(keys) if keys else None
    who = owner(folder)
    return Status(paper, scale, who, planned, done, failed, wait, under_way, results, local)


def run_folders(folder: Path) -> Iterator[Path]:
    """<task>/seed<k>/<arm> with a config.json; a run that waits in older/ is not among them."""
    yield from (path.parent for path in sorted(folder.glob("*/seed*/*/config.json")))


def key_of(place: Path) -> tuple[str, str, int]:
    """(arm, task, seed) of a run's folder."""
    number = re.fullmatch(r"seed(\d+)", place.parent.name)
    return place.name, place.parent.parent.name, int(number[1]) if number else -1


def last_line(place: Path) -> str | None:
    """What a run that is under way said last; None for one that has been silent for long."""
    files = [place / name for name in ("log.txt", "metrics.jsonl", "config.json")]
    times = [file.stat().st_mtime for file in files if file.exists()]
    if not times or time.time() - max(times) > FRESH:
        return None
    log = files[0].read_text(encoding="utf-8", errors="replace") if files[0].exists() else ""
    lines = log.strip().splitlines()
    return lines[-1].partition(" ")[2] if lines else "begun"


def owner(folder: Path) -> str | None:
    """Who works in a folder, by the name in its lock: of this machine, only a living process."""
    path = folder / locks.NAME
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    signed = re.match(r"process (\d+) on (\S+) since", text)
    if signed is None:
        return None
    here = signed[2] == socket.gethostname()
    return None if here and not alive(int(signed[1])) else text


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # another user's
    return True


def last_results(paper: str, scale: str, root: Path, folder: Path) -> tuple[Results | None, bool]:
    path = folder / "results.json"
    if scale not in SCALES:  # a rehearsal has no verdict
        return None, False
    if path.exists():
        return recorded.read(path), True
    return recorded.recorded(root / paper, scale), False


def read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


# --- in lines -------------------------------------------------------------------------------------


def lines(one: Status) -> list[str]:
    said = []
    if not one.empty:
        of = f" of {one.planned}" if one.planned is not None else ""
        parts = [f"{one.done}{of} runs done"]
        parts += [f"{one.failed} of them diverged or crashed"] if one.failed else []
        if one.planned is not None and one.done < one.planned:
            wait = duration(one.seconds_left, "unknown")
            parts.append(f"{one.planned - one.done} left, about {wait} at this pace")
        said = [f"{one.paper} at {one.scale}: {'; '.join(parts)}"]
        said.append(f"  {'working: ' + one.owner if one.owner else 'nobody works on it now'}")
        said += [f"  {line}" for line in one.under_way]
    if one.results is not None:
        if one.empty:
            said = [f"{one.paper} at {one.scale}: not run here"]
        said.append(f"  last verdicts ({origin(one)}): {verdicts(one.results)}")
    return said


def origin(one: Status) -> str:
    assert one.results is not None
    return f"{'this machine' if one.local else 'recorded'}, {day(one.results.created)}"


def verdicts(results: Results) -> str:
    """'2 SUPPORTED (scaled down), 1 INCONCLUSIVE (scaled down)' of the primary claims."""
    primary = [claim for claim in results.claims if claim.role == "primary"]
    counted = Counter(full_verdict(claim, results.scale) for claim in primary)
    return ", ".join(f"{n} {word}" for word, n in counted.most_common()) or "no primary claim"


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.status", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("papers", nargs="*", metavar="paper", help=f"of {', '.join(PAPERS)}")
    asked = [name.replace("-", "_") for name in parser.parse_args(arguments).papers]
    for name in asked:
        if name not in PAPERS:
            print(f"error: {unknown(name, PAPERS, 'papers')}", file=sys.stderr)
            return 2
    runs = runs_root(root)
    every = [
        status(paper, scale, root, runs)
        for paper in asked or PAPERS
        for scale in (*SCALES, REHEARSAL)
    ]
    here = [one for one in every if not one.empty]
    for one in sorted(every, key=lambda one: one.owner is None):
        for line in lines(one):
            print(line)
    if not here:
        print(f"Nothing has been run in {runs}: make reproduce-{(asked or PAPERS)[0]} begins.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
