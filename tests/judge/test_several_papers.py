"""All papers in one call: one estimate, one summary."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest


@pytest.fixture
def two(toy):
    """A repository of two papers: `toy` and its copy `toy2`."""
    shutil.copytree(toy / "toy", toy / "toy2")
    for path in (toy / "toy2").iterdir():
        path.write_text(path.read_text().replace("toy", "toy2"))
    return toy


def all_papers(root, *words, before=""):
    call = "import sys; from benchmarks import reproduce; sys.exit(reproduce.main(sys.argv[1:]))"
    code = f"{before}\n{call}"
    return subprocess.run(
        [sys.executable, "-c", code, *words],
        cwd=root,
        capture_output=True,
        text=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )


def recorded_seconds(root, paper, seconds):
    """A recorded result whose runs took so long each, `seconds` by arm."""
    runs = [
        {"arm": arm, "task": task, "seed": 100, "seconds": took}
        for arm, took in seconds.items()
        for task in ("line", "plane")
    ]
    folder = root / paper / "results"
    folder.mkdir()
    (folder / "cpu.json").write_text(
        json.dumps({"paper": paper, "scale": "cpu", "claims": [], "runs": runs})
    )


def test_one_estimate_over_all_papers_without_torch(two):
    """23 runs each: 1 stage, 11 good, 11 noisy."""
    recorded_seconds(two, "toy", {"stage": 4.0, "good": 60.0, "noisy": 120.0})
    recorded_seconds(two, "toy2", {"stage": 4.0, "good": 600.0, "noisy": 0.1})
    done = all_papers(two, "--dry", "--jobs", "2", before="import sys; sys.modules['torch'] = None")
    assert done.returncode == 0, done.stdout + done.stderr
    assert not (two / "runs").exists()
    lines = done.stdout.splitlines()
    assert "paper 1 of 2, 72 min left over the whole: toy at scale cpu (no CUDA device)" in lines
    assert "paper 2 of 2, 55 min left over the whole: toy2 at scale cpu (no CUDA device)" in lines
    table = [
        " ".join(line.split()) for line in lines[lines.index("") :] if line[:3] in ("toy", "all")
    ]
    assert table == [
        "toy cpu 23 0 17 min 0.20",
        "toy2 cpu 23 0 55 min 0.20",
        "all 46 0 72 min 0.40",
    ]
    assert "expected: 72 min; started now, it would end about 20" in done.stdout  # a date


def test_what_was_not_measured_or_is_refused_is_named_in_the_estimate(two):
    recorded_seconds(two, "toy", {"stage": 4.0, "good": 60.0, "noisy": 120.0})
    done = all_papers(two, "--dry", "--jobs", "2")
    assert "expected: 17 min without toy2 (not measured)" in done.stdout
    path = two / "toy2" / "protocol.yaml"
    path.write_text(path.read_text().replace("defaults", "default"))
    done = all_papers(two, "--dry", "--jobs", "2")
    assert (
        done.returncode == 2
        and "toy2          refused: " in done.stdout
        and "17 min" in done.stdout
    )
    assert "Traceback" not in done.stderr


def test_all_papers_end_with_one_summary(two, finished):
    shutil.copytree(finished[0] / "runs", two / "runs")
    done = all_papers(two)
    assert done.returncode == 0, done.stdout + done.stderr
    begin, end = done.stdout.split("paper 1 of 2, ")
    assert (
        begin.startswith("paper ") and " 23       23          0 s" in begin
    )  # the estimate comes first
    assert "paper 2 of 2, not measured" not in end and end.index("[23/23]") < end.index(
        "summary of 2 papers"
    )
    lines = end[end.index("summary of 2 papers") :].splitlines()
    by_paper = {
        n: json.loads((two / "runs" / n / "cpu" / "results.json").read_text())
        for n in ("toy", "toy2")
    }
    passes = {
        n: sum(r["gradient_evaluations"] for r in result["runs"]) for n, result in by_paper.items()
    }
    for i, (name, result) in enumerate(by_paper.items()):
        gates = f"gates: {len(result['gates'])} of {len(result['gates'])} hold"
        seconds = f"{result['seconds']['wall']:.0f} s"
        spent = f"{passes[name]} gradient evaluations"
        assert lines[1 + 2 * i] == f"{name:<13} cpu       done; {gates}; {seconds}; {spent}"
        assert (
            lines[2 + 2 * i]
            == f"  {result['claims'][0]['verdict']}  C1: clean inputs beat noisy ones"
        )
    assert (
        lines[5].startswith("all: 2 done; ")
        and f"{sum(passes.values()):,} gradient evaluations" in lines[5]
    )
    assert lines[5].endswith(
        "primary claims: 2 " + by_paper["toy"]["claims"][0]["verdict"].split(" (")[0]
    )
    assert lines[6] == "report: report/index.html"


def test_a_rehearsal_of_all_papers_ends_with_passed_or_failed(two):
    for paper in ("toy", "toy2"):
        path = two / paper / "protocol.yaml"
        path.write_text(
            path.read_text().replace(
                ", needs: {models: [nobody/nothing], data: [nothing/here]}", ""
            )
        )
    path.write_text(path.read_text().replace("set: {noise: 3.0}", "set: {noise: 3.0, crash: 0}"))
    done = all_papers(two, "--scale", "rehearsal", "--jobs", "1")
    lines = done.stdout[done.stdout.index("summary of 2 papers") :].splitlines()
    assert done.returncode == 1
    assert lines[1].startswith("toy           rehearsal passed; ") and lines[1].endswith(" s")
    assert lines[2].startswith("toy2          rehearsal FAILED; ")
    assert lines[3].startswith("all: 1 passed, 1 FAILED; ") and len(lines) == 4
