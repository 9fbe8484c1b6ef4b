"""What a run can be told: help, choices, and combinations that cannot be meant."""

from __future__ import annotations

import re
import subprocess
import sys
import typing
from dataclasses import fields, replace
from pathlib import Path

import pytest
from toy_levels import TINY

from mlo_mae import config as module
from mlo_mae.config import Config
from mlo_mae.train import run
from shared.protocol import BadInput, RunConfig, read_as, settings_model

PAPER = Path(module.__file__).parent
SETTINGS = settings_model(Config)
SECTIONS = [base for base in Config.__bases__ if base is not RunConfig]


def comments() -> dict[str, str]:
    """Field -> the comment lines directly above it."""
    above: list[str] = []
    texts = {}
    for line in Path(module.__file__).read_text().splitlines():
        text = line.strip()
        if text.startswith("# "):
            above.append(text[2:])
            continue
        if above and ": " in text:
            texts[text.partition(":")[0]] = " ".join(above)
        above = []
    return texts


def test_every_field_stands_in_one_section_below_its_help():
    names = [f.name for section in SECTIONS for f in fields(section)]
    assert len(set(names)) == len(names) and set(names) == set(comments())
    assert {f.name for f in fields(Config)} == {*names, *(f.name for f in fields(RunConfig))}
    assert all(section.__doc__ for section in SECTIONS)


def test_help_says_what_stands_above_a_field():
    command = [sys.executable, "-m", "mlo_mae.train", "--help"]
    done = subprocess.run(command, cwd=PAPER.parent, capture_output=True, text=True, check=True)
    shown = re.sub(r"\W", "", done.stdout)
    for name, text in comments().items():
        place = shown.find(re.sub(r"\W", "", text))
        assert place > 0, f"--{name} does not show: {text}"
        before = shown[max(0, place - 150) : place].replace("_", "")
        assert name.replace("_", "") in before, f"the help of another option: {name}"


CHOICES = {
    name: typing.get_args(hint)
    for name, hint in typing.get_type_hints(Config).items()
    if typing.get_origin(hint) is typing.Literal
}


@pytest.mark.parametrize("name", CHOICES)
def test_a_wrong_choice_is_refused_with_the_choices_in_the_protocol(name):
    with pytest.raises(BadInput, match=name) as error:
        read_as(SETTINGS, {name: "lerned"}, "protocol.yaml", strict=True)
    assert all(choice in str(error.value) for choice in CHOICES[name])


def test_an_unknown_accident_is_refused_with_the_ones_there_are():
    with pytest.raises(BadInput, match="official") as error:
        read_as(SETTINGS, {"official": ["index_spilt"]}, "protocol.yaml", strict=True)
    assert all(name in str(error.value) for name in typing.get_args(module.Accident))


def test_a_wrong_choice_is_refused_with_the_choices_on_the_command_line():
    command = [sys.executable, "-m", "mlo_mae.train", "--tiny", "--mask", "lerned"]
    done = subprocess.run(command, cwd=PAPER.parent, capture_output=True, text=True)
    assert done.returncode == 2 and "learned" in done.stderr and "random" in done.stderr


WRONG = {
    "multiple of k1": {"steps": 11},
    "val_share 1.0": {"val_share": 1.0},
    "T neither masks nor weighs": {"mask": "random", "weight": "one"},
    "finetune_labels []": {"finetune_labels": ()},
    "each once": {"finetune_labels": (100, 100)},
    "joint_weight 1.0": {"joint_weight": 1.0},
    "k2 0": {"k2": 0},
    "keep_graph": {"keep_graph": True, "head_path": "none"},
    "labels 60": {"labels": 60, "official": ("index_split",)},
}


@pytest.mark.parametrize("words", WRONG)
def test_combinations_that_cannot_be_meant_are_refused(words):
    with pytest.raises(BadInput) as error:
        replace(TINY, **WRONG[words])
    assert words in str(error.value)


@pytest.mark.parametrize("wrong", [{"mask_ratio": 0.99}, {"finetune_labels": (5000,)}])
def test_settings_that_the_data_do_not_allow_are_refused(wrong, tmp_path):
    with pytest.raises(ValueError):
        run(replace(TINY, out=str(tmp_path / "run"), **wrong))
