"""Attention-guided weight mixup (Somayajula et al., NAACL 2024, arXiv 2403.12918): the method.

Finetuning on few examples overfits: every pretrained weight W0 moves to W, though few need to. The
paper keeps both and learns, for each entry of each linear map, how much of the task weight to take:

    (1)  W~ = A * W + (1 - A) * W0    (* elementwise; A = 1: plain finetuning, A = 0: pretrained)

A in {0, 1} would be the choice of a sub-network (CHILD-TUNING, DPS). Here A is continuous, of rank
one (A_ij = u_i v_j), and learned on *other* examples than W. What runs is the official code's form,
which is *not* (1) with A = u v (`factored` says what differs):

    (2)  W~ = (u v) * W + ((1 - u)(1 - v)) * W0       u: (d_out, 1), v: (1, d_in), in [0, 1]

    (3)  min_alpha L(w*(alpha), alpha; D_val)    s.t.  w*(alpha) = argmin_w L(w, alpha; D_tr)
                                                       0 <= alpha <= 1

with alpha = all u, v and w = (W, theta): task weights and everything else that is trained; D_tr and
D_val are parts of D, the few examples. The "attention" is a gate on a weight, not a transformer's.

    phase 1   for k = 1 .. K:    begin_search    pretrained w, new gates, on a new 80/20 `split`
                  for t = 1 .. T:    search_step     alpha on D_val, looking one step of w ahead,
                                                     Eqs. 4 and 5; then w on D_tr, with new alpha
                  end_search         add w and alpha to their mean over the searches
    phase 2   begin_finetuning   w and alpha: the mean; alpha frozen
                  for t = 1 .. T':   w_step          on all of D

Read top to bottom: the mixed weight, the two phases. The equations are those of
docs/papers/weight_mixup.md, sections 3.2 to 3.4. What makes Eq. 2 fast is in `folding.py`, how
gates get onto a model in `gates.py`, the two loops in `train.py`, the official code's accidents in
`official.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from shared import vectors
from shared.hypergrad import FiniteDifference, FirstOrder, Hypergradient, Method, OneStep, hypergrad
from shared.processes import mean_gradients

from . import folding

# ------------------------------------------------------------------------------ the mixed weight


def convex(u: Tensor, v: Tensor, W: Tensor, W0: Tensor) -> Tensor:
    """Eq. 1: W~ = A * W + (1 - A) * W0 with A = u v.

    u: (d_out, r), v: (r, d_in), entries in [0, 1]; W, W0: (d_out, d_in). For r > 1 the product is
    divided by r, so that A stays in [0, 1] and gates of one still mean plain finetuning (the paper
    has r = 1)."""
    return torch.lerp(W0, W, (u / u.shape[-1]) @ v)


def factored(
    u: Tensor, v: Tensor, W: Tensor, W0: Tensor, space: folding.Space | None = None
) -> Tensor:
    """Eq. 2: W~ = (u v) * W + ((1 - u)(1 - v)) * W0, the official code's form; shapes as above.
    space: where to write it.

    *Not* Eq. 1 with A = u v: the two coefficients add up to `coefficient_sum`, which is one only in
    the corners u = v = 0 and u = v = 1. Near u = v = 1 the gate rescales rows and columns of W."""
    r = u.shape[-1]
    if r == 1:
        return folding.rank_one(u, v, W, W0, space)
    return torch.addcmul((u / r) @ v * W, ((1 - u) / r) @ (1 - v), W0)


def coefficient_sum(u: Tensor, v: Tensor) -> Tensor:
    """s = (u v + (1 - u)(1 - v)) / r: how much Eq. 2 shrinks; 1 - u - v + 2 u v for r = 1.

    Returns (d_out, d_in)."""
    return (u @ v + (1 - u) @ (1 - v)) / u.shape[1]


Form = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
FORMS: dict[str, Form] = {"factored": factored, "convex": convex}


class Mixup(nn.Module):
    """Parametrisation of one weight: the module's `weight` reads as W~, once per forward pass.

    Gates u (d_out, r) and v (r, d_in) are parameters, so is W0, frozen and with storage of its own;
    W is the parameter that was there. Gates start at one; `draw_gates` gives them the paper's
    start. While gradients are on, a later pass may write its W~ to the memory of this one: clone
    what is to stay."""

    def __init__(self, weight: Tensor, rank: int = 1, form: Form = factored):
        super().__init__()
        d_out, d_in = weight.shape
        if not 1 <= rank <= min(d_out, d_in):
            limit = f"is outside 1..{min(d_out, d_in)}"
            raise ValueError(f"rank {rank} of a {d_out} x {d_in} gate {limit}; the paper has 1")
        self.form = form
        # no buffer: a hypergradient restores those for every pass, a copy of the model each time
        self.W0 = nn.Parameter(weight.detach().clone(), requires_grad=False)
        self.u = nn.Parameter(weight.new_ones(d_out, rank))
        self.v = nn.Parameter(weight.new_ones(rank, d_in))
        self._space = folding.Space()

    def forward(self, W: Tensor) -> Tensor:
        if self.form is factored and torch.is_grad_enabled():
            return factored(self.u, self.v, W, self.W0, self._space)
        return self.form(self.u, self.v, W, self.W0)


# ---------------------------------------------------------------------- phase 1: search for alpha

Loss = Callable[[], Tensor]
Estimate = Callable[[Loss, Loss, list[Tensor], list[Tensor], float], Hypergradient]


@dataclass
class Levels:
    """The variables of both levels and their optimisers, whose rates the caller sets."""

    w: list[Tensor]
    alpha: list[Tensor]
    opt_w: torch.optim.Optimizer
    opt_alpha: torch.optim.Optimizer


def levels_of(
    w: list[Tensor], alpha: list[Tensor], weight_decay: float, alpha_weight_decay: float
) -> Levels:
    """alpha may be empty: searches without gates."""
    of_alpha = [{"params": alpha, "weight_decay": alpha_weight_decay}]
    opt_alpha = torch.optim.AdamW(of_alpha, lr=0.0, fused=True)
    return Levels(w, alpha, adamw(w, weight_decay), opt_alpha)


@torch.no_grad()
def draw_gates(alpha: Sequence[Tensor], sigma: float, generator: torch.Generator) -> None:
    """alpha ~ N(1, sigma^2), clamped: about half of the gates start at exactly one.

    The generator lives on the CPU. ValueError for a negative sigma."""
    if not sigma >= 0:
        raise ValueError(f"sigma {sigma} is negative; it is the standard deviation of the gates")
    for factor in alpha:
        factor.copy_(1 + sigma * torch.randn(factor.shape, generator=generator))
        factor.clamp_(0, 1)


def split(n: int, share: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random positions of D_tr (floor(share n)) and D_val (the rest); an independent draw."""
    n_tr = int(share * n + 1e-9)
    if n_tr < 1 or n_tr == n or n < 5:
        empty = f"{n} examples leave nothing for one of the two levels at {share:.0%}"
        raise ValueError(f"{empty}; give at least 5")
    order = torch.randperm(n, generator=generator)
    return order[:n_tr], order[n_tr:]


def begin_search(
    levels: Levels, start: list[Tensor], sigma: float, generator: torch.Generator
) -> None:
    """Each search has the same pretrained w and the same head (`start`), and gates of its own."""
    vectors.copy_(levels.w, start)
    draw_gates(levels.alpha, sigma, generator)


def search_step(
    levels: Levels, upper: Loss, lower: Loss, xi: float, clip: float, estimate: Estimate
) -> tuple[Hypergradient, Tensor]:
    """Eq. 3, one step of each level: alpha for D_val, then w for D_tr under the new alpha.

    upper, lower: the loss of a batch of D_val and of D_tr. xi: the present rate of w. estimate:
    `hypergradient` with one of ESTIMATORS. Returns the hypergradient and the loss of w."""
    g = estimate(upper, lower, levels.w, levels.alpha, xi)
    alpha_step(levels.opt_alpha, levels.alpha, g.grads)
    loss = w_step(levels.opt_w, levels.w, lower, clip)
    return g, loss


def end_search(levels: Levels, mean: list[Tensor], K: int) -> None:
    """mean += (w, alpha) / K, in float64, so that K equal searches average to themselves."""
    for m, variable in zip(mean, [*levels.w, *levels.alpha], strict=True):
        m.add_(variable.detach().double() / K)
    for optimizer in (levels.opt_w, levels.opt_alpha):
        optimizer.state.clear()  # the next search begins with moments of zero


ESTIMATORS: dict[str, Method] = {
    "finite_difference": FiniteDifference(radius=0.01),
    "first_order": FirstOrder(),
    "exact": OneStep(),
}


def hypergradient(
    upper: Loss, lower: Loss, w: list[Tensor], alpha: list[Tensor], xi: float, estimator: Method
) -> Hypergradient:
    """Eq. 5: dL(w'(alpha), alpha; B_val)/dalpha through one look-ahead step w' (Eq. 4).

        w' = w - xi dL(w, alpha; B_tr)/dw
        g  = dL(w', alpha; B_val)/dalpha
             - xi [dL(w+, alpha; B_tr)/dalpha - dL(w-, alpha; B_tr)/dalpha] / (2 eps)
        q  = dL(w', alpha; B_val)/dw',   w+- = w +- eps q,   eps = 0.01 / |q|

    with the finite difference; the other estimators give the first term alone, or the exact second
    one. The look-ahead is plain SGD, the real step is AdamW: Eq. 5 is its surrogate. w is
    bit-identical afterwards, and all passes see the same dropout masks."""
    if not isinstance(estimator, FirstOrder):
        return hypergrad(upper, lower, w, alpha, xi, method=estimator)
    nothing = [torch.zeros(1, requires_grad=True)]  # in place of w, whose gradient nobody needs
    with frozen(w):
        return hypergrad(upper, lower, nothing, alpha, None, estimator, unreached="zero")


@contextmanager
def frozen(v: Sequence[Tensor]) -> Iterator[None]:
    """No gradient for these parameters inside the block."""
    for p in v:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in v:
            p.requires_grad_(True)


def alpha_step(optimizer: torch.optim.Optimizer, alpha: list[Tensor], g: Sequence[Tensor]) -> None:
    """One step of the upper level along g, then the projection onto 0 <= alpha <= 1."""
    for factor, gradient in zip(alpha, g, strict=True):
        factor.grad = gradient
    optimizer.step()
    optimizer.zero_grad()
    with torch.no_grad():
        torch._foreach_clamp_min_(alpha, 0.0)
        torch._foreach_clamp_max_(alpha, 1.0)


def w_step(
    optimizer: torch.optim.Optimizer,
    w: list[Tensor],
    lower: Loss,
    clip: float,
    mask: Callable[[], None] | None = None,
) -> Tensor:
    """One step of the lower level on lower(), whose value it returns; gates get no gradient.

    mask: what a baseline does to the gradients (`.grad`) before the step."""
    loss = lower()
    for weight, gradient in zip(w, torch.autograd.grad(loss, w), strict=True):
        weight.grad = gradient
    mean_gradients(w)  # over processes, before the norm is taken
    nn.utils.clip_grad_norm_(w, clip)
    if mask is not None:
        mask()
    optimizer.step()
    optimizer.zero_grad()
    return loss.detach()


# --------------------------------------------------------- phase 2: finetuning with alpha frozen


def begin_finetuning(
    w: list[Tensor], alpha: list[Tensor], mean: list[Tensor], start: list[Tensor], average_all: bool
) -> None:
    """alpha: the mean over the searches. w: the mean too, or the pretrained one again."""
    both = [*w, *alpha]
    vectors.copy_(both, [m.to(p.dtype) for m, p in zip(mean, both, strict=True)])
    if not average_all:
        vectors.copy_(w, start)


def adamw(w: list[Tensor], weight_decay: float) -> torch.optim.AdamW:
    """AdamW, no decay on biases and LayerNorm (all that is no matrix); rate 0 until `set_rate`."""
    groups: list[dict[str, Any]] = [
        {"params": [p for p in w if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in w if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=0.0, fused=True)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
