"""What the official code does that the paper does not say; rows are those of the README's table of
differences. A student may skip this file.

`hypergrad: official` is rows 6, 7 and 8 together. Other accidents are names in `official: [...]`:

    attached_scores   row 1: T's input is not detached, so level 1 also trains E to lower its own
                      loss weights
    index_split       row 5: levels are cut by index, not drawn (`data.load`)
    finetune_std      row 14: finetuning divides by other standard deviations than pretraining
    best_epoch        row 12: the best epoch on the test set is reported beside the last one
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import grad

from shared import vectors
from shared.processes import all_mean
from shared.vectors import Vector

from .method import Point, weighted_loss, weights
from .networks import Networks, rank

FINETUNE_STD = (0.2023, 0.1994, 0.2010)


def attached_scores(nets: Networks, x: Tensor) -> Tensor:
    """s (B, N), through which the gradient of level 1 reaches E."""
    return nets.T(nets.E.embed(x))


def look(best: dict[str, Any], classes: Tensor, labels: Tensor, last: bool) -> None:
    """Take in the predictions of one batch of test images; after the last, keep the better epoch.

    best: `prediction` (n,) of the best epoch, its accuracy `right`, the epoch under way `now`."""
    best.setdefault("now", []).extend(classes.tolist())
    if last:
        right = (torch.tensor(best["now"]) == labels.cpu()).float().mean().item()
        if right > best.get("right", -1.0):
            best |= {"right": right, "prediction": best["now"]}
        best["now"] = []


def hypergradient(nets: Networks, at: Point, radius: float) -> Vector:
    """The two paths (T <- E and T <- E <- C) walked apart: four reconstructions with gradient.

    The head's dropout is on and draws anew in each evaluation (row 7); T and the masks are
    evaluated again on the perturbed embedding (row 8)."""
    E, C, T = (list(part.parameters()) for part in (nets.E, nets.C, nets.T))
    K = at.mask.keep.shape[1]

    def slope_of_E() -> Vector:
        return list(grad(nets.head_loss(nets.features(at.x2), at.y2), E))

    def slope_of_T() -> Vector:
        with torch.no_grad():
            e = nets.E.embed(at.x)
        s = nets.T(e)
        mask = rank(s, K)
        with torch.no_grad():
            l = nets.errors(at.x, mask)  # noqa: E741
        return list(grad(weighted_loss(l, mask.m, weights(s, mask.m, nets.normalise_scores)), T))

    training = nets.C.training
    nets.C.train()
    try:
        flat = all_mean(grad(nets.head_loss(nets.features(at.xv), at.yv), E + C))
        paths = [(flat[: len(E)], -1.0)]
        if at.head_rate:
            back = all_mean(_difference(C, flat[len(E) :], slope_of_E, radius))
            paths.append((back, at.head_rate))
        total = vectors.zeros_like(T)
        for v, factor in paths:
            vectors.add_(total, _difference(E, v, slope_of_T, radius), factor)
        return total
    finally:
        nets.C.train(training)


def _difference(
    theta: Sequence[Tensor], d: Vector, slope: Callable[[], Vector], radius: float
) -> Vector:
    """(slope(theta + eps d) - slope(theta - eps d)) / (2 eps).

    Random numbers go on between the two, as in the official code."""
    eps = vectors.probe_step(d, radius)
    if eps == 0.0:
        return vectors.zeros_like(slope())
    base = vectors.clone(theta)
    try:
        vectors.shift_(theta, base, d, eps)
        plus = slope()
        vectors.shift_(theta, base, d, -eps)
        return [(a - b) / (2 * eps) for a, b in zip(plus, slope())]
    finally:
        vectors.copy_(theta, base)
