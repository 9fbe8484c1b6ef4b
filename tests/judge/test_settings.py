"""docs/settings.md: what SCALE=paper does is read, and never typed beside what was printed."""

from __future__ import annotations

import re
import shutil

import pytest

from benchmarks import PAPERS, settings
from shared.protocol import BadInput, Protocol


def cells(table: str, setting: str) -> list[str]:
    line = next(line for line in table.splitlines() if line.startswith(f"| {setting} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


@pytest.mark.parametrize("name", PAPERS)
def test_the_third_column_is_the_protocol(root, name, monkeypatch):
    """Whatever the protocol says stands there: it is made to say something else."""
    paper = Protocol(root / name)
    found = settings.read(paper)
    assert found, f"{name}/settings.yaml is missing"
    fields = [row for row in found.rows if row.ours in paper.defaults]
    assert len(fields) >= 10
    changed = {row.ours: f"other {row.ours}" for row in fields}
    monkeypatch.setattr(Protocol, "settings", lambda *_: changed)
    rows = settings.settings_table(root / name)
    for row in fields:
        said = rows[rows.index(f"| {settings.cell(row.setting)} |") :].splitlines()[0]
        assert f"other {row.ours}".replace("_", "\\_") in said, said


@pytest.mark.parametrize("name", PAPERS)
def test_every_kind_of_setting_is_there(root, name):
    paper = Protocol(root / name)
    found = settings.read(paper)
    assert found
    named = {row.ours for row in found.rows}
    assert {"@data", "@seeds", "@metrics"} <= named
    assert "@models" in named or not paper.scale("paper").needs.models
    assert any(row.printed is not None for row in found.rows)
    table = settings.settings_table(root / name)
    lines = [line.split(" | ") for line in table.splitlines() if line.startswith("| ")]
    assert all(len(line) == 5 and line[3].strip() for line in lines), "no third column"
    for task, names in settings.metrics(paper).items():
        assert task.replace("_", "\\_") in table and names


@pytest.fixture
def copy(root, tmp_path):
    """`copy(old, new)`: weight_mixup with one change in settings.yaml; its directory."""
    ignored = shutil.ignore_patterns("results", "__pycache__")

    def changed(old: str, new: str):
        folder = tmp_path / "weight_mixup"
        shutil.copytree(root / "weight_mixup", folder, ignore=ignored)
        path = folder / "settings.yaml"
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))
        return folder

    return changed


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("ours: batch}", "ours: 16}", "ours"),  # typed, not read
        ("ours: batch}", "ours: bach}", "did you mean 'batch'"),
        ('"@seeds"', '"@seed"', "did you mean '@seeds'"),
        ("data.py: glue_splits", "data.py: glue_split", "did you mean 'glue_splits'"),
        ("setting: longest text, official", "setting: longest text, offical", "official"),
    ],
)
def test_a_reference_that_leads_nowhere_is_refused(copy, old, new, said):
    with pytest.raises(BadInput, match=re.escape(said)):
        settings.settings_table(copy(old, new))


def test_another_printed_value_no_longer_agrees(copy):
    folder = copy("official: 16, ours: batch", "printed: 32, ours: batch")
    table = settings.settings_table(folder)
    assert cells(table, "batch, both levels")[1:] == ["32", "not found", "16", "neither"]
    assert settings.differing(Protocol(folder)) == ["batch, both levels"]


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-4 (BioNLP 1e-3)", 1e-4), ("3,760 (CoLA)", 3760), ("24, packed", 24), (0.5, 0.5)]
    + [(text, None) for text in ("4 to 16, by grid", "1 / 0 / -1", "none", "eta", "12 to 32")],
)
def test_numbers_in_words(text, value):
    assert settings.number(text) == value
