"""Accidents of the official code, named by their row in the README's table of differences.

A student may skip this file. `preset = code` chooses those that can be run together; nothing else
uses them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch.nn.functional as F
from torch import Tensor, nn

from shared import vectors
from shared.vectors import Vector
from tapweight import method
from tapweight.method import Alignment, Levels, Losses

DECAY_OF_ALPHA = 1e-3  # of Adam at Level III in the language code: pulls the weights to uniform


@dataclass(frozen=True)
class AbsoluteDistance(method.SquaredDistance):
    """Row 1: gamma / n times the sum of |phi - theta|, n = number of entries.

    Squared for the tensors whose numbers are in `squared` (embeddings). The cross-derivative of
    |phi - theta| is zero almost everywhere. What the official code sees is a difference quotient of
    sign(phi - theta) with eps = 0.01 / |v|: a spike of height 1 / eps wherever |phi - theta| is
    below eps |v|, 0 elsewhere. `pull_back` returns just that."""

    squared: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        what = "the absolute distance hands Level III spikes instead of a gradient"
        warnings.warn(f"preset = code: {what} (README, row 1)", stacklevel=3)

    @classmethod
    def of(cls, gamma: float, phi: nn.Module) -> AbsoluteDistance:
        """For the language encoder phi."""
        names = [name for name, p in phi.named_parameters() if p.requires_grad]
        return cls(gamma, frozenset(i for i, name in enumerate(names) if "embedding" in name))

    def _share(self, phi: Vector) -> float:
        return self.gamma / sum(p.numel() for p in phi)

    def gradient(self, phi: Vector, theta: Vector) -> Vector:
        share, off = self._share(phi), vectors.minus(phi, theta)
        return [share * (2 * x if i in self.squared else x.sign()) for i, x in enumerate(off)]

    def pull_back(self, v: Vector, phi: Vector, theta: Vector) -> Vector:
        eps = vectors.probe_step(v)
        if eps == 0.0:
            return vectors.zeros_like(v)
        u = []
        for i, (x, off) in enumerate(zip(v, vectors.minus(phi, theta), strict=True)):
            if i in self.squared:
                u.append(2 * self._share(phi) * x)
            else:
                spike = ((off + eps * x).sign() - (off - eps * x).sign()) / (2 * eps)
                u.append(self._share(phi) * spike)
        return u


def with_direct_path(levels: Levels, batches: Sequence[Losses], v: Vector) -> Alignment:
    """Row 2: R is part of the Level III loss too, so theta also receives -dR/dphi directly.

    One more walk through Level I, added to (*): h_k - < -dR/dphi, grad L_k >."""
    aligned = method.gradient_of_weights(levels, batches, v)
    into_theta = vectors.scaled(levels.prox.gradient(levels.phi, levels.theta), -1.0)
    K = len(levels.alpha)
    extra = method.alignment(batches, levels.theta, into_theta, K, levels.mode)
    return replace(aligned, h=aligned.h + extra.h)


def broadcast_squared_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Row 10: (B, 1) against (B) becomes B x B: every prediction is drawn to the batch's mean."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        every = target.reshape(1, -1).expand(len(prediction), -1)
        return F.mse_loss(prediction.reshape(-1, 1), every)


def without_mask_contrast(losses: Sequence[Tensor]) -> list[Tensor]:
    """Row 5: the switch of MCL, the last of the molecules' objectives, is off: its loss is zero."""
    return [*losses[:-1], losses[-1] * 0.0]
