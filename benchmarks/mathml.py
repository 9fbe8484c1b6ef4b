"""Equations of Markdown pages, `$...$` and ```math blocks, as MathML: browsers set it themselves.

Used when the report and the site of docs/ are built; a page that is read on GitHub needs nothing.
"""

from __future__ import annotations

import functools
import html
import re
from collections.abc import Callable

from markupsafe import Markup

from benchmarks.differences import CELLS, inline
from shared.protocol import BadInput

# Code first, so that a dollar sign inside it stays one; then blocks, then what stands in a line.
PARTS = re.compile(
    r"(?P<block>^(?P<indent> *)```math\n(?P<tex>.*?)^ *```$)"
    r"|(?P<code>^ *```.*?^ *```$|`[^`\n]+`)"
    r"|(?<![\\$\w])\$(?P<inline>[^$\n]+?)\$(?![\w$])",
    re.MULTILINE | re.DOTALL,
)


@functools.cache
def mathml(tex: str, block: bool = False) -> str:
    """One formula, with its LaTeX as the text for those who copy or hear it."""
    import latex2mathml.converter

    tag = re.search(r"\\tag\{([^}]*)\}", tex)
    bare = re.sub(r"\\tag\{[^}]*\}", "", tex).strip()
    bare = re.sub(r"\\arg(?![a-z])", r"\\operatorname{arg}", bare)  # which the library lacks
    try:
        made = latex2mathml.converter.convert(bare, display="block" if block else "inline")
    except Exception as error:  # of the library's many kinds
        raise BadInput(f"no MathML of {tex!r}: {type(error).__name__}: {error}") from error
    if left := re.search(r"\\\w+", made):  # it leaves a command that it does not have
        raise BadInput(f"no MathML of {tex!r}: {left[0]} is not a command that latex2mathml has")
    number = f'<span class="tag">({html.escape(tag[1])})</span>' if tag else ""
    # Markdown would take a line that begins with <math> for a block.
    return f'<div class="math">{made}{number}</div>' if block else f"<span>{made}</span>"


def typeset(text: str, keep: Callable[[str], str] = str) -> str:
    """Markdown with its equations as MathML. `keep` makes what stands between them into HTML."""
    done, place = [], 0
    for part in PARTS.finditer(text):
        if part["code"]:
            continue
        done.append(keep(text[place : part.start()]))
        tex = part["tex"] or part["inline"]
        made = mathml(tex, block=bool(part["block"]))
        done.append(f"\n{part['indent']}{made}\n" if part["block"] else made)
        place = part.end()
    return "".join([*done, keep(text[place:])])


def cell(text: str) -> Markup:
    """HTML of one table cell: code, emphasis and equations."""
    return Markup(typeset(text, inline))


def tables(page: str) -> list[tuple[list[str], list[list[str]]]]:
    """(head, rows) of the tables of a README that have a column of symbols or equations."""
    found = []
    for head, body in re.findall(r"^(\|.*\|)\n\|[-| :]+\|\n((?:\|.*\|\n)+)", page, re.MULTILINE):
        if "$" in body and re.search("equation|symbol", head):
            lines = [CELLS.split(line)[1:-1] for line in (head, *body.splitlines())]
            first, *rows = [[one.strip() for one in line] for line in lines]
            found.append((first, rows))
    return found


def equations(page: str) -> list[tuple[list[Markup], list[list[Markup]]]]:
    """`tables` in HTML."""
    return [
        ([cell(one) for one in head], [[cell(one) for one in row] for row in rows])
        for head, rows in tables(page)
    ]
