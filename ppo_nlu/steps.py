"""Which rows make up each batch, at which rate an arm learns, and what it has spent."""

import json
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from shared import runs


def with_steps(config, items: int):
    """The configuration with `epochs` turned into a number of batches."""
    return (
        replace(config, steps=max(1, round(config.epochs * items / config.batch)))
        if config.epochs
        else config
    )


def schedule_of_rows(n: int, batch: int, steps: int, generator: torch.Generator) -> Tensor:
    """(steps, batch) rows: shuffled epochs one after the other.  What an epoch leaves over (1 to batch - 1 rows) is
    left out of it; the official trainer stops with an error when 1 to 8 rows remain (D19)."""
    if n < batch:
        raise ValueError(
            f"{n} training items do not fill one batch of {batch}; set --batch {n} or give more data"
        )
    per = n // batch
    epochs = [
        torch.randperm(n, generator=generator)[: per * batch].view(per, batch)
        for _ in range(-(-steps // per))
    ]
    return torch.cat(epochs)[:steps]


def make_optimizer(config: runs.RunConfig, parameters: list[Tensor]):
    if config.optimizer == "adafactor":
        from transformers.optimization import Adafactor

        return Adafactor(
            parameters, lr=config.lr, scale_parameter=False, relative_step=False, warmup_init=False
        )
    return torch.optim.AdamW(parameters, lr=config.lr, weight_decay=0.0)


def set_rate(optimizer, config: runs.RunConfig, step: int) -> None:
    share_done = step / config.steps
    factor = (
        1.0
        if config.schedule == "constant"
        else min((step + 1) / (0.05 * config.steps + 1), 1 - 0.9 * share_done)
    )
    for group in optimizer.param_groups:
        group["lr"] = config.lr * factor


def count(budget: dict, forward: int, backward: int, steps: int) -> None:
    budget["tokens_forward"] += forward
    budget["tokens_backward"] += backward
    budget["gradient_steps"] += steps


def used_budget(config: runs.RunConfig) -> dict:
    """What the runs this one builds on have spent, `start` apart: every arm has that."""
    total: dict[str, int] = {}
    for name, folder in config.uses.items():
        spent = (
            json.loads((Path(folder) / "record.json").read_text()).get("details", {}).get("budget")
            if name != "start"
            else None
        )
        for key, value in (spent or {}).items():
            total[key] = total.get(key, 0) + value
    return total
