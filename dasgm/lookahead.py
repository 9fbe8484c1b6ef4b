"""The look-ahead of level 3 by the library `shared/`: exact products, and a generator in between.

`method.second_order` has the same with DARTS' difference quotient, written out. Here the mixed
derivative is taken by double backward, and with `adversarial` the generator is one more level:

    (6)   dF/dA = partial_A F + xi_theta eta [d2 R / dA dtheta] v - xi [d2 L_tr / dA dW] u
          v = dF/dtheta',   u = dF/dW' + xi_theta eta [d2 R / dW' dtheta] v
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from shared.hypergrad import FiniteDifference, Hypergradient, OneStep, hypergrad
from shared.multilevel import Level, chain

if TYPE_CHECKING:
    from .method import LookAhead

Loss = Callable[[], Tensor]


def through_levels(
    F: Loss, ahead: LookAhead, generator: Level | None, A: Sequence[Tensor]
) -> Hypergradient:
    """dF/dA through W', and where `generator` is given through theta' as well.

    generator: theta, its loss J = V_G - eta R, its rate xi_theta."""
    loss = drifting(ahead.L_tr, ahead.W, ahead.drift)
    method = OneStep() if ahead.exact else FiniteDifference()
    if generator is None:
        return hypergrad(F, loss, ahead.W, A, ahead.xi, method)
    return chain(F, [Level(loss, ahead.W, ahead.xi, method), generator], A)


def drifting(L_tr: Loss, W: Sequence[Tensor], drift: Sequence[Tensor]) -> Loss:
    """A loss whose gradient is grad L_tr + drift, which the step of SGD follows.

    The added term holds no A: it changes W', not the mixed derivative."""

    def loss() -> Tensor:
        value = L_tr()
        if not any(p.requires_grad for p in W):  # a probe for A: the term is a constant
            return value
        pulls = torch._foreach_mul(list(W), list(drift))
        return value + torch.stack([pull.sum() for pull in pulls]).sum()

    return loss


@contextmanager
def frozen(W: Sequence[Tensor]) -> Iterator[None]:
    """Within the block W asks for no gradient, so that a backward pass computes none for it."""
    flags = [p.requires_grad for p in W]
    try:
        for p in W:
            p.requires_grad_(False)
        yield
    finally:
        for p, flag in zip(W, flags):
            p.requires_grad_(flag)
