"""DASGM: the weights learn from photographs, the architecture is judged on generated images.

    (1)  W*(A)        = argmin_W  L_tr(A, W)                                       [read]
    (2)  theta*, phi* = argmin_theta argmax_phi  V(theta, phi; D_tr)  [- eta R]    [inferred]
    (3)  min_A  F(A)  = lam L_syn(A, W*(A), theta*) + (1 - lam) L_val(A, W*(A))    [read]

W are the weights of a relaxed network f(x; A, W), theta and phi those of a generator G(z, y) and
its opponent H(x, y), V their game, A the architecture: logits of the operations of each edge. L_tr
and L_val are mean cross-entropies (CE) on the two halves of the real images, D_tr and D_val, L_syn
is that on T(G(z, y)), generated images as f sees them. DARTS is lam = 0, the abstract is lam = 1.
No equation of the paper could be read: [read] is in its abstract, [inferred] from DARTS' code; eta,
(6) and (7) are options that were decided here. Equation numbers are those of docs/papers/dasgm.md,
section 3.

`cycle` takes one step of each level: (2) phi and theta; (3) A along dF/dA: at W in first order, the
default; in second order one step of W ahead, (4) and (5), `second_order`; (1) W, under the new A.
Below it stand, in the order 3, 2, 1, the levels, then the option (7). `lookahead.py` has (6) and
the exact product.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from shared import vectors
from shared.evaluation import Call, check_finite, freeze
from shared.hypergrad import FiniteDifference, Hypergradient, OneStep
from shared.multilevel import Level
from shared.processes import all_mean, mean_gradients, single
from shared.vectors import shift_

from . import lookahead, weighted
from .data import Views
from .generators import GAN
from .networks import CLIP, Supernet

Loss = Callable[[], Tensor]


def cycle(
    f: Supernet, gan: GAN | None, views: Views, t: int, learn_A: bool = True
) -> dict[str, float]:
    """Step t of the search: one step of each level. Returns the losses, and how many gradients.

    gan: None where level 3 sees no generated image (lam = 0). learn_A: false in warm-up epochs.
    views: what each level sees of the data in step t."""
    facts: dict[str, float] = {"gradient_evaluations": 1}
    if gan is not None and views.config.job != "static":
        facts |= generator_step(gan, views, hunt(f, gan, views))  # level 2: theta and phi
        facts["gradient_evaluations"] += gan.critic_steps + 1
    L_tr = real_loss(f, *views.training(t))
    if learn_A:
        gradient = architecture_gradient(*architecture_losses(f, gan, views, t, L_tr), f.A)
        architecture_step(gradient.grads, f.A, f.opt_A, views.config.arch_clip)  # level 3: A
        facts["loss_A"] = gradient.outer_loss
        facts["gradient_evaluations"] += gradient.gradient_evaluations
    facts["loss_W"] = weight_step(L_tr(), f.W, f.opt_W)  # level 1: W
    return facts


# --- level 3: the architecture --------------------------------------------------------------------


@dataclass(frozen=True)
class LookAhead:
    """Level 1 as level 3 sees it: W' = W - xi (grad L_tr + drift), drift = mu m + wd W.

    L_tr: on the batch of this step. xi: 0 in first order. drift: a tensor like each of W; empty
    where xi = 0. exact: the mixed product of (4) by double backward instead of (5)."""

    L_tr: Loss
    W: Sequence[Tensor]
    xi: float
    drift: Sequence[Tensor]
    exact: bool = False


def architecture_gradient(
    F: Loss, ahead: LookAhead, generator: Level | None, A: Sequence[Tensor]
) -> Hypergradient:
    """dF/dA, also through what A moves: W' is one step of rate xi ahead.

        xi = 0   partial_A F(A, W, theta), first order
        (4)      partial_A F - xi [d2 L_tr / dA dW] u,    u = dF/dW'

    generator: of `adversarial`, whose theta' depends on A as well: (6), in `lookahead.py`; ignored
    where xi = 0."""
    if not ahead.xi:
        return first_order(F, ahead.W, A)
    if ahead.exact or generator is not None:
        return lookahead.through_levels(F, ahead, generator, A)
    return second_order(F, ahead, A)


def first_order(F: Loss, W: Sequence[Tensor], A: Sequence[Tensor]) -> Hypergradient:
    """partial_A F at W.

    The weights need no gradient here: with the weight step 5/3 of a plain step, not 2."""
    with lookahead.frozen(W):
        loss = F()
        gradient = all_mean(torch.autograd.grad(loss, list(A)))
    zero = [torch.zeros_like(a) for a in A]
    return Hypergradient(gradient, gradient, zero, 1, float(loss.detach()))


def second_order(
    F: Loss, ahead: LookAhead, A: Sequence[Tensor], radius: float = 0.01
) -> Hypergradient:
    """(4), whose mixed derivative is the difference quotient (5) of DARTS:

    [d2 L_tr / dA dW] u ~ (grad_A L_tr(A, W + eps u) - grad_A L_tr(A, W - eps u)) / (2 eps)

    radius: eps |u|, 0.01 in DARTS. `Call` lets every loss see the same draws, and puts W back."""
    W, A, xi = list(ahead.W), list(A), ahead.xi
    with Call(W, A, FiniteDifference()) as call:
        here = call.base  # W

        def gradient(loss: Loss, x: list[Tensor]) -> list[Tensor]:
            return call.vector(call.gradient(loss, x), x)

        slope = [g + d for g, d in zip(gradient(ahead.L_tr, W), ahead.drift)]
        shift_(W, here, slope, -xi)  # W' = W - xi (grad L_tr + mu m + wd W)
        both = gradient(F, [*A, *W])  # at W'
        value, partial, u = call.value, both[: len(A)], both[len(A) :]
        eps = vectors.probe_step(u, radius)  # radius / |u|; 0 where u = 0
        mixed = [torch.zeros_like(a) for a in A]
        if eps:
            freeze(W)
            shift_(W, here, u, eps)
            above = gradient(ahead.L_tr, A)
            shift_(W, here, u, -eps)
            below = gradient(ahead.L_tr, A)
            mixed = [(a - b) / (2 * eps) for a, b in zip(above, below)]
        implicit = [-xi * x for x in mixed]
        grads = [p + i for p, i in zip(partial, implicit)]
        check_finite("gradient of A", grads)
        return Hypergradient(grads, partial, implicit, call.gradient_evaluations, value)


def architecture_losses(
    f: Supernet, gan: GAN | None, views: Views, t: int, L_tr: Loss
) -> tuple[Loss, LookAhead, Level | None]:
    """F of step t and the levels below it, as `architecture_gradient` takes them.

    All that is random is drawn here, or in each call from a stream that the call begins anew: both
    sides of a difference quotient see the same z, y and crops."""
    c = views.config
    L_syn, J = (None, None) if gan is None else generated_losses(f, gan, views, t)
    lam = 0.0 if gan is None else c.lam
    L_val = real_loss(f, *views.held_out(t)) if lam < 1 else None
    ahead = LookAhead(L_tr, f.W, 0.0, [])
    if c.order == 2:
        xi, exact = f.opt_W.param_groups[0]["lr"], c.estimator == "exact"
        ahead = LookAhead(L_tr, f.W, xi, f.drift(c.weight_decay), exact)
    generator = None
    if gan is not None and J is not None:
        how = OneStep() if c.estimator == "exact" else FiniteDifference()
        generator = Level(J, list(gan.G.parameters()), c.gan_lr, how)
    return architecture_loss(lam, L_syn, L_val), ahead, generator


def architecture_loss(lam: float, L_syn: Loss | None, L_val: Loss | None) -> Loss:
    """F of (3). A part of weight 0 is never evaluated, so that lam = 0 is DARTS to the bit."""
    if L_syn is None or lam == 0:
        assert L_val is not None
        return L_val
    if L_val is None or lam == 1:
        return L_syn
    return lambda: lam * L_syn() + (1 - lam) * L_val()


def real_loss(f: Supernet, x: Tensor, y: Tensor) -> Loss:
    """L_tr or L_val on one batch."""
    return lambda: cross_entropy(f(x), y)


def generated_losses(f: Supernet, gan: GAN, views: Views, t: int) -> tuple[Loss, Loss | None]:
    """L_syn of step t; for `adversarial`, whose F reaches theta, also J = V_G - eta R."""
    c = views.config
    if c.job == "adversarial":
        z, y = gan.draw(views.size, "architecture", t)

        def logits() -> Tensor:
            return f(views.T(gan.G(z, y), "crops", t))

        def J() -> Tensor:
            return gan.loss_G(gan.G(z, y), y) - c.eta * weakness(logits(), y)

        return lambda: synthesized_loss(logits(), y), J
    omega = class_weights(f, views, t) if c.job == "weighted" else None
    x, y = views.generated(gan, t)
    return lambda: synthesized_loss(f(x), y, omega), None


def synthesized_loss(logits: Tensor, y: Tensor, omega: Tensor | None = None) -> Tensor:
    """L_syn = E[omega_y CE(f(T(G(z, y))), y)]; logits (n, C), y (n,), omega (C,) or None."""
    if omega is None:
        return cross_entropy(logits, y)
    return (omega[y] * cross_entropy(logits, y, reduction="none")).mean()


def weakness(logits: Tensor, y: Tensor) -> Tensor:
    """R = E min(CE, tau), tau = log C: the cap keeps a generator that hunts in its class."""
    return cross_entropy(logits, y, reduction="none").clamp(max=math.log(logits.shape[1])).mean()


def architecture_step(
    gradient: Sequence[Tensor], A: Sequence[Tensor], optimizer: Optimizer, clip: float = 0.0
) -> None:
    """One Adam step on A; clip: largest norm of the gradient, 0: any."""
    if clip:
        shorten = min(1.0, clip / (vectors.norm(gradient) + 1e-6))
        gradient = [g * shorten for g in gradient]
    for a, g in zip(A, gradient):
        a.grad = g
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


# --- level 2: the generator -----------------------------------------------------------------------


def generator_step(
    gan: GAN, views: Views, eta_R: Callable[[Tensor, Tensor], Tensor] | None = None
) -> dict[str, float]:
    """(2): phi climbs V, theta descends V_G, or V_G - eta R for `adversarial`.

    V = -E relu(1 - H(x, y)) - E relu(1 + H(G(z, y), y)) and V_G = -E H(G(z, y), y); the option
    `dcgan` has another V, which phi climbs five times."""
    images = views.photographs(gan.steps)
    real, y, n = views.problem.signed(images.pixels), images.labels, len(images)
    for k in range(gan.critic_steps):
        stream = gan.noise("gan", gan.steps, k)
        z, y_fake = gan.draw(n, "gan", gan.steps, k)
        with torch.no_grad():
            fake = gan.G(z, y_fake)
        both = gan.shifted(torch.cat([real, fake]), stream)
        loss_H = gan.loss_H(both[:n], y, both[n:], y_fake, stream)
        gan.opt_H.zero_grad(set_to_none=True)
        loss_H.backward()
        gan.opt_H.step()
    z, y_fake = gan.draw(n, "gan", gan.steps, "G")
    fake = gan.G(z, y_fake)
    loss_G = gan.loss_G(gan.shifted(fake, gan.noise("gan", gan.steps, "G")), y_fake)
    if eta_R is not None:
        loss_G = loss_G - eta_R(fake, y_fake)
    theta = list(gan.G.parameters())
    for p, g in zip(theta, torch.autograd.grad(loss_G, theta)):  # phi, W and A get no gradient
        p.grad = g
    gan.opt_G.step()
    gan.opt_G.zero_grad(set_to_none=True)
    gan.follow()
    return {"loss_D": float(loss_H.detach()), "loss_G": float(loss_G.detach())}


def hunt(f: Supernet, gan: GAN, views: Views) -> Callable[[Tensor, Tensor], Tensor] | None:
    """eta R of generated images (n, c, h, w) with labels (n,), for `adversarial`."""
    if views.config.job != "adversarial":
        return None
    eta, step = views.config.eta, gan.steps
    return lambda fake, y: eta * weakness(f(views.T(fake, "gan view", step)), y)


# --- level 1: the weights -------------------------------------------------------------------------


def weight_step(loss: Tensor, W: Sequence[Tensor], optimizer: Optimizer) -> float:
    """(1): one SGD step on W; A has no part in it, neither in the gradient nor in its norm."""
    for p, g in zip(W, torch.autograd.grad(loss, list(W))):
        p.grad = g
    mean_gradients(W)  # over processes, before the norm is taken
    torch.nn.utils.clip_grad_norm_(list(W), CLIP)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return float(loss.detach())


# --- option `weighted` ----------------------------------------------------------------------------


@torch.no_grad()
def class_weights(f: Supernet, views: Views, t: int) -> Tensor:
    """(7): omega (C,) after the losses on a batch of D_val, the whole one on every process."""
    with single():
        x, y = views.real(views.of_architecture, "omega batches", t)
        weighted.follow(f.class_losses, f(x), y)
    return weighted.omega(f.class_losses).to(x.device)
