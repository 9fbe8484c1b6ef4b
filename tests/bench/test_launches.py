"""benchmarks/methods/launches: what is counted of a step, and the arithmetic of hours."""

from __future__ import annotations

from collections import Counter

import pytest

from benchmarks import PAPERS, blocks, papers
from benchmarks.methods import launch_tables as tables
from shared.protocol import Protocol


def row(arm, phase, launches, **more):
    made = {"arm": arm, "task": "rte", "phase": phase, "step": 1, "launches": launches, "waits": 2}
    made |= {"trains": True, "opponent": False, "cut": {"batch": 4, "max_length": 32}}
    return made | {"waits_of": {"item": 2}, "products_16": 0, "products_32": 5e9, **more}


@pytest.fixture
def result():
    rows = [row("search", "search", 1000), row("autolora", "training", 100)]
    rows += [row("autolora", "unlisted", 7)]
    rows += [row("uniform_4", "training", 500, waits=9, opponent=True)]
    paper = {"rows": rows, "commit": "0123456789abcdef", "created": "2026-01-01"}
    return {"papers": {"autolora": paper}}


def test_a_run_takes_its_steps_times_their_launches(result):
    settings = Protocol(tables.ROOT / "autolora").settings("gpu", "autolora", "rte")
    search, training, unlisted, _ = result["papers"]["autolora"]["rows"]
    assert tables.part("autolora", unlisted) is None
    assert tables.part("autolora", row("no such arm", "search", 1)) is None
    found = tables.part("autolora", search)
    assert found and found.steps == settings["search_steps"]
    assert found.launching == pytest.approx(found.steps * 1000 * tables.LAUNCH_US * 1e-6)
    found = tables.part("autolora", training)
    assert found and found.steps == settings["steps"]
    larger = settings["batch"] / 4 * settings["max_length"] / 32
    assert found.flop == {"products_16": 0, "products_32": pytest.approx(5e9 * larger)}
    seconds = 5e9 * larger / tables.RATES["products_32"]
    assert found.computing == pytest.approx(found.steps * seconds)


def test_tokens_that_are_drawn_one_after_another_cost_launches():
    cut = {"batch": 4, "train_tokens": 6}
    drawn = row("generators", "generators 0.25_1.0", 600, task="english", cut=cut)
    found = tables.part("ts_watermark", drawn)
    settings = Protocol(tables.ROOT / "ts_watermark").settings("gpu", "generators", "english")
    tokens, batch = settings["train_tokens"] / 6, settings["batch"] / 4
    assert found and found.launches == 600 * tokens
    assert found.flop["products_32"] == pytest.approx(5e9 * tokens * batch)
    assert found.steps == settings["train_steps"] * len(settings["inits"])


def test_steps_of_a_phase_are_those_of_the_papers_code():
    from weight_mixup import schedule
    from weight_mixup.config import Config

    paper = Protocol(tables.ROOT / "weight_mixup")
    settings = paper.config("gpu", paper.node("gpu", "mixup", "rte_300", 0))
    plan = schedule.plan_of(Config(**settings), settings["n"])
    of = tables.STEPS["weight_mixup"]
    assert plan.K * plan.T == of["search"](settings) == 240
    assert plan.finetune == of["finetuning"](settings)


def test_tables(result):
    lines = tables.launch_table(result).splitlines()
    search = next(line for line in lines if "`search`" in line)
    for shown in ("1,000", "2.00", "2 (2 item)", "5.0"):
        assert f"| {shown} |" in search, shown
    assert sum("autolora/README.md" in line for line in lines) == 4
    lines = [line for line in tables.hours_table(result).splitlines() if "autolora" in line]
    *phases, total = lines
    runs = Counter(node.stage for node in Protocol(tables.ROOT / "autolora").nodes("gpu"))
    opponents = 25  # five seeds of five tasks
    counts = [int(line.split("|")[-2].replace(",", "")) for line in phases]
    assert counts == [runs[True], runs[False] - opponents, opponents]
    assert "| 600 | 1,000 | 4.8 |" in phases[0]
    launching = 600 * 1000 * counts[0] + 800 * 100 * counts[1] + 800 * 500 * counts[2]
    assert f"| {launching * tables.LAUNCH_US * 1e-6 / 3600:.2f} |" in total
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
        of_steps = {(r["arm"], r["phase"]): r["waits"] for r in ours if r["trains"]}
        assert max(of_steps.values()) <= budget, f"{name}: {of_steps}"
