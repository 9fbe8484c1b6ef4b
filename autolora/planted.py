"""The planted-rank table: does the learned rank answer to the rank that is there?

Linear regression y = T x + noise with T of known rank r* (16 x 16), one adapted map, k = 8, every
r* and every amount of outer travel (outer rate * steps) searched at once. Synthetic, and an
exhibit: it explains, it decides nothing (docs/papers/autolora.md, section 9.1).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from autolora import evaluate, method, ranks
from autolora.config import Config
from autolora.evaluate import ROWS, TRUTHS
from shared import runs
from shared.runs import Run

TRAVELS = (0.12, 1.2, 12.0)
WIDTH, K, SCALE, ITEMS, BATCH, ETA = 16, 8, 2.0, 256, 32, 1e-2


class Cells:
    """One map per cell (travel, r*): alpha (cells, k), A (cells, k, d), B (cells, d, k)."""

    def __init__(self, steps: int, generator: torch.Generator):
        self.x, self.y = problem(TRUTHS, generator)
        cells = (len(TRAVELS), len(TRUTHS))
        start = torch.empty(*cells, K, WIDTH).uniform_(-1, 1, generator=generator)
        self.A = start.div(WIDTH**0.5).requires_grad_()
        self.B = torch.zeros(*cells, WIDTH, K, requires_grad=True)
        # each travel has its own outer rate
        self.beta = [torch.zeros(len(TRUTHS), K, requires_grad=True) for _ in TRAVELS]
        rates = [{"params": [b], "lr": t / steps} for b, t in zip(self.beta, TRAVELS)]
        inner = torch.optim.Adam([self.A, self.B], lr=1e-2, fused=True)
        outer = torch.optim.Adam(rates, betas=(0.5, 0.999), fused=True)
        self.levels = method.Levels([self.A, self.B], self.beta, inner, outer, ETA)

    @property
    def alpha(self) -> Tensor:
        return torch.softmax(torch.stack(self.beta), -1)

    def loss(self, level: int, rows: Tensor) -> Tensor:
        """Sum over cells of the mean squared error on these rows of one level."""
        component = (self.x[level][:, rows] @ self.A.mT) * self.alpha[:, :, None, :]
        error = SCALE * component @ self.B.mT - self.y[level][:, rows]
        return (error**2).mean((-1, -2)).sum()

    def search_step(self, generator: torch.Generator) -> None:
        train, outer = (torch.randint(ITEMS, (BATCH,), generator=generator) for _ in range(2))
        method.search_step(self.levels, lambda: self.loss(0, train), lambda: self.loss(1, outer))

    def reported(self) -> list[int]:
        """The rank that each row of `evaluate.ROWS` reports for each planted rank, row by row."""
        alpha, A, B = self.alpha.detach(), self.A.detach(), self.B.detach()
        numbers = []
        for row in ROWS:
            rule, travel = row.rsplit("_", 1)
            i = TRAVELS.index(float(travel))
            numbers += [
                ranks.RULES[rule](alpha[i, j], A[i, j], B[i, j]) for j in range(len(TRUTHS))
            ]
        return numbers


def problem(truths: tuple[int, ...], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """x (2, r*, ITEMS, d) of both levels and y of the same shape; T has r* singular values of 1."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    left, right = (torch.linalg.qr(normal(len(truths), WIDTH, WIDTH)).Q for _ in range(2))
    singular = (torch.arange(WIDTH) < torch.tensor(truths)[:, None]).float()  # (r*, d)
    target = left @ (singular[:, :, None] * right)
    x = normal(2, len(truths), ITEMS, WIDTH)
    return x, x @ target.mT + 0.1 * normal(2, len(truths), ITEMS, WIDTH)


def plant(config: Config, run: Run) -> None:
    """The job `planted`: 20 cells, the truth as label and the reported rank as prediction."""
    label = np.array(list(TRUTHS) * len(ROWS))
    run.splits(test=np.arange(len(label)))
    runs.device(config)
    generator = runs.stream(config.seed, "planted")
    cells = Cells(config.search_steps, generator)
    work = runs.Parts(
        variables=[cells.A, cells.B, *cells.beta],
        inner=cells.levels.inner,
        outer=cells.levels.outer,
        generator=generator,
    )
    for _ in run.phase("search", config.search_steps, work):
        cells.search_step(generator)
    prediction = np.array(cells.reported())
    arrays = {"id": np.arange(len(label)), "label": label, "prediction": prediction}
    arrays |= {"_kind": np.array("planted"), "_headline": np.array("count_1.2_error")}
    run.predictions(**arrays)
    run.finish(
        metrics=evaluate.score(arrays),
        state=[torch.tensor(prediction)],
        gradient_evaluations=5 * config.search_steps,
    )
