"""A tiny policy and its answers, and short runs of the arms: what several of these files need."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ppo_nlu import models, train
from ppo_nlu.config import Config, Network
from ppo_nlu.policy import Policy, Rollout, rollout
from shared import runs
from shared.protocol import Protocol


def tiny_policy(lora: bool = True) -> tuple[Policy, Any]:
    """(policy of width 16 with a context of 64 tokens, tokenizer of digits)."""
    torch.manual_seed(0)
    tokenizer = models.digits_tokenizer()
    lm = models.llama(len(tokenizer), 16, 2, 2, 32, 64)
    return Policy(models.add_lora(lm, Network(lora_targets="all")) if lora else lm), tokenizer


def some_answers(policy: Policy, tokenizer: Any, n: int = 8) -> Rollout:
    """Sampled answers of at most 5 tokens to n prompts of 4 to 7 tokens."""
    g = torch.Generator().manual_seed(1)
    prompts = [[*torch.randint(8, 24, (3 + i % 4,), generator=g).tolist(), 2] for i in range(n)]
    return rollout(policy, tokenizer, prompts, 5, torch.rand(n, 5, generator=g))


@pytest.fixture(name="tiny_policy")
def _tiny_policy() -> Callable[..., tuple[Policy, Any]]:
    return tiny_policy


@pytest.fixture(name="some_answers")
def _some_answers() -> Callable[..., Rollout]:
    return some_answers


def short(paper: Protocol, arm: str, task: str, out: Path, **more: Any) -> dict[str, Any]:
    """One short run of an arm, what it uses included; returns its record."""
    node = paper.node("tiny", arm, task, 0)
    uses = {}
    for key in node.uses:
        short(paper, key[0], key[1], out)
        uses[key[0]] = str(out / key[1] / key[0])
    place = out / task / (more.pop("folder", None) or arm)
    values = {
        **paper.config("tiny", node),
        "steps": 3,
        "probe_every": 2,
        "test_limit": 24,
        "samples": 2,
        "examples": 0,
        **more,
    }
    train.run(Config(**{**values, "uses": uses, "out": str(place)}))
    return json.loads((place / "record.json").read_text())


@pytest.fixture(scope="session")
def shortly(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, Any]]:
    """`shortly(arm, task="digits", folder=..., **settings)` -> the record of a short run."""
    runs.be_worker(lambda: False)
    out = tmp_path_factory.mktemp("ppo")
    paper = Protocol(Path(train.__file__).parent)
    return lambda arm, task="digits", **more: short(paper, arm, task, out, **more)
