"""Small networks, levels and runs that several test files share."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from shared import protocol, vectors
from tapweight import method
from tapweight.config import Config

ROOT = Path(__file__).resolve().parent.parent.parent
PROTOCOL = protocol.Protocol(ROOT / "tapweight")
MODES = ("finite-difference", "exact-dot", "jvp")


class Net(nn.Module):
    def __init__(self, dtype: torch.dtype = torch.float64, dropout: float = 0.1):
        super().__init__()
        first = nn.Linear(6, 16), nn.Tanh(), nn.Dropout(dropout)
        self.body = nn.Sequential(*first, nn.Linear(16, 16), nn.Tanh())
        self.to(dtype)

    def forward(self, x):
        return self.body(x)


class WithBatchNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2))

    def forward(self, x):
        return self.body(x)


class Three:
    """Three losses on a dropout network theta, a second network phi, a direction v."""

    def __init__(self, dtype=torch.float64, dropout=0.1, seed=0):
        torch.manual_seed(seed)
        self.theta, self.phi = Net(dtype, dropout), Net(dtype, dropout)
        self.heads = nn.ModuleList(nn.Linear(16, 3) for _ in range(3)).to(dtype)
        self.x, self.y = torch.randn(12, 6, dtype=dtype), torch.randint(3, (3, 12))
        self.theta_e = list(self.theta.parameters())
        self.v = [torch.randn_like(p) for p in self.theta_e]
        self.u = vectors.scaled(self.v, 0.2)

    def losses(self):
        return [F.cross_entropy(head(self.theta(self.x)), y) for head, y in zip(self.heads, self.y)]

    def h(self, mode):
        return method.alignment([self.losses], self.theta_e, self.u, 3, mode).h


def levels(K: int, phi, theta, gamma=0.5, lr=0.05, mode="exact-dot", lr_alpha=0.05):
    alpha = method.start_logits(K).to(next(theta.parameters()).dtype)
    optimizers = [torch.optim.SGD(net.parameters(), lr=lr) for net in (theta, phi)]
    optimizers.append(torch.optim.Adam([alpha], lr=lr_alpha))
    prox = method.SquaredDistance(gamma)
    return method.Levels(*method.matched(phi, theta), alpha, optimizers, prox, mode)


def cycle(three: method.Levels, losses, task, validation=None, **more):
    """One micro-batch at Level I and one step of Level II."""
    return method.cycle(three, [[losses]], [task], (validation or task, [losses]), **more)


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(x, b[name]) for name, x in a.items())


def planted_config(out: Path, **more) -> Config:
    """A run on planted digits in seconds."""
    settings = PROTOCOL.settings("tiny", "tapweight", "tiny") | {"steps": 12, "finetune_steps": 3}
    place = {"task": "planted", "arm": "tapweight", "seed": 1, "device": "cpu", "out": str(out)}
    return Config(**place, **(settings | {"watch": 4} | more))
