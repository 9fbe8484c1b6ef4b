"""An eighth paper is one command: what it writes trains, is judged and is tested as it is."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest

from benchmarks import ROOT
from benchmarks.new_paper import __main__ as new_paper
from shared.protocol import BadInput

LEFT_OUT = shutil.ignore_patterns(".*", "runs", "report", "results", "__pycache__")
COPIED = ("shared", "benchmarks", "tests", "docs", "scripts")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of the repository without its papers, in which `weigh_columns` was made."""
    root = tmp_path_factory.mktemp("checkout")
    for name in COPIED:
        shutil.copytree(ROOT / name, root / name, ignore=LEFT_OUT)
    for name in ("Makefile", "pyproject.toml", "README.md", "CONTRIBUTING.md"):
        shutil.copy(ROOT / name, root)
    done = python(root, "-m", "benchmarks.new_paper", "weigh_columns")
    assert done.returncode == 0, done.stderr
    return root


def python(root, *words):
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(root)}
    env.pop("REPRO_RUNS", None)
    return subprocess.run(
        [sys.executable, *words], cwd=root, env=env, capture_output=True, text=True
    )


def test_it_trains_and_is_judged(checkout):
    done = python(checkout, "-m", "weigh_columns.train", "--tiny")
    assert done.returncode == 0 and "tiny run" in done.stdout, done.stderr
    done = python(checkout, "-m", "benchmarks.reproduce", "weigh_columns", "--scale", "cpu")
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((checkout / "runs/weigh_columns/cpu/results.json").read_text())
    verdicts = {claim["id"]: claim["verdict"] for claim in result["claims"]}
    assert "NOT RUN" not in " ".join(verdicts.values()) and len(verdicts) == 2
    assert all(gate["passed"] for gate in result["gates"])
    assert "weigh_columns" in (checkout / "report/index.html").read_text()


def test_it_passes_its_tests_and_those_of_every_paper(checkout):
    """Without a line of its own anywhere else."""
    judged = [f"tests/house/test_{name}.py" for name in ("papers", "isolation", "docs", "help")]
    chosen = ["-k", "weigh_columns or registers or order", "-p", "no:cacheprovider"]
    done = python(checkout, "-m", "pytest", "tests/weigh_columns", *judged, *chosen)
    assert done.returncode == 0, done.stdout
    done = python(checkout, "-m", "ruff", "check", "weigh_columns", "tests/weigh_columns")
    assert done.returncode == 0, done.stdout
    formatted = python(
        checkout, "-m", "ruff", "format", "--check", "weigh_columns", "tests/weigh_columns"
    )
    assert formatted.returncode == 0, formatted.stdout


@pytest.mark.parametrize("name", ["My-Paper", "Paper", "torch", "autolora", "benchmarks", ""])
def test_a_name_that_will_not_do_is_refused(name, tmp_path):
    with pytest.raises(BadInput, match="name"):
        new_paper.create(name, tmp_path)
    assert not list(tmp_path.iterdir())
