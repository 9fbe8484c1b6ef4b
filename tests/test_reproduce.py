"""The runner on a paper of twenty lines: verdicts, second call, Ctrl-C, SIGKILL, crashes, limits, previews, recording, refusals."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest


def reproduce(root, *words, **environ):
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": "", **environ}
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.reproduce", "toy", *words],
        cwd=root,
        env=env,
        capture_output=True,
        text=True,
    )


def results(root, name="results"):
    found = json.loads((root / "runs" / "toy" / "cpu" / f"{name}.json").read_text())
    for key in ("created", "commit", "environment", "seconds"):
        found.pop(key)
    for run in found["runs"]:
        for key in ("seconds", "peak_memory_mb"):
            run.pop(key, None)
    return found


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The toy paper with all its runs, judged and reported; copied by the tests that begin there."""
    import toy as toy_paper

    root = tmp_path_factory.mktemp("finished")
    toy_paper.write(root)
    return root, reproduce(root)


def slow_down(root):
    """Runs of a few seconds, so that a signal meets them in the middle; the scores stay as they are."""
    path = root / "toy" / "train.py"
    path.write_text(
        path.read_text().replace(
            "            run.log(step=step",
            "            __import__('time').sleep(0.2)\n            run.log(step=step",
        )
    )


def test_from_nothing_to_verdicts_and_again(finished):
    toy, done = finished
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no CUDA device" in done.stdout and "[23/23]" in done.stdout and "report:" in done.stdout
    first = results(toy)
    claim = first["claims"][0]
    assert claim["id"] == "C1" and claim["n"] == 5 and "(scaled down)" in claim["verdict"]
    assert {r["status"] for r in first["runs"]} == {"finished"} and len(first["runs"]) == 23
    assert {g["id"] for g in first["gates"]} >= {"toy-gate"} and all(
        g["passed"] for g in first["gates"]
    )
    good = next(r for r in first["runs"] if r["arm"] == "good")
    assert good["gradient_evaluations_with_uses"] == good["gradient_evaluations"] + 3
    stamps = {p: p.stat().st_mtime_ns for p in toy.glob("runs/toy/cpu/*/*/*/record.json")}
    done = reproduce(toy, "--jobs", "1")
    assert done.returncode == 0 and "23 finished before" in done.stdout and "[1/" not in done.stdout
    assert stamps == {p: p.stat().st_mtime_ns for p in stamps} and results(toy) == first


def test_killed_and_continued_gives_the_same(toy, finished):
    whole = results(finished[0])
    for number, status in ((signal.SIGKILL, -9), (signal.SIGINT, 75)):
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.reproduce", "toy"], cwd=toy, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "REPRO_CHECKPOINT_SECONDS": "0"})  # fmt: skip
        before = len(list(toy.glob("runs/toy/cpu/*/*/*/record.json")))
        while len(list(toy.glob("runs/toy/cpu/*/*/*/record.json"))) < before + 2:
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
        assert process.returncode == status, out + err
    assert "Continue with: make reproduce-toy SCALE=cpu" in out
    done = reproduce(toy, "--jobs", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert results(toy) == whole


def test_limit_stops_and_continues(toy):
    slow_down(toy)
    done = reproduce(toy, "--limit", "4s", "--only", "noisy", "--seeds", "2")
    assert done.returncode == 75 and "LIMIT=4s" in done.stdout, done.stdout + done.stderr
    for _ in range(10):
        done = reproduce(toy, "--limit", "20s", "--only", "noisy", "--seeds", "2")
        if done.returncode != 75:
            break
    assert done.returncode == 0, done.stdout + done.stderr


def test_previews_are_kept_apart(toy):
    done = reproduce(toy, "--seeds", "2")
    assert done.returncode == 0 and "PREVIEW" in done.stdout
    assert not (toy / "runs" / "toy" / "cpu" / "results.json").exists()
    assert (
        results(toy, "preview")["claims"][0]["verdict"].startswith("NOT RUN")
        or "INCONCLUSIVE" in results(toy, "preview")["claims"][0]["verdict"]
    )


def test_a_gate_of_runs_that_a_preview_leaves_out_has_not_failed(toy):
    edit(
        toy,
        "gates: [",
        "gates: [{id: of-others, statement: recorded by other arms}, ",
        "claims.yaml",
    )
    done = reproduce(toy, "--only", "noisy", "--seeds", "2", "--jobs", "1")
    assert done.returncode == 0 and "FAILED" not in done.stdout, done.stdout + done.stderr


def edit(root, old, new, name="protocol.yaml"):
    path = root / "toy" / name
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


def test_a_crash_is_tried_again_and_reported(toy):
    edit(toy, "set: {noise: 3.0}", "set: {noise: 3.0, crash: 103}")
    done = reproduce(toy, "--jobs", "1")
    assert done.returncode == 1
    assert (
        "the worker died (exit status 7)" in done.stdout
        and "alone: python -m toy.train --scale cpu --arm noisy" in done.stdout
    )
    found = results(toy)
    assert found["claims"][0]["verdict"].startswith("NOT RUN")
    crashed = [r for r in found["runs"] if r["arm"] == "noisy" and r["seed"] == 103]
    assert {r["status"] for r in crashed} == {"crashed"} and {r["attempts"] for r in crashed} == {2}
    assert all(r["status"] == "finished" for r in found["runs"] if r["arm"] == "good")


def test_divergence_is_an_outcome(toy):
    edit(toy, "set: {noise: 3.0}", "set: {noise: 3.0, nan_at: 4}")
    done = reproduce(toy)
    assert done.returncode == 0, done.stdout + done.stderr
    claim = results(toy)["claims"][0]
    assert "INCONCLUSIVE" in claim["verdict"] and claim["reason"].startswith("failures")
    assert all(d <= 0 for d in claim["d"])  # a broken opponent never helps
    assert reproduce(toy).returncode == 0 and results(toy)["claims"][0] == claim


def test_a_failed_gate_fails_the_command(toy):
    edit(toy, '"toy-gate", True', '"toy-gate", config.seed != 102', "train.py")
    wall = toy / "runs" / "toy" / "cpu" / "wall.json"
    wall.parent.mkdir(parents=True, exist_ok=True)
    wall.write_text('{"wall": 1e6}')  # spent on runs of other code
    done = reproduce(toy, "--jobs", "1")
    assert json.loads(wall.read_text())["wall"] < 1e6
    assert done.returncode == 1 and "gate toy-gate FAILED" in done.stdout


@pytest.mark.parametrize(
    "words, status, text",
    [
        (["--scale", "gpu"], 2, "has no scale 'gpu'"),
        (["--scale", "cpuu"], 2, "did you mean 'cpu'"),
        (
            ["--scale", "paper"],
            2,
            "hf download nobody/nothing --local-dir $REPRO_MODELS/nobody/nothing",
        ),
        (["--only", "noisi"], 2, "did you mean 'noisy'"),
        (["--limit", "soon"], 2, "LIMIT=soon"),
        (["--limit", "0"], 2, "LIMIT=0: expected a number above 0"),
        (["--only", ","], 2, "ONLY=, names no arm"),
        (["--seeds", "0"], 2, "--seeds: 0: expected a whole number, at least 1"),
        (["--jobs", "-3"], 2, "--jobs: -3: expected a whole number, at least 1"),
        (["--record", "--scale", "cpuu"], 2, "has no scale 'cpuu'"),
    ],
)
def test_bad_requests(toy, words, status, text):
    done = reproduce(toy, *words, HF_HUB_OFFLINE="1")
    assert (
        done.returncode == status
        and text in done.stderr + done.stdout
        and "Traceback" not in done.stderr
    ), done.stderr + done.stdout


def test_a_bad_place_is_named_with_the_remedy(toy, tmp_path):
    (tmp_path / "taken").write_text("a file where runs should go")
    for words, variable, place in (
        ([], "REPRO_RUNS", tmp_path / "taken"),
        (["--scale", "paper"], "REPRO_DATA", tmp_path / "nowhere"),
    ):
        done = reproduce(toy, *words, **{variable: str(place), "HF_HUB_OFFLINE": "1"})
        assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
        assert str(place) in done.stderr and "remedy:" in done.stderr and variable in done.stderr


def test_broken_files_below_runs_stop_no_verdict(toy, finished):
    """wall.json costs the time that it counted; an old result that is not JSON is named."""
    shutil.copytree(finished[0] / "runs", toy / "runs")
    folder = toy / "runs" / "toy" / "cpu"
    (folder / "wall.json").write_text('{"wall": 1')
    done = reproduce(toy)
    assert done.returncode == 0 and "wall.json cannot be read" in done.stdout, (
        done.stdout + done.stderr
    )


def test_dry_prints_the_plan_and_starts_nothing(toy):
    done = reproduce(toy, "--dry")
    assert done.returncode == 0 and "23 runs" in done.stdout and not (toy / "runs").exists()


@pytest.fixture
def two(toy):
    """A repository of two papers: `toy` and its copy `toy2`."""
    shutil.copytree(toy / "toy", toy / "toy2")
    for path in (toy / "toy2").iterdir():
        path.write_text(path.read_text().replace("toy", "toy2"))
    return toy


def all_papers(root, *words, before=""):
    code = f"{before}\nimport sys; from benchmarks import reproduce; sys.exit(reproduce.main(sys.argv[1:]))"
    return subprocess.run([sys.executable, "-c", code, *words], cwd=root, capture_output=True, text=True,
                          env={**os.environ, "CUDA_VISIBLE_DEVICES": ""})  # fmt: skip


def recorded_seconds(root, paper, seconds):
    """A recorded result whose runs took so long each, `seconds` by arm."""
    runs = [{"arm": arm, "task": task, "seed": 100, "seconds": s} for arm, s in seconds.items() for task in ("line", "plane")]  # fmt: skip
    folder = root / paper / "results"
    folder.mkdir()
    (folder / "cpu.json").write_text(json.dumps({"claims": [], "runs": runs}))


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
    own = {
        n: json.loads((two / "runs" / n / "cpu" / "results.json").read_text())
        for n in ("toy", "toy2")
    }
    passes = {n: sum(r["gradient_evaluations"] for r in found["runs"]) for n, found in own.items()}
    for i, (name, found) in enumerate(own.items()):
        gates = f"gates: {len(found['gates'])} of {len(found['gates'])} hold"
        seconds = f"{found['seconds']['wall']:.0f} s"
        assert lines[1 + 2 * i] == f"{name:<13} cpu       done; {gates}; {seconds}; {passes[name]} gradient evaluations"  # fmt: skip
        assert (
            lines[2 + 2 * i]
            == f"  {found['claims'][0]['verdict']}  C1: clean inputs beat noisy ones"
        )
    assert (
        lines[5].startswith("all: 2 done; ")
        and f"{sum(passes.values()):,} gradient evaluations" in lines[5]
    )
    assert lines[5].endswith(
        "primary claims: 2 " + own["toy"]["claims"][0]["verdict"].split(" (")[0]
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


def test_record_and_check(toy, finished):
    """Recording needs a clean tree and a whole result; the check passes on it and catches an edited digit."""

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
    (toy / "toy" / "evaluate.py").open("a").write("\n# newer\n")
    done = check()
    assert done.returncode == 0 and "STALE" in done.stdout


def test_verdicts_that_another_machine_recorded_stay_listed(toy):
    from benchmarks import reproduce as judge
    from shared import protocol

    paper = protocol.Protocol(toy / "toy")
    old = {"revision": paper.revision(), "predictions_sha256": "x", "environment": {"processor": "A"}, "commit": "c", "created": "d",
           "claims": [{"id": "C1", "verdict": "SUPPORTED", "effect": 1.0}], "earlier": []}  # fmt: skip
    (toy / "toy" / "results").mkdir(exist_ok=True)
    (toy / "toy" / "results" / "cpu.json").write_text(json.dumps(old))
    assert judge.earlier(paper, "cpu", "x") == []
    (kept,) = judge.earlier(paper, "cpu", "y")
    assert (
        kept["processor"] == "A"
        and kept["verdicts"] == {"C1": "SUPPORTED"}
        and kept["effects"] == {"C1": 1.0}
    )
