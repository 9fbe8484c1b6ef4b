"""MLO-MAE: three levels, and the gradient of the third for the masking network.

    level 1  E, D   L1 = sum_j m_j s_j l_j / sum_j m_j    s = T(embed(x)); m masks the N - K largest
                                                          s; l_j error of patch j; s, m constant
    level 2  C      L2 = CE(C(E(x2)), y2)                 whole images; E constant
    level 3  T      L3 = CE(C*(E*(T)(xv)), yv)            T reaches L3 only via what E learned

E: encoder, D: decoder, C: head, T: masking network; x: images of level 1 (by default all but
D_val, with or without labels), x2: of D_tr, xv: of D_val; K of the N patches stay visible. `cycle`:
k1 steps of E and D, k2 of C, then one of T, down g_T. Choosing patches (a ranking) has no gradient,
the weight s_j has. With one step of E and one of C, of rates lr_E and lr_C, dL3/dT is lr_E g_T
(docs/papers/mlo_mae.md, section 3.3)

    v   = dL3/dE - lr_C [d2 L2 / dE dC] dL3/dC            what validation wants of E
    g_T = -[d2 L1 / dT dE] v
        = -(1 / sum m) sum_j m_j a_j ds_j/dT,             a_j = <grad_E l_j, v>

because L1 is linear in s. So: raise the score of a masked patch if learning to reconstruct it also
lowers the validation loss (a_j > 0), lower it, in the end unmask it, otherwise. All a_j cost two
forward passes without gradient; then one backward pass goes through T alone, two linear maps.

The official code has 1 in place of lr_C (`head_path: identity`). That makes the second term of v,
which points away from the first, several times longer than the first, and a step along -g_T lowers
L3 less often (README, "What was found").
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd import grad
from torch.nn.attention import SDPBackend, sdpa_kernel

from shared import runs, vectors
from shared.processes import all_mean
from shared.vectors import Vector

from . import baselines
from .config import Config
from .data import Batch
from .networks import Mask, Networks, autocast, rank, scored, visible

# --- the alternation (docs/papers/mlo_mae.md, section 3.4) ----------------------------------------


def cycle(L: Levels, t: int, estimate: Estimator | None) -> tuple[dict[str, float], First]:
    """Cycle t: k1 steps of E and D, k2 of C, one of T. Returns losses and |g_T|; the last masks.

    estimate: `hypergradient`, or another way to g_T; None for arms without levels 2 and 3."""
    c, nets = L.config, L.nets

    # level 1: E and D learn to fill in what is masked, most where T's score is high
    for i in range(t * c.k1, (t + 1) * c.k1):
        x, _, ids = L.batch["first"](i)
        s = L.scores(nets, x) if scored(c) else None
        mask = choose(c, s, x, nets.E.N, i)
        with autocast(c, x.device):
            tokens = nets.E(x, mask.keep)
            l = nets.reconstruction(tokens, x, mask)  # noqa: E741  (the paper's letter)
        w = 1.0 if s is None or c.weight == "one" else weights(s, mask.m, c.normalise_scores)
        L1 = weighted_loss(l, mask.m, w) + baselines.extra(L, tokens, i)
        L.descend("first", L1, i, ids)
    last = First(x, s, mask)
    if estimate is None:
        return {"loss": L1.item()}, last

    # level 2: the head C learns the classes of whole images, from features of E as it now is
    nets.C.train()
    for j in range(t * c.k2, (t + 1) * c.k2):
        x2, y2, ids = L.batch["second"](j)
        with torch.set_grad_enabled(c.keep_graph):
            z2 = nets.features(x2)
        runs.seed_global(c.seed, "dropout", j)
        L2 = nets.head_loss(z2.detach(), y2)
        L.descend("second", L2, j, ids)

    # level 3: T moves so that what E and C learn serves validation images; no dropout
    nets.C.eval()
    xv, yv, ids = L.batch["third"](t)
    with torch.no_grad():
        e = nets.E.embed(x)
        mask = choose(c, nets.T(e), x, nets.E.N, i)
    at = Point(
        x, e, mask, x2, y2, xv, yv, head_rate(c, c.head_path, j), z2 if c.keep_graph else None
    )
    g_T = all_mean(estimate(nets, at, c.radius))
    size = vectors.norm(g_T)
    L.follow("third", g_T, size, t, ids)
    return {"loss": L1.item(), "head_loss": L2.item(), "hypergradient": size}, last


def head_rate(c: Config, path: str, j: int) -> float:
    """What stands for the inverse Hessian of the head in step j: its rate, 1, or 0: no path."""
    rate = c.lr_head * runs.schedule("cosine", j, c.steps)
    return {"unrolled": rate, "identity": 1.0, "none": 0.0}[path]


@dataclass
class Levels:
    """What a cycle works on: networks, and for each level an optimiser and batches."""

    config: Config
    nets: Networks
    optimizers: dict[str, torch.optim.AdamW]  # first: of E and D; second: of C; third: of T
    batch: Mapping[str, Callable[[int], Batch]]  # number of a step -> its batch
    scores: Callable[[Networks, Tensor], Tensor]
    finite: Callable[[Tensor | float, str, int, np.ndarray | None], None]  # refuses what is not

    def descend(self, level: str, loss: Tensor, k: int, ids: np.ndarray) -> None:
        """Step k of a level along the gradient of its loss."""
        self.finite(loss, level, k, ids)
        groups = self.optimizers[level].param_groups
        loss.backward(inputs=[p for group in groups for p in group["params"]])
        self._advance(level, k)

    def follow(self, level: str, g: Vector, size: float, k: int, ids: np.ndarray) -> None:
        """Step k of a level along -g, of norm `size`."""
        self.finite(size, level, k, ids)
        groups = self.optimizers[level].param_groups
        for p, d in zip((p for group in groups for p in group["params"]), g):
            p.grad = d
        self._advance(level, k)

    def _advance(self, level: str, k: int) -> None:
        """Step k of a level along `.grad`.

        All rates fall by a cosine over the number of level-1 steps: those of C and T, which step
        more rarely, end well above 0, as in the official code."""
        optimizer = self.optimizers[level]
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * runs.schedule("cosine", k, self.config.steps)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def parts(self) -> dict[str, Any]:
        """All that a cycle changes."""
        return {**self.nets.parts(), **self.optimizers}


@dataclass
class First:
    """The last batch of level 1: images (B, C, H, W), scores (B, N; None without T), masks."""

    x: Tensor
    s: Tensor | None
    mask: Mask


@dataclass
class Point:
    """Where level 3 is differentiated: after the inner updates, on the last batches of the levels.

    e (B, N, d) and mask are those of x, computed once, at the unperturbed E. head_rate: what the
    function of that name gives. z2 (B, d): features of x2 with their graph; None: to compute."""

    x: Tensor
    e: Tensor
    mask: Mask
    x2: Tensor
    y2: Tensor
    xv: Tensor
    yv: Tensor
    head_rate: float = 1.0
    z2: Tensor | None = None


Estimator = Callable[[Networks, Point, float], Vector]  # networks, point, radius -> g_T


# --- scores, masks, L1 ----------------------------------------------------------------------------


@torch.no_grad()
def scores(nets: Networks, x: Tensor) -> Tensor:
    """s (B, N), a constant for E."""
    return nets.T(nets.E.embed(x))


def choose(c: Config, s: Tensor | None, x: Tensor, N: int, i: int) -> Mask:
    """Masks of level-1 step i: the N - K highest scores, or random, the same in all arms."""
    K, draw = visible(N, c.mask_ratio), runs.stream(c.seed, "mask", i)
    if s is None or c.mask == "random":
        return rank(torch.rand(len(x), N, generator=draw).to(x.device), K)
    if c.score_noise == "gumbel":
        s = baselines.gumbel(s, draw)
    return rank(baselines.mixed(s, c.mix_random, draw) if c.mix_random else s, K)


def weights(s: Tensor, m: Tensor, normalise: bool = False) -> Tensor:
    """Weight of each patch in L1: its score; normalised, over the batch's mean masked score."""
    return s * (m.sum() / (m * s).sum()) if normalise else s


def weighted_loss(l: Tensor, m: Tensor, w: Tensor | float = 1.0) -> Tensor:  # noqa: E741
    """L1: mean over the masked patches of weight times error. w = 1 is the plain MAE's loss."""
    return (m * w * l).sum() / m.sum()


# --- v: what validation wants of E ----------------------------------------------------------------


def validation_direction(nets: Networks, at: Point) -> Vector:
    """v, shaped like E's parameters.

    The graph of one batch of whole images is alive at a time, unless that of level 2 was kept."""
    E, C = list(nets.E.parameters()), list(nets.C.parameters())
    z = nets.features(at.xv)
    dz, *v_C = grad(nets.head_loss(z, at.yv), [z, *C])
    v = list(grad(z, E, dz))
    if at.head_rate:
        z2 = nets.features(at.x2) if at.z2 is None else at.z2
        reaction = head_reaction(nets, z2, at.y2, all_mean(v_C))
        vectors.add_(v, grad(z2, E, reaction), -at.head_rate)
    return all_mean(v)


def head_reaction(nets: Networks, z2: Tensor, y2: Tensor, v_C: Vector) -> Tensor:
    """d/dz <grad_C L2(C; z), v_C> (B, d).

    Exact and cheap: between feature and loss there are one LayerNorm and one linear map."""
    z = z2.detach().requires_grad_()
    slope = grad(nets.head_loss(z, y2), list(nets.C.parameters()), create_graph=True)
    return grad(slope, z, v_C)[0]


# --- a_j: does learning patch j help? -------------------------------------------------------------


@torch.no_grad()
def alignment(nets: Networks, x: Tensor, mask: Mask, v: Vector, radius: float = 1e-2) -> Tensor:
    """a (B, N), a_j = <grad_E l_j, v> by a central difference: step radius / |v|, error O(step^2).

    Only E may move between the probes, not x, mask or T's input; it is put back bit for bit."""
    theta = list(nets.E.parameters())
    step = vectors.probe_step(v, radius)
    if step == 0.0:
        return torch.zeros_like(mask.m)
    base = vectors.clone(theta)
    try:
        vectors.shift_(theta, base, v, step)
        plus = nets.errors(x, mask)
        vectors.shift_(theta, base, v, -step)
        return (plus - nets.errors(x, mask)) / (2 * step)
    finally:
        vectors.copy_(theta, base)


# --- g_T ------------------------------------------------------------------------------------------


def hypergradient(nets: Networks, at: Point, radius: float = 1e-2) -> Vector:
    """g_T, shaped like T's parameters, by the closed form."""
    v = validation_direction(nets, at)
    a = alignment(nets, at.x, at.mask, v, radius)
    return mask_gradient(nets, at.e, at.mask.m, a)


def mask_gradient(nets: Networks, e: Tensor, m: Tensor, a: Tensor) -> Vector:
    """g_T = -d/dT [sum_j m_j a_j w_j / sum_j m_j], each a_j a constant."""
    w = weights(nets.T(e), m, nets.normalise_scores)
    return list(grad(-weighted_loss(a, m, w), list(nets.T.parameters())))


def exact(nets: Networks, at: Point, radius: float = 0.0) -> Vector:
    """g_T as it is defined, by double backward and without the closed form; radius is not used.

    The yardstick of tests and self checks: it needs the plain attention and much memory."""
    E, C, T = (list(part.parameters()) for part in (nets.E, nets.C, nets.T))
    with sdpa_kernel(SDPBackend.MATH):
        flat = all_mean(grad(nets.head_loss(nets.features(at.xv), at.yv), E + C))
        v, v_C = flat[: len(E)], flat[len(E) :]
        if at.head_rate:
            slope = grad(nets.head_loss(nets.features(at.x2), at.y2), C, create_graph=True)
            back = all_mean(grad(slope, E, v_C))
            v = [a - at.head_rate * b for a, b in zip(v, back)]
        w = weights(nets.T(at.e), at.mask.m, nets.normalise_scores)
        loss = weighted_loss(nets.errors(at.x, at.mask), at.mask.m, w)
        slope = grad(loss, E, create_graph=True)
        return [-g for g in grad(slope, T, v)]
