"""Numbers of steps, rates, and the examples of each step: the same for a run alone and a stack."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from shared import runs
from shared.runs import Batches

from . import method
from .config import SEARCHES, Config
from .data import Items, Problem

PASSES = 5  # gradient evaluations of a search step with finite differences


@dataclass(frozen=True)
class Plan:
    """Numbers of steps: K searches of T, then `finetune`."""

    K: int
    T: int
    finetune: int


def plan_of(config: Config, n: int) -> Plan:
    """Steps for n examples: T = E_search (floor(|D_tr| / B) + 1) as official, ceil(n / B) an epoch
    of phase 2."""
    n_tr = int(config.train_share * n + 1e-9)
    T = config.search_epochs * (n_tr // config.batch + 1)
    finetune = config.epochs * math.ceil(n / config.batch)
    if config.job in SEARCHES:
        return Plan(config.K, T, finetune)
    extra = {"own": 0, "updates": config.K * T, "passes": PASSES * config.K * T}
    return Plan(0, 0, finetune + extra[config.length])


def rate(kind: Literal["linear", "cosine"], t: int, steps: int, warmup: float) -> float:
    """Share of the peak rate at step t. The warm-up begins at 0, as in the official code."""
    ramp = int(warmup * steps)
    return t / ramp if t < ramp else runs.schedule(kind, t, steps, ramp)


def examples(config: Config, problem: Problem) -> Items:
    """D, followed by the examples put aside where an arm reads them."""
    if config.labels == "own" or problem.extra is None:
        return problem.train
    return problem.train.followed_by(problem.extra)


def own(config: Config, train: Items) -> int:
    """Size of D, whose positions in `train` come first; what follows is for the gates alone."""
    return len(train) - (config.extra if config.labels == "gates" else 0)


def batches_of_search(
    config: Config, train: Items, k: int
) -> tuple[Batches[Tensor], Batches[Tensor]]:
    """Of the lower and of the upper level of search k; joint training has one level, all of D."""
    n = own(config, train)
    d_tr, d_val = method.split(n, config.train_share, runs.stream(config.seed, "split", k))
    if config.labels == "gates":
        d_val = torch.arange(n, len(train))
    lower = torch.arange(n) if config.job == "joint" else d_tr
    return (
        Batches(lower, config.batch, config.seed, "lower", k, keep_last=True),
        Batches(d_val, config.batch, config.seed, "upper", k, keep_last=True),
    )
