"""DASGM's mathematics: the three levels, the gradient of the architecture, the transform T, the class weights.

    level 1   W*(A)         = argmin_W  L_tr(A, W)                            real training images            [read: abstract]
    level 2   theta*, phi*  = argmin_theta argmax_phi  V - eta R              a class-conditional generator   [inferred; eta: decided]
    level 3   min_A  F(A)   = lam L_syn(A, W*, theta*) + (1 - lam) L_val(A, W*)   generated images            [read: abstract]

Next to DARTS, whose level 3 is L_val alone (lam = 0). No equation of the paper could be read: [read] is in its abstract,
[inferred] from DARTS' code, [decided] here (README). Numbers in brackets are sections of this repository's specification.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from shared.hypergrad import FiniteDifference, Hypergradient, Method, OneStep, hypergrad
from shared.multilevel import Level, chain
from shared.processes import mean_gradients, all_mean
from shared.vectors import Vector

Loss = Callable[[], Tensor]
TWO_SIDED = FiniteDifference()
ESTIMATORS: dict[str, Callable[[], Method]] = {
    "finite_difference": FiniteDifference,
    "exact": OneStep,
}


# --- losses ------------------------------------------------------------------------------------------------------


def synthesized_loss(logits: Tensor, y: Tensor, omega: Tensor | None = None) -> Tensor:
    """L_syn = E[omega_y CE(f(T(G(z, y))), y)]: logits (n, C), y (n,), omega (C,) or None -> scalar."""
    if omega is None:
        return F.cross_entropy(logits, y)
    return (omega[y] * F.cross_entropy(logits, y, reduction="none")).mean()


def architecture_loss(lam: float, synthesized: Loss | None, real: Loss | None) -> Loss:
    """F = lam L_syn + (1 - lam) L_val; a part of weight 0 is never evaluated, so lam = 0 is DARTS to the bit."""
    if lam == 0:
        assert real is not None
        return real
    if lam == 1:
        assert synthesized is not None
        return synthesized
    assert real is not None and synthesized is not None
    return lambda: lam * synthesized() + (1 - lam) * real()


def weakness(logits: Tensor, y: Tensor) -> Tensor:
    """R = E min(CE, tau), tau = log C (option `adversarial`): the cap keeps a generator from leaving its class [8]."""
    return F.cross_entropy(logits, y, reduction="none").clamp(max=math.log(logits.shape[1])).mean()


# --- the gradient of the architecture (3.4) -----------------------------------------------------------------------


class _Drift(torch.autograd.Function):
    """0, with gradient weight_decay W + mu m: what SGD adds to a loss's gradient, in a few operations on lists."""

    @staticmethod
    def forward(
        ctx: Any, weight_decay: float, mu: float, momentum: Sequence[Tensor | None], *W: Tensor
    ) -> Tensor:
        ctx.save_for_backward(*W)
        ctx.drift = weight_decay, mu, momentum
        return W[0].new_zeros(())

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        weight_decay, mu, momentum = ctx.drift
        pull = list(torch._foreach_mul(list(ctx.saved_tensors), weight_decay))
        known = [i for i, m in enumerate(momentum) if m is not None]
        if mu and known:
            moved = torch._foreach_add(
                [pull[i] for i in known], [momentum[i] for i in known], alpha=mu
            )
            for i, x in zip(known, moved):
                pull[i] = x
        return None, None, None, *torch._foreach_mul(pull, g)


def look_ahead_loss(
    L_tr: Loss,
    W: Sequence[Tensor],
    momentum: Sequence[Tensor | None],
    mu: float,
    weight_decay: float,
) -> Loss:
    """L_tr, with the gradient g_W + weight_decay W + mu m that SGD's step follows in its place.

    The added terms hold no A, so they change W' but not the mixed derivative. momentum: buffer per tensor, None = 0.
    """

    def loss() -> Tensor:
        value = L_tr()
        if not any(p.requires_grad for p in W):  # a probe for A: the terms are constants
            return value
        return value + _Drift.apply(weight_decay, mu, momentum, *W)

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


def architecture_gradient(
    F_: Loss,
    L_tr: Loss,
    W: Sequence[Tensor],
    A: Sequence[Tensor],
    xi: float,
    method: Method = TWO_SIDED,
) -> Vector:
    """dF/dA = partial_A F - xi [d2 L_tr / dA dW] dF/dW', F at W' = W - xi grad_W L_tr; a list like A.

    xi = 0 is first order: partial_A F at W, with W frozen, which saves the weight gradients (5 / 3 of a plain step).
    """
    if xi == 0:
        with frozen(W):
            return all_mean(torch.autograd.grad(F_(), list(A)))
    return hypergrad(F_, L_tr, W, A, float(xi), method).grads


def nested_gradient(
    F_: Loss,
    L_tr: Loss,
    J: Loss,
    W: Sequence[Tensor],
    theta: Sequence[Tensor],
    A: Sequence[Tensor],
    xi_W: float,
    xi_theta: float,
    method: Method = TWO_SIDED,
) -> Hypergradient:
    """eta > 0: A -> W' -> theta' -> F, with theta' = theta - xi_theta grad_theta J, J = V_G - eta R(theta; A, W').

    v     = dF/dtheta'
    u     = dF/dW'       + xi_theta eta [d2 R / dW' dtheta] v
    dF/dA = partial_A F  + xi_theta eta [d2 R / dA dtheta] v  -  xi_W [d2 L_tr / dA dW] u
    """
    return chain(F_, [Level(L_tr, W, xi_W, method), Level(J, theta, xi_theta, method)], A)


def weight_step(
    loss: Tensor, W: Sequence[Tensor], optimiser: torch.optim.Optimizer, clip: float
) -> None:
    """One SGD step on W; A takes no part in it: neither in the gradient, nor in the norm that is clipped."""
    for p, g in zip(W, torch.autograd.grad(loss, list(W))):
        p.grad = g
    mean_gradients(W)  # over processes, before the norm is taken
    torch.nn.utils.clip_grad_norm_(list(W), clip)
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)


def architecture_step(
    gradient: Vector, A: Sequence[Tensor], optimiser: torch.optim.Optimizer
) -> None:
    """One Adam step on A."""
    for a, g in zip(A, gradient):
        a.grad = g
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)


# --- option `weighted` (3.6) --------------------------------------------------------------------------------------


@dataclass
class ClassWeights:
    """omega (C,), mean 1, from the running mean of each class's mean loss; a class that is not in a batch keeps its own."""

    classes: int
    decay: float = 0.9
    clip: tuple[float, float] = (0.2, 5.0)
    running: Tensor = field(default_factory=lambda: torch.empty(0))

    def __post_init__(self) -> None:
        if not len(self.running):
            self.running = torch.full((self.classes,), float("nan"))

    @torch.no_grad()
    def update(self, logits: Tensor, y: Tensor) -> None:
        """logits (n, C), y (n,) of a batch of real images."""
        losses = F.cross_entropy(logits.detach(), y, reduction="none").cpu().double()
        y = y.cpu()
        counts = torch.bincount(y, minlength=self.classes)
        # sorted within a class, so that the order of the batch cannot show in the last digit
        means = torch.stack(
            [losses[y == c].sort().values.sum() for c in range(self.classes)]
        ) / counts.clamp(min=1)
        new = torch.where(
            self.running.isnan(),
            means.float(),
            self.decay * self.running + (1 - self.decay) * means.float(),
        )
        self.running = torch.where(counts > 0, new, self.running)

    @property
    def omega(self) -> Tensor:
        seen = self.running[~self.running.isnan()]
        if not len(seen) or float(seen.mean()) == 0:
            return torch.ones(self.classes)
        relative = torch.where(self.running.isnan(), seen.mean(), self.running) / seen.mean()
        omega = relative.clamp(*self.clip)
        for _ in range(
            50
        ):  # rescaling to mean 1 can push an entry over the clip again: alternate until it does not
            omega = (omega / omega.mean()).clamp(*self.clip)
        return omega


# --- what is watched ----------------------------------------------------------------------------------------------


def entropy(A: Sequence[Tensor]) -> float:
    """Mean entropy of the relaxed choices over log(number of choices): 1 undecided, 0 decided."""
    p = [F.softmax(a.detach(), -1) for a in A]
    return float(
        torch.cat(
            [-(q * q.clamp(min=1e-12).log()).sum(-1) / math.log(q.shape[-1]) for q in p]
        ).mean()
    )
