"""make gpu-visit: on a machine without a device, and from tests to archive on a pretended one."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest
import torch

from benchmarks import gpu_visit, merge

DEVICE_TEST = """
import time, pytest, torch

@pytest.mark.gpu
def test_device():
    time.sleep({seconds})
    assert torch.ones(3, device="cuda").sum().item() == 3

@pytest.mark.gpu
@pytest.mark.slow
def test_not_in_a_visit():
    assert False
"""
ON_DEVICE = {  # the toy computes on the host: what makes it compute on the run's device
    "        runs.device(config)\n": "        device = runs.device(config)\n",
    "torch.randn(5, generator=gen)\n": "torch.randn(5, generator=gen)\n"
    "        x, w = x.to(device), w.to(device)\n",
    "theta = torch.zeros(5)\n": "theta = torch.zeros(5, device=device)\n",
    "torch.randn(200, 5, generator=noise)": "torch.randn(200, 5, generator=noise).to(device)",
    "v.numpy()": "v.cpu().numpy()",
}
GPU = """  gpu: {tasks: [line], seeds: 5, core: [good, noisy], jobs: 1, hours: 0.5, set: {steps: 9}}
  paper:"""


@pytest.fixture
def visited(toy, tmp_path):
    """`visited(budget, seconds)`: the toy with a scale `gpu` on the pretended device, and a test of
    the device that takes so long."""
    pretend_cuda = pytest.importorskip("pretend_cuda", reason="no pretended CUDA device")
    if reason := pretend_cuda.lacks():
        pytest.skip(reason)
    edits = {
        "train.py": ON_DEVICE,
        "protocol.yaml": {
            "  paper:": GPU,
            "plan:\n": "plan:\n  gpu: {C1: {seeds: 0-4, sd: 0.3, n: 5, detectable: 0.505, "
            "source: invented}}\n",
        },
        "claims.yaml": {"scales: [cpu, paper]": "scales: [cpu, gpu, paper]"},
    }
    for name, changes in edits.items():
        path = toy / "toy" / name
        text = path.read_text()
        for old, new in changes.items():
            assert old in text, (name, old)
            text = text.replace(old, new, 1)
        path.write_text(text)
    (toy / "tests").mkdir()
    (toy / "pytest.ini").write_text("[pytest]\ntestpaths = tests\nmarkers =\n gpu\n slow\n")
    (tmp_path / "site").mkdir()
    environment = pretend_cuda.environment(tmp_path / "site")
    environment["REPRO_RUNS"] = str(tmp_path / "there")

    def visit(budget: str, seconds: float = 0) -> subprocess.CompletedProcess[str]:
        (toy / "tests" / "test_device.py").write_text(DEVICE_TEST.format(seconds=seconds))
        words = [sys.executable, "-m", "benchmarks.gpu_visit", "--budget", budget]
        return subprocess.run(words, cwd=toy, env=environment, capture_output=True, text=True)

    visit.environment = environment
    return visit


def test_without_a_device_it_says_so(capsys):
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    assert gpu_visit.main(["--budget", "10m"]) == gpu_visit.REFUSED
    said = capsys.readouterr().err
    assert "sees no CUDA device" in said and "requirements-cuda.txt" in said


def test_wrong_words_are_refused(capsys):
    for words, text in ((["--budget", "soon"], "BUDGET=soon"), (["--only", "autolra"], "autolora")):
        assert gpu_visit.main(words) == gpu_visit.REFUSED
        assert text in capsys.readouterr().err


MERGE = "import sys, torch; from benchmarks import merge; sys.exit(merge.main(sys.argv[1:]))"


def test_from_tests_to_an_archive_that_merges(visited, toy, tmp_path, capsys):
    done = visited("180s")
    assert done.returncode == gpu_visit.DONE, done.stdout + done.stderr
    folder = tmp_path / "there" / "gpu-visit"
    facts = json.loads((folder / "visit.json").read_text())
    assert facts["tests"]["status"] == 0 and "1 passed" in facts["tests"]["outcome"]
    steps = {(row["arm"], row["phase"]): row for row in facts["steps"]["toy"]}
    assert (
        steps["noisy", "training"]["over_plain"] == 1 and steps["good", "training"]["seconds"] > 0
    )
    # two arms of five seeds, and the stage that one of them uses, all of them measured
    assert facts["hours"]["toy"]["runs"] == facts["hours"]["toy"]["measured"] == 11
    assert facts["claims"] == [
        {"paper": "toy", "claim": "C1", "verdict": facts["claims"][0]["verdict"]}
    ]
    assert (
        facts["claims"][0]["verdict"] in done.stdout
        and "stopped" not in facts["claims"][0]["verdict"]
    )
    archive = folder / "records.tar.gz"
    assert f"make merge FROM={archive}" in done.stdout
    environment = visited.environment | {"REPRO_RUNS": str(tmp_path / "here")}
    words = [sys.executable, "-c", MERGE, str(archive)]
    merged = subprocess.run(words, cwd=toy, env=environment, capture_output=True, text=True)
    assert merged.returncode == 0 and "11 taken over" in merged.stdout, merged.stdout
    archive.write_bytes(archive.read_bytes()[:2000])
    assert merge.main([str(archive)]) == 2 and "cut short" in capsys.readouterr().err


@pytest.mark.slow
def test_it_stops_at_its_budget(visited, tmp_path):
    done = visited("15s", seconds=100)
    assert done.returncode == gpu_visit.DONE, done.stdout + done.stderr
    facts = json.loads((tmp_path / "there" / "gpu-visit" / "visit.json").read_text())
    assert facts["tests"]["status"] is None and "share of the budget" in facts["tests"]["outcome"]
    assert (tmp_path / "there" / "gpu-visit" / "records.tar.gz").exists()


def test_a_command_that_takes_too_long_is_ended(tmp_path):
    visit = gpu_visit.Visit(tmp_path, time.monotonic() + 100, 100, [])
    assert 85 < visit.left() < 91 and visit.left(0.4) < 31
    begun = time.monotonic()
    assert visit.call(["-c", "import time; time.sleep(60)"], 1, "log") is None
    assert visit.call(["-c", "print('said'); raise SystemExit(7)"], 30, "log") == 7
    assert time.monotonic() - begun < 30 and "said" in (tmp_path / "log").read_text()


def test_a_failing_device_test_is_a_failure(tmp_path, monkeypatch, capsys):
    (tmp_path / "test_device.py").write_text(
        "import pytest\n@pytest.mark.gpu\ndef test_device():\n    assert False\n"
    )
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = gpu\n")
    monkeypatch.setattr(gpu_visit, "ROOT", tmp_path)
    visit = gpu_visit.Visit(tmp_path, time.monotonic() + 600, 600, [])
    gpu_visit.tests(visit)
    assert visit.facts["tests"]["status"] == 1 and "1 failed" in capsys.readouterr().out
    assert visit.failed == [f"tests: {tmp_path / 'tests.log'}"]
