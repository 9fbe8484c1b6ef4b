"""What a training step of each method costs: over a plain step, the official way, and its bounds.

    python -m benchmarks.methods     all papers, to runs/methods/cpu.json; says what became slower
    --only autolora dasgm            some papers: these replace what the file has
    --rounds 3                       timed rounds of each script instead of its own number
    --record                         (maintainers) keep the result in results/ and write README.md

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
from shared import runs

LEAST_ROUNDS = 5  # of a recording
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    there = [paper for paper in PAPERS if (Path(__file__).parent / f"{paper}.py").exists()]
    parser.add_argument("--only", nargs="+", default=there, choices=there, metavar="PAPER")
    parser.add_argument("--rounds", type=int, default=0)
    parser.add_argument("--record", action="store_true")
    asked = parser.parse_args()
    if asked.record and 0 < asked.rounds < LEAST_ROUNDS:
        parser.error(
            f"--record with {asked.rounds} rounds: at least {LEAST_ROUNDS}, or leave --rounds out"
        )

    committed = tables.load(tables.ROOT / tables.RESULT)
    path = tables.ROOT / (tables.RESULT if asked.record else "runs/methods/cpu.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    here = runs.environment()
    result = tables.load(path) | {
        "machine": {"cpu": here["processor"], "cores": os.cpu_count(), "system": here["system"]},
        "versions": {"python": here["python"], **here["packages"]},
    }
    result["command"] = " ".join(["python -m benchmarks.methods", *sys.argv[1:]])
    measured, failed = {}, []
    for paper in asked.only:
        print(f"\n{paper}", flush=True)
        try:
            result["papers"][paper] = measured[paper] = measure(paper, asked.rounds)
        except (RuntimeError, ValueError) as error:
            failed.append(f"{paper}: FAILED: {error}")
            continue
        path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")

    now = {"papers": measured}
    print("\nours over a plain step, beside the bounds")
    for paper, bound, ours, same in tables.works(now):
        if ours:
            beside = f", official way {same['ratio']:.2f}" if same else ""
            known = bound.model_dump(include={"official", "reached", "floor"}, exclude_none=True)
            limits = ", ".join(f"{name} {value:g}" for name, value in known.items())
            said = f"{ours['ratio']:.2f}{beside} ({limits}): {tables.verdict(ours['ratio'], bound)}"
            print(f"  {paper}: {bound.work}: {said}")
    if not committed["papers"]:
        print("nothing is committed to compare with")
    else:
        if committed["machine"] != result["machine"]:
            print(f"committed on another machine: {committed['machine']}")
        worse = tables.regressions(committed, now)
        print("\n".join(worse) or f"nothing slower than committed by more than {tables.NOISE:.0%}")
    failed += tables.missing(now)
    print("\n".join([*failed, f"written: {path.relative_to(tables.ROOT)}"]))
    if asked.record:
        tables.write()
    sys.exit(1 if failed else 0)


def measure(paper: str, rounds: int) -> dict[str, Any]:
    """Run the script of one paper -> {rows, peak_megabytes, seconds, command, commit, created}."""
    words = ["-m", f"benchmarks.methods.{paper}"] + (["--rounds", str(rounds)] if rounds else [])
    commit = runs.commit(tables.ROOT)  # of the code that is about to run
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.json"
        begun = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, *words, "--json", str(file)],
            cwd=tables.ROOT,
            env=os.environ | ENVIRONMENT,
        )
        _, status, usage = os.wait4(
            process.pid, 0
        )  # wait4, not wait: it alone tells this child's peak
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise RuntimeError(f"`python {' '.join(words)}` ended with status {process.returncode}")
        if not file.exists():
            raise RuntimeError(f"`python {' '.join(words)}` wrote no file for --json")
        rows = tables.normalised(json.loads(file.read_text(encoding="utf-8")), paper)
    kilobytes = usage.ru_maxrss / (1024 if sys.platform == "darwin" else 1)  # macOS counts bytes
    return {
        "rows": rows,
        "peak_megabytes": round(kilobytes / 1024),
        "seconds": round(time.monotonic() - begun),
        "command": f"python {' '.join(words)}",
        "commit": commit,
        "created": time.strftime("%Y-%m-%d", time.gmtime()),
    }


if __name__ == "__main__":
    main()
