"""What a step of each method asks of a GPU: kernel launches, waits of the host, FLOPs; and hours.

    python -m benchmarks.methods.launches              every paper, to runs/methods/launches.json
    --only autolora dasgm                              some papers: these replace what the file has
    --record                                           keep it in results/, and write docs/gpu.md

Counted while the short trainings of tests/cuda run on a pretended CUDA device: the method of scale
`gpu`, the runs that it uses, and an opponent that trains; networks and precision are the protocol's
(dasgm's generator alone is narrower), steps, batches and texts are cut. A smaller batch needs as
many launches; FLOPs grow with it, and where tokens are drawn one after another, launches grow with
their number: `cut` in a row has the numbers that were smaller than the protocol's. What a phase
does beside training (checks of itself, probes, points of a curve) is off. About 4 CPU minutes;
needs g++.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import PAPERS
from benchmarks.methods import launch_tables as tables
from shared import runs

TESTS = tables.ROOT / "tests"


def main() -> None:
    asked = options()
    path = tables.ROOT / (tables.RESULT if asked.record else "runs/methods/launches.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    command = " ".join(["python -m benchmarks.methods.launches", *sys.argv[1:]])
    about = {"command": command, "commit": runs.commit(tables.ROOT)}
    about["created"] = time.strftime("%Y-%m-%d", time.gmtime())
    status, rows = counted(asked.only)
    result = tables.load(path)
    for name in {row["paper"]: None for row in rows}:
        own = [{k: v for k, v in r.items() if k != "paper"} for r in rows if r["paper"] == name]
        result["papers"][name] = {"rows": own, **about}
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"written: {path.relative_to(tables.ROOT)}")
    if asked.record:
        tables.write()
    sys.exit(status)


def options() -> argparse.Namespace:
    kind = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=kind)
    parser.add_argument("--only", nargs="+", default=PAPERS, choices=PAPERS, metavar="PAPER")
    parser.add_argument("--record", action="store_true")
    return parser.parse_args()


def counted(papers: Sequence[str]) -> tuple[int, list[dict[str, Any]]]:
    """Exit status of pytest and rows of the trainings, the opponent's last in each paper."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "steps.jsonl"
        command = [sys.executable, "-m", "pytest", "-v", "-p", "pretend_cuda", "--pretend-cuda"]
        command += ["-p", "no:cacheprovider", "-m", "gpu and not slow"]
        test = TESTS / "cuda" / "test_trainings.py::test_the_method_and_an_opponent"
        command += [f"{test}[{paper}]" for paper in papers]
        path = os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH", "")]))
        env = {**os.environ, "PYTHONPATH": path, "COUNTED_STEPS": str(file)}
        env |= {"CUDA_VISIBLE_DEVICES": "0", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=tables.ROOT, env=env)
        text = file.read_text(encoding="utf-8") if file.exists() else ""
    return done.returncode, [json.loads(line) for line in text.splitlines()]


if __name__ == "__main__":
    main()
