"""Drawings of the methods and typeset equations: made from the pages, committed as made."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import pytest

from benchmarks import PAPERS, ROOT, drawings, mathml
from benchmarks.verdict_pictures import alone
from shared.protocol import BadInput

SVG = "{http://www.w3.org/2000/svg}"
PAGES = sorted([*ROOT.glob("*/README.md"), *ROOT.glob("docs/papers/*.md")])


@pytest.mark.parametrize("paper", PAPERS)
def test_the_drawing_is_what_the_description_says(paper):
    drawing = drawings.read(ROOT / paper)
    assert drawing, f"{paper}/drawing.yaml is missing"
    made = alone(drawings.draw(drawing), drawings.WIDTH)
    committed = (ROOT / paper / "pictures" / "method.svg").read_text()
    assert made == committed, f"python -m benchmarks.drawings {paper}"
    page = (ROOT / paper / "README.md").read_text()
    assert f"![{drawing.alt.strip()}](pictures/method.svg)" in page.split("\n## ")[0]
    assert "prefers-color-scheme:dark" in committed


@pytest.mark.parametrize("paper", PAPERS)
def test_no_text_leaves_its_drawing(paper):
    """By the mean width of a letter, which the lines were broken by."""
    root = ElementTree.fromstring((ROOT / paper / "pictures" / "method.svg").read_text())
    width = float(root.attrib["viewBox"].split()[2])
    height = float(root.attrib["viewBox"].split()[3])
    texts = root.findall(f".//{SVG}text")
    assert len(texts) > 8
    for text in texts:
        said, at = "".join(text.itertext()), float(text.attrib["x"])
        wide = drawings.NARROW * len(said)
        left = at - wide / 2 if text.attrib["text-anchor"] == "middle" else at
        assert left >= 0 and left + wide <= width + 8, said
        assert 0 < float(text.attrib["y"]) < height, said


def test_every_part_of_a_description_is_drawn():
    level = drawings.Level(name="A_{tr}", does="does", sees="data", down="falls", up="rises")
    whole = drawings.Drawing(
        alt="a drawing of two levels, for nobody at all",
        levels=[level, drawings.Level(name="B < C", does="also")],
        straight="past", returns="back", note="below", end=drawings.Level(name="E", does="ends"),
    )  # fmt: skip
    svg = drawings.draw(whole)
    root = ElementTree.fromstring(svg)
    said = ["".join(t.itertext()).replace("\u200b", "") for t in root.iter("text")]
    for words in ("Atr", "does", "data", "falls", "rises", "B < C", "past", "back", "below", "E"):
        assert words in said, words
    assert len(root.findall(".//polygon")) == 6  # down, up, to the end, past, back, from the data
    assert root.attrib["aria-label"] == whole.alt and root.attrib["role"] == "img"


def test_a_wrong_description_is_refused(tmp_path):
    (tmp_path / "drawing.yaml").write_text("levles: []\n")
    with pytest.raises(BadInput, match="did you mean 'levels'"):
        drawings.read(tmp_path)
    (tmp_path / "drawing.yaml").unlink()
    assert drawings.read(tmp_path) is None and drawings.picture(tmp_path) is None


# --- equations ------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_equation_of_a_page_can_be_set(page):
    text = mathml.typeset(page.read_text())
    bare = re.sub(r"^ *```.*?^ *```$|`[^`\n]+`|<math.*?</math>", "", text, flags=re.S | re.M)
    assert "$" not in bare, re.findall(r".{30}\$.{30}", bare)[:3]


@pytest.mark.parametrize("paper", PAPERS)
def test_a_paper_has_its_equations_beside_its_code(paper):
    tables = mathml.equations((ROOT / paper / "README.md").read_text())
    head, rows = tables[-1]
    assert "equation" in " ".join(head)
    assert sum("<math" in row[0] + row[1] for row in rows) >= 3
    assert all("<code>" in "".join(row) or "the same" in row for row in rows[:-1])


def test_what_stands_in_code_is_no_equation():
    text = "cost `$5` and $x_1$, not \\$6\n\n```sh\necho $HOME $PATH\n```\n"
    text += "\n```math\na \\tag{2}\n```\n"
    made = mathml.typeset(text)
    assert made.count("<math") == 2 and "`$5`" in made and "echo $HOME $PATH" in made
    assert '<span class="tag">(2)</span>' in made
    with pytest.raises(BadInput, match="no MathML of"):
        mathml.mathml(r"\nosuchcommand x")
