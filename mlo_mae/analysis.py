"""Measurements on a run: the hypergradient beside the exact one, the descent test, the planted signal, curves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from shared import runs, vectors
from shared.processes import single
from shared.vectors import Vector

from .data import SHOWN, Problem, digit_patches
from .masking import Mask, random_scores, rank
from .method import Networks, Point, alignment, exact, validation_direction

if TYPE_CHECKING:
    from .pretrain import Pretraining

CHECKED = 16  # images of each batch for the double backward pass: its memory grows with the batch


def compare_with_exact(
    estimator: Callable[..., Vector], nets: Networks, at: Point, config: Any
) -> dict[str, float]:
    """Cosine and ratio of norms of an estimator to double backward, on the first images of the same batches."""
    b = slice(0, CHECKED)
    mask = Mask(at.mask.keep[b], at.mask.restore[b], at.mask.m[b])
    small = Point(at.x[b], at.e[b], mask, at.x2[b], at.y2[b], at.xv[b], at.yv[b])
    with single():  # each of several processes compares on its own images
        ours = estimator(nets, small, config.head_path, config.lr_head, config.radius)
        true = exact(nets, small, config.head_path, config.lr_head, config.radius)
    return {
        "cosine": vectors.cosine(ours, true),
        "norm_ratio": vectors.norm(ours) / max(vectors.norm(true), 1e-30),
    }


# ------------------------------------------------------------------------------------------------------- descent test
def trial_cycles(cycles: int, trials: int) -> set[int]:
    """Cycles spread evenly over training."""
    return {int((t + 0.5) * cycles / trials) for t in range(trials)} if trials else set()


def descent_trial(p: Pretraining, cycle: int, at: Point, g: Vector, start: float) -> list[float]:
    """Validation loss after running the cycle's inner steps again, from the same state and on the same batches, with T moved.

    -> [L3 unmoved, along -g_T, along a random direction, along -g_T and random with the masks held as they were]. Both moves
    have norm `descent_step`. With masks held, T acts through the weights alone, which is all that g_T knows of.
    """
    c = p.config
    draw = runs.stream(c.seed, "descent", cycle)
    random = [torch.randn(x.shape, generator=draw).to(x) for x in g]
    now, counts, held, memory = p.snapshot(), dict(p.counts), list(p.replayed), replace(p.memory)
    found = [start]
    for masks in (None, held):
        for direction in (g, random):
            p.restore(p.before)
            vectors.add_(
                p.parameters("T"), direction, -c.descent_step / max(vectors.norm(direction), 1e-30)
            )
            for k in range(c.k1):
                p.level1(cycle * c.k1 + k, held=masks[k] if masks else None)
            for k in range(cycle * c.k2, (cycle + 1) * c.k2):
                p.level2(k)
            p.nets.C.eval()
            with torch.no_grad():
                found.append(p.nets.head_loss(p.nets.E.features(at.xv, c.pool), at.yv).item())
    p.restore(now)
    p.counts, p.memory = counts, memory
    return found


# ------------------------------------------------------------------------------------------------------ planted signal
def planted(p: Pretraining, problem: Problem) -> dict[str, np.ndarray]:
    """Per test image, over the 4 digit patches (quadrants of 2 x 2 patches, say) and over the others: how often masked, mean
    score, and the mean a_j of the masked ones under uniformly random masks, which do not depend on what T prefers."""
    E = p.nets.E
    x = problem.test.batch(np.arange(len(problem.test)), SHOWN)
    inside = torch.from_numpy(digit_patches(problem.quadrant, round(E.N**0.5))).to(x.device)
    s, m = p.masks_of(x)
    found = {"masked": m, "score": s}
    if p.nets.C is not None and p.nets.T is not None:
        p.nets.C.eval()
        xv = problem.train.batch(problem.outer, SHOWN)
        x2 = problem.train.batch(problem.inner, SHOWN)
        y = problem.train.labels
        at = Point(x, x, rank(s, p.K), x2, y[problem.inner], xv, y[problem.outer])
        v = validation_direction(p.nets, at, p.config.head_path, p.config.lr_head)
        mask = rank(
            random_scores(len(x), E.N, runs.stream(p.config.seed, "planted masks")).to(x.device),
            p.K,
        )
        found["a"] = alignment(p.nets, x, mask, v, p.config.radius)
        m = mask.m
    rows = {}
    for name, value in found.items():
        used = m if name == "a" else torch.ones_like(value)
        for side, where in (("digit", inside), ("other", ~inside)):
            chosen = used * where
            rows[f"{name}_{side}"] = (
                ((value * chosen).sum(1) / chosen.sum(1).clamp(min=1)).cpu().numpy()
            )
    return rows


# -------------------------------------------------------------------------------------------------------------- probes
@torch.no_grad()
def features(p: Any, images: Any, rows: np.ndarray, pool: str, batch: int = 512) -> Tensor:
    """(n, d) of images shown whole: masking is for pretraining alone."""
    return torch.cat(
        [
            p.features(images.batch(rows[k : k + batch], SHOWN), pool).float()
            for k in range(0, len(rows), batch)
        ]
    )


def standardised(train: Tensor, *others: Tensor) -> list[Tensor]:
    """Zero mean and unit variance of each feature over the training rows (a BatchNorm without affine part), in float64."""
    mean, std = train.double().mean(0), train.double().std(0).clamp(min=1e-6)
    return [(x.double() - mean) / std for x in (train, *others)]


def ridge_accuracy(train: Tensor, y: Tensor, test: Tensor, y_test: Tensor, classes: int) -> float:
    """Least squares on one-hot labels: a quick look at the features during training."""
    train, test = standardised(train, test)
    ones = torch.ones(len(train), 1, dtype=train.dtype, device=train.device)
    A = torch.cat([train, ones], 1)
    W = torch.linalg.solve(
        A.T @ A + 1e-2 * len(A) * torch.eye(A.shape[1]).to(A), A.T @ F.one_hot(y, classes).to(A)
    )
    return ((test @ W[:-1] + W[-1]).argmax(1) == y_test).double().mean().item()


def softmax_regression(
    train: Tensor, y: Tensor, tests: list[Tensor], classes: int, l2: float = 1e-3
) -> list[Tensor]:
    """Predicted classes of `tests` by logistic regression on standardised features: the linear probe."""
    train, *tests = standardised(train, *tests)
    W = torch.zeros(
        train.shape[1] + 1, classes, dtype=train.dtype, device=train.device, requires_grad=True
    )
    optimizer = torch.optim.LBFGS([W], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(train @ W[:-1] + W[-1], y) + l2 * W[:-1].square().sum() / 2
        value.backward()
        return value

    optimizer.step(loss)
    return [(x @ W[:-1] + W[-1]).argmax(1) for x in tests]
