"""TapWeight (Zhang, Somayajula, Xie; TMLR 2025, arXiv 2410.10006): the maths.

Before a pretrained encoder is finetuned it can be pretrained a little longer on texts (or molecules) of the task. Which
pretraining objectives should count how much? TapWeight learns their weights lam from the loss on held-out labels:

    Level I     theta*(lam)  = argmin_theta   sum_k lam_k L_k(theta; D_u)                     continued pretraining
    Level II    phi*, w*     = argmin_phi,w   L_task(phi, w; D_tr) + gamma |phi - theta*|^2   finetuning near theta*
    Level III   min_lam      L_task(phi*, w*; D_val),         lam = softmax(alpha)            the weights

gamma is the only wire between Level I and Level III: without it the gradient of lam is exactly zero.

The gradient, in four lines. Implicit differentiation through both minima gives

    dL_val/dlam_k = - g_k^T [H_I]^-1 2 gamma [H_II]^-1 v,    v = grad_phi L_val,   g_k = grad_theta L_k
    (dphi*/dtheta = - [H_II]^-1 (-2 gamma I),  dtheta*/dlam_k = - [H_I]^-1 g_k: of three minus signs one is left)
    replace both inverse Hessians by the identity (one gradient step):
    h_k = -2 gamma < v, g_k >                                                                 (*)

Read aloud: *an objective gains weight when its gradient points the same way as the validation gradient of the finetuned
model*. Because Level I is linear in lam, no second derivative is left: the inner product is also the slope of the K losses
along v, so two forward passes (a difference quotient) give all K of them. Then alpha moves by the softmax's Jacobian,
in which only differences of alignment matter: objectives that align equally stay equal.

Read top to bottom: weights, the proximal term, the gradient of the weights in four ways, one cycle. The official code's
accidents are in `official.py`; where the networks come from is in `language.py` and `images.py`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from shared import vectors
from shared.hypergrad import FiniteDifference, ForwardOverReverse, through_level
from shared.processes import all_mean
from shared.vectors import Vector

Losses = Callable[[], list[Tensor]]  # the K pretraining losses of one batch, scalars
Loss = Callable[[], Tensor]
Precision = Callable[
    [], AbstractContextManager
]  # autocast or nothing; the gradient of the weights never uses it

MODES = ("finite-difference", "exact-dot", "jvp")

# ------------------------------------------------------------------------------------------------ the weights


def start_logits(K: int) -> Tensor:
    """alpha = (1, ..., 1): every objective begins with weight 1 / K. (K,)"""
    if K < 1:
        raise ValueError(f"K = {K} pretraining objectives: there must be at least one to weigh")
    return torch.ones(K)


def weights(alpha: Tensor) -> Tensor:
    """lam = softmax(alpha), the simplex constraint of section 3.2. (K,) -> (K,)"""
    return torch.softmax(alpha.detach(), 0)


def to_logits(h: Tensor, lam: Tensor) -> Tensor:
    """dL_val/dalpha_j = lam_j (h_j - sum_k lam_k h_k): h through the softmax's Jacobian. h, lam: (K,) -> (K,)"""
    return lam * (h - lam @ h)


# ------------------------------------------------------------------------------------------- the proximal term


def matched(phi: nn.Module, theta: nn.Module) -> tuple[Vector, Vector]:
    """Parameters of the two encoders that require a gradient, paired by name: never by their order in a list.

    Raises ValueError naming the first parameter that the other encoder lacks or holds in another shape."""
    a = {name: p for name, p in phi.named_parameters() if p.requires_grad}
    b = {name: p for name, p in theta.named_parameters() if p.requires_grad}
    for name in [*a, *b]:
        if name not in a or name not in b:
            raise ValueError(
                f"the proximal term pairs encoders: '{name}' is a parameter of only one of them"
            )
        if a[name].shape != b[name].shape:
            raise ValueError(
                f"the proximal term pairs encoders: '{name}' is {tuple(a[name].shape)} in phi and "
                f"{tuple(b[name].shape)} in theta"
            )
    return list(a.values()), [b[name] for name in a]


@dataclass(frozen=True)
class SquaredDistance:
    """gamma R with R(phi, theta) = |phi - theta|^2, a plain sum over all encoder parameters (no division)."""

    gamma: float

    def __post_init__(self) -> None:
        if not self.gamma >= 0:
            raise ValueError(
                f"gamma = {self.gamma}: the strength of the proximal term is 0 or more"
            )

    def value(self, phi: Vector, theta: Vector) -> Tensor:
        return self.gamma * sum(
            (p - t.detach()).square().sum() for p, t in zip(phi, theta, strict=True)
        )

    def gradient(self, phi: Vector, theta: Vector) -> Vector:
        """d / d phi = 2 gamma (phi - theta), in closed form."""
        return vectors.scaled(vectors.minus(phi, theta), 2 * self.gamma)

    def pull_back(self, v: Vector, phi: Vector, theta: Vector) -> Vector:
        """(dphi*/dtheta)^T v with the identity for [H_II]^-1: 2 gamma v, since the mixed derivative is -2 gamma I."""
        return vectors.scaled(v, 2 * self.gamma)


# ------------------------------------------------------------------------- the gradient of the weights, (*)


@dataclass(frozen=True)
class Alignment:
    """h: (K,) derivative of the validation loss for lam. cosine: (K,) of v and g_k, where g_k was computed."""

    h: Tensor
    cosine: Tensor | None = None
    norms: Tensor | None = None  # (K,) |g_k|
    gram: Tensor | None = None  # (K + 1, K + 1) cosines of g_1, ..., g_K, v with each other


def alignment(
    batches: Sequence[Losses],
    theta: Vector,
    u: Vector,
    K: int,
    mode: str,
    radius: float | None = None,
) -> Alignment:
    """h_k = -< u, grad_theta L_k >: (*) with u = 2 gamma v, what Level II hands down to theta.

    batches: the K losses of one or more micro-batches of D_u (L_k is their mean). They start from the same random state
    however often they are evaluated, so all evaluations share masks and dropout. theta: the encoder alone; heads have no
    counterpart in phi. theta, buffers, random state and `.grad` are left as they were.
    mode: finite-difference  (L_k(theta + eps u) - L_k(theta - eps u)) / 2 eps, two forward passes without gradients
          exact-dot          one backward pass for each objective
          jvp                one pass in forward mode (attention by plain matrix products)
    radius: |eps u| of the difference, None means 0.01 in float32.
    """
    if mode not in MODES:
        raise ValueError(f"mode '{mode}' is unknown; it is one of {', '.join(MODES)}")
    if mode == "exact-dot":
        return _gradients(batches, theta, u)

    # Level I is linear in lam, so its mixed derivative for lam is the vector of losses, whatever lam is. Neither probe
    # needs a graph of the network.
    lam = torch.ones(K, device=theta[0].device, dtype=theta[0].dtype, requires_grad=True)

    def level(losses: Losses) -> Loss:
        def loss() -> Tensor:
            with torch.no_grad():
                values = torch.stack([x.to(lam.dtype) for x in losses()])
            return lam @ values

        return loss

    levels = [level(losses) for losses in batches]
    if mode == "finite-difference":
        h = through_level(levels, theta, [lam], u, lr=1.0, method=FiniteDifference(radius))
    else:
        with sdpa_kernel(SDPBackend.MATH):
            h = through_level(levels, theta, [lam], u, lr=1.0, method=ForwardOverReverse())
    return Alignment(h[0].detach().cpu())


def _gradients(batches: Sequence[Losses], theta: Vector, u: Vector) -> Alignment:
    """(*) by K backward passes, with everything a figure wants: |g_k| and the cosines between all gradients and u."""
    g: list[Vector] = []
    with vectors.Snapshot(theta), torch.enable_grad():
        for losses in batches:
            values = losses()
            g = g or [vectors.zeros_like(theta) for _ in values]
            for k, loss in enumerate(values):
                if (
                    loss.requires_grad
                ):  # not where nothing was masked, say: then the objective is constant
                    more = torch.autograd.grad(
                        loss, theta, retain_graph=k + 1 < len(values), allow_unused=True
                    )
                    reached = [(a, b) for a, b in zip(g[k], more) if b is not None]
                    if reached:
                        torch._foreach_add_(*map(list, zip(*reached)), alpha=1 / len(batches))
    everything, K = [*map(all_mean, g), u], len(g)
    gram = torch.tensor(
        [[vectors.dot(a, b) for b in everything] for a in everything], dtype=torch.float64
    )
    size = gram.diagonal().sqrt()
    cosines = torch.nan_to_num(gram / torch.outer(size, size))
    return Alignment(
        -gram[:K, K].to(theta[0].dtype), cosines[:K, K].float(), size[:K].float(), cosines.float()
    )


# -------------------------------------------------------------------------------------------------- one cycle


def set_rates(optimizers: Sequence[torch.optim.Optimizer], factors: Sequence[float]) -> None:
    """Rate of each optimiser = its initial rate times a factor of the schedule."""
    for optimizer, factor in zip(optimizers, factors, strict=True):
        for group in optimizer.param_groups:
            group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor


def level_one_step(
    optimizer: torch.optim.Optimizer,
    micro_batches: Sequence[Losses],
    lam: Tensor,
    autocast: Precision = contextlib.nullcontext,
) -> Tensor:
    """theta <- OptI(theta, grad sum_k lam_k L_k), lam held constant. Returns the K losses, the micro-batches' mean. (K,)"""
    optimizer.zero_grad(set_to_none=True)
    total = torch.zeros(len(lam))
    for losses in micro_batches:
        with autocast():
            values = torch.stack([loss.float() for loss in losses()])
        share = (lam.to(values.device) * values).sum() / len(micro_batches)
        if share.requires_grad:
            share.backward()
        total += values.detach().cpu() / len(micro_batches)
    optimizer.step()
    return total


def level_two_step(
    optimizer: torch.optim.Optimizer,
    task_loss: Loss,
    phi: Vector,
    theta: Vector,
    prox: SquaredDistance,
    autocast: Precision = contextlib.nullcontext,
) -> Tensor:
    """(phi, w) <- OptII((phi, w), grad [L_task(phi, w; B_tr) + gamma R(phi, theta)]), theta held constant."""
    optimizer.zero_grad(set_to_none=True)
    with autocast():
        loss = task_loss()
    loss.backward()
    for p, x in zip(phi, prox.gradient(phi, theta), strict=True):
        p.grad = x if p.grad is None else p.grad.add_(x)
    optimizer.step()
    return loss.detach()


def validation_gradient(validation_loss: Loss, phi: Vector) -> tuple[Vector, Tensor]:
    """v = grad_phi L_task(phi, w; B_val), and the loss. Buffers and random state are left as they were."""
    with (
        vectors.Snapshot(phi[:1], phi[1:]),
        torch.enable_grad(),
    ):  # phi does not move: no copy of all of it
        loss = validation_loss()
        v = torch.autograd.grad(loss, phi, allow_unused=True)
    v = [torch.zeros_like(p) if x is None else x for x, p in zip(v, phi)]
    return all_mean(v), loss.detach()


def level_three_step(
    optimizer: torch.optim.Optimizer,
    alpha: Tensor,
    found: Alignment,
    normalise: str,
    entropy: float = 0.0,
) -> None:
    """alpha <- OptIII(alpha, J^T h). normalise: 'none', or 'cosine' for cosines in place of h (needs mode exact-dot).

    entropy: strength of a bonus for even weights; 0 in the paper. d(-H)/dlam_k = log lam_k + 1."""
    h = found.h
    if normalise == "cosine":
        if found.cosine is None:
            raise ValueError("normalise = cosine needs |g_k|, which only mode exact-dot computes")
        h = -found.cosine
    elif normalise != "none":
        raise ValueError(f"normalise '{normalise}' is unknown; it is none or cosine")
    lam = weights(alpha)
    if entropy:  # a weight that underflowed to 0 stays there
        h = h + entropy * (lam.clamp_min(torch.finfo(lam.dtype).tiny).log() + 1)
    alpha.grad = to_logits(h, lam)
    optimizer.step()


@dataclass
class Levels:
    """State of the three levels. `theta`, `phi`: encoders; alpha: (K,) logits; optimizers: of levels I, II, III.

    whole: h from all micro-batches of a Level I step; otherwise from the last one, which costs less and is unbiased too."""

    theta: nn.Module
    phi: nn.Module
    alpha: Tensor
    optimizers: list[torch.optim.Optimizer]
    prox: SquaredDistance
    mode: str = MODES[0]
    radius: float | None = None
    normalise: str = "none"
    entropy: float = 0.0
    whole: bool = False
    autocast: Precision = contextlib.nullcontext
    more: Callable[[Alignment, Levels, Sequence[Losses]], Alignment] = lambda found, levels, used: (
        found
    )  # official.py

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"mode '{self.mode}' is unknown; it is one of {', '.join(MODES)}")
        self.phi_e, self.theta_e = matched(self.phi, self.theta)

    def cycle(
        self,
        level_one: Sequence[Sequence[Losses]],
        level_two: Sequence[Loss],
        validation_loss: Loss,
        learn: bool = True,
        watch: bool = False,
    ) -> Facts:
        """One pass of section 3.4's loop: steps of Level I (each a list of micro-batches), of Level II, one of Level III.

        All derivatives are taken at the already updated parameters. Nothing is rolled back: phi and theta go on.
        learn: False in the warm-up. watch: also the exact gradients, for the record."""
        lam, K, clock = weights(self.alpha), len(self.alpha), [time.perf_counter()]
        values = [
            level_one_step(self.optimizers[0], micro_batches, lam, self.autocast)
            for micro_batches in level_one
        ]
        clock.append(time.perf_counter())
        for loss in level_two:
            train = level_two_step(
                self.optimizers[1], loss, self.phi_e, self.theta_e, self.prox, self.autocast
            )
        clock.append(time.perf_counter())
        facts = Facts(torch.stack(values).mean(0), float(train))
        if learn or watch:
            v, validation = validation_gradient(validation_loss, self.phi_e)
            u = self.prox.pull_back(v, self.phi_e, self.theta_e)
            used = level_one[-1] if self.whole else level_one[-1][-1:]
            facts.validation = float(validation)
            if learn:
                facts.found = alignment(used, self.theta_e, u, K, self.mode, self.radius)
                facts.found = self.more(facts.found, self, used)
                level_three_step(
                    self.optimizers[2], self.alpha, facts.found, self.normalise, self.entropy
                )
            clock.append(time.perf_counter())
            if watch:
                facts.exact = alignment(used, self.theta_e, u, K, "exact-dot")
        facts.seconds = [b - a for a, b in pairwise(clock)]
        return facts


@dataclass
class Facts:
    """What one cycle saw: the K pretraining losses, the task's losses at both levels, the gradient of the weights."""

    losses: Tensor
    train: float
    validation: float | None = None
    found: Alignment | None = None
    exact: Alignment | None = None
    seconds: list[float] = field(default_factory=list)  # of levels I, II, III


# ------------------------------------------------------------------------------------------------ task losses


def squared_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared error that refuses to broadcast: (B, 1) against (B) would compare every item with every other."""
    if prediction.shape != target.shape:
        raise ValueError(
            f"prediction {tuple(prediction.shape)} and target {tuple(target.shape)} differ in shape: squeeze the output"
        )
    return F.mse_loss(prediction, target)


def masked_bce(logits: Tensor, labels: Tensor) -> Tensor:
    """Binary cross-entropy over the labels that are there; -1 and NaN mean missing. logits, labels: (B, tasks)."""
    there = ~(torch.isnan(labels) | (labels < 0))
    if not there.any():
        return logits.sum() * 0.0
    return F.binary_cross_entropy_with_logits(logits[there], labels[there])
