"""What the official code does by accident, each selectable; a student may skip this file.

The official repository pins a bilevel library at a version (Betty 0.2.0) whose finite difference
and roll-back have two bugs, and leaves dropout on; the published numbers were presumably made so.
`Config.official` names the accidents to switch on, the arm `official` all four. Rows are those of
docs/papers/weight_mixup.md, section 4, and of the README's table:

- `betty_direction` (row 2): the difference is taken around the stepped w', its result is not
  multiplied by the lower rate xi, and q is first divided, tensor by tensor, by the root mean square
  of Adam's second moment.
- `drift` (row 3): the last restoring addition is not in place, so every iteration leaves w shifted
  by -eps q, a step of length 0.01 down the *validation* loss: D_val leaks into W.
- `double_step` (row 4): roll-back saves references, so it restores nothing, and each iteration
  takes two real lower steps on the same batch, before and after the step of alpha, while the
  schedule advances once.
- `independent_masks` (row 9): the two passes of the difference draw different dropout masks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import get_args

import torch
from torch import Tensor

from shared import vectors
from shared.hypergrad import Hypergradient

from .config import Accident
from .method import Loss, w_step

ACCIDENTS: tuple[Accident, ...] = get_args(Accident)
RADIUS = 0.01  # |eps q|


def hypergradient(
    upper: Loss,
    lower: Loss,
    w: list[Tensor],
    alpha: list[Tensor],
    xi: float,
    optimizer: torch.optim.Optimizer,
    clip: float,
    accidents: Collection[Accident],
    masks: Callable[[int], None],
) -> Hypergradient:
    """The hypergradient with the accidents asked for.

    `masks(i)` sets the i-th state of the dropout generator of this step. Unlike
    `method.hypergradient` this one may move w: by a whole lower step (`double_step`) and by -eps q
    (`drift`). FloatingPointError where the result is not finite."""
    before = vectors.clone(w)
    masks(0)
    if "double_step" in accidents:
        w_step(optimizer, w, lower, clip)
        before = vectors.clone(w)
    else:
        vectors.add_(w, torch.autograd.grad(lower(), w), -xi)  # Eq. 4, undone below

    masks(0)
    loss = upper()
    both = torch.autograd.grad(loss, [*alpha, *w])
    direct, q = list(both[: len(alpha)]), list(both[len(alpha) :])
    betty = "betty_direction" in accidents
    if betty:
        q = [v / (_rms(optimizer, p) + 1e-12) for v, p in zip(q, w, strict=True)]
    else:
        vectors.copy_(w, before)

    eps = RADIUS / vectors.norm(q)
    vectors.add_(w, q, eps)
    masks(1)
    plus = torch.autograd.grad(lower(), alpha)
    vectors.add_(w, q, -2 * eps)
    masks(2 if "independent_masks" in accidents else 1)
    minus = torch.autograd.grad(lower(), alpha)
    vectors.copy_(w, before)
    if "drift" in accidents:
        vectors.add_(w, q, -eps)
    masks(0)  # for the real lower step

    scale = 1.0 if betty else xi
    implicit = [-scale * (a - b) / (2 * eps) for a, b in zip(plus, minus, strict=True)]
    g = [d + i for d, i in zip(direct, implicit, strict=True)]
    if not math.isfinite(vectors.norm(g)):
        raise FloatingPointError("the hypergradient is not finite")
    return Hypergradient(g, direct, implicit, 4, float(loss.detach()))


def _rms(optimizer: torch.optim.Optimizer, p: Tensor) -> Tensor | float:
    """Root mean square of Adam's second moment of one tensor; 1 before its first step."""
    moment = optimizer.state.get(p, {}).get("exp_avg_sq")
    return 1.0 if moment is None else vectors.root(moment.mean())
