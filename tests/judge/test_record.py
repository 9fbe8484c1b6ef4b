"""Recording a result: from a clean tree, whole, and older verdicts stay listed."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

from commands import reproduce

from benchmarks import assemble
from shared import protocol


def test_record_and_check(toy, finished):
    """Recording needs a clean tree and a whole result; the check catches an edited digit."""

    def git(*words):
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        return subprocess.run(["git", *identity, *words], cwd=toy, check=True, capture_output=True)

    def check():
        return subprocess.run(
            [sys.executable, "-m", "benchmarks.check", "toy"],
            cwd=toy,
            capture_output=True,
            text=True,
        )

    (toy / ".gitignore").write_text("/runs/\n/report/\n/.cache/\n__pycache__/\n")
    (toy / "README.md").write_text("<!-- generated: verdicts -->\n<!-- end generated -->\n")
    git("init", "-q"), git("add", "-A"), git("commit", "-qm", "a")
    assert "does not exist" in reproduce(toy, "--record").stderr
    shutil.copytree(finished[0] / "runs", toy / "runs")
    (toy / "toy" / "README.md").write_text(
        "# toy\n\n<!-- generated: claims -->\n<!-- end generated -->\n"
    )
    assert "clean, committed tree" in reproduce(toy, "--record").stderr
    git("commit", "-qam", "b")
    done = reproduce(toy, "--record")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (
        "C1" in (toy / "toy" / "README.md").read_text()
        or "clean inputs" in (toy / "toy" / "README.md").read_text()
    )
    git("add", "-A"), git("commit", "-qm", "c")
    done = check()
    assert done.returncode == 0, done.stdout + done.stderr
    path = toy / "toy" / "results" / "cpu.json"
    text = path.read_text()
    document = json.loads(text)
    document["claims"][0]["effect"] += 1e-9
    path.write_text(json.dumps(document, indent=1) + "\n")
    done = check()
    assert done.returncode != 0 and "effect" in done.stdout + done.stderr
    path.write_text(text)
    (toy / "toy" / "evaluate.py").open("a").write("\nNEWER = 1\n")
    done = check()
    assert done.returncode == 0 and "STALE" in done.stdout


def test_a_truncated_result_is_named_everywhere(toy, finished):
    """Exit status 2 and the file, never a traceback: plan, report, check; runs/ and results/."""
    shutil.copytree(finished[0] / "runs", toy / "runs")
    (toy / "toy" / "results").mkdir()
    here, committed = (toy / p for p in ("runs/toy/cpu/results.json", "toy/results/cpu.json"))
    text = here.read_text()
    for path, half, commands in (
        (here, text[: len(text) // 2], ("report",)),
        (committed, text[: len(text) // 2], ("check", "report", "reproduce toy --dry")),
        (committed, text.replace('"schema": ', '"schema": 9'), ("check", "report")),
    ):
        here.write_text(text)
        path.write_text(half)
        for command in commands:
            words = [sys.executable, "-m", *f"benchmarks.{command}".split()]
            done = subprocess.run(words, cwd=toy, capture_output=True, text=True)
            said = done.stdout + done.stderr
            assert done.returncode == 2 and path.name in said and "Traceback" not in said, said


def test_verdicts_that_another_machine_recorded_stay_listed(toy):
    paper = protocol.Protocol(toy / "toy")
    old = {
        **{"paper": "toy", "scale": "cpu", "revision": paper.revision(), "predictions_sha256": "x"},
        **{"environment": {"processor": "A"}, "commit": "c", "created": "d"},
        "claims": [{"id": "C1", "verdict": "SUPPORTED", "effect": 1.0}],
    }
    (toy / "toy" / "results").mkdir(exist_ok=True)
    (toy / "toy" / "results" / "cpu.json").write_text(json.dumps(old))
    assert assemble.earlier(paper, "cpu", "x") == []
    (superseded,) = assemble.earlier(paper, "cpu", "y")
    assert (
        superseded.processor == "A"
        and superseded.verdicts == {"C1": "SUPPORTED"}
        and superseded.effects == {"C1": 1.0}
    )
