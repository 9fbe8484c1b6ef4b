"""A small bilevel problem with hyperparameters of every kind, and the methods to try on it."""

import torch
from torch import nn
from torch.nn import functional as F

from shared.hypergrad import (
    Adam,
    ConjugateGradient,
    FiniteDifference,
    FirstOrder,
    ForwardOverReverse,
    Neumann,
    OneStep,
    Unrolled,
)

ONE_STEP = [FiniteDifference(), OneStep(), ForwardOverReverse()]
EVERY = [
    FirstOrder(),
    *ONE_STEP,
    Neumann(3),
    ConjugateGradient(3, damping=3.0),
    Unrolled(3, Adam()),
]


def named(method):
    return type(method).__name__


class Problem:
    """A two-layer network with hyperparameters of three kinds.

    Inside it (a gate for each hidden unit), outside it (a log penalty for each weight matrix), and
    in the outer loss alone (a scale).
    """

    def __init__(self, dtype=torch.float64, dropout=0.0, norm=False):
        g = torch.Generator().manual_seed(0)

        def draw(*shape):
            return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)

        middle = nn.BatchNorm1d(7) if norm else nn.Identity()
        self.net = nn.Sequential(
            nn.Linear(5, 7), middle, nn.Tanh(), nn.Dropout(dropout), nn.Linear(7, 3)
        ).to(dtype)
        with torch.no_grad():
            for p in self.net.parameters():
                p.copy_(draw(*p.shape) / 2)
        self.theta = list(self.net.parameters())
        self.gate = draw(7).requires_grad_()
        self.penalty = torch.full((2,), -1.0, dtype=dtype).requires_grad_()
        self.scale = torch.tensor(0.7, dtype=dtype).requires_grad_()
        self.lam = [self.gate, self.penalty, self.scale]
        self.x, self.y = draw(2, 8, 5), torch.randint(0, 3, (2, 8), generator=g)

    def forward(self, x):
        return self.net[4](self.net[:4](x) * self.gate)

    def inner(self, rows=slice(None)):
        loss = F.cross_entropy(self.forward(self.x[0][rows]), self.y[0][rows])
        weights = (self.net[0].weight, self.net[4].weight)
        return loss + sum(e * w.pow(2).sum() for e, w in zip(self.penalty.exp(), weights))

    def outer(self, rows=slice(None)):
        return self.scale.exp() * F.cross_entropy(self.forward(self.x[1][rows]), self.y[1][rows])

    def unrolled(self, lr):
        """d outer(theta - lr grad inner) / d lam by autograd through copies of the weights."""
        g = torch.autograd.grad(self.inner(), self.theta, create_graph=True)
        rates = lr if isinstance(lr, list) else [lr] * len(g)
        w0, b0, w1, b1 = (p - r * d for p, d, r in zip(self.theta, g, rates))
        logits = (torch.tanh(self.x[1] @ w0.T + b0) * self.gate) @ w1.T + b1
        return torch.autograd.grad(self.scale.exp() * F.cross_entropy(logits, self.y[1]), self.lam)
