"""The promises about runs (reliability.yaml), counted: which of them hold, for how many methods.

    python -m benchmarks.reliability             # run the tests, fast and slow, print the table
    python -m benchmarks.reliability --record    # and keep it for the report
    python -m benchmarks.reliability --from FILE # count what a pytest --junitxml FILE says

An item's figure is the number of checks that passed of those made. A test that is known to fail
(xfail) counts as made and not passed.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import yaml

from benchmarks import PAPERS
from benchmarks.claims import Declared
from benchmarks.recorded import now
from shared.protocol import read_as

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks" / "results" / "reliability.json"
NOT_RUN = "not run"


class Promise(Declared):
    promise: str
    tests: list[str]  # the beginnings of "file::test"


@dataclass(frozen=True)
class Case:
    """One test that was run; `done` of `made` checks passed."""

    name: str  # "file::test[id]"
    passed: bool
    done: int
    made: int
    paper: str
    seconds: float
    why: str


@dataclass(frozen=True)
class Item:
    item: str
    promise: str
    figure: str
    methods: int | None  # whose tests all passed
    methods_asked: int | None
    seconds: float
    not_held: list[str]


def promises() -> list[Promise]:
    path = Path(__file__).with_suffix(".yaml")
    return [
        read_as(Promise, entry, path.name)
        for entry in yaml.safe_load(path.read_text(encoding="utf-8"))
    ]


def run_tests(report: Path) -> list[str]:
    """All tests that an item names, slow ones too, on every core there is; returns the command."""
    pairs = [name.split("::") for promise in promises() for name in promise.tests]
    paths = sorted(
        {str(p.relative_to(ROOT)) for f, _ in pairs for p in ROOT.glob(f"tests/**/{f}.py")}
    )
    names = sorted({test or file for file, test in pairs})
    options = ["-m", "not gpu", "-k", " or ".join(names), "-p", "no:cacheprovider"]
    if importlib.util.find_spec("xdist"):
        options += ["-n", "auto", "--dist", "worksteal"]
    command = ["-m", "pytest", *options, *paths]
    subprocess.run([sys.executable, *command, f"--junitxml={report}"], cwd=ROOT)
    return ["python", *command]


def cases(report: Path) -> list[Case]:
    """Every test of a junit file that was run."""
    listed = []
    for case in ElementTree.parse(report).iter("testcase"):
        child = next((c for c in case if c.tag in ("failure", "error", "skipped")), None)
        xfailed = child is not None and child.get("type") == "pytest.xfail"
        if child is not None and child.tag == "skipped" and not xfailed:
            continue
        name = f"{case.get('classname', '').split('.')[-1]}::{case.get('name')}"
        figures = [p.get("value", "") for p in case.iter("property") if p.get("name") == "figure"]
        counted = re.fullmatch(r"(\d+)/(\d+)", figures[0] if figures else "")
        done, made = (int(counted[1]), int(counted[2])) if counted else (1, 1)
        if child is not None and done == made:
            done = 0  # without a figure of its own the whole test failed
        papers = [paper for paper in PAPERS if re.search(rf"[\[-]{paper}[\]-]", name)]
        why = "" if child is None else child.get("message", "").split("\n")[0]
        seconds = float(case.get("time") or 0)
        listed.append(Case(name, child is None, done, made, "".join(papers[:1]), seconds, why))
    return listed


def count(listed: Sequence[Case]) -> list[Item]:
    items = []
    for number, promise in enumerate(promises(), 1):
        asked = [case for case in listed if case.name.startswith(tuple(promise.tests))]
        failed = [case for case in asked if not case.passed]
        papers = {case.paper for case in asked} - {""}
        done, made = sum(case.done for case in asked), sum(case.made for case in asked)
        items.append(
            Item(
                item=str(number),
                promise=promise.promise,
                figure=f"{done}/{made}" if asked else NOT_RUN,
                methods=len(papers - {case.paper for case in failed}) if papers else None,
                methods_asked=len(papers) or None,
                seconds=round(sum(case.seconds for case in asked), 1),
                not_held=[f"{case.name}: {case.why[:200]}" for case in failed],
            )
        )
    return items


def main(arguments: list[str] | None = None) -> int:
    from shared import machine, runs

    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.reliability", description=(__doc__ or "").split("\n")[0]
    )
    add, place = parser.add_argument, RESULT.relative_to(ROOT)
    add("--record", action="store_true", help=f"keep the figures in {place}")
    add("--from", dest="source", type=Path, help="a pytest --junitxml file, instead of a run")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        report = options.source or Path(folder) / "junit.xml"
        command = ["pytest --junitxml, counted later"] if options.source else run_tests(report)
        items = count(cases(report))
    for one in items:
        methods = f"{one.methods} of {one.methods_asked} methods" if one.methods_asked else ""
        print(f"{one.item:>3}  {one.figure:>10}  {methods:<16}  {one.promise}")
        for line in one.not_held:
            print(f"       not held: {line}")
    if options.record:
        environment = machine.environment("auto")
        document = {
            "command": " ".join(command),
            "created": now(),
            "commit": runs.commit(ROOT),
            "machine": {k: environment[k] for k in ("system", "processor", "device")},
            "versions": {"python": environment["python"], **environment["packages"]},
            "items": [asdict(one) for one in items],
        }
        RESULT.parent.mkdir(exist_ok=True)
        runs.write_json(RESULT, document)
        print(f"recorded: {place}")
    return int(any(one.not_held or one.figure == NOT_RUN for one in items))


if __name__ == "__main__":
    sys.exit(main())
