"""What a search step of DASGM costs, in plain steps of the same supernet, by variant and order.

    python -m benchmarks.methods.dasgm [--rounds 7] [--json FILE]

NAS-Bench-201 supernet, 8 channels, 16 x 16 images, batch 32. Floors: first order 5/3 (the weights
need no gradient in level 3), second order 13/3. The paper has no code: `darts, original sequence`
takes the step as DARTS' own does. A step of the generator and its opponent comes on top of both.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.methods import cost
from dasgm import data, method, train, warmstart
from dasgm.search import Search
from shared import runs

NETWORK: Any = {"nodes": 4, "channels": 8, "cells_per_stage": 1}
GAN: Any = {"gan": "residual", "gan_width": 16, "gan_batch": 32}
BASE = train.Config(
    data="cifar10", batch=32, estimator="finite_difference", epochs=10_000, **NETWORK, **GAN
)


def problem(n: int = 320, side: int = 16) -> data.Problem:
    """Made-up photographs: only their size matters here."""
    stream = runs.stream(0, "bench")

    def part(first: int) -> data.Images:
        pixels = torch.randint(256, (n, 3, side, side), generator=stream, dtype=torch.uint8)
        labels = torch.randint(10, (n,), generator=stream)
        return data.Images(first + torch.arange(n), pixels, labels)

    return data.Problem("cifar10", 10, part(0), part(n), part(2 * n))


def original_sequence(search: Search) -> Callable[[], object]:
    """A second-order step as DARTS' first code takes it (arXiv 1806.09055, Eq. 7 and 8).

    A second network is built for W', L_val is differentiated there for W' and A at once, W itself
    is moved to either side, and the weights ask for gradients throughout."""
    c, W, A = search.config, search.W, search.A
    radius, count = 1e-2, itertools.count(1)

    def step() -> None:
        t = next(count)
        rate = search.rate(t)
        x, y = search.real(search.problem.train, t, "batches")
        xv, yv = search.held_out(t)

        def L_tr() -> Tensor:
            return F.cross_entropy(search.net(x, A), y)

        slope = torch.autograd.grad(L_tr(), W)
        ahead = copy.deepcopy(search.net)
        W_ahead = list(ahead.parameters())
        with torch.no_grad():
            for w, g, m in zip(W_ahead, slope, search.momentum(), strict=True):
                w.sub_(rate * (g + c.weight_decay * w + (c.momentum * m if m is not None else 0.0)))
        grads = torch.autograd.grad(F.cross_entropy(ahead(xv, A), yv), [*A, *W_ahead])
        direct, v = grads[: len(A)], grads[len(A) :]
        eps = radius / float(torch.cat([g.flatten() for g in v]).norm())
        probes = []
        for shift in (eps, -2 * eps):
            move(W, v, shift)
            probes.append(torch.autograd.grad(L_tr(), A))
        move(W, v, eps)
        gradient = [d - rate * (p - m) / (2 * eps) for d, p, m in zip(direct, *probes, strict=True)]
        method.architecture_step(gradient, A, search.opt_A)
        method.weight_step(L_tr(), W, search.opt_W, c.clip)

    return step


def move(weights: Sequence[Tensor], v: Sequence[Tensor], alpha: float) -> None:
    with torch.no_grad():
        for w, g in zip(weights, v, strict=True):
            w.add_(g, alpha=alpha)


def kinds() -> dict[str, Callable[[], object]]:
    """One step of each kind."""
    images, cpu = problem(), torch.device("cpu")
    small = replace(BASE, gan="mlp")  # an MLP makes 16x16 images; its own step is timed apart
    count = itertools.count(1)

    def prepared(variant: str, **settings: object) -> Search:
        config = replace(small, variant=variant, **settings)  # type: ignore[arg-type]
        gan = warmstart.new_gan(config, images, cpu) if variant != "darts" else None
        return Search(config, images, cpu, gan)

    def step(variant: str, **settings: object) -> Callable[[], object]:
        search = prepared(variant, **settings)
        return lambda: search.step(next(count))

    plain = prepared("darts")

    def plain_step() -> None:
        x, y = plain.real(plain.problem.train, 0, "batches")
        for a in plain.A:  # a plain step knows nothing of A
            a.requires_grad_(False)
        loss = F.cross_entropy(plain.net(x, plain.A), y)
        method.weight_step(loss, plain.W, plain.opt_W, 5.0)

    variants = {
        f"{variant}, order {order}": step(variant, order=order)
        for variant in ("darts", "static", "weighted", "joint")
        for order in (1, 2)
    }
    return {
        "plain": plain_step,
        "darts, original sequence": original_sequence(prepared("darts", order=2)),
        **variants,
        "darts, order 2, exact": step("darts", order=2, estimator="exact"),
        "adversarial, order 1": step("adversarial", eta=0.1, order=1),
        "adversarial, order 2": step("adversarial", eta=0.1, order=2),
    }


def main() -> None:
    cost.main("dasgm", "a search step over a plain step", __doc__, kinds)


if __name__ == "__main__":
    main()
