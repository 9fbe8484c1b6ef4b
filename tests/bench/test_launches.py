"""benchmarks/methods/launches: what is counted of a step, and the arithmetic of hours."""

from __future__ import annotations

import json

import pytest

from benchmarks import PAPERS, blocks, papers
from benchmarks.methods import launch_tables as tables
from benchmarks.methods import launches

ASSUMED = {"launch_us": 10.0, "share": 0.5, "peak": {"bf16": 100e12, "fp32": 10e12}}


def row(arm, launches, flops, trains=True, **more):
    made = {"arm": arm, "task": "rte", "phase": "training", "steps": 3600, "launches": launches}
    made |= {"waits": 2, "waits_of": {"item": 2}, "flops": flops, "precision": "fp32"}
    return made | {"trains": trains, **more}


@pytest.fixture
def result():
    rows = [row("search", 1000, 1e9), row("autolora", 100, 5e11), row("other", 500, 1e9)]
    rows.insert(1, row("search", 9, 0, trains=False, phase="scoring"))
    paper = {"rows": rows, "commit": "0123456789abcdef", "created": "2026-01-01"}
    return {"papers": {"autolora": paper}, "assumed": ASSUMED, "command": "a command"}


def test_the_slower_of_launching_and_computing_decides(result):
    rows = result["papers"]["autolora"]["rows"]
    assert tables.seconds(rows[0], ASSUMED) == pytest.approx((10e-3, 0.2e-3))
    assert tables.hours(rows[0], ASSUMED) == pytest.approx(3600 * 10e-3 / 3600)
    assert tables.seconds({**rows[0], "precision": "bf16"}, ASSUMED)[1] == pytest.approx(2e-5)
    assert tables.hours(row("x", 100, 5e11), ASSUMED) == pytest.approx(0.1)


def test_tables(result):
    lines = tables.launch_table(result).splitlines()
    search = next(line for line in lines if "`search`" in line)
    for shown in ("3,600", "1,000", "2.00", "2 (2 item)", "10.0", "0.2"):
        assert f"| {shown} |" in search, shown
    assert not any("scoring" in line for line in lines)
    hours = next(line for line in tables.hours_table(result).splitlines() if "autolora" in line)
    assert "3,600 x 10.0 ms + 3,600 x 100.0 ms" in hours and "| 6.6 |" in hours
    assert tables.launch_table({"papers": {}}) == tables.NOTHING


def test_items_are_an_eighth_and_nothing_else():
    assert launches.eighth("batch_I", 64) == 8 and launches.eighth("search_batch", 8) == 2
    assert launches.eighth("finetune_labels", (0, 4000)) == (0, 500)
    for name, value in (("steps", 800), ("max_length", 128), ("labels", "own"), ("width", 512)):
        assert launches.eighth(name, value) == value


def test_the_page_holds_the_tables():
    page = tables.ROOT / "docs" / "gpu.md"
    names = {name for _, name, _, _ in blocks.BLOCK.findall(page.read_text())}
    assert names == {"launches", "hours"} and not blocks.outdated(page, tables.blocks())


def test_no_recorded_step_waits_more_often_than_its_paper_allows():
    recorded = json.loads((tables.ROOT / tables.RESULT).read_text())
    assert set(recorded["papers"]) <= set(PAPERS)
    for name, rows in tables.trained(recorded):
        budget = papers.paper(name).waits
        assert budget is not None, name
        over = {(r["arm"], r["phase"]): r["waits"] for r in rows[:-1] if r["waits"] > budget}
        assert not over, f"{name}: {over}"
