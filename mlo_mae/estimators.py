"""Other ways to g_T, for comparisons: functions of the kind of `method.hypergradient`."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad, grad
from torch.nn.attention import SDPBackend, sdpa_kernel

from shared import hypergrad
from shared.processes import all_mean
from shared.vectors import Vector

from . import method, official
from .method import Estimator, Networks, Point
from .networks import Mask


def jvp(nets: Networks, at: Point, radius: float = 0.0) -> Vector:
    """The closed form with exact a_j; radius is not used."""
    v = method.validation_direction(nets, at)
    a = alignment_jvp(nets, at.x, at.mask, v)
    return method.mask_gradient(nets, at.e, at.mask.m, a)


def alignment_jvp(nets: Networks, x: Tensor, mask: Mask, v: Vector) -> Tensor:
    """a (B, N), a_j = <grad_E l_j, v> exactly, by forward-mode differentiation."""
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), forward_ad.dual_level():
        duals = [forward_ad.make_dual(p.detach(), d) for p, d in zip(nets.E.parameters(), v)]
        moved = dict(zip((name for name, _ in nets.E.named_parameters()), duals))
        tokens = torch.func.functional_call(nets.E, moved, (x, mask.keep))
        return forward_ad.unpack_dual(nets.reconstruction(tokens, x, mask)).tangent


def fd_darts(nets: Networks, at: Point, radius: float = 1e-2) -> Vector:
    """Differences of gradients, level by level from the top, as Betty's `darts`; paths together.

    shared/hypergrad.py knows nothing of the closed form."""
    E, C, T = (list(part.parameters()) for part in (nets.E, nets.C, nets.T))
    difference = hypergrad.FiniteDifference(radius)

    def L1() -> Tensor:
        w = method.weights(nets.T(at.e), at.mask.m, nets.normalise_scores)
        return method.weighted_loss(nets.errors(at.x, at.mask), at.mask.m, w)

    def L2() -> Tensor:
        return nets.head_loss(nets.features(at.x2), at.y2)

    flat = all_mean(grad(nets.head_loss(nets.features(at.xv), at.yv), E + C))
    v, v_C = flat[: len(E)], flat[len(E) :]
    if at.head_rate:
        back = hypergrad.through_level(L2, C, E, v_C, at.head_rate, difference, unreached="zero")
        v = [a + b for a, b in zip(v, back)]
    return hypergrad.through_level(L1, E, T, v, 1.0, difference)


ESTIMATORS: dict[str, Estimator] = {
    "fd_forward": method.hypergradient,
    "jvp": jvp,
    "fd_darts": fd_darts,
    "exact": method.exact,
    "official": official.hypergradient,
}
# backward passes of one level 3: (without, with) the path through the head
EVALUATIONS = {"fd_forward": (2, 3), "jvp": (2, 3), "fd_darts": (3, 5), "exact": (4, 7),
               "official": (3, 7)}  # fmt: skip
