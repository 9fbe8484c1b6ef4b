"""What Config refuses, by hand, through the protocol and on the command line."""

import sys
import typing

import pytest
from mixup_toys import PAPER, config

from shared import protocol, runs
from shared.protocol import BadInput
from weight_mixup import train
from weight_mixup.config import Accident, Config

CHOICES = {name: hint for name, hint in typing.get_type_hints(Config).items()
           if typing.get_origin(hint) is typing.Literal}  # fmt: skip


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"batch": 0}, "batch = 0: give at least 1"),
        ({"finetune": "mixout"}, "positive strength"),
        ({"export": True}, "text task"),
        ({"length": "updates"}, "use length own"),
        ({"labels": "gates"}, "give extra"),
        ({"extra": 5, "labels": "gates", "job": "joint"}, "no upper level"),
        ({"extra": 5, "data": "movie"}, "film reviews have none"),
        ({"extra": 5, "n": 0}, "n = 0 takes all"),
        ({"ema": 1.0}, "below 1"),
        ({"stack": 0}, "use 1"),
        ({"job": "joint", "official": ("drift",)}, "job bilevel"),
        ({"estimator": "exact", "official": ("drift",)}, "finite_difference"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(tmp_path, changes, message):
    with pytest.raises(BadInput, match=message):
        config(tmp_path, **changes)


@pytest.mark.parametrize("changes, message", [({"n": 4}, "at least 5"), ({"n": 5000}, "only")])
def test_numbers_of_examples_that_cannot_be_met_are_refused(tmp_path, no_cache, changes, message):
    with pytest.raises(ValueError, match=message):
        train.run(config(tmp_path, **changes))


@pytest.mark.parametrize("name", CHOICES)
def test_a_wrong_choice_is_refused_in_every_layer(tmp_path, monkeypatch, capsys, name):
    model = protocol.settings_model(Config)
    with pytest.raises(BadInput) as error:
        protocol.read_as(model, {name: "no such choice"}, "here")
    assert all(choice in str(error.value) for choice in typing.get_args(CHOICES[name]))
    option = "--" + name.replace("_", "-")
    words = ["train", "--tiny", option, "wrong", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.setenv("COLUMNS", "300")
    with pytest.raises(SystemExit):
        runs.command_line(Config, train.run, train.__doc__, train.__file__)
    said = capsys.readouterr().err
    assert option in said and all(choice in said for choice in typing.get_args(CHOICES[name]))


def test_a_misspelt_accident_is_refused_with_the_accidents():
    with pytest.raises(BadInput) as error:
        protocol.read_as(protocol.settings_model(Config), {"official": ["drfit"]}, "here")
    assert all(choice in str(error.value) for choice in typing.get_args(Accident))


@pytest.mark.parametrize("scale", ["cpu", "gpu", "paper", "rehearsal"])
def test_every_arm_of_the_protocol_is_accepted(scale):
    nodes = PAPER.nodes(scale, arms="all", seeds=1)
    assert nodes
    for node in nodes:
        PAPER.check(Config(**PAPER.config(scale, node)))
