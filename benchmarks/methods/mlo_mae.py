"""Cost of one level-1 step of MLO-MAE over a plain MAE step, and how exact each estimator is.

    python -m benchmarks.methods.mlo_mae [--rounds 5] [--batch 32] [--device cpu] [--json FILE]

ViT of 6 blocks of width 192 and decoder of 4 x 128 (the official proportions), 32 x 32 images,
patches of 4, mask ratio 0.75. A cycle is two level-1 steps, one head step, one mask step; it stands
beside two plain MAE steps. `graph kept`: level 2's graph serves level 3, a forward pass less for
more memory. Derived floor 2.8 (2.3 without the path through the head); the official
algorithm with its library was measured at 4.9.

Cosine and ratio of norms to double backward are means over points of a short training run, on 16
images of each batch; `official` keeps the head's dropout on and evaluates T again on the perturbed
embedding.
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
from mlo_mae import analysis, method
from mlo_mae.config import Config
from mlo_mae.data import Images, Problem
from mlo_mae.estimators import ESTIMATORS
from mlo_mae.method import Levels, Point
from mlo_mae.networks import Networks
from mlo_mae.train import begin
from shared import cifar, runs
from shared.vectors import Vector

VARIANTS: dict[str, dict[str, Any]] = {
    "fd_forward": {"hypergrad": "fd_forward"},
    "fd_forward, graph kept": {"hypergrad": "fd_forward", "keep_graph": True},
    "fd_forward, head_path none": {"hypergrad": "fd_forward", "head_path": "none"},
    "fd_darts": {"hypergrad": "fd_darts"},
    "official": {"hypergrad": "official"},
}
POINTS = 2  # where cosines are taken, after as many cycles each


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
    base = Config(data="cifar10", batch=batch, steps=10_000)
    return replace(base, **ENCODER, **DECODER, **more)


def levels(config: Config, device: torch.device) -> Levels:
    return begin(config, problem(device), device, lambda *_: None)


def cycles(work: Levels) -> Callable[[], None]:
    """One cycle, of two level-1 steps; the count goes on from call to call."""
    count, estimate = itertools.count(), ESTIMATORS.get(work.config.hypergrad)

    def one() -> None:
        method.cycle(work, next(count), estimate)

    return one


def costs(rounds: int, batch: int, device: torch.device) -> dict[str, cost.Row]:
    kinds = {
        name: cycles(levels(settings(batch, **LEARNED, **chosen), device))
        for name, chosen in VARIANTS.items()
    }
    return cost.measure(cycles(levels(settings(batch), device)), kinds, rounds, device.type, work=2)


def accuracies(batch: int, device: torch.device) -> dict[str, dict[str, float]]:
    """Variant -> mean cosine and norm ratio to double backward of the same definition."""
    config = settings(batch, mask="learned", weight="scores", hypergrad="fd_forward", steps=1000)
    work = levels(config, device)
    measured: dict[str, list[dict[str, float]]] = {name: [] for name in VARIANTS}

    def noting(nets: Networks, at: Point, radius: float) -> Vector:
        for name, chosen in VARIANTS.items():
            its = replace(at, head_rate=float(chosen.get("head_path") != "none"))
            estimate = ESTIMATORS[chosen["hypergrad"]]
            measured[name].append(analysis.agreement(estimate, nets, its, radius))
        return method.hypergradient(nets, at, radius)

    for t in range(2 * POINTS):
        method.cycle(work, t, noting if t % 2 else method.hypergradient)
    return {
        name: {k: round(statistics.mean(p[k] for p in points), 6) for k in points[0]}
        for name, points in measured.items()
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
        exactness = f"cosine {row['cosine']:.6f}, norm ratio {row['norm_ratio']:.4f}"
        print(f"  {name:34} to double backward: {exactness}")
    cost.write(
        asked.json, "mlo_mae", rows, device=asked.device, rounds=asked.rounds, batch=asked.batch
    )


if __name__ == "__main__":
    main()
