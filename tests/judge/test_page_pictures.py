"""Figures of a recorded result as files for a README."""

from __future__ import annotations

import re
import shutil

import pytest

from benchmarks import PAPERS, ROOT, page_pictures
from shared.protocol import BadInput


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    (tmp_path / "dasgm" / "results").mkdir(parents=True)
    shutil.copy(ROOT / "dasgm/results/cpu.json", tmp_path / "dasgm/results")
    monkeypatch.setattr(page_pictures, "ROOT", tmp_path)
    return tmp_path


def test_a_figure_of_the_record_becomes_a_file_for_light_and_dark(checkout):
    (path,) = page_pictures.write("dasgm", ["accuracies"], "cpu")
    assert path == checkout / "dasgm/pictures/accuracies.svg"
    text = path.read_text()
    assert text.startswith("<svg xmlns=") and "prefers-color-scheme:dark" in text
    assert 'aria-label="Accuracy of found cells by arm' in text
    before = path.read_bytes()
    page_pictures.write("dasgm", ["accuracies"], "cpu")
    assert path.read_bytes() == before


def test_what_is_not_there_is_named(checkout):
    with pytest.raises(BadInput, match="no figure nonsense"):
        page_pictures.write("dasgm", ["nonsense"], "cpu")
    with pytest.raises(BadInput, match="no recorded result at scale gpu"):
        page_pictures.write("dasgm", ["accuracies"], "gpu")


EMBEDDED = [(paper, name) for paper in PAPERS for name in page_pictures.drawn(paper)]


@pytest.mark.parametrize(("paper", "name"), EMBEDDED)
def test_an_embedded_picture_is_that_of_the_record(paper, name, tmp_path, monkeypatch):
    """After a recording: python -m benchmarks.page_pictures PAPER NAME (make record-X does it)."""
    assert f"](pictures/{name}.svg)" in (ROOT / paper / "README.md").read_text()
    (tmp_path / paper / "results").mkdir(parents=True)
    shutil.copy(ROOT / paper / "results/cpu.json", tmp_path / paper / "results")
    monkeypatch.setattr(page_pictures, "ROOT", tmp_path)
    (path,) = page_pictures.write(paper, [name], "cpu")
    committed = (ROOT / paper / "pictures" / f"{name}.svg").read_text()
    assert WORDS.search(path.read_text())[0] == WORDS.search(committed)[0]


WORDS = re.compile(r'aria-label="[^"]*"')  # numbers of the figure
