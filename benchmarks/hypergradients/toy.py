"""A bilevel problem with a hypergradient in closed form: a learned L2 strength for each feature.

theta*(lam) = argmin over theta of  CE(X theta, y) + sum_j exp(lam_j) theta_j^2 / 2
exact = d L_val(theta*(lam)) / d lam = - exp(lam) * theta* * (H^-1 grad L_val),
H the Hessian of the inner loss at theta*
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

CONDITIONS = (10, 1000)  # of the features; the Hessian's are about 13 and 991


class Toy:
    """Logistic regression, `d` features, `n` examples, float64; solved to machine precision."""

    def __init__(self, condition: float, n: int = 200, d: int = 20, seed: int = 0) -> None:
        g = torch.Generator().manual_seed(seed)
        last = 0.5 * torch.log10(torch.tensor(float(condition)))
        scale = torch.logspace(0, last, d, dtype=torch.float64)
        true = torch.randn(d, generator=g, dtype=torch.float64) / scale

        def draw() -> tuple[Tensor, Tensor]:
            x = torch.randn(n, d, generator=g, dtype=torch.float64) * scale
            return x, torch.bernoulli(torch.sigmoid(x @ true), generator=g)

        self.train, self.val = draw(), draw()
        self.lam = torch.full((d,), -3.0, dtype=torch.float64).requires_grad_()
        self.theta = self.solve(self.lam.detach()).requires_grad_()
        hessian = torch.autograd.functional.hessian(
            lambda t: self.inner(t, self.lam.detach()), self.theta.detach()
        )
        self.eigenvalues = torch.linalg.eigvalsh(hessian)
        v = torch.autograd.grad(self.outer(self.theta), self.theta)[0]
        self.exact = -torch.linalg.solve(hessian, v) * self.lam.detach().exp() * self.theta.detach()

    @property
    def rate(self) -> float:
        """1 / (largest eigenvalue): the largest step that cannot overshoot."""
        return 1 / self.eigenvalues.max().item()

    def inner(self, theta: Tensor, lam: Tensor) -> Tensor:
        x, y = self.train
        penalty = 0.5 * (lam.exp() * theta * theta).sum()
        return F.binary_cross_entropy_with_logits(x @ theta, y) + penalty

    def outer(self, theta: Tensor) -> Tensor:
        x, y = self.val
        return F.binary_cross_entropy_with_logits(x @ theta, y)

    def solve(self, lam: Tensor) -> Tensor:
        """theta*(lam) by Newton's method."""
        theta = torch.zeros_like(lam)
        for _ in range(60):
            at = theta.clone().requires_grad_()
            g = torch.autograd.grad(self.inner(at, lam), at)[0]
            if g.norm() < 1e-15:
                break
            hessian = torch.autograd.functional.hessian(lambda t: self.inner(t, lam), theta)
            theta = theta - torch.linalg.solve(hessian, g)
        return theta

    def witness(self) -> float:
        """Relative difference of `exact` and central differences of the re-solved problem."""
        out, h = torch.zeros_like(self.exact), 1e-4
        lam = self.lam.detach()
        for j in range(len(out)):
            e = torch.zeros_like(out)
            e[j] = h
            out[j] = (self.outer(self.solve(lam + e)) - self.outer(self.solve(lam - e))) / (2 * h)
        return ((out - self.exact).norm() / self.exact.norm()).item()
