"""Accidents of the official code, each named by its row in README's table of differences. A student may skip this file.

`preset: code` in train.py chooses all of those that can be run together; nothing else uses them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from shared import vectors
from shared.vectors import Vector

from . import method


@dataclass(frozen=True)
class AbsoluteDistance(method.SquaredDistance):
    """Row 1: gamma / n times the sum of |phi - theta|, squared for the tensors in `squared` (embeddings), n = their entries.

    The cross-derivative of |phi - theta| is zero almost everywhere. What the official code sees is a difference quotient
    of sign(phi - theta) with eps = 0.01 / |v|: a spike of height 1 / eps wherever |phi - theta| is below eps |v|, 0
    elsewhere. `pull_back` returns just that."""

    squared: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        super().__post_init__()
        warnings.warn(
            "prox = l1-code: the absolute distance hands Level III spikes instead of a gradient (README, row 1)",
            stacklevel=3,
        )

    def _share(self, phi: Vector) -> float:
        return self.gamma / sum(p.numel() for p in phi)

    def value(self, phi: Vector, theta: Vector) -> Tensor:
        off = [p - t.detach() for p, t in zip(phi, theta, strict=True)]
        parts = [(x.square() if i in self.squared else x.abs()).sum() for i, x in enumerate(off)]
        return self._share(phi) * torch.stack(parts).sum()

    def gradient(self, phi: Vector, theta: Vector) -> Vector:
        off = vectors.minus(phi, theta)
        return [
            self._share(phi) * (2 * x if i in self.squared else x.sign()) for i, x in enumerate(off)
        ]

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


def direct_path(
    found: method.Alignment, levels: method.Levels, used: Sequence[method.Losses]
) -> method.Alignment:
    """Row 2: R is part of the Level III loss too, so theta also receives -2 gamma (phi - theta) directly.

    One more walk through Level I: h_k - < that, grad L_k >. Pass it as `Levels.more`."""
    into_theta = vectors.scaled(levels.prox.gradient(levels.phi_e, levels.theta_e), -1.0)
    K = len(levels.alpha)
    extra = method.alignment(used, levels.theta_e, into_theta, K, levels.mode, levels.radius)
    return replace(found, h=found.h + extra.h)


def broadcast_squared_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Row 10: (B, 1) against (B) becomes B x B: every prediction is drawn to the batch's mean."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return F.mse_loss(
            prediction.reshape(-1, 1), target.reshape(1, -1).expand(len(prediction), -1)
        )


def zero_mask_contrast(losses: Sequence[Tensor]) -> list[Tensor]:
    """Row 5: the switch of MCL, the last of the molecules' objectives, is off: the loss is identically zero."""
    return [*losses[:-1], losses[-1] * 0.0]
