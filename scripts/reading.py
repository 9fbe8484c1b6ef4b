"""How much of the repository one `--tiny` run enters: files, functions, lines of functions.

    python scripts/reading.py             every paper
    python scripts/reading.py mlo_mae     one; with --functions each function that was entered

A student who follows a run line by line reads this much. Bounds: 15 files, 1,400 lines, 550 of them
machinery of runs (shared/runs.py, protocol.py, processes.py). Exit status 1 where one is passed.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import io
import json
import os
import runpy
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from types import FrameType

ROOT = Path(__file__).resolve().parent.parent
MACHINERY = {"shared/runs.py", "shared/protocol.py", "shared/processes.py"}
FILES, LINES, MACHINERY_LINES = 15, 1400, 550

Spans = dict[str, dict[str, tuple[int, int]]]  # file -> function -> first and last line


def entered(paper: str) -> Spans:
    """Functions of this repository that `--tiny` enters, run in this process."""
    calls: set[tuple[str, int]] = set()

    def note(frame: FrameType, event: str, _: object) -> None:
        if event == "call":
            calls.add((frame.f_code.co_filename, frame.f_code.co_firstlineno))

    sys.path.insert(0, str(ROOT))
    sys.argv = [f"{paper}.train", "--tiny", "--device", "cpu"]  # one run, not the story
    threading.setprofile(note)
    sys.setprofile(note)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            runpy.run_module(f"{paper}.train", run_name="__main__")
    finally:
        sys.setprofile(None)
    spans: Spans = {}
    for path in [*ROOT.glob("shared/*.py"), *ROOT.glob(f"{paper}/**/*.py")]:
        lines = {line for name, line in calls if name == str(path)}
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if lines else ():
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
                if lines & {first, node.lineno} and node.end_lineno:
                    functions = spans.setdefault(str(path.relative_to(ROOT)), {})
                    functions[f"{node.name}:{first}"] = (first, node.end_lineno)
    return spans


def lines_of(spans: Spans) -> dict[str, int]:
    """Lines of functions entered, by file; a function inside another counts once."""
    return {
        name: len({n for first, last in functions.values() for n in range(first, last + 1)})
        for name, functions in spans.items()
    }


def fresh(paper: str) -> Spans:
    """`entered` in a process of its own, which makes its runs in a folder that is thrown away."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "REPRO_RUNS": folder}
        command = [sys.executable, __file__, paper, "--json"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{paper}: --tiny failed\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("paper", nargs="*")
    parser.add_argument("--functions", action="store_true", help="each function that was entered")
    parser.add_argument("--json", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.json:
        print(json.dumps(entered(options.paper[0])))
        return 0
    papers = options.paper or sorted(p.parent.name for p in ROOT.glob("*/paper.yaml"))
    passed = False
    print(f"{'':14}{'files':>6}{'functions':>11}{'lines':>7}{'machinery':>11}{'own':>6}")
    for paper in papers:
        spans = fresh(paper)
        lines = lines_of(spans)
        machinery = sum(n for name, n in lines.items() if name in MACHINERY)
        own = sum(n for name, n in lines.items() if name.startswith(f"{paper}/"))
        total, functions = sum(lines.values()), sum(map(len, spans.values()))
        print(f"{paper:14}{len(lines):6}{functions:11}{total:7,}{machinery:11}{own:6}")
        for name in sorted(lines) if options.functions else ():
            print(f"  {name}: {lines[name]}")
            for function, (first, last) in sorted(spans[name].items(), key=lambda x: x[1]):
                print(f"    {last - first + 1:4} {function.split(':')[0]}")
        passed |= len(lines) > FILES or total > LINES or machinery > MACHINERY_LINES
    return int(passed)


if __name__ == "__main__":
    sys.exit(main())
