"""What a run can be told: help, choices, and values that cannot work."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys
import typing
from pathlib import Path

import pytest

from autolora import config, ranks
from autolora.config import Config
from shared.protocol import BadInput, Protocol, RunConfig

PAPER = Path(config.__file__).parent
HINTS = typing.get_type_hints(Config)
CHOICES = {
    name: typing.get_args(hint)
    for name, hint in HINTS.items()
    if typing.get_origin(hint) is typing.Literal and name not in RunConfig.__annotations__
}


def comments() -> dict[str, str]:
    """Field -> the comment lines directly above it."""
    above: list[str] = []
    texts: dict[str, str] = {}
    for line in map(str.strip, Path(config.__file__).read_text().splitlines()):
        if line.startswith("# "):
            above.append(line[2:])
            continue
        if above and ": " in line:
            texts[line.partition(":")[0]] = " ".join(above)
        above = []
    return texts


def command(*words: str) -> subprocess.CompletedProcess[str]:
    whole = [sys.executable, "-m", "autolora.train", *words]
    return subprocess.run(whole, cwd=PAPER.parent, capture_output=True, text=True)


def letters(text: str) -> str:
    return "".join(character for character in text if character.isalnum())


def test_the_help_of_every_option_is_the_comment_above_its_field():
    sections = [base for base in Config.__bases__ if base is not RunConfig]
    fields = [field.name for section in sections for field in dataclasses.fields(section)]
    assert sorted(fields) == sorted(comments()) and all(section.__doc__ for section in sections)
    shown = command("--help").stdout.split("--")
    help_of = {
        letters(text.split()[0].rstrip(",")): letters(text) for text in shown if text.strip()
    }
    for name, text in comments().items():
        no = f"no{letters(name)}"  # a bool's help stands behind its second spelling
        assert letters(text) in help_of.get(no, help_of[letters(name)]), name


@pytest.mark.parametrize("name", CHOICES)
def test_a_choice_that_is_none_is_refused_with_the_choices(name, tmp_path):
    paper = tmp_path / "autolora"
    paper.mkdir()
    shutil.copy(PAPER / "config.py", paper)
    text = f"paper: autolora\ndefaults: {{{name}: no such choice}}\n"
    (paper / "protocol.yaml").write_text(text)
    with pytest.raises(BadInput) as refused:
        Protocol(paper)
    assert all(word in str(refused.value) for word in (name, "no such choice", *CHOICES[name]))


def test_the_command_line_refuses_it_too():
    refused = command("--tiny", "--scale-rule", "per_map")
    assert refused.returncode == 2
    assert "per_rank" in refused.stderr and "constant" in refused.stderr


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"level_split": 1.0}, "level_split = 1.0 must lie in"),
        ({"k": 0}, "k = 0 must be at least 1"),
        ({"search_steps": 0}, "search_steps = 0 must be at least 1"),
        ({"threshold": 1.5}, "threshold = 1.5 must lie in"),
        ({"masks": "independent", "hypergradient": "exact"}, "habits of finite_difference"),
        ({"weights": "free", "threshold": 0.2}, "weights = free has a threshold of its own"),
        ({"ranks": "learnt"}, "ranks = 'learnt' must be a number"),
    ],
)
def test_15_values_that_cannot_work_are_refused(values, words):
    with pytest.raises(BadInput, match=words):
        Config(**values)


def test_ranks_by_every_rule_can_be_chosen():
    learned: ranks.Search = {"ranks": {"a": 1, "b": 3}, "beta": {"a": [0.0, 1.0], "b": [1.0, 0.0]}}
    learned["rules"] = {rule: {"a": 2, "b": 2} for rule in ranks.RULES}
    learned["budget"] = 4
    maps = {name: ranks.nn.Linear(4, 4) for name in "ab"}
    for rule in set(typing.get_args(config.RankRule)) - {"grid"}:
        generator = ranks.torch.Generator().manual_seed(0)
        assert set(ranks.choose(rule, learned, maps, generator, (1, 3))) == {"a", "b"}
