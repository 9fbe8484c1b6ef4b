"""EXECUTOR=slurm without a Slurm: levels, arrays, answers, deaths, cancelling, refusals."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest
from commands import reproduce

from benchmarks import cluster
from shared.protocol import BadInput, Node

STAGE = Node("stage", "t", 0, True)
GOOD = [Node("good", "t", s, False, uses=(STAGE.key,)) for s in (0, 1)]
LAST = Node("last", "t", 0, False, uses=(GOOD[0].key, STAGE.key))
ALONE = Node("alone", "t", 0, False)


def test_levels_follow_the_longest_chain():
    assert cluster.levels([STAGE, ALONE, *GOOD, LAST]) == [[STAGE, ALONE], GOOD, [LAST]]
    assert cluster.levels([*GOOD, LAST]) == [GOOD, [LAST]]  # a stage that stands is not waited for
    assert cluster.levels([]) == []


class FakeSlurm:
    """Stands for submitit, squeue and scancel: `dies` has no answer, `waits` stays queued."""

    def __init__(self, folder: Path, answers: dict[str, list]):
        self.folder, self.answers = folder, answers
        self.arrays: list[dict] = []
        self.queue: set[str] = set()
        self.cancelled: list[str] = []

    def AutoExecutor(self, folder, cluster, slurm_max_num_timeout):
        assert (
            cluster == "slurm"
            and slurm_max_num_timeout > 100
            and Path(folder).parent.name == ".slurm"
        )
        return types.SimpleNamespace(update_parameters=self.update, submit_array=self.submit)

    def update(self, **parameters):
        self.arrays.append({"parameters": parameters})

    def submit(self, calls):
        number = len(self.arrays)
        self.arrays[-1]["jobs"] = [(c.settings["arm"], c.settings["seed"]) for c in calls]
        jobs = []
        for k, call in enumerate(calls):
            answer = self.answers.get(call.settings["arm"], [("finished", "", 1.0)])
            answer = answer.pop(0) if len(answer) > 1 else answer[0]
            pickle = self.folder / f"{number}_{k}.pkl"
            if answer == "waits":
                self.queue.add(f"{number}_{k}")
            elif answer != "dies":
                pickle.write_text("")
            paths = types.SimpleNamespace(result_pickle=pickle, stderr="err.log")
            jobs.append(
                types.SimpleNamespace(
                    job_id=f"{number}_{k}", paths=paths, result=lambda a=answer: a
                )
            )
        return jobs

    def run(self, words, **_):
        if words[0] == "scancel":
            self.cancelled += words[1:]
            self.queue.clear()
        text = "".join(f"{j}|PENDING (Priority)\n" for j in self.queue)
        return types.SimpleNamespace(returncode=0, stdout=text)


@pytest.fixture
def fake(tmp_path, monkeypatch):
    def make(answers=None, deadline=None, **options):
        slurm = FakeSlurm(tmp_path, answers or {})
        monkeypatch.setitem(sys.modules, "submitit", slurm)
        monkeypatch.setattr(cluster.subprocess, "run", slurm.run)
        monkeypatch.setattr(cluster, "POLL", 0.01)
        monkeypatch.setenv("PYTHONPATH", "/elsewhere")
        ended = []
        made = cluster.Cluster(
            tmp_path,
            "toy",
            7,
            lambda node: {"arm": node.arm, "seed": node.seed},
            lambda node, outcome: ended.append((node.key, outcome.status)),
            cluster.Options(30, **options),
            deadline,
        )
        return slurm, made, ended

    return make


def test_one_array_per_level_that_waits_for_the_level_below(fake, tmp_path):
    slurm, made, ended = fake(partition="p", account="a", gpus=2)
    outcomes = made.run([STAGE, ALONE, *GOOD, LAST], set())
    levels = [[("stage", 0), ("alone", 0)], [("good", 0), ("good", 1)], [("last", 0)]]
    assert [a["jobs"] for a in slurm.arrays] == levels
    asked = [a["parameters"] for a in slurm.arrays]
    assert [p.get("slurm_dependency") for p in asked] == [None, "afterany:1", "afterany:2"]
    for p in asked:
        assert p["timeout_min"] == 30 and p["slurm_partition"] == "p" and p["slurm_account"] == "a"
        assert (
            p["gpus_per_node"] == 2
            and p["slurm_array_parallelism"] == 7
            and p["slurm_signal_delay_s"] == 90
        )
        assert p["slurm_additional_parameters"]["requeue"] is True
    assert {o.status for o in outcomes.values()} == {"finished"} and len(outcomes) == len(
        ended
    ) == 5
    assert os.environ["PYTHONPATH"] == f"{tmp_path}{os.pathsep}/elsewhere"


def test_large_levels_are_cut_and_short_limits_warn_earlier(fake, monkeypatch):
    monkeypatch.setattr(cluster, "ARRAY", 2)
    slurm, made, _ = fake()
    made.options = cluster.Options(2)
    stages = [Node("a", "t", s, True) for s in range(3)]
    made.run([*stages, Node("b", "t", 0, False, uses=(("a", "t", 0),))], set())
    assert [len(a["jobs"]) for a in slurm.arrays] == [2, 1, 1]
    assert slurm.arrays[2]["parameters"]["slurm_dependency"] == "afterany:1:2"
    assert slurm.arrays[0]["parameters"]["slurm_signal_delay_s"] == 40
    assert "gpus_per_node" not in slurm.arrays[0]["parameters"]


def test_a_death_is_tried_again_with_those_that_waited(fake):
    waited = [("blocked", "stage", 0.0)] * 2
    answers = {"stage": ["dies", ("finished", "", 2.0)], "good": [*waited, ("finished", "", 1.0)]}
    slurm, made, ended = fake(answers)
    outcomes = made.run([STAGE, ALONE, *GOOD], set())
    assert [a["jobs"] for a in slurm.arrays[2:]] == [[("stage", 0)], [("good", 0), ("good", 1)]]
    assert {o.status for o in outcomes.values()} == {"finished"}
    assert outcomes[STAGE.key].attempts == 2 and outcomes[ALONE.key].attempts == 1
    assert len(ended) == 4  # every run once, when it has ended


def test_a_run_that_always_dies_has_crashed(fake):
    waits, diverged = [("blocked", "stage", 0.0)], [("diverged", "nan", 1.0)]
    _, made, ended = fake({"stage": ["dies"], "good": waits, "alone": diverged})
    outcomes = made.run([STAGE, ALONE, *GOOD], set())
    assert outcomes[STAGE.key].status == "crashed" and "err.log" in outcomes[STAGE.key].detail
    assert outcomes[STAGE.key].attempts == 2 and {outcomes[g.key].status for g in GOOD} == {
        "blocked"
    }
    assert (
        outcomes[ALONE.key].status == "diverged"
        and (STAGE.key, "crashed") in ended
        and len(ended) == 2
    )


def test_the_limit_cancels_what_is_queued(fake):
    slurm, made, _ = fake({"good": ["waits"]}, deadline=time.monotonic())
    outcomes = made.run([STAGE, *GOOD], set())
    assert outcomes[STAGE.key].status == "finished" and {outcomes[g.key].status for g in GOOD} == {
        "stopped"
    }
    assert {"2_0", "2_1"} <= set(slurm.cancelled) and len(
        slurm.arrays
    ) == 2  # nothing is submitted again


SLOW_JOB = """
import signal, sys
from benchmarks import cluster
from shared.protocol import Protocol
from pathlib import Path
def submitit(number, frame):
    print("requeued", number); sys.exit(9)
signal.signal(signal.SIGUSR2, submitit)
paper = Protocol(Path("toy").resolve())
print(cluster.Job(".", "toy", paper.config("cpu", paper.node("cpu", "noisy", "line", 100)))())
"""


@pytest.mark.parametrize(("number", "status"), [(signal.SIGUSR2, 9), (signal.SIGTERM, 143)])
def test_a_job_checkpoints_before_it_is_requeued(toy, number, status):
    path = toy / "toy" / "train.py"
    fast = path.read_text()
    slow = "            __import__('time').sleep(0.3)\n            run.log(step=step"
    path.write_text(fast.replace("            run.log(step=step", slow))
    job = subprocess.Popen(
        [sys.executable, "-c", SLOW_JOB], cwd=toy, stdout=subprocess.PIPE, text=True
    )
    folder = toy / "runs/toy/cpu/line/seed100/noisy"
    while not (folder / "metrics.jsonl").exists():
        assert job.poll() is None
        time.sleep(0.05)
    job.send_signal(number)
    out = job.communicate(timeout=60)[0]
    assert job.returncode == status and ("requeued" in out) == (number == signal.SIGUSR2)
    assert list((folder / "checkpoint").glob("step-*.pt")) and not (folder / "record.json").exists()
    again = subprocess.run(
        [sys.executable, "-c", SLOW_JOB], cwd=toy, capture_output=True, text=True
    )
    assert "'finished'" in again.stdout and "continues at step" in (folder / "log.txt").read_text()


def test_a_job_refuses_to_begin_before_what_it_uses(tmp_path):
    old = {s: signal.getsignal(s) for s in (signal.SIGUSR2, signal.SIGTERM)}
    try:
        status, detail, _ = cluster.Job(".", "toy", {"uses": {"stage": str(tmp_path)}})()
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
    assert status == "blocked" and str(tmp_path) in detail


def test_without_slurm_or_submitit_nothing_is_submitted(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BadInput, match=r"sbatch.*not on PATH"):
        cluster.require()
    for name in ("sbatch", "srun", "squeue", "scancel", "scontrol"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(BadInput, match="pip install submitit"):
        cluster.require()


def test_the_command_refuses_and_the_dry_plan_shows_measured_costs(toy):
    done = reproduce(toy, "--executor", "slurm")
    assert done.returncode == 2 and "EXECUTOR=slurm needs SCALE=" in done.stderr
    done = reproduce(toy, "--executor", "slurm", "--scale", "cpu", "--time", "1m")
    assert done.returncode == 2 and "TIME=1m" in done.stderr
    done = reproduce(toy, "--executor", "slurm", "--scale", "cpu", PATH=str(toy))
    assert done.returncode == 2 and "not on PATH" in done.stderr
    assert not list((toy / "runs").rglob("*.json"))
    done = reproduce(toy, "--scale", "cpu", "--dry")
    assert done.returncode == 0 and "0 of 23 runs" in done.stdout and "not measured" in done.stdout
    # a recorded result gives the costs: two arms of a task are measured, the others are not
    entry = {"task": "line", "status": "finished"}
    runs = [{**entry, "arm": "good", "seed": s, "seconds": 3600.0} for s in (100, 101)]
    runs.append({**entry, "arm": "noisy", "seed": 100, "seconds": 360.0})
    (toy / "toy" / "results").mkdir()
    (toy / "toy" / "results" / "cpu.json").write_text(
        json.dumps({"paper": "toy", "scale": "cpu", "runs": runs})
    )
    done = reproduce(toy, "--scale", "cpu", "--dry")
    assert "measured: 5.50 core hours for 10 of 23 runs" in done.stdout, (
        done.stdout
    )  # 5 x 3600 s + 5 x 360 s
    assert not list((toy / "runs").rglob("*.json"))


def test_efficiency_is_printed_and_kept(toy):
    done = reproduce(toy, "--seeds", "1", "--jobs", "1")
    assert done.returncode == 0 and "workers busy" in done.stdout, done.stdout + done.stderr
    spent = json.loads((toy / "runs/toy/cpu/wall.json").read_text())
    assert 0 < spent["runs"] <= spent["offered"] == spent["wall"]
    done = reproduce(toy, "--dry", "--seeds", "1")
    assert "for 5 of 5 runs" in done.stdout and "finished here" in done.stdout, done.stdout
    summary = json.loads((toy / "report" / "summary.json").read_text())
    assert summary["papers"][0]["workers_busy"] == pytest.approx(
        spent["runs"] / spent["offered"], abs=1e-3
    )


@pytest.mark.slow
def test_cluster_check_against_a_real_slurm(root):
    if not shutil.which("sbatch") or not shutil.which("slurmctld") or os.geteuid():
        pytest.skip("slurmctld, slurmd and root: make cluster-check installs them where apt-get is")
    file = root / "benchmarks" / "results" / "cluster.json"
    before = file.read_text() if file.exists() else None
    try:
        command = [sys.executable, "scripts/cluster_check.py"]
        done = subprocess.run(command, cwd=root, capture_output=True, text=True)
        assert done.returncode == 0 and "FAIL" not in done.stdout, done.stdout + done.stderr
    finally:
        if before is not None:
            file.write_text(before)
