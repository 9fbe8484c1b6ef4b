"""What is printed, what the official code does, and what SCALE=paper does: docs/settings.md.

`<paper>/settings.yaml` holds what was read of the paper and of its code, a row for each setting;
the third column is never typed there: `ours` names where it stands, and it is read from there.

    batch               a field of Config, on the tasks of scale `paper` of the row's arm
    @models @data @tasks @seeds @metrics      of protocol.yaml and claims.yaml at that scale
    data.py: _glue      the first sentence of a docstring of the paper's code, or a dict there
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import Field

from benchmarks.claims import load_claims
from benchmarks.words import cell, table
from shared.protocol import BadInput, Document, Protocol, load_yaml, read_as, unknown

SCALE = "paper"
UNKNOWN = "not found"
# 16, 1e-4, 3,760; also before a comma, a bracket or a word, but not in `4 to 16` or `1 / 0`
NUMBER = re.compile(r"[-+]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?(?=$|[;:,]| \(| (?!to )[a-z])")
Said = str | int | float | None


class Row(Document):
    """One setting. printed, official: what was read; left out where nothing was."""

    setting: str
    printed: Said = None
    official: Said = None
    ours: str
    arm: str = ""  # whose field `ours` is; "": the file's


class SettingsFile(Document):
    arm: str  # the method
    page: str = ""  # what the reader should know of the sources, one sentence
    rows: list[Row] = Field(min_length=1)


def read(paper: Protocol) -> SettingsFile | None:
    path, name = paper.directory / "settings.yaml", f"{paper.paper}/settings.yaml"
    if not path.exists():
        return None
    return read_as(SettingsFile, load_yaml(path, name), name)


def settings_table(directory: Path) -> str:
    """The table of one paper; it says so where nobody has written its settings.yaml."""
    paper = Protocol(directory)
    found = read(paper)
    if found is None or SCALE not in paper.document.scales:
        return f"{directory.name} has no settings.yaml."
    head = ["setting", "printed", "official code", "`SCALE=paper`", "as"]
    rows = []
    for row in found.rows:
        values = ours(paper, row, row.arm or found.arm)
        said = [words(row.printed), words(row.official)]
        rows.append(
            [cell(row.setting), *map(cell, said), cell(in_words(values)), agrees(row, values)]
        )
    note = f"{found.page.strip()}\n\n" if found.page else ""
    return note + table(head, rows)


# --- the third column -----------------------------------------------------------------------------


Values = dict[str, list[str]]  # value -> the tasks that have it


def ours(paper: Protocol, row: Row, arm: str) -> Values:
    """What the reference of a row leads to. BadInput, with the row, where it leads nowhere."""
    where = f"{paper.paper}/settings.yaml: {row.setting}: ours"
    if row.ours.startswith("@"):
        lists = {"models": models, "data": data, "tasks": tasks, "seeds": seeds, "metrics": metrics}
        if row.ours[1:] not in lists:
            raise unknown(row.ours, [f"@{name}" for name in lists], where)
        return lists[row.ours[1:]](paper)
    if file := re.fullmatch(r"(\w+\.py): ([\w.]+)", row.ours):
        return of_code(paper.directory / file[1], file[2], where)
    if row.ours not in paper.defaults:
        raise unknown(row.ours, paper.defaults, where)
    values: Values = {}
    for task in paper.arm_tasks(arm, SCALE):
        settings = paper.defaults | paper.settings(SCALE, arm, task)
        values.setdefault(words(settings[row.ours]), []).append(task)
    if not values:
        raise BadInput(f"{where}: arm '{arm}' has no task at scale {SCALE}")
    return values


def models(paper: Protocol) -> Values:
    return {name: [] for name in paper.scale(SCALE).needs.models}


def data(paper: Protocol) -> Values:
    return {name: [] for name in paper.scale(SCALE).needs.data}


def tasks(paper: Protocol) -> Values:
    return {name: [] for name in paper.tasks(SCALE)}


def seeds(paper: Protocol) -> Values:
    counted: Values = {}
    for task in paper.tasks(SCALE):
        counted.setdefault(str(len(paper.seeds(SCALE, task))), []).append(task)
    return counted


def metrics(paper: Protocol) -> Values:
    """What claims.yaml lists for each task; without `score` where it is one of the others."""
    claims = load_claims(paper.directory / "claims.yaml")
    listed: Values = {}
    for task in paper.tasks(SCALE):
        names = ", ".join(name for name in claims.chance(task) if name != "score") or "score"
        listed.setdefault(names, []).append(task)
    return listed


def of_code(path: Path, name: str, where: str) -> Values:
    """The first sentence of the docstring of a function or class; the entries of a dict."""
    node: Any = ast.parse(path.read_text(encoding="utf-8"))
    for part in name.split("."):
        inside: dict[str, Any] = {}
        for n in node.body:
            if isinstance(n, ast.FunctionDef | ast.ClassDef):
                inside[n.name] = n
            elif isinstance(n, ast.Assign) and isinstance(n.value, ast.Dict):
                inside |= {
                    target.id: n.value for target in n.targets if isinstance(target, ast.Name)
                }
        if part not in inside:
            raise unknown(part, inside, f"{where}: {path.name}")
        node = inside[part]
    if isinstance(node, ast.Dict):
        entries = ast.literal_eval(node).items()
        return {", ".join(f"{key}: {words(value)}" for key, value in entries): []}
    text = " ".join((ast.get_docstring(node) or "").split())
    if not text:
        raise BadInput(f"{where}: {path.name}: {name} has no docstring")
    return {re.split(r"(?<=[.!?]) ", text)[0].rstrip("."): []}


# --- words ----------------------------------------------------------------------------------------


def words(value: Any) -> str:
    """`1e-4`, `0.5`, `a, b`; of nothing that it was not found."""
    if value is None:
        return UNKNOWN
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return re.sub(r"e([+-])0*", r"e\1", f"{value:.4g}") if abs(value) > 1e-2 else small(value)
    if isinstance(value, list | tuple):
        return ", ".join(map(words, value)) or "none"
    return str(value) if value != "" else "none"


def small(value: float) -> str:
    """0.0001 as 1e-4."""
    digits, _, exponent = f"{value:.3e}".partition("e")
    return f"{digits.rstrip('0').rstrip('.')}e{int(exponent)}" if value else "0"


def in_words(values: Values) -> str:
    """The value of most tasks first, without their names; lists as they are."""
    if not any(values.values()):
        return ", ".join(values)
    first, *others = sorted(values, key=lambda value: -len(values[value]))
    return "; ".join([first, *(f"{value}: {', '.join(values[value])}" for value in others)])


def agrees(row: Row, values: Values) -> str:
    """Which of the two columns says what ours says; "" where words cannot be compared."""
    own = set() if ".py: " in row.ours else set(map(plain, values))
    said = {"printed": row.printed, "official": row.official}
    same = [name for name, value in said.items() if value is not None and plain(value) in own]
    numbers = [value for value in said.values() if number(value) is not None]
    if same or not numbers:
        return ", ".join(same)
    return "neither" if any(number(value) is not None for value in values) else ""


def plain(value: Said) -> str:
    """A number as a number, whatever follows it in brackets; else the words."""
    found = number(value)
    return f"{found:.6g}" if found is not None else words(value).casefold()


def number(value: Said) -> float | None:
    text = NUMBER.match(words(value))
    return float(text[0].replace(",", "")) if text else None


def tables(root: Path, papers: Iterable[str]) -> dict[str, str]:
    """The blocks of docs/settings.md."""
    return {f"settings-{paper}": settings_table(root / paper) for paper in papers}


def differing(paper: Protocol) -> list[str]:
    """Settings whose printed value is a number that SCALE=paper does not take."""
    found = read(paper)
    rows = found.rows if found else []
    return [
        row.setting
        for row in rows
        if found
        and number(row.printed) is not None
        and "printed" not in agrees(row, ours(paper, row, row.arm or found.arm))
    ]
