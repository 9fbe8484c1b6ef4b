"""The promises about runs, counted: which of the twenty items of tests/test_reliability.py and its neighbours hold, for how many methods.

    python -m benchmarks.reliability             # run the tests, fast and slow, and print the table
    python -m benchmarks.reliability --record    # and keep it in benchmarks/results/reliability.json, which the report shows
    python -m benchmarks.reliability --from FILE # count what a pytest --junitxml FILE says, without running

An item's figure is the number of checks that passed of those made. A test that is known to fail (xfail) counts as made and not passed.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

from benchmarks import PAPERS

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks" / "results" / "reliability.json"
OWN = "test_reliability::"

# item -> (what is promised, the tests that ask for it: start of "file::test")
ITEMS: dict[str, tuple[str, tuple[str, ...]]] = {
    "1": ("two fresh processes give the same bits", (OWN + "test_repeat_is_bitwise",)),
    "2": (
        "stopped anywhere and continued: the same bits",
        (OWN + "test_resume", "test_runs::test_resume_is_bitwise"),
    ),
    "3": (
        "a checkpoint that lacks a field is refused by name",
        (OWN + "test_a_checkpoint_without_one_field", "test_runs::test_a_missing_checkpoint_field"),
    ),
    "4": ("SIGKILL at a seeded moment, the same command: the same bits", (OWN + "test_sigkill_and_the_same",)),
    "5": ("SIGKILL inside a save leaves a whole checkpoint", (OWN + "test_sigkill_inside_a_save",)),
    "6": ("flipped bits of a checkpoint are caught", (OWN + "test_bit_flips",)),
    "7": ("a truncated checkpoint is refused; the run begins again", (OWN + "test_a_truncated",)),
    "8": (
        "a full disk keeps the old checkpoint; the error says how much was needed",
        (OWN + "test_a_full_disk", "test_runs::test_full_disk"),
    ),
    "9": (
        "NaN in any level's variables stops the run within the step, level named, nothing saved after",
        (OWN + "test_nan_in_any_level",),
    ),
    "10": (
        "16 bad configurations a method are refused before anything is loaded",
        (OWN + "test_a_bad_command", OWN + "test_a_bad_protocol"),
    ),
    "11": (
        "a planted pickle never runs",
        (OWN + "test_a_planted_pickle", "test_runs::test_a_planted_pickle", "test_cifar::test_pickles_that_hold",
         "test_isolation::test_nothing_unsafe"),
    ),
    "12": (
        "bad data are refused, with the row",
        ("test_glue::test_bad_tables", "test_glue::test_other_bad_input", "test_cifar::test_broken_files",
         "test_cifar::test_wrong_columns"),
    ),
    "13": (
        "no item is in two levels, no stage sees a test item",
        (OWN + "test_no_item_is_in_two_levels", "test_runs::test_leaks"),
    ),
    "14": (
        "an edited result is caught",
        ("test_check::test_an_edited", "test_check::test_one_edited", "test_check::test_a_dropped_seed",
         "test_check::test_a_changed_input", "test_check::test_a_threshold_changed",
         "test_check::test_every_single_digit"),
    ),
    "15": ("verdicts of score sets with known answers", ("test_verdicts::",)),
    "16": ("rates of wrong verdicts in simulation", ("test_verdicts_calibration::",)),
    "17": (
        "hypergradients against closed forms; nothing moved afterwards",
        ("test_hypergrad::test_equals", "test_hypergrad_inner::test_the_closed_form",
         "test_hypergrad_inner::test_conjugate", "test_hypergrad_inner::test_unrolled",
         "test_hypergrad_inner::test_neumann", "test_hypergrad_state::test_everything",
         "test_multilevel::"),
    ),
    "18": (
        "two processes train every method, stay equal, and equal one",
        ("test_processes::", "test_hypergrad::test_two_processes", "test_ppo_nlu::test_two_processes",
         "test_ppo_nlu::test_fsdp", "test_mlo_mae::test_two_processes"),
    ),
    "19": ("micro-batches equal the batch, at every level", ("test_hypergrad_training::test_gradient_accumulation",)),
    "20": ("offline from an empty home: trains, or says what to fetch", (OWN + "test_offline",)),
}  # fmt: skip


def run_tests(report: Path) -> list[str]:
    """All tests that an item names, slow ones too, on every core where pytest-xdist is there; returns the command."""
    files = sorted({name.split("::")[0] for _, tests in ITEMS.values() for name in tests})
    names = sorted(
        {
            name.split("::")[1]
            for _, tests in ITEMS.values()
            for name in tests
            if name.split("::")[1]
        }
    )
    whole = [
        name.split("::")[0] for _, tests in ITEMS.values() for name in tests if name.endswith("::")
    ]
    words = [
        "pytest",
        "-m",
        "not gpu",
        "-k",
        " or ".join([*names, *whole]),
        "-p",
        "no:cacheprovider",
    ]
    tests = sorted((ROOT / "tests").rglob("test_*.py"))
    paths = [path.relative_to(ROOT).as_posix() for path in tests if path.stem in files]
    if importlib.util.find_spec("xdist"):
        words += ["-n", "auto", "--dist", "worksteal"]
    subprocess.run([sys.executable, "-m", *words, f"--junitxml={report}", *paths], cwd=ROOT)
    return ["python", "-m", *words, *paths]


def cases(report: Path) -> list[dict[str, Any]]:
    """name ("file::test[id]"), outcome, made and passed checks, seconds, paper, why: one entry per test that was run."""
    found = []
    for case in ElementTree.parse(report).iter("testcase"):
        name = f"{case.get('classname', '').split('.')[-1]}::{case.get('name')}"
        child = next((c for c in case if c.tag in ("failure", "error", "skipped")), None)
        outcome = "passed" if child is None else child.tag
        if child is not None and child.get("type") == "pytest.xfail":
            outcome = "xfailed"
        if outcome == "skipped":
            continue
        figure = next(
            (p.get("value", "") for p in case.iter("property") if p.get("name") == "figure"), ""
        )
        done, made = map(int, figure.split("/")) if re.fullmatch(r"\d+/\d+", figure) else (1, 1)
        if outcome != "passed":  # without a figure of its own the whole test failed
            done = done if figure and done < made else 0
        papers = [p for p in PAPERS if re.search(rf"[\[-]{p}[\]-]", name)]
        why = (child.get("message") or "").split("\n")[0] if child is not None else ""
        found.append(
            {"name": name, "outcome": outcome, "done": done, "made": made, "paper": papers[0] if papers else "",
             "seconds": float(case.get("time") or 0), "why": why}
        )  # fmt: skip
    return found


def count(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One entry per item: figure, number of methods whose tests all passed, seconds, and what did not hold."""
    items = []
    for item, (promise, tests) in ITEMS.items():
        own = [c for c in found if c["name"].startswith(tests)]
        asked = {c["paper"] for c in own if c["paper"]}
        failed = {c["paper"] for c in own if c["outcome"] != "passed"}
        items.append(
            {
                "item": item,
                "promise": promise,
                "figure": f"{sum(c['done'] for c in own)}/{sum(c['made'] for c in own)}"
                if own
                else "not run",
                "methods": len(asked - failed) if asked else None,
                "methods_asked": len(asked) or None,
                "seconds": round(sum(c["seconds"] for c in own), 1),
                "not_held": [
                    f"{c['name']}: {c['why'][:200]}" for c in own if c["outcome"] != "passed"
                ],
            }
        )
    return items


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.reliability", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument(
        "--record", action="store_true", help=f"keep the figures in {RESULT.relative_to(ROOT)}"
    )
    parser.add_argument(
        "--from", dest="source", type=Path, help="a pytest --junitxml file, instead of a run"
    )
    given = parser.parse_args(arguments)
    from shared import runs

    with tempfile.TemporaryDirectory() as folder:
        report = given.source or Path(folder) / "junit.xml"
        command = ["pytest --junitxml, counted later"] if given.source else run_tests(report)
        items = count(cases(report))
    for entry in items:
        methods = (
            f"{entry['methods']} of {entry['methods_asked']} methods"
            if entry["methods_asked"]
            else ""
        )
        print(f"{entry['item']:>3}  {entry['figure']:>10}  {methods:<16}  {entry['promise']}")
        for line in entry["not_held"]:
            print(f"       not held: {line}")
    if given.record:
        RESULT.parent.mkdir(exist_ok=True)
        environment = runs.environment()
        runs.write_json(
            RESULT,
            {
                "command": " ".join(command),
                "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "commit": runs.commit(ROOT),
                "machine": {k: environment[k] for k in ("system", "processor", "device")},
                "versions": {"python": environment["python"], **environment["packages"]},
                "items": items,
            },
        )
        print(f"recorded: {RESULT.relative_to(ROOT)}")
    return 0 if all(not e["not_held"] and e["figure"] != "not run" for e in items) else 1


if __name__ == "__main__":
    sys.exit(main())
