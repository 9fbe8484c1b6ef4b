"""A planted problem: the teacher is the student plus updates whose ranks are known, and unequal.

    h_0 = x,   h_l = h_(l-1) + tanh(W_l h_(l-1)),   y = h_6
    teacher: W_l + Delta_l, Delta_l with r*_l singular values of 1.5 and none else

Both share the six random W_l (16 x 16); the student learns Delta by LoRA from noisy outputs. Two
maps have r* = 8 and four r* = 1, on other maps for every seed, so a rank vector that does not look
at the data cannot be right: only here is it known what a rank rule should find. Room was measured
before anything was learned (docs/papers/autolora.md, section 9.1).
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor, nn

from autolora.data import Part, Task
from autolora.models import Network
from shared import runs

TASKS = ("planted", "planted_rules")  # one problem; the second for arms that fewer seeds show
TRUE_RANKS = (8, 8, 1, 1, 1, 1)
WIDTH, SINGULAR, NOISE = 16, 1.5, 0.1
ITEMS = {"train": 512, "validation": 256, "test": 256}
PATTERN = r"^maps\.\d+$"


class Residual(nn.Module):
    """The student, or with other weights the teacher: `maps` are W_1 to W_6, (6, d, d)."""

    def __init__(self, weights: Tensor):
        super().__init__()
        width = weights.shape[-1]
        self.maps = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in weights)
        for linear, weight in zip(self.maps, weights, strict=True):
            linear.weight.data = weight.clone()

    def forward(self, x: Tensor) -> SimpleNamespace:
        """x: (batch, d) -> logits: (batch, d)."""
        for linear in self.maps:
            x = x + torch.tanh(linear(x))
        return SimpleNamespace(logits=x)


def problem(name: str, seed: int) -> tuple[Task, Network]:
    """The task `name` of one seed, with its true ranks, and the student; test inputs are shared."""
    stream = runs.stream(seed, "planted teacher")
    order = torch.randperm(len(TRUE_RANKS), generator=stream)
    ranks = torch.tensor(TRUE_RANKS)[order]

    def normal(*shape: int, generator: torch.Generator = stream) -> Tensor:
        return torch.randn(*shape, generator=generator)

    base = normal(len(ranks), WIDTH, WIDTH) / WIDTH**0.5
    left, right = (torch.linalg.qr(normal(len(ranks), WIDTH, WIDTH)).Q for _ in range(2))
    singular = SINGULAR * (torch.arange(WIDTH) < ranks[:, None])
    teacher = Residual(base + left @ (singular[:, :, None] * right))
    parts, first = {}, 0
    for part, n in ITEMS.items():
        # test inputs do not depend on the seed: an item is the same for all
        inputs = runs.stream(0 if part == "test" else seed, "planted inputs", part)
        x = normal(n, WIDTH, generator=inputs)
        with torch.no_grad():
            y = teacher(x).logits
        if part != "test":
            y = y + NOISE * y.std() * normal(n, WIDTH)
        parts[part] = Part(np.arange(first, first + n), list(x.numpy()), y.numpy())
        first += n
    split = parts["train"], parts["test"], parts["validation"]
    task = Task(name, "planted", "r2", (), *split, true_ranks=tuple(ranks.tolist()))
    return task, Network(Residual(base), None, "", PATTERN)
