"""Text is UTF-8 on every machine: each file that the repository opens as text says so."""

from __future__ import annotations

import ast
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKED = ("gzip", "bz2", "lzma")


def without_encoding(source: str) -> list[int]:
    """Lines with a text-mode `open`, `read_text` or `write_text` that names no encoding."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    return sorted(call.lineno for call in calls if opens_text(call) and not names_encoding(call))


def called(call: ast.Call) -> str:
    return getattr(call.func, "attr", getattr(call.func, "id", ""))


def opens_text(call: ast.Call) -> bool:
    name = called(call)
    if name in ("read_text", "write_text"):
        return True
    owner = ast.unparse(call.func).rpartition(".")[0] if name == "open" else ""
    place = 1 if owner in ("", "io", *PACKED) else 0  # `path.open(mode)` and `open(path, mode)`
    modes = [word.value for word in call.keywords if word.arg == "mode"] + call.args[place:][:1]
    if name != "open" or (modes and not isinstance(modes[0], ast.Constant)):
        return False
    mode = str(modes[0].value) if modes and isinstance(modes[0], ast.Constant) else ""
    if owner in PACKED:
        return "t" in mode
    return "b" not in mode and (place == 1 or (mode != "" and set(mode) <= set("rwax+t")))


def names_encoding(call: ast.Call) -> bool:
    positions = {"read_text": 1, "write_text": 2}
    given = len(call.args) >= positions.get(called(call), 99)
    return given or any(word.arg == "encoding" for word in call.keywords)


@pytest.mark.parametrize("source, count", [
    ("open(p)", 1), ("open(p, 'w')", 1), ("open(p, 'rb')", 0), ("p.read_text()", 1),
    ("p.read_text('utf-8')", 0), ("p.write_text(t)", 1), ("p.write_text(t, encoding='utf-8')", 0),
    ("gzip.open(p, 'rt')", 1), ("gzip.open(p)", 0), ("p.open('a')", 1), ("p.open('ab')", 0),
    ("run.open()", 0), ("open(p, mode='w', encoding='utf-8')", 0), ("Image.open(p)", 0),
    ("io.open(p)", 1),
])  # fmt: skip
def test_the_rule(source, count):
    assert len(without_encoding(source)) == count


def test_every_text_file_is_opened_with_an_encoding():
    listed = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True)
    files = [name for name in listed.stdout.split() if not name.startswith("tests/")]
    if not files:
        pytest.skip("no git checkout")
    lacking = {n: without_encoding((ROOT / n).read_text(encoding="utf-8")) for n in files}
    assert {name: lines for name, lines in lacking.items() if lines} == {}
