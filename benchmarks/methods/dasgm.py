"""What a search step of DASGM costs, in plain steps of the same supernet: by variant and by order of the gradient.

    python -m benchmarks.methods.dasgm [--rounds 7] [--json FILE]

NAS-Bench-201 supernet, 8 channels, 16x16 images, batch 32. Floors: first order 5/3 (the weights need no gradient in level 3), second order 13/3; targets 1.8 and
4.4. The paper has no code; `darts, original sequence` takes the step as DARTS' own code does (4.7 when measured elsewhere). A step of the generator and its opponent comes on top of both.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.methods import cost
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
        return data.Images(
            first + torch.arange(n), pixels, torch.randint(10, (n,), generator=stream)
        )

    return data.Problem("cifar10", 10, part(0), part(n), part(2 * n))


def original_sequence(search: Search) -> Callable[[], object]:
    """A second-order step as DARTS' first code takes it (arXiv 1806.09055, Eq. 7 and 8): a second network is built for W', L_val
    is differentiated there for W' and A at once, W itself is moved to either side, and the weights ask for gradients throughout."""
    c, W, A = search.config, search.W, search.A
    radius, counter = 1e-2, {"t": 0}

    def step() -> None:
        counter["t"] += 1
        rate = search.rate(counter["t"])
        x, y = search.real(search.problem.train, counter["t"], "batches")
        xv, yv = search.held_out(counter["t"])

        def L_tr() -> Tensor:
            return F.cross_entropy(search.net(x, A), y)

        slope = torch.autograd.grad(L_tr(), W)
        ahead = copy.deepcopy(search.net)
        W_ahead = list(ahead.parameters())
        with torch.no_grad():
            for w, g, m in zip(W_ahead, slope, search.momentum(), strict=True):
                w.sub_(rate * (g + c.weight_decay * w + (c.momentum * m if m is not None else 0.0)))
        found = torch.autograd.grad(F.cross_entropy(ahead(xv, A), yv), [*A, *W_ahead])
        direct, v = found[: len(A)], found[len(A) :]
        eps = radius / float(torch.cat([g.flatten() for g in v]).norm())
        probes = []
        for shift in (eps, -2 * eps):
            with torch.no_grad():
                for w, g in zip(W, v, strict=True):
                    w.add_(g, alpha=shift)
            probes.append(torch.autograd.grad(L_tr(), A))
        with torch.no_grad():
            for w, g in zip(W, v, strict=True):
                w.add_(g, alpha=eps)
        gradient = [d - rate * (p - m) / (2 * eps) for d, p, m in zip(direct, *probes, strict=True)]
        method.architecture_step(gradient, A, search.opt_A)
        method.weight_step(L_tr(), W, search.opt_W, c.clip)

    return step


def kinds() -> dict[str, Callable[[], object]]:
    """One step of each kind."""
    images = problem()
    small = replace(BASE, gan="mlp")  # an MLP makes 16x16 images; its own step is timed apart
    made: dict[str, Callable[[], object]] = {}
    counter = {"t": 0}

    def prepared(**given: object) -> Search:
        config = replace(small, **given)  # type: ignore[arg-type]
        gan = (
            warmstart.new_gan(config, images, torch.device("cpu"))
            if config.variant != "darts"
            else None
        )
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
    made["darts, original sequence"] = original_sequence(prepared(variant="darts", order=2))
    for variant in ("darts", "static", "weighted", "joint"):
        for order in (1, 2):
            made[f"{variant}, order {order}"] = stepping(prepared(variant=variant, order=order))
    made["darts, order 2, exact"] = stepping(prepared(variant="darts", order=2, estimator="exact"))
    made["adversarial, order 1"] = stepping(prepared(variant="adversarial", eta=0.1, order=1))
    made["adversarial, order 2"] = stepping(prepared(variant="adversarial", eta=0.1, order=2))
    return made


def main() -> None:
    cost.main("dasgm", "a search step over a plain step", __doc__, kinds)


if __name__ == "__main__":
    main()
