"""Cost of one level-1 step of MLO-MAE over a plain MAE step, and the cosine of each estimator.

    python -m benchmarks.methods.mlo_mae [--rounds 5] [--batch 32] [--device cpu] [--json FILE]

ViT of 6 blocks of width 192 and decoder of 4 x 128 (the official proportions), 32 x 32 images,
patches of 4, mask ratio 0.75. A cycle is two level-1 steps, one head step, one mask step; it stands
beside two plain MAE steps. Cosine and ratio of norms with double backward are means over points of
a short training run, on 16 images of each batch; `official` keeps the head's dropout on and
evaluates T again on the perturbed embedding.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from benchmarks.methods import cost
from mlo_mae import analysis
from mlo_mae.data import Images, Problem
from mlo_mae.pretrain import METHODS, Pretraining
from mlo_mae.train import Config
from shared import cifar, runs

VARIANTS: dict[str, dict[str, Any]] = {
    "fd_forward": {"hypergrad": "fd_forward"},
    "fd_forward, head_path none": {"hypergrad": "fd_forward", "head_path": "none"},
    "fd_darts": {"hypergrad": "fd_darts"},
    "official": {"hypergrad": "official"},
}
POINTS = 2  # where cosines are taken, after as many cycles each


class NoRun:
    """Stands in for a run: nothing is recorded."""

    def finite(self, *_: Any, **__: Any) -> None:
        return None


def problem(device: torch.device, items: int = 640) -> Problem:
    made = cifar.sample("cifar10", items, runs.stream(0, "bench"))
    train = Images("cifar10", made.ids, made.images, made.labels).to(device)
    cut = np.arange(items)
    first, second = cut[: items // 2], cut[items // 2 :]
    return Problem("cifar10", 10, 3, 32, train, train, first, second, first)


ENCODER: dict[str, Any] = {"patch": 4, "width": 192, "depth": 6, "heads": 3, "T_hidden": 512}
DECODER: dict[str, Any] = {"decoder_width": 128, "decoder_depth": 4, "decoder_heads": 4}
LEARNED = {"mask": "learned", "weight": "scores"}


def settings(batch: int, **more: Any) -> Config:
    base = Config(data="cifar10", batch=batch, steps=10_000, self_checks=False)
    return replace(base, **ENCODER, **DECODER, **more)


def pretraining(config: Config, device: torch.device) -> Pretraining:
    return Pretraining(config, NoRun(), problem(device), device)  # type: ignore[arg-type]


def pair(work: Pretraining) -> Callable[[], None]:
    """Two level-1 steps, with what follows them in a cycle; the count goes on from call to call."""
    count = itertools.count()

    def both() -> None:
        work.step(next(count))
        work.step(next(count))

    return both


def costs(rounds: int, batch: int, device: torch.device) -> dict[str, cost.Row]:
    kinds = {
        name: pair(pretraining(settings(batch, **LEARNED, **chosen), device))
        for name, chosen in VARIANTS.items()
    }
    plain = pair(pretraining(settings(batch), device))
    return cost.measure(plain, kinds, rounds, device.type, work=2)


def accuracies(batch: int, device: torch.device) -> dict[str, dict[str, float]]:
    """Variant -> mean cosine and norm ratio to double backward of the same definition."""
    config = settings(batch, **LEARNED, hypergrad="fd_forward", steps=1000)
    work = pretraining(config, device)
    points: dict[str, list[dict[str, float]]] = {name: [] for name in VARIANTS}
    for cycle in range(2 * POINTS):
        work.step(2 * cycle), work.step(2 * cycle + 1)
        if cycle % 2:
            at = replace(work.point(cycle), z2=None)
            for name, chosen in VARIANTS.items():
                one = replace(config, **chosen)
                estimator = METHODS[one.hypergrad]
                points[name].append(analysis.compare_with_exact(estimator, work.nets, at, one))
    return {
        name: {key: round(statistics.mean(p[key] for p in of), 6) for key in of[0]}
        for name, of in points.items()
    }


def main() -> None:
    options = cost.parser(__doc__, rounds=5)
    options.add_argument("--batch", type=int, default=32)
    cost.device_option(options)
    asked = options.parse_args()
    device = torch.device(asked.device)
    torch.set_num_threads(1)
    exact = accuracies(min(asked.batch, 16), device)
    rows = costs(asked.rounds, asked.batch, device)
    rows = {name: row | exact.get(name, {}) for name, row in rows.items()}
    cost.show("mlo_mae: cost of a level-1 step over a plain MAE step", rows)
    for name, row in exact.items():
        agreement = f"{row['cosine']:.6f}, norm ratio {row['norm_ratio']:.4f}"
        print(f"  {name:34} cosine with double backward {agreement}")
    settled = {"device": asked.device, "rounds": asked.rounds, "batch": asked.batch}
    cost.write(asked.json, "mlo_mae", rows, **settled)


if __name__ == "__main__":
    main()
