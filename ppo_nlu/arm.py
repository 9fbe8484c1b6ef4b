"""What an arm carries from batch to batch, and what it has spent."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ppo_nlu import models
from ppo_nlu.asking import Questions
from ppo_nlu.config import Config
from ppo_nlu.policy import Policy
from shared import runs


@dataclass
class Arm:
    """What a step of training needs. It changes the policy, the optimiser, beta and what is spent:
    examples, tokens and gradient steps, those of used runs and of earlier attempts included."""

    config: Config
    run: runs.Run
    questions: Questions
    policy: Policy
    optimizer: torch.optim.Optimizer
    beta: float
    spent: dict[str, int]
    attempt: int = 1

    def begin_anew(self, start: list[Tensor]) -> None:
        """The next attempt, from the weights `start`."""
        self.attempt += 1
        self.run.say(f"all validation answers are the same: attempt {self.attempt}")
        for parameter, value in zip(self.policy.trained(), start, strict=True):
            parameter.data.copy_(value)
        self.optimizer = models.make_optimizer(self.config, self.policy.trained())
        self.beta = self.config.beta

    def phase(self, name: str) -> str:
        return name if self.attempt == 1 else f"{name}, attempt {self.attempt}"

    def draws(self, *names: Any) -> torch.Generator:
        """The stream of these names, one for each attempt."""
        return runs.stream(self.config.seed, *names, *([self.attempt] * (self.attempt > 1)))

    def state(self) -> dict[str, Any]:
        tensors = {"trained": self.policy.trained(), "optimizer": self.optimizer.state_dict()}
        return {**tensors, "beta": self.beta, "spent": self.spent}

    def load(self, state: dict[str, Any]) -> None:
        for parameter, value in zip(self.policy.trained(), state["trained"], strict=True):
            parameter.data.copy_(value)
        self.optimizer.load_state_dict(state["optimizer"])
        self.beta, self.spent = state["beta"], state["spent"]

    def spend(self, tokens: int, forward: int, backward: int) -> None:
        """Passes over `tokens` tokens; each backward pass is a gradient step."""
        self.spent["tokens_forward"] += forward * tokens
        self.spent["tokens_backward"] += backward * tokens
        self.spent["gradient_steps"] += backward


def used_budget(config: Config) -> dict[str, int]:
    """What the runs this one builds on have spent, `start` apart: every arm has that."""
    total = dict.fromkeys(("examples", "tokens_forward", "tokens_backward", "gradient_steps"), 0)
    for name, folder in config.uses.items():
        details = json.loads((Path(folder) / "record.json").read_text(encoding="utf-8"))["details"]
        if name != "start":
            for key, value in details.get("budget", {}).items():
                total[key] += value
    return total
