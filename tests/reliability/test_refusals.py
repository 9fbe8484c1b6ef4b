"""Settings that cannot be meant are refused before anything is loaded (item 10)."""

from __future__ import annotations

import importlib
import itertools
import shutil
import signal
import sys
import typing

import pytest
import torch
from reliable import ROOT

from benchmarks import PAPERS
from shared import protocol, runs, sources


class LoadedTooSoon(Exception):
    """A model or a data file was touched before the settings were refused."""


RATE = {"tapweight": "lr_I"}  # else lr
BATCH = {"tapweight": "batch_I"}  # else batch


def first_choice(paper: str) -> tuple[str, str]:
    """A field whose value is one of several words, and one of them."""
    config = protocol.config_class(ROOT / paper / "config.py")
    for name, hint in typing.get_type_hints(config).items():
        words = typing.get_args(hint)
        if typing.get_origin(hint) is typing.Literal and isinstance(words[-1], str):
            return name, words[-1]
    raise AssertionError(f"{paper} has no choice")


def bad_words(paper: str, case: str) -> tuple[list[str], list[str]]:
    """Command line, and the words that the refusal must have."""
    document = protocol.Protocol(ROOT / paper).document
    arm, task = document.tiny.arm, next(iter(document.scales["cpu"].tasks))
    rate, batch = RATE.get(paper, "lr"), BATCH.get(paper, "batch")
    dashed = batch.replace("_", "-")
    field, word = first_choice(paper)
    return {
        "arm misspelt": (["--arm", arm[:-1] + arm[-1] * 2], [arm]),
        "task misspelt": (["--task", task[:-1] + task[-1] * 2], [task]),
        "scale misspelt": (["--scale", "cpuu"], ["cpuu", "cpu"]),
        "option misspelt": (["--tiny", f"--{batch}z", "3"], [f"--{dashed}"]),
        "whole number expected": (["--tiny", f"--{batch}", "many"], [dashed, "many"]),
        "number expected": (["--tiny", f"--{rate}", "fast"], [rate.replace("_", "-"), "fast"]),
        "seed not a number": (["--tiny", "--seed", "one"], ["seed", "one"]),
        "rate negative": (["--tiny", f"--{rate}", "-1"], [rate, "-1"]),
        "batch negative": (["--tiny", f"--{batch}", "-4"], [batch, "-4"]),
        "choice misspelt": (["--tiny", f"--{field}", word + "x"], [field.replace("_", "-"), word]),
        "no such device": (["--tiny", "--device", "cuda:7"], ["cuda:7", "cpu"]),
    }[case]


CASES = [
    "arm misspelt", "task misspelt", "scale misspelt", "option misspelt", "whole number expected",
    "number expected", "seed not a number", "rate negative", "batch negative", "choice misspelt",
    "no such device",
]  # fmt: skip


@pytest.mark.parametrize("paper, case", itertools.product(PAPERS, CASES))
def test_a_bad_command_is_refused_before_anything_is_loaded(
    paper, case, tmp_path, monkeypatch, capsys
):
    train = importlib.import_module(f"{paper}.train")
    words, expected = bad_words(paper, case)

    def too_soon(*words, **more):
        raise LoadedTooSoon

    monkeypatch.setattr(torch.nn.Module, "__init__", too_soon)
    monkeypatch.setattr(sources, "note", too_soon)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(signal, "signal", lambda *words: None)
    # stages are another command's business
    monkeypatch.setattr(runs, "_with_used", lambda paper, scale, node, config, run: config)
    monkeypatch.setattr(runs.Run, "open", lambda self: None)
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setattr(sys, "argv", ["train", *words, "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as error:
        runs.command_line(train.Config, train.run, train.__doc__, train.__file__)
    said = str(error.value) + capsys.readouterr().err
    assert error.value.code != 0 and all(w in said for w in expected), said


# case -> what spoils the document `d` (`f`: the field of the batch), what the refusal says
BAD_PROTOCOLS = {
    "key of the defaults misspelt": (
        lambda d, f: d.setdefault("defaults", {}).update({f + "z": 1}),
        "did you mean '{f}'",
    ),
    "type in tiny": (lambda d, f: d["tiny"]["set"].update({f: "many"}), "{f} is 'many'"),
    "unknown stage": (
        lambda d, f: next(iter(d["arms"].values())).update(uses=["nothing"]),
        "unknown key 'nothing'",
    ),
    "negative number": (
        lambda d, f: d["tiny"]["set"].update({f: -4}),
        "{f}: -4 must be a finite number of at least 0",
    ),
    "unknown scale": (lambda d, f: d["scales"].update(cpuu={"tasks": []}), "did you mean 'cpu'"),
}


@pytest.mark.parametrize("case", BAD_PROTOCOLS)
@pytest.mark.parametrize("paper", PAPERS)
def test_a_bad_protocol_is_refused_before_anything_is_loaded(paper, case, tmp_path):
    import yaml

    (tmp_path / paper).mkdir()
    shutil.copy(ROOT / paper / "config.py", tmp_path / paper)
    document = yaml.safe_load((ROOT / paper / "protocol.yaml").read_text())
    for arm, body in document["arms"].items():
        document["arms"][arm] = body or {}
    spoil, expected = BAD_PROTOCOLS[case]
    field = BATCH.get(paper, "batch")
    spoil(document, field)
    (tmp_path / paper / "protocol.yaml").write_text(yaml.safe_dump(document))
    with pytest.raises(protocol.BadInput) as error:
        protocol.Protocol(tmp_path / paper)
    assert expected.format(f=field) in str(error.value)
