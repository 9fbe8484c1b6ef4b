"""What the official code does by accident, each selectable; rows of the table of differences in README.md.

The repository pins a bilevel library at a version (Betty 0.2.0) whose finite difference and roll-back have two
bugs, and leaves dropout on; the published numbers were presumably made so. `Config.official` names the accidents
to switch on, the arm `mixup_official` all four:

- `betty_direction` (row 2): the difference is taken around the stepped w', its result is not multiplied by the
  lower rate xi, and q is first divided, tensor by tensor, by the root mean square of Adam's second moment.
- `drift` (row 3): the last restoring addition is not in place, so every iteration leaves w shifted by -eps q, a
  step of length 0.01 down the *validation* loss: D_val leaks into W.
- `double_step` (row 4): roll-back saves references, so it restores nothing, and each iteration takes two real
  lower steps on the same batch, before and after the step of alpha, while the schedule advances once.
- `independent_masks` (row 9): the two passes of the difference draw different dropout masks.
"""

from collections.abc import Callable, Collection

import torch
from torch import Tensor

from shared import vectors

from .method import Loss, w_step

ACCIDENTS = ("betty_direction", "drift", "double_step", "independent_masks")


def check_accidents(names: Collection[str]) -> None:
    """Refuse a name that is not an accident."""
    for name in names:
        if name not in ACCIDENTS:
            raise ValueError(
                f"unknown accident {name!r} of the official code; it is one of {', '.join(ACCIDENTS)}"
            )


def hypergradient(
    upper: Loss,
    lower: Loss,
    w: list[Tensor],
    alpha: list[Tensor],
    xi: float,
    optimizer: torch.optim.Optimizer,
    clip: float,
    accidents: Collection[str],
    masks: Callable[[int], None],
    radius: float = 0.01,
) -> tuple[list[Tensor], list[Tensor], list[Tensor], int]:
    """The hypergradient with the accidents asked for -> (g, its direct part, its implicit part, gradient evaluations).

    `masks(i)` sets the i-th state of the dropout generator. Unlike `method.hypergradient` this one may move w: by a
    whole lower step (`double_step`) and by -eps q (`drift`).
    """
    before = [p.detach().clone() for p in w]
    masks(0)
    if "double_step" in accidents:
        w_step(optimizer, w, lower, clip)
        before = [p.detach().clone() for p in w]
    else:
        vectors.add_(w, torch.autograd.grad(lower(), w), -xi)  # Eq. 4, undone below

    masks(0)
    both = torch.autograd.grad(upper(), [*alpha, *w])
    direct, q = list(both[: len(alpha)]), list(both[len(alpha) :])

    betty = "betty_direction" in accidents
    if betty:
        q = [v / (_rms(optimizer, p) + 1e-12) for v, p in zip(q, w, strict=True)]
    else:
        vectors.copy_(w, before)
    centre = [p.detach().clone() for p in w]
    eps = radius / float(vectors.norm(q))

    vectors.add_(w, q, eps)
    masks(1)
    plus = torch.autograd.grad(lower(), alpha)
    vectors.add_(w, q, -2 * eps)
    masks(2 if "independent_masks" in accidents else 1)
    minus = torch.autograd.grad(lower(), alpha)

    if "double_step" not in accidents:
        centre = before
    vectors.copy_(w, centre)
    if "drift" in accidents:
        vectors.add_(w, q, -eps)

    scale = 1.0 if betty else xi
    implicit = [-scale * (a - b) / (2 * eps) for a, b in zip(plus, minus, strict=True)]
    return [d + i for d, i in zip(direct, implicit, strict=True)], direct, implicit, 4


def _rms(optimizer: torch.optim.Optimizer, p: Tensor) -> Tensor | float:
    """Root mean square of Adam's second moment of one tensor; 1 before its first step."""
    moment = optimizer.state.get(p, {}).get("exp_avg_sq")
    return 1.0 if moment is None else moment.mean().sqrt()
