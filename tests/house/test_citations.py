"""What is cited is there: the pages and sections that files name exist, and none is named vaguely.

A citation reads `docs/verdicts.md, section 7` or `docs/papers/mlo_mae.md, sections 3.4 and 9(a)`.
"""

from __future__ import annotations

import io
import re
import subprocess
import tokenize
from functools import cache
from pathlib import Path

import pytest

from benchmarks import ROOT

NUMBER = r"\d+(?:\.\d+)*(?:\([a-z]\))?"
PAGE = re.compile(r"docs/[\w/]+\.md")
# Between page and number a citation may run on over a line break, a comment sign or a backquote.
GAP = r"[`*,;:(\s#]+"
CITED = re.compile(
    rf"(docs/[\w/]+\.md){GAP}sections?{GAP}({NUMBER}(?:(?:,| and| to)\s+(?:#\s+)?{NUMBER}(?!\w))*)"
)
EQUATION = re.compile(rf"(docs/[\w/]+\.md){GAP}(?:Eqs?\.|equations?){GAP}({NUMBER})")
VAGUE = re.compile(r"\bVERDICTS\b|\bDESIGN\b|\b[Ss]pecifications?\b")
BRACKETED = re.compile(r"(?<![\w\])`.^=+*/-])\[(\d{1,2})\](?![\w(\[])")


def tracked() -> list[str]:
    """Text that people write: code, data by hand, pages; not what is recorded."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout
    names = listed.split() or [str(p.relative_to(ROOT)) for p in ROOT.glob("*/**/*.py")]
    return [
        name
        for name in names
        if Path(name).suffix in {".py", ".yaml", ".md", ".html", ".sh", ".toml"}
        or name == "Makefile"
        if "/results/" not in name and name != "tests/house/test_citations.py"
    ]


FILES = tracked()


@cache
def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8") if (ROOT / name).exists() else ""


@cache
def sections(page: str) -> frozenset[str]:
    """Numbers of a page's headings, and of its numbered items and table rows such as `8.12`."""
    text = text_of(page)
    headings = re.findall(rf"^#+ (?:Section )?({NUMBER})[.:]?\s", text, re.MULTILINE)
    items = re.findall(r"^\s*(?:[-|*]\s*)*\**(\d+(?:\.\d+)+)[.:)]?\**\s", text, re.MULTILINE)
    return frozenset([*headings, *items])


def words(name: str) -> str:
    """The prose of a file: all of a page; comments and strings of code; of YAML all but lists."""
    text = text_of(name)
    if name.endswith(".py"):
        prose = (tokenize.COMMENT, tokenize.STRING)
        tokens = tokenize.generate_tokens(io.StringIO(text).readline)
        return "\n".join(t.string for t in tokens if t.type in prose and " " in t.string)
    if name.endswith(".yaml"):
        return "\n".join(re.findall(r"#.*$|\"[^\"\n]*\"", text, re.MULTILINE))
    return re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)


@pytest.mark.parametrize("name", FILES)
def test_every_page_and_section_that_is_cited_exists(name):
    for page in set(PAGE.findall(text_of(name))):
        assert (ROOT / page).exists(), f"{name} cites {page}, which is not there"
    for page, numbers in CITED.findall(text_of(name)):
        absent = set(re.findall(NUMBER, numbers)) - sections(page)
        assert not absent, f"{name} cites {page}, section {sorted(absent)}: no such heading there"
    for page, number in EQUATION.findall(text_of(name)):
        written = re.search(rf"\({re.escape(number)}\)|Eq\. {re.escape(number)}\b", text_of(page))
        assert written, f"{name} cites {page}, Eq. {number}: no such equation there"


@pytest.mark.parametrize("name", FILES)
def test_no_document_is_cited_without_its_path(name):
    lines = text_of(name).splitlines()
    for place, line in enumerate(lines):
        around = " ".join(lines[max(0, place - 1) : place + 2])
        if VAGUE.search(line):
            assert PAGE.search(around), f"{name}:{place + 1} names no page: {line.strip()}"


@pytest.mark.parametrize("name", [name for name in FILES if Path(name).suffix != ".html"])
def test_a_number_in_brackets_is_explained_in_its_file(name):
    prose = words(name)
    defined = set(re.findall(r"^\W*\[(\d{1,2})\][ :]\s*\S", prose, re.MULTILINE))
    absent = set(BRACKETED.findall(prose)) - defined
    assert not absent or PAGE.search(prose), f"{name} refers to {sorted(absent)} of an unnamed list"


def test_citations_are_recognised():
    """The forms that are in use, and what the patterns must not take for one."""
    text = "see docs/verdicts.md, sections 3 and 7; (`docs/papers/a.md`, section\n# 9(a))"
    assert CITED.findall(text) == [("docs/verdicts.md", "3 and 7"), ("docs/papers/a.md", "9(a)")]
    assert BRACKETED.findall("as in [8], and x[0], [1](page.md), f()[2]") == ["8"]
    assert VAGUE.search("the specification, 3.4") and not VAGUE.search("as designed")
    assert {"1", "7", "9"} <= sections("docs/verdicts.md")
