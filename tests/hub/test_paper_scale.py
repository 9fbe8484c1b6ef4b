"""SCALE=paper of every paper from download to verdict, on a hub of tiny models and data.

In `make test` two papers on one task, in `make test-slow` every paper with every input it names.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import paper_copy
import pytest
from hub_content import Content
from hub_server import Fault, Hub
from paper_copy import Choice

from benchmarks import PAPERS
from shared import sources
from shared.protocol import Protocol

REFUSED = 2
STREAMED = {"c4"}
FAST = {"autolora": "rte", "weight_mixup": "mrpc_300"}
assert set(FAST) <= set(PAPERS)


@dataclass
class Site:
    """A checkout of one paper, a hub with its inputs, and the cache of a machine."""

    folder: Path
    paper: Protocol
    content: Content
    hub: Hub

    def reproduce(self, choice: Choice, offline: bool = False, runs: str = "runs", **more: str):
        """What `make reproduce-X SCALE=paper SEEDS=1 ONLY=... TASK=...` runs."""
        self.hub.asked.clear()
        words = ["--scale", "paper", "--jobs", "1", "--seeds", "1", "--only", ",".join(choice.arms)]
        words += ["--task", ",".join(choice.tasks)]
        environment = os.environ | self.hub.environment(self.folder / "hub cache", offline)
        environment |= {"REPRO_RUNS": str(self.folder / runs), "REPRO_DATA": str(self.content.data)}
        environment |= {"REPRO_CACHE": str(self.folder / "cache"), **more}
        environment |= {"REPRO_REPORT": str(self.folder / "report")}
        return subprocess.run(
            [sys.executable, "-m", "benchmarks.reproduce", self.paper.paper, *words],
            cwd=self.folder / "repository",
            env=environment,
            capture_output=True,
            text=True,
        )

    def result(self, runs: str = "runs") -> dict:
        path = self.folder / runs / self.paper.paper / "paper" / "preview.json"
        return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture
def site(tmp_path):
    """`site(paper, task)`: the copy of a paper and a hub that has what the choice needs."""
    hubs = []

    def make(name: str, task: str = "") -> tuple[Site, Choice]:
        paper = paper_copy.write(tmp_path / "repository", name)
        choice = paper_copy.choice(paper)
        if task:
            pairs = [(arm, task) for arm in choice.arms]
            inputs = paper.inputs("paper", paper.nodes("paper", pairs=pairs, seeds=1))
            choice = replace(choice, tasks=[task], inputs=set(inputs))
        content = Content(paper, tmp_path / "content", sorted(choice.inputs))
        hubs.append(Hub(content.hub).__enter__())
        return Site(tmp_path, paper, content, hubs[-1]), choice

    yield make
    for hub in hubs:
        hub.__exit__()


def downloaded_and_judged(site: Site, choice: Choice) -> None:
    done = site.reproduce(choice)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    for kind, name in choice.inputs:
        folder = sources.layout_of(name) if kind == "data" else None
        place = f"datasets/{folder.source}" if folder else f"models/{name}"
        if (site.hub.root / place).exists():
            assert site.hub.downloads(place), f"{kind} {name} was not asked for"
    result = site.result()
    assert all(run["status"] == "finished" for run in result["runs"])
    assert all(gate["passed"] for gate in result["gates"])


def repeated_offline(site: Site, choice: Choice) -> None:
    """A second machine with the same cache and no network: the same scores, nothing asked.

    What is streamed leaves nothing in a cache: there the user fetches it into REPRO_DATA."""
    for folder in STREAMED & {name.partition("/")[0] for _, name in choice.inputs}:
        layout = sources.layout_of(folder)
        assert layout
        shutil.copytree(site.content.dataset(layout.source), site.content.data / folder)
    done = site.reproduce(choice, offline=True, runs="second")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert not site.hub.asked
    scores = [
        {(r["arm"], r["task"], r["seed"]): r["metrics"] for r in site.result(runs)["runs"]}
        for runs in ("runs", "second")
    ]
    assert scores[0] == scores[1]


def test_a_gated_model_stops_the_call_and_the_same_command_goes_on(site):
    """Exit 2 with the remedy; once the terms are accepted, what came is not fetched again."""
    site, choice = site("autolora", FAST["autolora"])
    name = next(name for kind, name in choice.inputs if kind == "model")
    site.hub.faults[f"models/{name}"] = Fault(gated=403)
    done = site.reproduce(choice)
    assert done.returncode == REFUSED
    assert f"model '{name}' is missing" in done.stdout and "gated" in done.stdout
    assert f"hf download {name}" in done.stdout
    fetched = site.hub.downloads("datasets/nyu-mll/glue")
    assert fetched
    site.hub.faults.clear()
    assert site.reproduce(choice).returncode == 0
    assert not site.hub.downloads("datasets/nyu-mll/glue")
    assert any(claim["d"] for claim in site.result()["claims"])


def test_the_cache_is_enough_offline(site):
    site, choice = site("weight_mixup", FAST["weight_mixup"])
    choice = replace(choice, arms=["plain"])
    downloaded_and_judged(site, choice)
    repeated_offline(site, choice)


@pytest.mark.slow
@pytest.mark.parametrize("paper", PAPERS)
def test_every_input_of_scale_paper(site, paper):
    site, choice = site(paper)
    downloaded_and_judged(site, choice)
    claim = next(c for c in site.result()["claims"] if c["id"] == choice.claim)
    assert claim["effect"] is not None and claim["verdict"] != "NOT RUN"
    repeated_offline(site, choice)
