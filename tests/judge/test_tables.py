"""Tables of the READMEs: whole, stable, out of committed files alone, filled in place."""

from __future__ import annotations

import json
import re
import shutil

import pytest
import synthetic_results

from benchmarks.blocks import update_readme
from benchmarks.readme import paper_tables, stale_readmes, write_readmes
from benchmarks.tables import checked


def test_readme_tables_are_deterministic_and_whole(checkout):
    tables = paper_tables(checkout / "autolora")
    assert set(tables) == {"claims", "results", "reported"}
    assert tables == paper_tables(checkout / "autolora")
    claims, results = tables["claims"], tables["results"]
    for claim in synthetic_results.result().claims:
        assert f"`{claim.id}`" in claims
    assert (
        "**SUPPORTED, NOT ATTRIBUTED (scaled down)**" in claims and "permuted: NOT BEATEN" in claims
    )
    assert "&lt;b&gt;spans" in claims and "<b>" not in claims
    row = next(line for line in results.splitlines() if line.startswith("| `autolora`"))
    assert "1 diverged" in row and "73,728" in row and "| 650 |" in row
    for table in (claims, results):
        lines = [line for line in table.splitlines() if line.startswith("|")]
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1


def test_readme_tables_read_committed_files_only(checkout):
    own = json.loads((checkout / "runs/autolora/cpu/results.json").read_text())["claims"][1][
        "verdict"
    ]
    assert own.startswith("INCONCLUSIVE")
    line = next(
        x
        for x in paper_tables(checkout / "autolora")["claims"].splitlines()
        if "better-than-random" in x
    )
    assert "**SUPPORTED (scaled down)**" in line


def test_reported_table_shows_targets_or_a_tally(checkout):
    shown = paper_tables(checkout / "mlo_mae")["reported"]
    assert "`rte-ours`" in shown and "lora-readme" not in shown and "webnlg" not in shown
    assert "NO PUBLISHED VALUE" in shown
    tally = paper_tables(checkout / "ts_watermark")["reported"]
    assert tally == "884 published values on file (20 without a value): none compared yet."


def test_tables_of_partial_and_missing_results(checkout, tmp_path):
    for paper in ("weight_mixup", "tapweight"):
        assert all(paper_tables(checkout / paper).values())
    (tmp_path / "dasgm").mkdir()
    assert paper_tables(tmp_path / "dasgm")["claims"].startswith(
        "Nothing is recorded yet: `make reproduce-dasgm`"
    )


def test_readmes_are_filled_in_place_and_checked(checkout, tmp_path):
    for paper in ("autolora", "dasgm"):
        shutil.copytree(checkout / paper, tmp_path / paper)
    block = "<!-- generated: {} -->\nold\n<!-- end generated -->\n"
    paper, project = tmp_path / "autolora/README.md", tmp_path / "docs/findings.md"
    project.parent.mkdir()
    paper.write_text(
        "# A\n" + block.format("claims") + "\nwords | stay\n" + block.format("figures")
    )
    project.write_text(block.format("verdicts"))
    assert stale_readmes(tmp_path) == ["autolora/README.md: claims", "docs/findings.md: verdicts"]
    assert write_readmes(tmp_path) == [paper, project]
    assert stale_readmes(tmp_path) == [] and write_readmes(tmp_path) == []
    text = paper.read_text()
    assert (
        text.startswith("# A\n<!-- generated: claims -->\nScale `cpu`")
        and "\nwords | stay\n" in text
    )
    assert "<!-- generated: figures -->\nold\n" in text
    row = next(line for line in project.read_text().splitlines() if "[autolora]" in line)
    assert "yes: rehearsal of 96 runs, 2025-11-19" in row and "| yes, 20" in row
    paper.write_text(text.replace("8 |", "9 |", 1))
    assert stale_readmes(tmp_path) == ["autolora/README.md: claims"]


def test_a_stamp_holds_for_the_bytes_it_names(checkout, tmp_path):
    shutil.copytree(checkout / "autolora", tmp_path / "autolora")
    results = tmp_path / "autolora/results/cpu.json"
    assert checked(tmp_path / "autolora", "cpu").startswith("yes")
    results.write_text(results.read_text().replace("71", "72", 1))
    assert checked(tmp_path / "autolora", "cpu") == "results changed since"


def test_an_unclosed_block_is_named(tmp_path):
    path = tmp_path / "README.md"
    path.write_text("<!-- generated: claims -->\nnever closed\n")
    with pytest.raises(ValueError, match=r"README\.md: 1 blocks are opened and 0 closed"):
        update_readme(path, {"claims": "x"})
