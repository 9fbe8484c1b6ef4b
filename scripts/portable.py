"""What PORTABLE=1 costs: CPU seconds of each paper's tiny run with it over those without.

    python scripts/portable.py [paper ...] [-- options of the run]

Prints a row of a table for each paper, and whether the scores moved. About two minutes of one core.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def records(paper: str, portable: str, options: list[str]) -> list[dict]:
    """The records of a tiny run and of what it uses, made with an empty cache."""
    with tempfile.TemporaryDirectory() as folder:
        machine = {"PORTABLE": portable, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        places = {"REPRO_RUNS": f"{folder}/runs", "REPRO_CACHE": f"{folder}/cache"}
        words = [sys.executable, "-m", f"{paper}.train", *(options or ["--tiny"])]
        env = {**os.environ, **machine, **places}
        subprocess.run(words, cwd=ROOT, env=env, check=True, stdout=subprocess.DEVNULL)
        files = sorted(Path(folder, "runs").rglob("record.json"))
        return [json.loads(path.read_text("utf-8")) for path in files]


def main() -> None:
    words = sys.argv[1:]
    cut = words.index("--") if "--" in words else len(words)
    papers = words[:cut] or sorted(path.parent.name for path in ROOT.glob("*/paper.yaml"))
    print(
        "| paper | CPU s | with PORTABLE=1 | times | same scores |\n| --- | --- | --- | --- | --- |"
    )
    for paper in papers:
        plain, portable = (records(paper, value, words[cut + 1 :]) for value in "01")
        a, b = (sum(r["cpu_seconds"] for r in rows) for rows in (plain, portable))
        same = [r["metrics"] for r in plain] == [r["metrics"] for r in portable]
        row = f"| {paper} | {a:.1f} | {b:.1f} | {b / a:.2f} | {'yes' if same else 'no'} |"
        print(row, flush=True)


if __name__ == "__main__":
    main()
