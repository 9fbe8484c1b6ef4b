"""benchmarks/methods: scripts are read, what became slower is said, tables show the records."""

import json
import sys

import pytest
import torch

from benchmarks import PAPERS, blocks, papers
from benchmarks.methods import __main__ as runner
from benchmarks.methods import cost, tables


def row(ratio, memory=None):
    return {"ratio": ratio, "lowest": ratio - 0.1, "highest": ratio + 0.1} | (
        {"memory": memory} if memory else {}
    )


def result(**papers):
    measured = {
        p: {"rows": rows, "peak_megabytes": 512, "commit": "0123456789abcdef"}
        for p, rows in papers.items()
    }
    machine, versions = {"cpu": "a processor", "cores": 2}, {"python": "3.11.0", "torch": "2.0"}
    return {"papers": measured, "machine": machine, "versions": versions, "command": "a command"}


SEARCH, OFFICIAL = "search step (finite difference)", "search step (official habits)"


@pytest.mark.parametrize("paper", PAPERS)
def test_bounds_of_a_paper_stand_in_order(paper):
    for bound in papers.paper(paper).bounds:
        assert (bound.official or 1e9) > bound.limit >= bound.floor * 0.95, bound.work


def test_a_bound_over_another_plain_step_divides_by_it():
    plain = "plain, word scores everywhere"
    measured = result(tapweight={"finite-difference/4": row(6.0, 2.0), plain: row(1.2, 1.1)})
    ours = {b.work: own for p, b, own, _ in tables.works(measured) if p == "tapweight" and own}
    assert ours["cycle, 4 micro-batches"]["ratio"] == pytest.approx(5.0)
    assert ours["cycle, 4 micro-batches"]["highest"] == pytest.approx(6.1 / 1.2)
    assert ours["cycle, 4 micro-batches, over our plain step"] == row(6.0, 2.0)


def test_rows_of_a_script():
    assert tables.normalised({"paper": "x", "rows": {"a": row(2.0), "b": 3.0}}, "x")["b"] == {
        "ratio": 3.0
    }
    for wrong in (
        {},
        {"rows": {}},
        [1],
        {"rows": {"a": {"seconds": 1}}},
        {"rows": {"a": row(-1.0)}},
    ):
        with pytest.raises(ValueError, match="x"):
            tables.normalised(wrong, "x")


def test_regressions_are_named():
    old = result(
        autolora={"fast": row(2.0, 1.0), "slow": row(5.0, 1.0), "gone": row(1.0)},
        dasgm={"a": row(1)},
    )
    new = result(autolora={"fast": row(2.19, 1.05), "slow": row(6.0, 1.5), "new": row(9.0)})
    lines = tables.regressions(old, new)
    # within noise: silent; a new row and a paper that was not run: nothing to compare
    assert len(lines) == 3, lines
    assert lines[0] == "autolora: slow: slower by 20% (6.00 plain steps, recorded 5.00)"
    assert "more memory by 50%" in lines[1] and "gone" in lines[2]
    assert not tables.regressions(new, new) and not tables.regressions({"papers": {}}, new)


@pytest.mark.parametrize(
    "ratio, said",
    [
        (5.0, "reached"),
        (5.2, "reached, within 5 %"),
        (5.5, "missed by 10%"),
        (5.9, "missed by 18%"),
        (6.2, "DEFECT"),
        (4.0, "below"),
    ],
)
def test_verdicts(ratio, said):
    bound = papers.Bound(work="a step", row="row", official=5.8, reached=5.0, floor=4.8)
    assert tables.verdict(ratio, bound).startswith(said)
    assert tables.verdict(2.0, papers.Bound(work="a step", row="row", floor=2.0)) == "reached"


def test_table_and_figure(tmp_path):
    assert tables.speed_table(tmp_path) == tables.NOTHING
    measured = result(autolora={SEARCH: row(5.2, 1.1), OFFICIAL: row(6.5, 1.4)})
    (tmp_path / tables.RESULT).parent.mkdir(parents=True)
    (tmp_path / tables.RESULT).write_text(json.dumps(measured))
    lines = tables.speed_table(tmp_path).splitlines()
    ours = next(line for line in lines if "autolora" in line)
    for shown in ("5.20 [5.10, 5.30]", "6.50", "5.74", "5.03", "within 5 %", "1.10", "1.40"):
        assert shown in ours, shown
    assert "NOT RUN" in next(line for line in lines if "dasgm" in line)
    pictures = [tmp_path / name for name in ("a.svg", "b.svg")]
    for picture in pictures:
        tables.figure(measured, picture)
    assert (
        pictures[0].read_bytes() == pictures[1].read_bytes()
        and b"autolora" in pictures[0].read_bytes()
    )


def test_a_row_that_bounds_name_must_be_measured():
    measured = result(autolora={SEARCH: row(5.0), OFFICIAL: row(5.0), "other": row(1.0)})
    assert tables.missing(measured) == [
        "autolora/paper.yaml: bounds: 'search step (first order)' is not measured; "
        f"measured: {SEARCH}, {OFFICIAL}, other"
    ]
    assert not tables.missing(result())


def test_the_page_holds_the_table():
    page = tables.ROOT / "docs" / "speed.md"
    assert "speed" in [name for _, name, _, _ in blocks.BLOCK.findall(page.read_text())]
    assert not blocks.outdated(page, {"speed": tables.speed_table()})


def test_measure_and_write(tmp_path, capsys):
    def step(times):
        return [(torch.ones(256, 256) @ torch.ones(256, 256)).sum() for _ in range(times)]

    rows = cost.measure(lambda: step(1), {"twice": lambda: step(2)}, 2)
    assert rows["plain"]["ratio"] == 1.0 and rows["plain"]["megabytes"] >= 0.5
    assert 0 < rows["twice"]["lowest"] <= rows["twice"]["ratio"] <= rows["twice"]["highest"]
    assert 0.9 < rows["twice"]["memory"] < 1.1  # one product after the other
    cost.show("title", rows)
    assert "twice" in capsys.readouterr().out
    cost.write(str(tmp_path / "rows.json"), "paper", rows, rounds=2)
    assert tables.normalised(json.loads((tmp_path / "rows.json").read_text()), "paper") == rows


SCRIPT = """
import json, sys
path = sys.argv[sys.argv.index("--json") + 1]
if "--rounds" in sys.argv: assert sys.argv[sys.argv.index("--rounds") + 1] == "3"
json.dump({"rows": {"search step (finite difference)": {"ratio": 9.0}}}, open(path, "w"))
"""


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """A checkout whose one script writes what it is told."""
    folder = tmp_path / "benchmarks" / "methods"
    folder.mkdir(parents=True)
    (tmp_path / "benchmarks" / "__init__.py").touch()
    (folder / "__init__.py").touch()
    (folder / "autolora.py").write_text(SCRIPT)
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "speed.md").write_text(
        "<!-- generated: speed -->\n<!-- end generated -->\n"
    )
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path


def run(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["benchmarks.methods", "--only", "autolora", *words])
    with pytest.raises(SystemExit) as end:
        runner.main()
    return end.value.code


def test_the_runner(fake, monkeypatch, capsys):
    old = result(autolora={SEARCH: row(5.0)}, dasgm={"a": row(1.0)})
    committed = fake / tables.RESULT
    committed.parent.mkdir(parents=True)
    committed.write_text(json.dumps(old))
    before = committed.read_bytes()
    assert run(monkeypatch, "--rounds", "3") == 1  # rows that its bounds name are not there
    said = capsys.readouterr().out
    assert "slower by 80%" in said and "another machine" in said and "is not measured" in said
    assert "DEFECT" in said and committed.read_bytes() == before
    written = json.loads((fake / "runs/methods/cpu.json").read_text())
    assert written["papers"]["autolora"]["rows"] == {SEARCH: {"ratio": 9.0}}
    assert written["papers"]["autolora"]["peak_megabytes"] > 1
    assert "--rounds 3" in written["command"]
    run(monkeypatch, "--record")
    recorded = json.loads(committed.read_text())
    assert (
        recorded["papers"]["autolora"]["rows"][SEARCH]["ratio"] == 9.0
        and "dasgm" in recorded["papers"]
    )


def test_a_script_that_fails(fake, monkeypatch, capsys):
    (fake / "benchmarks/methods/autolora.py").write_text("raise SystemExit(3)")
    assert run(monkeypatch) == 1
    assert "autolora: FAILED" in capsys.readouterr().out
    assert run(monkeypatch, "--record", "--rounds", "2") == 2
