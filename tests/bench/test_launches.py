"""benchmarks/methods/launches: what is counted of a step, and the arithmetic of hours."""

from __future__ import annotations

import pytest

from benchmarks import PAPERS, blocks, papers
from benchmarks.methods import launch_tables as tables
from shared.protocol import Protocol


def row(arm, phase, launches, **more):
    made = {"arm": arm, "task": "rte", "phase": phase, "step": 1, "launches": launches, "waits": 2}
    return made | {"waits_of": {"item": 2}, "products_16": 0, "products_32": 5e9, **more}


@pytest.fixture
def result():
    rows = [row("search", "search", 1000), row("autolora", "training", 100)]
    rows += [row("autolora", "unlisted", 7), row("uniform_4", "training", 500, waits=9)]
    paper = {"rows": rows, "commit": "0123456789abcdef", "created": "2026-01-01"}
    return {"papers": {"autolora": paper}}


def test_a_run_takes_its_steps_times_their_launches(result):
    settings = Protocol(tables.ROOT / "autolora").settings("gpu", "autolora", "rte")
    search, training, unlisted, _ = result["papers"]["autolora"]["rows"]
    assert tables.steps("autolora", search) == settings["search_steps"]
    assert tables.steps("autolora", training) == settings["steps"]
    assert tables.steps("autolora", unlisted) is None
    assert tables.minutes("autolora", unlisted) is None
    expected = settings["search_steps"] * 1000 * tables.LAUNCH_US * 1e-6 / 60
    assert tables.minutes("autolora", search) == pytest.approx(expected)
    assert tables.steps("autolora", row("no such arm", "search", 1)) is None
    settings = {"n": 300, "train_share": 0.8, "batch": 16, "K": 5, "search_epochs": 3}
    assert tables.searches(settings) == 5 * 3 * 15


def test_tables(result):
    lines = tables.launch_table(result).splitlines()
    search = next(line for line in lines if "`search`" in line)
    for shown in ("1,000", "2.00", "2 (2 item)", "5.0"):
        assert f"| {shown} |" in search, shown
    assert sum("autolora/README.md" in line for line in lines) == 4
    hours = next(line for line in tables.hours_table(result).splitlines() if "README" in line)
    assert "600 x 1,000 + 800 x 100" in hours and "| 0.1 |" in hours
    assert tables.launch_table({"papers": {}}) == tables.hours_table({"papers": {}})


def test_the_page_holds_the_tables():
    page = tables.ROOT / "docs" / "gpu.md"
    names = {name for _, name, _, _ in blocks.BLOCK.findall(page.read_text())}
    assert names == {"launches", "hours"} and not blocks.outdated(page, tables.blocks())


def test_no_recorded_step_waits_more_often_than_its_paper_allows():
    recorded = tables.load(tables.ROOT / tables.RESULT)
    assert set(recorded["papers"]) <= set(PAPERS)
    for name, ours, _ in tables.trainings(recorded):
        budget = papers.paper(name).waits
        assert budget is not None, name
        over = {(r["arm"], r["phase"]): r["waits"] for r in ours if r["waits"] > budget}
        assert not over, f"{name}: {over}"
