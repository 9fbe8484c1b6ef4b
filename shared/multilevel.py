"""Problems with any number of levels: reverse mode over levels, one `through_level` for each.

    level 1     theta_1' = theta_1 - lr_1 grad loss_1(theta_1; lam)
    level 2     theta_2' = theta_2 - lr_2 grad loss_2(theta_2; theta_1', lam)
    level i     may use theta_1', ..., theta_{i-1}' and lam
    sought      d outer_loss(theta_1', ..., theta_n', lam) / d lam

As backpropagation does for layers, `chain` adds up everything that flows into theta_i' from above
before it goes through level i once, although there may be many paths. (Betty walks the paths one by
one; the product is linear, so the sum is the same.) TapWeight is the chain encoder -> task ->
validation, MLO-MAE has two paths (encoder -> validation and encoder -> head -> validation):
tests/shared/test_multilevel.py holds both graphs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from shared import hypergrad, vectors
from shared.evaluation import Call, Losses, plus, unreached_error
from shared.hypergrad import FiniteDifference, Hypergradient, Method
from shared.vectors import Rate


@dataclass(frozen=True)
class Level:
    """One inner problem: its loss, the tensors that it trains, its rate, how to differentiate."""

    loss: Losses
    theta: Sequence[Tensor]
    lr: Rate | None
    method: Method = field(default_factory=FiniteDifference)


def chain(
    outer_loss: Losses,
    levels: Sequence[Level],
    lam: Sequence[Tensor],
    look_ahead: bool = True,
    around: str = "theta",
    lr_factor: bool = True,
) -> Hypergradient:
    """The gradient of `outer_loss` for `lam` through `levels`, lowest first.

    The first level depends on lam alone. A loss may use the tensors of its own and of lower levels,
    and lam; those of higher levels count as constants.
    look_ahead, around, lr_factor: as in `hypergrad`, for all levels; look_ahead=False with
    lr_factor=False is the identity rule of Betty ("darts") at the present point.
    Every tensor, buffer and random state is put back. Raises as `hypergrad`.
    """
    if not levels:
        raise ValueError(
            "chain needs at least one level; without any, differentiate the outer loss"
        )
    if around not in ("theta", "stepped"):
        raise ValueError(f"around={around!r}: the choices are 'theta' and 'stepped'")
    thetas = [[p for p in level.theta if p.requires_grad] for level in levels]
    rates = [_of_trained(level) for level in levels]
    with Call([p for theta in thetas for p in theta], list(lam), levels[-1].method) as call:
        values = iter(call.snapshot.values)
        before = [[next(values) for _ in theta] for theta in thetas]
        for level, theta, lr in zip(levels, thetas, rates):
            if look_ahead:
                call.snapshot.rewind()
                after, n = hypergrad.stepped(level.loss, theta, lr, level.method)
                vectors.copy_(theta, after)
                call.gradient_evaluations += n
        g = call.gradient(outer_loss, [*call.theta, *lam])
        value, gradients, at_lam = call.value, iter(call.averaged(g)), g[len(call.theta) :]
        flow = [[next(gradients) for _ in theta] for theta in thetas]  # into theta_i' from above
        into_lam: list[Tensor | None] = [None] * len(lam)
        for i in reversed(range(len(levels))):
            if around == "theta":
                vectors.copy_(thetas[i], before[i])
            if all(x is None for x in flow[i]):
                continue
            v = [torch.zeros_like(p) if x is None else x for x, p in zip(flow[i], thetas[i])]
            wrt = [p for theta in thetas[:i] for p in theta] + list(lam)
            call.snapshot.rewind()
            loss, lr, method = levels[i].loss, rates[i] if lr_factor else 1.0, levels[i].method
            product, n = hypergrad.through_level_partial(loss, thetas[i], wrt, v, lr, method)
            call.gradient_evaluations += n
            back = iter(product)
            for j in range(i):
                flow[j] = [plus(x, next(back)) for x in flow[j]]
            into_lam = [plus(x, next(back)) for x in into_lam]
        missing = [i for i, (a, b) in enumerate(zip(at_lam, into_lam)) if a is None and b is None]
        if missing:
            raise unreached_error("lam", missing, len(into_lam))
        return hypergrad.summed(call, at_lam, into_lam, value)


def _of_trained(level: Level) -> Rate | None:
    """The rates of the tensors that are trained."""
    if not isinstance(level.lr, Sequence):
        return level.lr
    return [r for r, p in zip(level.lr, level.theta) if p.requires_grad]
