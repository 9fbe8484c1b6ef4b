"""What the official code does that the paper does not say; the numbers are rows of the README's table of differences.

`hypergrad: official` is rows 1, 7 and 8 together with both paths walked one by one, as the official engine walks them.
The other accidents are names in `official: [...]`.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.autograd import grad

from shared import vectors
from shared.runs import BadInput
from shared.vectors import Vector

from .masking import rank
from .method import Networks, Point, weighted_loss, weights

ACCIDENTS = {
    "attached_scores": "row 1: T's input is not detached, so level 1 also trains E to lower its own loss weights",
    "index_split": "row 5: levels are cut by index, not drawn",
    "finetune_std": "row 14: finetuning divides by other standard deviations than pretraining",
    "best_epoch": "row 12: the best epoch on the test set is reported beside the last one",
}
FINETUNE_STD = (0.2023, 0.1994, 0.2010)


def check_accidents(names: tuple[str, ...]) -> None:
    for name in names:
        if name not in ACCIDENTS:
            raise BadInput(f"official: {name!r} is unknown; choose from {', '.join(ACCIDENTS)}")


def hypergradient(
    nets: Networks, at: Point, head_path: str, lr_head: float, radius: float
) -> Vector:
    """Rows 7 and 8: the head's dropout is on and draws anew in each evaluation; T and the masks are evaluated again on the
    perturbed embedding. The two paths (T <- E and T <- E <- C) are walked apart: four reconstructions with gradient."""
    E, C = list(nets.E.parameters()), list(nets.C.parameters())
    K = at.mask.keep.shape[1]
    training = nets.C.training
    nets.C.train()
    try:
        flat = nets.reduce(
            list(grad(nets.head_loss(nets.E.features(at.xv, nets.pool), at.yv), E + C))
        )
        paths = [(flat[: len(E)], -1.0)]
        if head_path != "none":
            rate = lr_head if head_path == "unrolled" else 1.0

            def slope_of_E() -> list[Tensor]:
                return list(grad(nets.head_loss(nets.E.features(at.x2, nets.pool), at.y2), E))

            paths.append((nets.reduce(_difference(C, flat[len(E) :], slope_of_E, radius)), rate))

        def slope_of_T() -> list[Tensor]:
            with torch.no_grad():
                e = nets.E.embed(at.x)
            s = nets.T(e)
            mask = rank(s, K)
            with torch.no_grad():
                l = nets.errors(at.x, mask)  # noqa: E741
            w = weights(s, mask.m, nets.normalise_scores)
            return list(grad(weighted_loss(l, mask.m, w), list(nets.T.parameters())))

        total = [torch.zeros_like(p) for p in nets.T.parameters()]
        for v, sign in paths:
            vectors.add_(total, _difference(E, v, slope_of_T, radius), sign)
        return total
    finally:
        nets.C.train(training)


def _difference(theta: Vector, d: Vector, slope, radius: float) -> Vector:
    """(slope(theta + eps d) - slope(theta - eps d)) / (2 eps); random numbers go on between the two, as they did."""
    eps = vectors.probe_step(d, radius)
    if eps == 0.0:
        return [torch.zeros_like(g) for g in slope()]
    base = vectors.clone(theta)
    try:
        vectors.shift_(theta, base, d, eps)
        plus = slope()
        vectors.shift_(theta, base, d, -eps)
        return [(a - b) / (2 * eps) for a, b in zip(plus, slope())]
    finally:
        vectors.copy_(theta, base)


def split_by_index(n: int, val_share: float) -> list[np.ndarray]:
    """Row 5: the first part of the training images for levels 1 and 2, the last for level 3."""
    cut = n - round(val_share * n)
    return [np.arange(cut), np.arange(cut, n)]
