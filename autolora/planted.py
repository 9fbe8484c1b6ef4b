"""The planted-rank table: does the learned rank answer to the rank that is there?

Linear regression y = T x + noise with T of known rank r* (16 x 16), one adapted map, k = 8, every r* and every amount
of outer travel (outer rate * steps) searched at once. Synthetic, and an exhibit: it explains, it decides nothing.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from autolora import method
from autolora.evaluate import ROWS, TRUTHS

TRAVELS = (0.12, 1.2, 12.0)
WIDTH, K, SCALE, ITEMS, BATCH, ETA = 16, 8, 2.0, 256, 32, 1e-2


def problem(truths: tuple[int, ...], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Inputs x (2, r*, ITEMS, d) for the two levels and targets y of the same shape; T has r* equal singular values."""
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    left, right = (torch.linalg.qr(draw(len(truths), WIDTH, WIDTH)).Q for _ in range(2))
    keep = (torch.arange(WIDTH) < torch.tensor(truths)[:, None]).float()  # (r*, d)
    target = left @ (keep[:, :, None] * right)
    x = draw(2, len(truths), ITEMS, WIDTH)
    return x, x @ target.mT + 0.1 * draw(2, len(truths), ITEMS, WIDTH)


def search(steps: int, generator: torch.Generator) -> list[SimpleNamespace]:
    """One learned map per (travel, r*), travels outermost: alpha (k,), A (k, d), B (d, k)."""
    x, y = problem(TRUTHS, generator)
    cells = (len(TRAVELS), len(TRUTHS))
    A = (
        torch.empty(*cells, K, WIDTH)
        .uniform_(-1, 1, generator=generator)
        .div(WIDTH**0.5)
        .requires_grad_()
    )
    B = torch.zeros(*cells, WIDTH, K, requires_grad=True)
    beta = [
        torch.zeros(len(TRUTHS), K, requires_grad=True) for _ in TRAVELS
    ]  # each travel has its own outer rate
    inner = torch.optim.Adam([A, B], lr=1e-2)
    outer = torch.optim.Adam(
        [{"params": [b], "lr": t / steps} for b, t in zip(beta, TRAVELS)], betas=(0.5, 0.999)
    )

    def loss(level: int, rows: Tensor) -> Tensor:
        alpha = torch.softmax(torch.stack(beta), -1)  # (travel, r*, k)
        component = (x[level][:, rows] @ A.mT) * alpha[:, :, None, :]
        return ((SCALE * component @ B.mT - y[level][:, rows]) ** 2).mean((-1, -2)).sum()

    for _ in range(steps):
        train, held = (torch.randint(ITEMS, (BATCH,), generator=generator) for _ in range(2))
        method.search_step(
            lambda: loss(0, train), lambda: loss(1, held), [A, B], beta, inner, outer, ETA
        )  # noqa: B023
    alpha = torch.softmax(torch.stack(beta), -1).detach()
    return [
        SimpleNamespace(alpha=alpha[i, j], A=A[i, j].detach(), B=B[i, j].detach())
        for i in range(cells[0])
        for j in range(cells[1])
    ]


def table(steps: int, generator: torch.Generator) -> dict[str, Any]:
    """Rows of `evaluate.ROWS`: planted rank (`label`) and reported rank (`prediction`), one item per cell; all `alpha`."""
    maps = search(steps, generator)
    reported: list[int] = []
    for name in ROWS:
        rule, travel = name.rsplit("_", 1)
        first = TRAVELS.index(float(travel)) * len(TRUTHS)
        reported += [method.RANK_RULES[rule](found) for found in maps[first : first + len(TRUTHS)]]
    return {
        "label": list(TRUTHS) * len(ROWS),
        "prediction": reported,
        "alpha": torch.stack([found.alpha for found in maps]),
    }
