"""Settings that cannot be meant are refused, in the protocol and on the command line."""

from __future__ import annotations

import dataclasses
import sys
import typing
from pathlib import Path

import pytest
from dasgm_small import config, make

from dasgm import train
from dasgm.config import Config
from shared import protocol, runs

ROOT = Path(__file__).resolve().parents[2]
PAPER = protocol.Protocol(ROOT / "dasgm")
SETTINGS = protocol.settings_model(Config)
CHOICES = {
    name: typing.get_args(hint)
    for name, hint in typing.get_type_hints(Config).items()
    if typing.get_origin(hint) is typing.Literal
}


@pytest.mark.parametrize(
    "wrong, text",
    [
        ({"lam": 1.5}, "outside"),
        ({"eta": 0.5}, "0.1"),
        ({"eta": 0.0}, "--job joint"),
        ({"job": "adversarial", "labels": "permuted"}, "noise"),
        ({"job": "adversarial", "labels": "classes"}, "noise"),
        ({"job": "darts", "space": "darts"}, "--judge retrain"),
        ({"job": "darts", "data": "cifar10"}, "mlp"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(wrong, text):
    with pytest.raises(runs.BadInput, match=text):
        config(**wrong)


def test_a_search_on_generated_images_needs_a_generator(tmp_path):
    with pytest.raises(runs.BadInput, match="generator"):
        make(tmp_path, "joint", job="joint")
    assert not (tmp_path / "joint").exists()


@pytest.mark.parametrize("name", CHOICES)
def test_a_wrong_choice_is_refused_with_the_choices(name, capsys, monkeypatch):
    with pytest.raises(runs.BadInput) as refused:
        protocol.read_as(SETTINGS, {name: "nonsense"}, "protocol.yaml", strict=True)
    assert all(str(choice) in str(refused.value) for choice in CHOICES[name])
    monkeypatch.setattr(sys, "argv", ["train", "--tiny", f"--{name}", "nonsense"])
    with pytest.raises(SystemExit):
        runs.command_line(Config, train.run, train.__doc__, train.__file__)
    said = capsys.readouterr()
    assert all(str(choice) in said.out + said.err for choice in CHOICES[name])


def test_config_is_its_sections():
    """Flat names, each in one section; none of its own."""
    sections = [base for base in Config.__bases__ if base is not runs.RunConfig]
    names = [f.name for section in sections for f in dataclasses.fields(section)]
    assert len(names) == len(set(names))
    assert {f.name for f in dataclasses.fields(Config)} == {
        *names,
        *(f.name for f in dataclasses.fields(runs.RunConfig)),
    }


def test_every_run_of_the_protocol_has_settings_that_can_be_meant():
    assert len(PAPER.seeds("cpu")) >= 8
    first = ["joint", "darts", "darts_few", "aug_val", "train_as_val"]
    assert PAPER.selected("cpu")[: len(first)] == first
    for scale in protocol.SCALES:
        for node in PAPER.nodes(scale, "all"):
            Config(**PAPER.config(scale, node))
