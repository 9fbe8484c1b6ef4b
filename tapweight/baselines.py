"""What TapWeight is compared with: pretraining under fixed weights, and two levels, not three."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from shared import protocol, runs
from tapweight import method
from tapweight.config import Weights
from tapweight.method import Alignment, Facts, Levels, Loss, Losses, Vector

# ------------------------------------------------------------------------------- fixed weights


def fixed_weights(rule: Weights, names: Sequence[str], seed: int, uses: dict[str, str]) -> Tensor:
    """(K,) weights of continued pretraining that nothing learns.

    uniform: 1 / K. one:NAME: that objective alone. random: Dirichlet(1), our control. learned: what
    the run of arm tapweight ended with. permuted: these numbers, moved round to other objectives by
    a draw of the seed. best: those of the grid-... run among `uses` with the best
    validation score (a grid search). Raises BadInput where `uses` or the task lack them."""
    K = len(names)
    if rule == "uniform":
        return torch.full((K,), 1.0 / K)
    if rule == "random":
        g = runs.stream(seed, "random weights")
        exponential = -torch.rand(K, generator=g, dtype=torch.float64).log()
        return (exponential / exponential.sum()).float()
    if rule == "learned":
        return read_weights(uses, "tapweight", names)
    if rule == "permuted":
        if K < 2:
            raise runs.BadInput("weights = permuted: one objective has no other to trade with")
        turn = 1 + int(torch.randint(K - 1, (1,), generator=runs.stream(seed, "permuted weights")))
        return read_weights(uses, "tapweight", names).roll(turn)
    if rule == "best":
        grid = {arm: directory for arm, directory in uses.items() if arm.startswith("grid-")}
        if not grid:
            raise runs.BadInput("weights = best chooses among grid-... runs; list them under uses")
        return read_weights(uses, max(grid, key=lambda arm: validation_score(grid[arm])), names)
    name = rule.removeprefix("one:")
    if name not in names:
        raise protocol.unknown(name, names, f"weights = {rule}")
    return torch.eye(K)[list(names).index(name)]


def validation_score(directory: str) -> float:
    return float((protocol.read_record(Path(directory)) or {})["validation"]["score"])


def read_weights(uses: dict[str, str], arm: str, names: Sequence[str]) -> Tensor:
    """(K,) final weights of a run, which `outcome.finish` wrote."""
    if arm not in uses:
        remedy = f"list it under uses, or give --uses.{arm} DIR"
        raise runs.BadInput(f"the weights of arm '{arm}' are asked for; {remedy}")
    file = Path(uses[arm]) / "weights.json"
    saved = json.loads(file.read_text(encoding="utf-8"))
    if saved["names"] != list(names):
        raise runs.BadInput(f"{file} weighs {saved['names']}, this task has {list(names)}")
    return torch.tensor(saved["weights"])


# ----------------------------------------------------------------------------------- two levels


def two_level_cycle(
    levels: Levels,
    level_one: Sequence[Sequence[Losses]],
    level_two: Sequence[Loss],
    level_three: tuple[Loss, Sequence[Losses]],
    learn: bool = True,
) -> Facts:
    """The ablation (docs/papers/tapweight.md, section 4, row 17): losses summed on one encoder.

    theta, w <- one step along grad of sum_k lam_k L_k + L_task(D_tr); then
    h_k = -< grad_theta L_val, g_k >: no phi, no gamma, and one identity in place of an inverse
    Hessian, not two. `levels.phi` is `levels.theta`, and the second optimiser is never used."""
    optimizer, _, three = levels.optimizers
    lam = method.weights(levels.alpha)
    for batches, task_loss in zip(level_one, level_two, strict=True):
        optimizer.zero_grad(set_to_none=True)
        losses = method.backward(batches, lam, levels.autocast)
        with levels.autocast():
            train = task_loss()
        train.backward()
        optimizer.step()
    facts = Facts(losses, float(train.detach()))
    if learn:
        v, facts.validation = method.validation_gradient(level_three[0], levels.theta)
        aligned = gradient_of_weights(levels, level_three[1], v)
        method.level_three_step(three, levels.alpha, aligned, levels.normalise)
        facts.h = aligned.h
    return facts


def gradient_of_weights(levels: Levels, batches: Sequence[Losses], v: Vector) -> Alignment:
    """v is at theta already: Level I alone is gone through."""
    return method.alignment(batches, levels.theta, v, len(levels.alpha), levels.mode)
