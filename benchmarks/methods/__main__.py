"""What a training step of each method costs: over a plain step, the official way, and its bounds.

    python -m benchmarks.methods     all papers, to runs/methods/cpu.json; says what became slower
    --only autolora dasgm            some papers: these replace what the file has
    --rounds 3                       timed rounds of each script instead of its own number
    --record                         (maintainers) keep it in results/ and write docs/speed.md

Each script runs in a process of its own, one thread, one after another; `peak_megabytes` is the
largest resident size of that process. About 10 CPU minutes. Exit status 1 if a script failed; a
slower step is printed and does not fail: the machine may be busy.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import PAPERS
from benchmarks.methods import tables
from shared import machine, runs

LEAST_ROUNDS = 5  # of a recording
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def main() -> None:
    asked = options()
    committed = tables.load(tables.ROOT / tables.RESULT)
    path = tables.ROOT / (tables.RESULT if asked.record else "runs/methods/cpu.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    result = tables.load(path) | origin()
    measured, problems = {}, []
    for paper in asked.only:
        print(f"\n{paper}", flush=True)
        try:
            result["papers"][paper] = measured[paper] = measure(paper, asked.rounds)
        except (RuntimeError, ValueError) as error:
            problems.append(f"{paper}: FAILED: {error}")
            continue
        path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    compare(committed, {**result, "papers": measured})
    problems += tables.missing({"papers": measured})
    print("\n".join([*problems, f"written: {path.relative_to(tables.ROOT)}"]))
    if asked.record:
        tables.write()
    sys.exit(1 if problems else 0)


def options() -> argparse.Namespace:
    kind = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=kind)
    scripts = [paper for paper in PAPERS if (Path(__file__).parent / f"{paper}.py").exists()]
    parser.add_argument("--only", nargs="+", default=scripts, choices=scripts, metavar="PAPER")
    parser.add_argument("--rounds", type=int, default=0)
    parser.add_argument("--record", action="store_true")
    asked = parser.parse_args()
    if asked.record and 0 < asked.rounds < LEAST_ROUNDS:
        remedy = f"at least {LEAST_ROUNDS}, or leave --rounds out"
        parser.error(f"--record with {asked.rounds} rounds: {remedy}")
    return asked


def origin() -> dict[str, Any]:
    """Machine, versions and command of a result."""
    here = machine.environment("auto")
    return {
        "machine": {"cpu": here["processor"], "cores": os.cpu_count(), "system": here["system"]},
        "versions": {"python": here["python"], **here["packages"]},
        "command": " ".join(["python -m benchmarks.methods", *sys.argv[1:]]),
    }


def compare(committed: dict[str, Any], now: dict[str, Any]) -> None:
    """Print what was measured beside the bounds, and what became slower."""
    print("\nours over a plain step, beside the bounds")
    for paper, bound, ours, same in tables.works(now):
        if ours:
            beside = f", official way {same['ratio']:.2f}" if same else ""
            limits = bound.model_dump(include={"official", "reached", "floor"}, exclude_none=True)
            shown = ", ".join(f"{name} {value:g}" for name, value in limits.items())
            ratio, verdict = f"{ours['ratio']:.2f}", tables.verdict(ours["ratio"], bound)
            print(f"  {paper}: {bound.work}: {ratio}{beside} ({shown}): {verdict}")
    if not committed["papers"]:
        return print("nothing is committed to compare with")
    if committed["machine"] != now["machine"]:
        print(f"committed on another machine: {committed['machine']}")
    worse = tables.regressions(committed, now)
    print("\n".join(worse) or f"nothing slower than committed by more than {tables.NOISE:.0%}")


def measure(paper: str, rounds: int) -> dict[str, Any]:
    """Run the script of one paper -> {rows, peak_megabytes, seconds, command, commit, created}."""
    words = ["-m", f"benchmarks.methods.{paper}"] + (["--rounds", str(rounds)] if rounds else [])
    command = f"python {' '.join(words)}"
    commit = runs.commit(tables.ROOT)  # of the code that is about to run
    with tempfile.TemporaryDirectory() as folder:
        file, begun = Path(folder) / "rows.json", time.monotonic()
        words = [sys.executable, *words, "--json", str(file)]
        process = subprocess.Popen(words, cwd=tables.ROOT, env=os.environ | ENVIRONMENT)
        _, status, usage = os.wait4(process.pid, 0)  # it alone tells the peak of this child
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise RuntimeError(f"`{command}` ended with status {process.returncode}")
        if not file.exists():
            raise RuntimeError(f"`{command}` wrote no file for --json")
        rows = tables.normalised(json.loads(file.read_text(encoding="utf-8")), paper)
    kilobytes = usage.ru_maxrss / (1024 if sys.platform == "darwin" else 1)  # macOS counts bytes
    return {
        "rows": rows,
        "peak_megabytes": round(kilobytes / 1024),
        "seconds": round(time.monotonic() - begun),
        "command": command,
        "commit": commit,
        "created": time.strftime("%Y-%m-%d", time.gmtime()),
    }


if __name__ == "__main__":
    main()
