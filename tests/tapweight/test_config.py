"""Settings, claims and published values: docs/papers/tapweight.md, section 11, checks 15 to 17."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import typing

import pytest
import torch
from tapweight_problems import PROTOCOL, ROOT

from shared import protocol
from tapweight import config as config_py
from tapweight import domain
from tapweight.config import Config

SETTINGS = protocol.settings_model(Config)
CHOICES = {
    name: typing.get_args(hint)
    for name, hint in typing.get_type_hints(Config).items()
    if typing.get_origin(hint) is typing.Literal
}


def command_line(*words: str) -> str:
    """What `python -m tapweight.train` says of these words."""
    command = [sys.executable, "-m", "tapweight.train", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return done.stdout + done.stderr


def comments_above() -> dict[str, str]:
    """The comment lines directly above each field of config.py, as one line."""
    source = (ROOT / "tapweight" / "config.py").read_text()
    lines, comments = source.splitlines(), {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.AnnAssign):
            above, number = [], node.lineno - 2
            while lines[number].strip().startswith("#"):
                above.insert(0, lines[number].strip().removeprefix("#").strip())
                number -= 1
            comments[node.target.id] = " ".join(above)
    return comments


def test_help_is_the_comment_above_each_field():
    text = re.sub(r"[\s│]+", " ", command_line("--help"))
    comments = comments_above()
    assert set(comments) == set(PROTOCOL.defaults) - set(vars(protocol.RunConfig()))
    for name, comment in comments.items():
        assert comment, f"{name} has no comment above it"
        option = re.search(rf"--{name.replace('_', '-')}[ ,].*", text)
        assert option and comment in option[0][:700], name


def test_a_wrong_choice_is_refused_with_the_choices_by_the_protocol():
    assert len(CHOICES) == 11
    for name, choices in CHOICES.items():
        with pytest.raises(protocol.BadInput) as error:
            protocol.read_as(SETTINGS, {name: "nothing-like-it"}, "here", strict=True)
        assert all(str(choice) in str(error.value) for choice in choices), name
    with pytest.raises(protocol.BadInput, match="did you mean 'one:MLM'"):
        protocol.read_as(SETTINGS, {"weights": "one:MML"}, "here", strict=True)
    with pytest.raises(protocol.BadInput, match="did you mean 'gamma'"):
        protocol.read_as(SETTINGS, {"gama": 1.0}, "here", strict=True)


@pytest.mark.parametrize("name", ["mode", "job"])
def test_a_wrong_choice_is_refused_with_the_choices_on_the_command_line(name):
    text = command_line("--tiny", f"--{name}", "nothing-like-it")
    assert all(str(choice) in text for choice in CHOICES[name])


@pytest.mark.parametrize("settings, text", [
    ({"gamma": -1.0}, "gamma = -1.0: .*at least 0"), ({"gamma": float("nan")}, "gamma = nan"),
    ({"normalise": "cosine"}, "use mode exact-dot"), ({"batch_III": 0}, "batch_III = 0"),
    ({"level_split": 1.0}, "level_split = 1.0"), ({"job": "blo", "steps_I": 2}, "steps_I = 2"),
    ({"mode": "exact-dot", "independent_masks": True}, "no two evaluations"),
    ({"task": "cola", "score_spare": True}, "score_spare"),
])  # fmt: skip
def test_15_settings_that_cannot_be_meant_are_refused(settings, text):
    with pytest.raises(protocol.BadInput, match=text):
        Config(**settings)


def test_15_an_unknown_task_is_refused():
    with pytest.raises(protocol.BadInput, match="did you mean 'planted'"):
        domain.domain_of(Config(task="plant"), torch.device("cpu"), print)


def test_config_of_every_node_can_be_meant():
    for scale in protocol.SCALES:
        for node in PROTOCOL.nodes(scale, "all"):
            Config(**PROTOCOL.config(scale, node))
    assert Config(gamma=0.0).gamma == 0.0


def test_every_option_is_set_by_somebody():
    """By the protocol, a test or the README: an option that nobody sets is dead."""
    texts = [path.read_text() for path in (ROOT / "tests" / "tapweight").glob("*.py")]
    texts += [(ROOT / "tapweight" / name).read_text() for name in ("protocol.yaml", "README.md")]
    everywhere = "\n".join(texts).replace("--score-spare", "score_spare")
    for name in comments_above():
        assert re.search(rf"\b{name}\b", everywhere), f"nobody sets {name}"


def test_the_config_imports_no_method():
    tree = ast.parse((ROOT / "tapweight" / "config.py").read_text())
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert modules == {"__future__", "dataclasses", "typing", "shared.protocol"}
    assert not any(isinstance(node, ast.Import) for node in ast.walk(tree))
    assert config_py.Config.__annotations__ == {}  # fields stand in sections


# ---------------------------------------------------------------------- claims, published values


def test_claims_and_protocol_fit():
    from benchmarks import claims

    document = claims.load_claims(ROOT / "tapweight" / "claims.yaml")
    tasks = {task for scale in PROTOCOL.document.scales for task in PROTOCOL.tasks(scale)}
    claims.check_names(document, PROTOCOL.document.arms, tasks, "tapweight")
    by_id = {claim.id: claim for claim in document.claims}
    assert any(c.role == "primary" and "cpu" in c.scales for c in by_id.values())
    assert not document.targets  # no table of the paper could be read
    # 16: where uniform weights are the opponent, more steps of them are a control
    for kind in ("language", "molecules"):
        assert "cp-matched" in by_id[f"2 learned against uniform weights, {kind}"].controls
    assert all("cp-matched" in PROTOCOL.scale(scale).core for scale in ("gpu", "paper"))


def test_17_reported_cells_are_not_available():
    """Everything of the paper is under not_found; what is listed is context without counterpart."""
    from benchmarks import reported

    document = reported.load(ROOT / "tapweight" / "reported.yaml")
    assert len(document.not_found) == 11
    assert all(entry.origin == "context" for entry in document.entries)
