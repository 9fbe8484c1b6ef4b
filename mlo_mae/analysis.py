"""Measurements on a run: the hypergradient beside the exact one, the descent test, what is masked,
the planted signal, probes. None of them changes what is trained."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from shared import runs, vectors
from shared.processes import single

from . import data, estimators, method
from .data import Images, Problem, chunks, labels_of
from .folders import Files, Rows
from .method import Estimator, First, Levels, Point
from .networks import Mask, Networks, rank, scored, visible

CHECKED = 16  # images of each batch for the double backward pass: its memory grows with the batch
SHOWN = 6  # test images whose masks are kept for the figures


@dataclass
class Notes:
    """What is written down during pretraining."""

    facts: dict[str, float] = field(default_factory=lambda: {"restored": 1.0})
    directions: list[list[float]] = field(default_factory=list)  # a row of `directions.trial` each
    masks: list[dict[str, Any]] = field(
        default_factory=list
    )  # step, scores, masks of `SHOWN` images


def moments(cycles: int, number: int) -> set[int]:
    """`number` of the counts 1 .. cycles, spread evenly, the last among them."""
    return {int(t) for t in np.linspace(0, cycles, number + 1)[1:]}


# --- the hypergradient ----------------------------------------------------------------------------


def compared(estimate: Estimator, facts: dict[str, float], when: str) -> Estimator:
    """`estimate`, which also notes how well it agrees with double backward, and whether every
    parameter is bit-identical afterwards."""

    def both(nets: Networks, at: Point, radius: float) -> list[Tensor]:
        parameters = [p for part in nets.parts().values() for p in part.parameters()]
        before = vectors.clone(parameters)
        facts.update({f"{k}_{when}": v for k, v in agreement(estimate, nets, at, radius).items()})
        g = estimate(nets, at, radius)
        same = all(torch.equal(p, q) for p, q in zip(parameters, before))
        facts["restored"] = min(facts["restored"], float(same))
        return g

    return both


def agreement(estimate: Estimator, nets: Networks, at: Point, radius: float) -> dict[str, float]:
    """`cosine` and `norm_ratio` to double backward, on the first images of each batch."""
    b = slice(0, CHECKED)
    mask = Mask(at.mask.keep[b], at.mask.restore[b], at.mask.m[b])
    first = (at.x[b], at.e[b], mask, at.x2[b], at.y2[b], at.xv[b], at.yv[b])
    small = Point(*first, head_rate=at.head_rate)
    with single():  # each of several processes compares on its own images
        ours, true = estimate(nets, small, radius), method.exact(nets, small)
    ratio = vectors.norm(ours) / max(vectors.norm(true), 1e-30)
    return {"cosine": vectors.cosine(ours, true), "norm_ratio": ratio}


def updates(L: Levels) -> dict[str, int]:
    """Steps that E, C and T have taken, as their optimisers count them; of descent tests, none."""
    state = {p: s for optimizer in L.optimizers.values() for p, s in optimizer.state.items()}
    return {
        name: max((int(state[p]["step"]) for p in part.parameters() if p in state), default=0)
        for name, part in L.nets.parts().items()
        if name != "D"  # steps with E
    }


def evaluations(L: Levels) -> int:
    """Backward passes so far."""
    c, steps = L.config, updates(L)
    of_T = estimators.EVALUATIONS[c.hypergrad][c.head_path != "none"] if steps["T"] else 0
    return steps["E"] + steps["C"] + of_T * steps["T"]


# --- what is masked -------------------------------------------------------------------------------


def statistics(first: First) -> dict[str, float]:
    """How T behaves on a batch: mean score, its spread, entropy and overlap of the masks."""
    if first.s is None:
        return {}
    s, m = first.s.detach().double(), first.mask.m.double()
    frequency = m.mean(0).clamp(1e-9, 1 - 1e-9)
    entropy = -(frequency * frequency.log2() + (1 - frequency) * (1 - frequency).log2()).mean()
    pairs = m @ m.T
    union = m.sum(1)[:, None] + m.sum(1)[None] - pairs
    off = ~torch.eye(len(m), dtype=torch.bool, device=m.device)
    return {
        "mean_score": s.mean().item(),
        "spread_positions": s.mean(0).std().item(),
        "spread_images": s.std(0).mean().item() if len(s) > 1 else 0.0,
        "mask_entropy": entropy.item(),  # bits per position; 0: one mask for all images
        "mask_overlap": (pairs / union)[off].mean().item() if len(s) > 1 else 1.0,
    }


@torch.no_grad()
def scores_and_masks(L: Levels, x: Tensor) -> tuple[Tensor, Tensor]:
    """(s, m), each (B, N); scores are 1/2 without T, masks random unless they are learned."""
    c, E = L.config, L.nets.E
    K = visible(E.N, c.mask_ratio)
    s = L.nets.T(E.embed(x)) if scored(c) else torch.full((len(x), E.N), 0.5, device=x.device)
    if c.mask == "learned":
        return s, rank(s, K).m
    return s, rank(torch.rand(s.shape, generator=runs.stream(c.seed, "shown")).to(s), K).m


def show(L: Levels, problem: Problem, notes: Notes, step: int) -> None:
    """Note scores and masks of a few test images."""
    s, m = scores_and_masks(L, problem.test.batch(range(SHOWN)))
    notes.masks.append({"step": step, "scores": s.cpu(), "masks": m.to(torch.uint8).cpu()})


def write_masks(path: Path, L: Levels, problem: Problem, notes: Notes) -> None:
    """For the figures: a few images with their masks over training; how each position is masked."""
    many = problem.test.batch(range(min(512, len(problem.test))))
    scores, masks = scores_and_masks(L, many)
    shown = {k: np.stack([note[k].numpy() for note in notes.masks]) for k in ("scores", "masks")}
    steps = np.array([note["step"] for note in notes.masks])
    means = {"frequency": masks.mean(0).cpu(), "mean_score": scores.mean(0).cpu()}
    runs.save_arrays(path, {"images": many[:SHOWN].cpu(), "steps": steps, **shown, **means})


def planted(L: Levels, problem: Problem) -> dict[str, np.ndarray]:
    """Per test image of `codes`, over the patches of the quadrant that is the label and over the
    others: how often masked, mean score, and the mean a_j of those that uniformly random masks
    hide, which do not depend on what T prefers."""
    c, nets, N = L.config, L.nets, L.nets.E.N
    x = problem.test.batch(range(len(problem.test)))
    inside = torch.from_numpy(data.coded_patches(round(N**0.5))).to(x.device)
    s, m = scores_and_masks(L, x)
    everywhere = torch.ones_like(s)
    values = {"masked": (m, everywhere), "score": (s, everywhere)}
    if c.hypergrad != "none":
        nets.C.eval()
        K, draw = visible(N, c.mask_ratio), runs.stream(c.seed, "planted masks")
        x2, xv = (problem.train.batch(rows) for rows in (problem.inner, problem.outer))
        y2, yv = (labels_of(problem.train, rows) for rows in (problem.inner, problem.outer))
        random = rank(torch.rand(s.shape, generator=draw).to(x.device), K)
        rate = method.head_rate(c, c.head_path, 0)
        v = method.validation_direction(nets, Point(x, x, random, x2, y2, xv, yv, head_rate=rate))
        values["a"] = (method.alignment(nets, x, random, v, c.radius), random.m)
    rows = {}
    for name, (value, used) in values.items():
        for side, where in (("code", inside), ("other", ~inside)):
            mean = (value * used * where).sum(1) / (used * where).sum(1).clamp(min=1)
            rows[f"{name}_{side}"] = mean.cpu().numpy()
    return rows


# --- probes ---------------------------------------------------------------------------------------


@torch.no_grad()
def features(nets: Networks, images: Images | Files, rows: Rows) -> Tensor:
    """(n, d) of images shown whole: masking is for pretraining alone."""
    return nets.features(images.batch(rows)).float()


def standardised(train: Tensor, *others: Tensor) -> list[Tensor]:
    """Zero mean and unit variance of each feature over the training rows, in float64."""
    mean, std = train.double().mean(0), train.double().std(0).clamp(min=1e-6)
    return [(x.double() - mean) / std for x in (train, *others)]


def curve_point(nets: Networks, problem: Problem) -> float:
    """Accuracy of least squares on features of D_tr, on validation images or else on D_val; at most
    5,000 and 2,000 images."""
    inner, (images, rows) = problem.inner[:5000], problem.judged
    judged = rows[:2000]
    train, test = (
        torch.cat([features(nets, of, part) for part in chunks(rows, 512)])
        for of, rows in ((problem.train, inner), (images, judged))
    )
    y, y_test = labels_of(problem.train, inner), labels_of(images, judged)
    return ridge_accuracy(train, y, test, y_test, problem.classes)


def ridge_accuracy(train: Tensor, y: Tensor, test: Tensor, y_test: Tensor, classes: int) -> float:
    """Least squares on one-hot labels: a quick look at the features during training."""
    train, test = standardised(train, test)
    ones = torch.ones(len(train), 1, dtype=train.dtype, device=train.device)
    A = torch.cat([train, ones], 1)
    damping = 1e-2 * len(A) * torch.eye(A.shape[1]).to(A)
    W = torch.linalg.solve(A.T @ A + damping, A.T @ F.one_hot(y, classes).to(A))
    return ((test @ W[:-1] + W[-1]).argmax(1) == y_test).double().mean().item()


def softmax_regression(
    train: Tensor, y: Tensor, test: Tensor, classes: int, l2: float = 1e-3
) -> np.ndarray:
    """Predicted classes of `test` by logistic regression on standardised features."""
    train, test = standardised(train, test)
    shape = (train.shape[1] + 1, classes)
    W = torch.zeros(shape, dtype=train.dtype, device=train.device, requires_grad=True)
    optimizer = torch.optim.LBFGS([W], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(train @ W[:-1] + W[-1], y) + l2 * W[:-1].square().sum() / 2
        value.backward()
        return value

    optimizer.step(loss)
    return (test @ W[:-1] + W[-1]).argmax(1).cpu().numpy()
