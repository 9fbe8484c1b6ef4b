"""MLO-MAE: three levels, and the gradient of the third for the masking network.

    level 1  E, D   L1 = sum_j m_j s_j l_j / sum_j m_j    s = T(embed(x)), m masks the N - K largest s, l_j error of patch j
    level 2  C      L2 = CE(C(E(x2)_CLS), y2)             whole images; E constant
    level 3  T      L3 = CE(C*(E*(T)(xv)_CLS), yv)        T reaches L3 only through E: through which patches E learned from

Choosing patches (a ranking) has no gradient; the weight s_j has. With every inverse Hessian replaced by the identity:

    v   = dL3/dE - [d2 L2 / dE dC] dL3/dC                 what validation wants of E, with the head's reaction
    g_T = -[d2 L1 / dT dE] v
        = -(1 / sum m) sum_j m_j a_j ds_j/dT,             a_j = <grad_E l_j, v>

because L1 is linear in s. So: raise the score of a masked patch if learning to reconstruct it also lowers the validation
loss (a_j > 0), lower it, in the end unmask it, otherwise. All a_j cost two forward passes without gradient; then one backward
pass goes through the small network T alone. Nothing here writes to `.grad`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad, grad
from torch.nn.attention import SDPBackend, sdpa_kernel

from shared import hypergrad, vectors
from shared.vectors import Vector

from .mae import Decoder, Encoder, patch_errors
from .masking import Mask

HEAD_PATHS = ("identity", "unrolled", "none")


@dataclass
class Networks:
    """E encoder, D decoder, T masking network (or None), C head (or None); norm_pix: targets normalised per patch.

    reduce averages a vector over processes that hold slices of the batches: before its norm is taken, and before it is a
    direction for the others' slices.
    """

    E: Encoder
    D: Decoder
    T: nn.Module | None = None
    C: nn.Module | None = None
    norm_pix: bool = True
    pool: str = "cls"
    normalise_scores: bool = False
    reduce: Callable[[Vector], Vector] = list

    def errors(self, x: Tensor, mask: Mask) -> Tensor:
        """l (B, N)."""
        return patch_errors(self.E, self.D, x, mask.keep, mask.restore, self.norm_pix, self.E.p)

    def head_loss(self, z: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(self.C(z).to(z.dtype), y)


@dataclass
class Point:
    """Where level 3 is differentiated: after the inner updates, on the last batch of each lower level.

    e (B, N, d) and mask are computed once, at the unperturbed E. z2: features of x2 with their graph, None if the path
    through the head is left out.
    """

    x: Tensor
    e: Tensor
    mask: Mask
    x2: Tensor
    y2: Tensor
    xv: Tensor
    yv: Tensor
    z2: Tensor | None = None


# ---------------------------------------------------------------------------------------------------------- the levels
def weights(s: Tensor, m: Tensor, normalise: bool = False) -> Tensor:
    """The weight of each patch in L1: its score; or its score over the batch's mean masked score, gradient included."""
    return s * (m.sum() / (m * s).sum()) if normalise else s


def weighted_loss(l: Tensor, m: Tensor, w: Tensor | float = 1.0) -> Tensor:  # noqa: E741  (the paper's letter)
    """L1: mean over the masked patches of weight times error. w = 1 is the plain MAE's loss."""
    return (m * w * l).sum() / m.sum()


# ----------------------------------------------------------------------------------------- v: what validation wants of E
def validation_direction(
    nets: Networks, at: Point, head_path: str = "identity", lr_head: float = 1.0
) -> Vector:
    """v, shaped like E's parameters; one backward pass through E carries both paths.

    head_path: `identity`, the head's inverse Hessian is 1, as in the official code; `unrolled`, times the head's learning
    rate, as one step of the head would; `none`, the head counts as constant.
    """
    E, C = list(nets.E.parameters()), list(nets.C.parameters())
    z = nets.E.features(at.xv, nets.pool)
    dz, *v_C = grad(nets.head_loss(z, at.yv), [z, *C])
    outputs, arriving = [z], [dz]
    if head_path != "none":
        z2 = at.z2 if at.z2 is not None else nets.E.features(at.x2, nets.pool)
        rate = lr_head if head_path == "unrolled" else 1.0
        outputs.append(z2)
        arriving.append(-rate * head_reaction(nets, z2, at.y2, nets.reduce(v_C)))
    return nets.reduce(list(grad(outputs, E, arriving)))


def head_reaction(nets: Networks, z2: Tensor, y2: Tensor, v_C: Vector) -> Tensor:
    """d/dz <grad_C L2(C; z), v_C> (B, d): exact, because between feature and loss there are one LayerNorm and one linear map."""
    z = z2.detach().requires_grad_()
    C = list(nets.C.parameters())
    slope = grad(nets.head_loss(z, y2), C, create_graph=True)
    return grad(sum((g * v).sum() for g, v in zip(slope, v_C)), z)[0]


# ------------------------------------------------------------------------------- a_j: does patch j help? two forward passes
@torch.no_grad()
def alignment(nets: Networks, x: Tensor, mask: Mask, v: Vector, radius: float = 1e-2) -> Tensor:
    """a (B, N), a_j = <grad_E l_j, v> by a central difference of step radius / |v|; E is put back bit for bit.

    Error O(step^2). Keep x, mask and T's input out of the probes: only E may move between them.
    """
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


def alignment_jvp(nets: Networks, x: Tensor, mask: Mask, v: Vector) -> Tensor:
    """a (B, N) exactly, by forward-mode differentiation."""
    names = [name for name, _ in nets.E.named_parameters()]
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), forward_ad.dual_level():
        moved = [forward_ad.make_dual(p.detach(), d) for p, d in zip(nets.E.parameters(), v)]

        def E(images: Tensor, keep: Tensor) -> Tensor:
            return torch.func.functional_call(nets.E, dict(zip(names, moved)), (images, keep))

        l = patch_errors(E, nets.D, x, mask.keep, mask.restore, nets.norm_pix, nets.E.p)  # noqa: E741
        return forward_ad.unpack_dual(l).tangent


def mask_gradient(nets: Networks, e: Tensor, m: Tensor, a: Tensor) -> Vector:
    """g_T = -d/dT [sum_j m_j a_j w_j / sum_j m_j], a constant."""
    w = weights(nets.T(e), m, nets.normalise_scores)
    return list(grad(-weighted_loss(a, m, w), list(nets.T.parameters())))


# --------------------------------------------------------------------------------------------------------- g_T, five ways
def fd_forward(nets: Networks, at: Point, head_path: str, lr_head: float, radius: float) -> Vector:
    """The closed form. Per cycle 1 backward through E for two batches, 2 forward reconstructions, 1 backward through T."""
    v = validation_direction(nets, at, head_path, lr_head)
    return mask_gradient(nets, at.e, at.mask.m, alignment(nets, at.x, at.mask, v, radius))


def jvp(nets: Networks, at: Point, head_path: str, lr_head: float, radius: float) -> Vector:
    """The closed form with exact a_j; radius is not used."""
    v = validation_direction(nets, at, head_path, lr_head)
    return mask_gradient(nets, at.e, at.mask.m, alignment_jvp(nets, at.x, at.mask, v))


def generic(method: hypergrad.Method) -> Callable[..., Vector]:
    """The same gradient from shared/hypergrad.py, which knows nothing of the closed form: level by level, from the top."""

    def estimate(
        nets: Networks, at: Point, head_path: str, lr_head: float, radius: float
    ) -> Vector:
        E, C, T = (list(n.parameters()) for n in (nets.E, nets.C, nets.T))
        how = (
            hypergrad.FiniteDifference(radius)
            if isinstance(method, hypergrad.FiniteDifference)
            else method
        )

        def level1() -> Tensor:
            w = weights(nets.T(at.e), at.mask.m, nets.normalise_scores)
            return weighted_loss(nets.errors(at.x, at.mask), at.mask.m, w)

        def level2() -> Tensor:
            return nets.head_loss(nets.E.features(at.x2, nets.pool), at.y2)

        outer = nets.head_loss(nets.E.features(at.xv, nets.pool), at.yv)
        flat = nets.reduce(list(grad(outer, E + C)))
        v, v_C = list(flat[: len(E)]), list(flat[len(E) :])
        if head_path != "none":
            rate = lr_head if head_path == "unrolled" else 1.0
            back = hypergrad.through_level(level2, C, E, v_C, rate, how, unreached="zero")
            v = [a + b for a, b in zip(v, back)]
        return hypergrad.through_level(level1, E, T, v, 1.0, how)

    return estimate


def exact(nets: Networks, at: Point, head_path: str, lr_head: float, radius: float) -> Vector:
    """Double backward through every level; for tests and self checks: it needs the plain attention and much memory."""
    with sdpa_kernel(SDPBackend.MATH):
        return generic(hypergrad.OneStep())(nets, at, head_path, lr_head, radius)


ESTIMATORS: dict[str, Callable[..., Vector]] = {
    "fd_forward": fd_forward,
    "fd_darts": generic(hypergrad.FiniteDifference()),
    "jvp": jvp,
    "exact": exact,
}
