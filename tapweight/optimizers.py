"""Optimisers of the levels, their rates, and the time that each level takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from shared import runs
from tapweight.config import OptimizerName, Schedule

BASE_LR = 1e-3  # of Adam, for the heads or the ResNet that all arms start from


def make(kind: OptimizerName, parameters: Sequence[Tensor], lr: float, decay: float) -> Optimizer:
    """adam: with coupled weight decay, as in the official language code. sgd: momentum 0.9, as in
    the official molecule code. plain: SGD without either."""
    if kind == "adam":
        return torch.optim.Adam(parameters, lr=lr, weight_decay=decay, fused=True)
    if kind == "sgd":
        return torch.optim.SGD(parameters, lr=lr, momentum=0.9, weight_decay=decay)
    return torch.optim.SGD(parameters, lr=lr)


def rate(kind: Schedule, step: int, steps: int, warmup: float) -> float:
    """Factor of the rate at `step`. linear: up over a share `warmup` of the steps, then down to 0.

    step: x 0.9 every 100 steps."""
    if kind == "step":
        return 0.9 ** (step // 100)
    ramp = int(warmup * steps)
    if kind == "linear" and step < ramp:
        return (step + 1) / (ramp + 1)  # shared's schedule is at 1 a step earlier
    return runs.schedule(kind, step, steps, ramp if kind == "linear" else 0)


def set_rates(
    optimizers: Sequence[Optimizer], kind: Schedule, step: int, steps: int, warmup: float
) -> None:
    """Rate of each optimiser = its initial rate times the factor of the schedule."""
    factor = rate(kind, step, steps, warmup)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor


def clock(optimizers: Sequence[Optimizer], seconds: list[float]) -> Callable[[], None]:
    """A stopwatch for cycles that step the optimisers in turn: seconds[i] grows by what leads up to
    each step of optimizers[i]. Returns the function that starts a cycle."""
    last = [0.0]

    def start() -> None:
        last[0] = time.perf_counter()

    for i, optimizer in enumerate(optimizers):

        def lap(*_: object, i: int = i) -> None:
            now = time.perf_counter()
            seconds[i] += now - last[0]
            last[0] = now

        optimizer.register_step_post_hook(lap)
    return start
