"""What a search step of DASGM costs, in plain steps of the same supernet: by job and by order.

    python -m benchmarks.methods.dasgm [--rounds 7] [--json FILE]

NAS-Bench-201 supernet, 8 channels, 16x16 images, batch 32. Floors: first order 5/3 (the weights
need no gradient in level 3), second order 13/3; targets 1.8 and 4.4. The paper has no code; `darts,
original sequence` takes the step as DARTS' own code does (4.7 when measured elsewhere). A step of
the generator and its opponent comes on top of both.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.methods import cost
from dasgm import data, generators, method, networks, train
from shared import runs

CPU = torch.device("cpu")
SUPERNET: dict[str, Any] = {
    "data": "cifar10",
    "nodes": 4,
    "channels": 8,
    "batch": 32,
    "gan_batch": 32,
}
BASE = train.Config(**SUPERNET, estimator="finite_difference", epochs=10_000)
MLP = train.Config(gan="mlp", gan_width=16)  # it makes 16x16 images; its own step is timed apart


@dataclass
class Search:
    """A supernet with a generator, where the job has one."""

    config: train.Config
    f: networks.Supernet
    gan: generators.GAN | None
    views: data.Views


def problem(n: int = 320, side: int = 16) -> data.Problem:
    """Made-up photographs: only their size matters here."""
    stream = runs.stream(0, "bench")

    def part(first: int) -> data.Images:
        pixels = torch.randint(256, (n, 3, side, side), generator=stream, dtype=torch.uint8)
        labels = torch.randint(10, (n,), generator=stream)
        return data.Images(first + torch.arange(n), pixels, labels)

    return data.Problem("cifar10", 10, part(0), part(n), part(2 * n))


def prepared(images: data.Problem, **changes: object) -> Search:
    config = replace(BASE, **changes)  # type: ignore[arg-type]
    gan = generators.GAN(MLP, images.classes, images.shape, CPU) if config.generated else None
    (stage,) = networks.stages(config)
    f = networks.new_supernet(config, images, stage, None, CPU)
    return Search(config, f, gan, data.Views(config, images))


def stepping(search: Search) -> Callable[[], object]:
    """The search's own step, of its first epoch."""
    counter = {"t": 0}

    def step() -> object:
        counter["t"] += 1
        networks.begin_step(search.config, search.f, counter["t"], 0)
        return method.cycle(search.f, search.gan, search.views, counter["t"])

    return step


def original_sequence(search: Search) -> Callable[[], object]:
    """A second-order step as DARTS' first code takes it (arXiv 1806.09055, Eq. 7 and 8): a second
    network is built for W', L_val is differentiated there for W' and A at once, W itself is moved
    to either side, and the weights ask for gradients throughout."""
    c, f, views = search.config, search.f, search.views
    radius, counter = 1e-2, {"t": 0}

    def step() -> None:
        counter["t"] += 1
        networks.begin_step(c, f, counter["t"], 0)
        rate = f.opt_W.param_groups[0]["lr"]
        x, y = views.training(counter["t"])
        xv, yv = views.held_out(counter["t"])

        def L_tr() -> Tensor:
            return F.cross_entropy(f(x), y)

        slope, drift = torch.autograd.grad(L_tr(), f.W), f.drift(c.weight_decay)
        ahead = copy.deepcopy(f.net)
        W_ahead: list[Tensor] = list(ahead.parameters())
        with torch.no_grad():
            for w, g, d in zip(W_ahead, slope, drift, strict=True):
                w.sub_(rate * (g + d))
        gradients = torch.autograd.grad(F.cross_entropy(ahead(xv, f.A), yv), [*f.A, *W_ahead])
        direct, v = gradients[: len(f.A)], gradients[len(f.A) :]
        eps = radius / float(torch.cat([g.flatten() for g in v]).norm())
        probes = []
        for shift in (eps, -2 * eps):
            with torch.no_grad():
                for w, g in zip(f.W, v, strict=True):
                    w.add_(g, alpha=shift)
            probes.append(torch.autograd.grad(L_tr(), f.A))
        with torch.no_grad():
            for w, g in zip(f.W, v, strict=True):
                w.add_(g, alpha=eps)
        gradient = [d - rate * (p - m) / (2 * eps) for d, p, m in zip(direct, *probes, strict=True)]
        method.architecture_step(gradient, f.A, f.opt_A)
        method.weight_step(L_tr(), f.W, f.opt_W)

    return step


def kinds() -> dict[str, Callable[[], object]]:
    """One step of each kind."""
    images = problem()
    plain = prepared(images, job="darts")

    def plain_step() -> None:
        x, y = plain.views.training(0)
        for a in plain.f.A:  # a plain step knows nothing of A
            a.requires_grad_(False)
        method.weight_step(F.cross_entropy(plain.f(x), y), plain.f.W, plain.f.opt_W)

    made: dict[str, Callable[[], object]] = {"plain": plain_step}
    made["darts, original sequence"] = original_sequence(prepared(images, job="darts", order=2))
    for job in ("darts", "static", "weighted", "joint"):
        for order in (1, 2):
            made[f"{job}, order {order}"] = stepping(prepared(images, job=job, order=order))
    exact = prepared(images, job="darts", order=2, estimator="exact")
    made["darts, order 2, exact"] = stepping(exact)
    for order in (1, 2):
        adversarial = prepared(images, job="adversarial", order=order)
        made[f"adversarial, order {order}"] = stepping(adversarial)
    return made


def main() -> None:
    cost.main("dasgm", "a search step over a plain step", __doc__, kinds)


if __name__ == "__main__":
    main()
