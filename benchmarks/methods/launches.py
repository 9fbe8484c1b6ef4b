"""What a step of each method asks of a GPU: kernel launches, waits of the host, FLOPs; and hours.

    python -m benchmarks.methods.launches              every paper, to runs/methods/launches.json
    --only autolora dasgm                              some papers: these replace what the file has
    --record                                           keep it in results/, and write docs/gpu.md

Counted while the short trainings of tests/cuda run on a pretended CUDA device: the method of scale
`gpu`, the runs that it uses, and an opponent that trains; networks and precision are the
protocol's, steps, batches and texts are cut. A smaller batch needs as many launches; FLOPs grow
with it. Steps that draw token by token are counted with fewer tokens, and say so. About 4 CPU
minutes; needs g++.
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
from benchmarks.methods import launch_tables as tables
from shared import runs

TESTS = tables.ROOT / "tests"


def main() -> None:
    asked = options()
    path = tables.ROOT / (tables.RESULT if asked.record else "runs/methods/launches.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    commit, problems = runs.commit(tables.ROOT), []
    for name in asked.only:
        print(f"\n{name}", flush=True)
        rows, failed = counted(name)
        problems += [f"{name}: {failed}"] if failed else []
        if not rows:
            continue
        command = " ".join(["python -m benchmarks.methods.launches", *sys.argv[1:]])
        about = {"command": command, "commit": commit}
        about["created"] = time.strftime("%Y-%m-%d", time.gmtime())
        result = tables.load(path)
        result["papers"][name] = {"rows": rows, **about}
        path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print("\n".join([*problems, f"written: {path.relative_to(tables.ROOT)}"]))
    if asked.record:
        tables.write()
    sys.exit(1 if problems else 0)


def options() -> argparse.Namespace:
    kind = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=kind)
    parser.add_argument("--only", nargs="+", default=PAPERS, choices=PAPERS, metavar="PAPER")
    parser.add_argument("--record", action="store_true")
    return parser.parse_args()


def counted(name: str) -> tuple[list[dict[str, Any]], str]:
    """Rows of the trainings of a paper, the opponent's last; and what failed, or ""."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "steps.jsonl"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "pretend_cuda", "--pretend-cuda"]
        command += ["-p", "no:cacheprovider", "-m", "gpu and not slow", "-k", name]
        command += [str(TESTS / "cuda" / "test_trainings.py")]
        path = os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH", "")]))
        env = {**os.environ, "PYTHONPATH": path, "COUNTED_STEPS": str(file)}
        env |= {"CUDA_VISIBLE_DEVICES": "0", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=tables.ROOT, env=env)
        text = file.read_text(encoding="utf-8") if file.exists() else ""
    rows = [json.loads(line) for line in text.splitlines()]
    failed = f"pytest ended with status {done.returncode}" if done.returncode else ""
    return [row for row in rows if row.pop("paper") == name], failed


if __name__ == "__main__":
    main()
