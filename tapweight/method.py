"""TapWeight (Zhang, Somayajula, Xie; TMLR 2025, arXiv 2410.10006): the maths.

Before a pretrained encoder is finetuned it can be pretrained a little longer on the task's texts or
molecules. There are K pretraining objectives; TapWeight learns how much each counts, lam (K,):

    Level I     theta*(lam) = argmin_theta  sum_k lam_k L_k(theta; D_u)       pretrain under lam
    Level II    phi*, w*    = argmin_phi,w  L_task(phi, w; D_tr) + gamma |phi - theta*|^2   finetune
    Level III   min_lam     L_task(phi*, w*; D_val), lam = softmax(alpha)     look at other labels

theta: the encoder (and a head for each objective, which only Level I sees); phi: a second copy of
the encoder, w: the task's head. D_u has no labels, D_tr and D_val are two parts of the labelled
items. `cycle` moves theta, then phi and w, then alpha, by default one step each. gamma is the only
wire between Level I and Level III: without it the gradient of lam is zero.

The gradient. Implicit differentiation through both minima, with their Hessians H_I, H_II, gives

    dL_val/dlam_k = - g_k^T [H_I]^-1 2 gamma [H_II]^-1 v,   v = grad_phi L_val, g_k = grad_theta L_k
    (dphi*/dtheta = - [H_II]^-1 (-2 gamma I), dtheta*/dlam_k = - [H_I]^-1 g_k: of three minus signs
    one is left). Replace both inverse Hessians by the identity (one gradient step):
    h_k = -2 gamma < v, g_k >                                                                 (*)

*An objective gains weight when its gradient points the same way as the validation gradient of the
finetuned model.* Level I is linear in lam, so no second derivative is left: < v, g_k > is the slope
of L_k along v, and two forward passes give all K. Objectives that align equally stay equal.

Below: the loop, its three levels, the gradient of the weights in three ways. Sections are those of
docs/papers/tapweight.md; accidents of the official code are in official.py.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from shared import vectors
from shared.hypergrad import FiniteDifference, ForwardOverReverse, through_level
from shared.processes import all_mean
from shared.vectors import Vector
from tapweight.config import Mode, Normalise

Losses = Callable[[], list[Tensor]]  # the K pretraining losses of one micro-batch, scalars
Loss = Callable[[], Tensor]
Autocast = Callable[[], contextlib.AbstractContextManager[object]]

# ------------------------------------------------------------------------------------- the loop


@dataclass
class Levels:
    """What the three levels change, and the rule by which the weights learn.

    phi, theta: parameters of the two encoders, paired by `matched`. alpha: (K,) logits. optimizers:
    of Level I (encoder and objective heads), II (phi and the task's head w) and III (alpha).
    autocast: of Levels I and II; the gradient of the weights never uses it."""

    phi: Vector
    theta: Vector
    alpha: Tensor
    optimizers: Sequence[torch.optim.Optimizer]
    prox: SquaredDistance
    mode: Mode = "finite-difference"
    normalise: Normalise = "none"
    autocast: Autocast = contextlib.nullcontext


@dataclass
class Facts:
    """What one cycle saw. losses: (K,), means over its Level I steps."""

    losses: Tensor
    train: float  # the task's loss at Level II
    validation: float | None = None  # at Level III; None in the warm-up of the weights
    h: Tensor | None = None  # (K,) gradient of the weights


def cycle(
    levels: Levels,
    level_one: Sequence[Sequence[Losses]],
    level_two: Sequence[Loss],
    level_three: tuple[Loss, Sequence[Losses]],
    learn: bool = True,
    gradient: Gradient | None = None,
) -> Facts:
    """One turn of section 3.4: theta (I), then phi and w (II), then alpha (III); none rolled back.

    level_one: for each step its micro-batches. level_two: for each step the task's loss on D_tr.
    level_three: the task's loss on D_val, and the micro-batches of D_u whose g_k are asked for.
    learn: False while the weights warm up. gradient: in place of `gradient_of_weights`."""
    one, two, three = levels.optimizers
    lam = weights(levels.alpha)
    losses = [level_one_step(one, batches, lam, levels.autocast) for batches in level_one]
    train = [level_two_step(two, loss, levels) for loss in level_two]
    facts = Facts(torch.stack(losses).mean(0), float(train[-1]))
    if learn:
        v, facts.validation = validation_gradient(level_three[0], levels.phi)
        aligned = (gradient or gradient_of_weights)(levels, level_three[1], v)
        level_three_step(three, levels.alpha, aligned, levels.normalise)
        facts.h = aligned.h
    return facts


# ---------------------------------------------------------------------------------- the weights


def start_logits(K: int) -> Tensor:
    """alpha = (1, ..., 1): every objective begins with weight 1 / K. (K,)"""
    if K < 1:
        raise ValueError(f"K = {K} pretraining objectives: there must be at least one to weigh")
    return torch.ones(K)


def weights(alpha: Tensor) -> Tensor:
    """lam = softmax(alpha): positive and of sum one (section 3.1). (K,) -> (K,)"""
    return torch.softmax(alpha.detach(), 0)


def to_logits(h: Tensor, lam: Tensor) -> Tensor:
    """dL_val/dalpha_j = lam_j (h_j - sum_k lam_k h_k), the softmax's Jacobian (section 3.3).

    h, lam: (K,) -> (K,)"""
    return lam * (h - lam @ h)


# --------------------------------------------------------------------------- Levels I and II


def level_one_step(
    optimizer: torch.optim.Optimizer,
    micro_batches: Sequence[Losses],
    lam: Tensor,
    autocast: Autocast = contextlib.nullcontext,
) -> Tensor:
    """theta <- OptI(theta, grad sum_k lam_k L_k), lam held constant.

    Returns the K losses, means over the micro-batches. (K,)"""
    optimizer.zero_grad(set_to_none=True)
    losses = backward(micro_batches, lam, autocast)
    optimizer.step()
    return losses


def backward(micro_batches: Sequence[Losses], lam: Tensor, autocast: Autocast) -> Tensor:
    """Adds grad sum_k lam_k L_k to `.grad`; returns the K losses. Both are means. (K,)"""
    total = torch.zeros(len(lam))
    for losses in micro_batches:
        with autocast():
            values = torch.stack([loss.float() for loss in losses()])
        share = (lam.to(values.device) * values).sum() / len(micro_batches)
        if share.requires_grad:
            share.backward()
        total += values.detach().cpu() / len(micro_batches)
    return total


def level_two_step(optimizer: torch.optim.Optimizer, task_loss: Loss, levels: Levels) -> Tensor:
    """(phi, w) <- OptII((phi, w), grad [L_task(phi, w; B_tr) + gamma R(phi, theta)]).

    theta is held constant. Returns the task's loss, a scalar."""
    optimizer.zero_grad(set_to_none=True)
    with levels.autocast():
        loss = task_loss()
    loss.backward()
    for p, x in zip(levels.phi, levels.prox.gradient(levels.phi, levels.theta), strict=True):
        p.grad = x if p.grad is None else p.grad.add_(x)
    optimizer.step()
    return loss.detach()


@dataclass(frozen=True)
class SquaredDistance:
    """gamma R with R(phi, theta) = |phi - theta|^2, a plain sum over all encoder parameters."""

    gamma: float

    def gradient(self, phi: Vector, theta: Vector) -> Vector:
        """d / d phi = 2 gamma (phi - theta), in closed form."""
        return vectors.scaled(vectors.minus(phi, theta), 2 * self.gamma)

    def pull_back(self, v: Vector, phi: Vector, theta: Vector) -> Vector:
        """u = (dphi*/dtheta)^T v with the identity for [H_II]^-1: 2 gamma v.

        The mixed derivative of Level II is -2 gamma I."""
        return vectors.scaled(v, 2 * self.gamma)


def matched(phi: nn.Module, theta: nn.Module) -> tuple[Vector, Vector]:
    """Parameters of two encoders that require a gradient, paired by name, never by their order.

    Raises ValueError naming the first one that an encoder lacks or holds in another shape."""
    a, b = ({n: p for n, p in m.named_parameters() if p.requires_grad} for m in (phi, theta))
    for name in a | b:
        shapes = [tuple(x[name].shape) if name in x else "missing" for x in (a, b)]
        if shapes[0] != shapes[1]:
            where = f"the proximal term pairs encoders by name: '{name}' is"
            raise ValueError(f"{where} {shapes[0]} in phi and {shapes[1]} in theta")
    return list(a.values()), [b[name] for name in a]


# ------------------------------------------------------------------------------------ Level III


@dataclass(frozen=True)
class Alignment:
    """h: (K,) derivative of the validation loss for lam; the rest only where g_k was computed."""

    h: Tensor
    norms: Tensor | None = None  # (K,) |g_k|
    gram: Tensor | None = None  # (K + 1, K + 1) cosines of g_1, ..., g_K, v with each other


Gradient = Callable[[Levels, Sequence[Losses], Vector], Alignment]


def validation_gradient(validation_loss: Loss, phi: Vector) -> tuple[Vector, float]:
    """v = grad_phi L_task(phi, w; B_val), and the loss. Buffers, random state stay as they are."""
    with vectors.Snapshot(phi[:1], phi[1:]), torch.enable_grad():  # phi does not move: one copy
        loss = validation_loss()
        v = torch.autograd.grad(loss, phi, allow_unused=True)
    return all_mean([torch.zeros_like(p) if x is None else x for x, p in zip(v, phi)]), loss.item()


def gradient_of_weights(
    levels: Levels, batches: Sequence[Losses], v: Vector, mode: Mode | None = None
) -> Alignment:
    """(*): v through Level II, then through Level I. mode: in place of that of the levels."""
    u = levels.prox.pull_back(v, levels.phi, levels.theta)
    return alignment(batches, levels.theta, u, len(levels.alpha), mode or levels.mode)


def level_three_step(
    optimizer: torch.optim.Optimizer, alpha: Tensor, aligned: Alignment, normalise: Normalise
) -> None:
    """alpha <- OptIII(alpha, dL_val/dalpha). normalise: "cosine" takes cosines in place of h."""
    h = aligned.h
    if normalise == "cosine":
        if aligned.gram is None:
            raise ValueError("normalise = cosine needs |g_k|, which only mode exact-dot computes")
        h = -aligned.gram[:-1, -1]
    alpha.grad = to_logits(h, weights(alpha))
    optimizer.step()


def alignment(batches: Sequence[Losses], theta: Vector, u: Vector, K: int, mode: Mode) -> Alignment:
    """h_k = -< u, grad_theta L_k >: (*) with u = 2 gamma v, what Level II hands down to theta.

    batches: micro-batches of D_u, L_k is their mean; each draws the same masks and dropout however
    often it is evaluated. theta: the encoder alone; heads have no counterpart in phi. theta,
    buffers, random state and `.grad` stay as they are. mode, three ways to the same number:
        finite-difference  two forward passes at theta +- eps u, |eps u| = 0.01 in float32
        exact-dot          one backward pass for each objective
        jvp                one pass in forward mode (attention by plain matrix products)
    """
    if mode == "exact-dot":
        return _gradients(batches, theta, u)
    # Level I is linear in lam: its derivative for lam is the vector of losses, whatever lam is, and
    # neither probe needs a graph of the network
    lam = torch.ones(K, device=theta[0].device, dtype=theta[0].dtype, requires_grad=True)

    def level(losses: Losses) -> Tensor:
        with torch.no_grad():
            values = torch.stack([x.to(lam.dtype) for x in losses()])
        return lam @ values

    levels = [functools.partial(level, losses) for losses in batches]
    if mode == "finite-difference":
        h = through_level(levels, theta, [lam], u, lr=1.0, method=FiniteDifference())
    else:
        with sdpa_kernel(SDPBackend.MATH):
            h = through_level(levels, theta, [lam], u, lr=1.0, method=ForwardOverReverse())
    return Alignment(h[0].detach().cpu())


def _gradients(batches: Sequence[Losses], theta: Vector, u: Vector) -> Alignment:
    """(*) by K backward passes, with what a figure wants: |g_k|, and cosines of all g_k and u."""
    g: list[Vector] = []
    with vectors.Snapshot(theta), torch.enable_grad():
        for losses in batches:
            values = losses()
            g = g or [vectors.zeros_like(theta) for _ in values]
            for k, loss in enumerate(values):
                if not loss.requires_grad:
                    continue  # nothing was masked, say: the objective is constant on this batch
                more = torch.autograd.grad(
                    loss, theta, retain_graph=k + 1 < len(values), allow_unused=True
                )
                reached = [(a, b) for a, b in zip(g[k], more) if b is not None]
                if reached:
                    torch._foreach_add_(*map(list, zip(*reached)), alpha=1 / len(batches))
    everything = [*map(all_mean, g), u]
    dots = [[vectors.dot(a, b) for b in everything] for a in everything]
    gram = torch.tensor(dots, dtype=torch.float64)
    size = vectors.root(gram.diagonal())
    cosines = torch.nan_to_num(gram / torch.outer(size, size)).float()
    return Alignment(-gram[:-1, -1].to(theta[0].dtype), size[:-1].float(), cosines)
