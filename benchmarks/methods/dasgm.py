"""What a search step of DASGM costs, in plain steps of the same supernet: by variant and by order of the gradient.

    python -m benchmarks.methods.dasgm [rounds]

CPU seconds, one thread, one process, interleaved rounds, medians of the ratio per round. NAS-Bench-201 supernet, 8 channels,
16x16 images, batch 32. Floors: first order 5/3 (the weights need no gradient in level 3), second order 13/3; targets 1.8 and
4.4; DARTS' original sequence 4.7 (measured elsewhere). A step of the generator and its opponent comes on top of both.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from dasgm import data, method, train, warmstart
from dasgm.search import Search
from shared import runs

BASE = train.Config(
    data="cifar10", seed=0, nodes=4, channels=8, cells_per_stage=1, batch=32,
    estimator="finite_difference", epochs=10_000, gan="residual",
    gan_width=16, gan_batch=32,
)  # fmt: skip


def problem(n: int = 320, side: int = 16) -> data.Problem:
    """Made-up photographs: only their size matters here."""
    stream = runs.stream(0, "bench")

    def part(first: int) -> data.Images:
        pixels = torch.randint(256, (n, 3, side, side), generator=stream, dtype=torch.uint8)
        return data.Images(first + torch.arange(n), pixels, torch.randint(10, (n,), generator=stream))

    return data.Problem("cifar10", 10, part(0), part(n), part(2 * n))


def kinds() -> dict[str, Callable[[], object]]:
    """One step of each kind."""
    images = problem()
    small = replace(BASE, gan="mlp")  # an MLP makes 16x16 images; its own step is timed apart
    made: dict[str, Callable[[], object]] = {}
    counter = {"t": 0}

    def prepared(**given: object) -> Search:
        config = replace(small, **given)  # type: ignore[arg-type]
        gan = warmstart.new_gan(config, images, torch.device("cpu")) if config.variant != "darts" else None
        return Search(config, images, torch.device("cpu"), gan)

    def stepping(search: Search) -> Callable[[], object]:
        def step() -> object:
            counter["t"] += 1
            return search.step(counter["t"])

        return step

    plain = prepared(variant="darts")

    def plain_step() -> None:
        x, y = plain.real(plain.problem.train, 0, "batches")

        def loss() -> Tensor:
            return F.cross_entropy(plain.net(x, plain.A), y)

        for a in plain.A:  # a plain step knows nothing of A
            a.requires_grad_(False)
        method.weight_step(loss(), plain.W, plain.opt_W, 5.0)

    made["plain"] = plain_step
    for variant in ("darts", "static", "weighted", "joint"):
        for order in (1, 2):
            made[f"{variant}, order {order}"] = stepping(prepared(variant=variant, order=order))
    made["darts, order 2, exact"] = stepping(prepared(variant="darts", order=2, estimator="exact"))
    made["adversarial, order 1"] = stepping(prepared(variant="adversarial", eta=0.1, order=1))
    made["adversarial, order 2"] = stepping(prepared(variant="adversarial", eta=0.1, order=2))
    return made


def measure(rounds: int = 7) -> dict[str, tuple[float, float]]:
    """Kind of step -> (median CPU seconds, median ratio to a plain step of the same round)."""
    torch.set_num_threads(1)
    steps = kinds()
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(rounds + 1):
        for name, step in steps.items():
            begun = time.process_time()
            for _ in range(3 if name == "plain" else 1):
                step()
            if turn:  # the first round warms up
                seconds[name].append((time.process_time() - begun) / (3 if name == "plain" else 1))
    plain = seconds["plain"]
    return {
        name: (statistics.median(times), statistics.median(t / p for t, p in zip(times, plain)))
        for name, times in seconds.items()
    }


if __name__ == "__main__":
    for name, (cpu, ratio) in measure(int(sys.argv[1]) if len(sys.argv) > 1 else 7).items():
        print(f"{name:24} {1000 * cpu:8.1f} ms   {ratio:5.2f} plain steps")
