"""`--help` of every paper says of each option what config.py says above its field."""

from __future__ import annotations

import re
import subprocess
import sys
import tokenize
import typing
from pathlib import Path

import pytest

from benchmarks import PAPERS
from shared import protocol
from shared.protocol import BadInput

ROOT = Path(__file__).resolve().parents[2]


def texts_above_fields(path: Path, of_class: str = "") -> dict[str, str]:
    """The comment lines directly above each annotated field of a file's classes, by field."""
    with open(path, "rb") as file:
        tokens = list(tokenize.tokenize(file.readline))
    lines = path.read_text().splitlines()
    comments = {t.start[0]: t.string.lstrip("# ") for t in tokens if t.type == tokenize.COMMENT}
    texts, inside = {}, ""
    for number, line in enumerate(lines, 1):
        if named := re.match(r"class (\w+)", line):
            inside = named[1]
        if of_class not in ("", inside):
            continue
        if field := re.match(r"    (\w+): [^=]+=", line):
            above, n = [], number - 1
            while n in comments and lines[n - 1].lstrip().startswith("#"):
                above.insert(0, comments[n])
                n -= 1
            texts[field[1]] = " ".join(above)
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
