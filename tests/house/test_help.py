"""`--help` of every paper says of each option what config.py says above its field."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import typing
from pathlib import Path

import pytest

from benchmarks import PAPERS
from shared import protocol
from shared.protocol import BadInput

ROOT = Path(__file__).resolve().parents[2]


def texts_above_fields(path: Path, of_class: str = "") -> dict[str, str]:
    """The comment lines directly above each annotated field of a file's classes, by field."""
    source = path.read_text(encoding="utf-8")
    lines, texts = source.splitlines(), {}
    classes = [n for n in ast.parse(source).body if isinstance(n, ast.ClassDef)]
    for node in (n for c in classes if of_class in ("", c.name) for n in c.body):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            above, number = [], node.lineno - 2
            while lines[number].lstrip().startswith("#"):
                above.insert(0, lines[number].lstrip().lstrip("# "))
                number -= 1
            texts[node.target.id] = " ".join(above)
    return texts


def squeezed(text: str) -> str:
    """Letters, digits and signs alone: tyro wraps lines and draws boxes around them."""
    return re.sub(r"[\s│╭╮╰╯─`'\"*]", "", text)


@pytest.mark.parametrize("paper", PAPERS)
def test_help_is_the_text_above_the_field(paper):
    command = [sys.executable, "-m", f"{paper}.train", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    shown = squeezed(done.stdout)
    texts = texts_above_fields(ROOT / "shared" / "protocol.py", "RunConfig")
    texts |= texts_above_fields(ROOT / paper / "config.py")
    fields = protocol.config_class(ROOT / paper / "config.py").__dataclass_fields__
    for name in fields:
        assert texts.get(name), f"{paper}: {name} has no text above its field"
        if name != "uses":
            option = "--" + name.replace("_", "-")
            place = re.search(rf"{option}(?![\w-])", done.stdout)
            assert place, f"{paper}: {option} is not in --help"
            assert squeezed(texts[name]) in shown, f"{paper} {option}: {texts[name]}"


@pytest.mark.parametrize(
    "module", [*(f"{paper}.train" for paper in PAPERS), "benchmarks.reproduce"]
)
def test_a_python_without_the_packages_says_so_in_one_line(module):
    command = [sys.executable, "-S", "-m", module, "--tiny"]  # -S: without site-packages
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert re.fullmatch(r"error: \w+ is not installed in .*; run .*make setup.*\n", done.stderr)
    assert f".venv/bin/python -S -m {module} --tiny" in done.stderr


@pytest.mark.parametrize("paper", PAPERS)
def test_a_wrong_choice_is_refused_with_the_choices(paper):
    config = protocol.config_class(ROOT / paper / "config.py")
    model = protocol.settings_model(config)
    checked = 0
    for name, hint in typing.get_type_hints(config).items():
        if typing.get_origin(hint) is typing.Literal and all(
            isinstance(choice, str) for choice in typing.get_args(hint)
        ):
            with pytest.raises(BadInput) as error:
                protocol.read_as(model, {name: "no such choice"}, "here")
            assert all(choice in str(error.value) for choice in typing.get_args(hint)), name
            checked += 1
    assert checked, f"{paper} has no choice that is a Literal"
