"""Three quadratic levels whose minima, and the gradient of whose weights, have closed forms.

(docs/papers/tapweight.md, section 9, A1)

    Level I    sum_k lam_k 1/2 (theta - c_k)^T A_k (theta - c_k)
    Level II   1/2 (phi - t)^T B (phi - t) + gamma |phi - theta|^2
    Level III  1/2 |phi - v|^2

Here the identity that TapWeight puts in place of both inverse Hessians can be compared with the
truth."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from shared import multilevel
from shared.hypergrad import ConjugateGradient
from tapweight import method
from tapweight.config import Mode


@dataclass(frozen=True)
class Quadratic:
    """A: (K, d, d), c: (K, d), B: (d, d), t, v: (d,), float64."""

    A: Tensor
    c: Tensor
    B: Tensor
    t: Tensor
    v: Tensor
    gamma: float = 1.0

    def level_one(self, theta: Tensor) -> list[Tensor]:
        """The K losses at theta, (d,)."""
        off = theta - self.c
        return list(0.5 * torch.einsum("ki,kij,kj->k", off, self.A, off))

    def level_two(self, phi: Tensor) -> Tensor:
        """The task loss alone; the proximal term comes from `method`."""
        return 0.5 * (phi - self.t) @ self.B @ (phi - self.t)

    def level_three(self, phi: Tensor) -> Tensor:
        return 0.5 * (phi - self.v).square().sum()

    def theta_star(self, lam: Tensor) -> Tensor:
        """(sum lam_k A_k)^-1 sum lam_k A_k c_k, (d,)"""
        right = torch.einsum("k,kij,kj->i", lam, self.A, self.c)
        return torch.linalg.solve(torch.einsum("k,kij->ij", lam, self.A), right)

    def phi_star(self, theta: Tensor) -> Tensor:
        """(B + 2 gamma I)^-1 (B t + 2 gamma theta), (d,)"""
        eye = torch.eye(len(self.t), dtype=self.t.dtype)
        right = self.B @ self.t + 2 * self.gamma * theta
        return torch.linalg.solve(self.B + 2 * self.gamma * eye, right)

    def outer(self, lam: Tensor) -> Tensor:
        """The validation loss as a function of lam alone, through both closed forms."""
        return self.level_three(self.phi_star(self.theta_star(lam)))


def draw(seed: int, d: int = 6, K: int = 4, gamma: float = 1.0) -> Quadratic:
    """A random problem with well-conditioned matrices."""
    g = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)  # noqa: E731

    def positive(*shape: int) -> Tensor:
        root = normal(*shape, d, d)
        return root @ root.mT / d + 0.5 * torch.eye(d, dtype=torch.float64)

    return Quadratic(positive(K), normal(K, d), positive(), normal(d), normal(d), gamma)


def exact_implicit(problem: Quadratic, lam: Tensor) -> Tensor:
    """h by implicit differentiation with the true inverse Hessians, both levels at a minimum. (K,)

    The general three-level chain of shared/, conjugate gradients in place of the identity."""
    lam = lam.detach().clone().requires_grad_()
    theta = problem.theta_star(lam.detach()).requires_grad_()
    phi = problem.phi_star(theta.detach()).requires_grad_()
    d = len(theta)

    def level_two() -> Tensor:
        return problem.level_two(phi) + problem.gamma * (phi - theta).square().sum()

    def level_one() -> Tensor:
        return lam @ torch.stack(problem.level_one(theta))

    levels = [
        multilevel.Level(level_one, [theta], None, ConjugateGradient(d)),
        multilevel.Level(level_two, [phi], None, ConjugateGradient(d)),
    ]
    outer = lambda: problem.level_three(phi)  # noqa: E731
    return multilevel.chain(outer, levels, [lam], look_ahead=False).grads[0].detach()


def identity(problem: Quadratic, lam: Tensor) -> Tensor:
    """h by (*), at the same minima: what TapWeight's shortcut sees. (K,)"""
    theta = problem.theta_star(lam).requires_grad_()
    phi = problem.phi_star(theta.detach())
    u = [2 * problem.gamma * (phi - problem.v)]
    return method.alignment([lambda: problem.level_one(theta)], [theta], u, len(lam), "exact-dot").h


class Point(nn.Module):
    """An encoder that is one vector."""

    def __init__(self, x: Tensor):
        super().__init__()
        self.x = nn.Parameter(x.clone())


def run(
    problem: Quadratic,
    steps: int = 200,
    warmup: int = 40,
    lr: float = 0.1,
    lr_alpha: float = 0.02,
    mode: Mode = "exact-dot",
) -> Tensor:
    """The loop on a quadratic: SGD at Levels I and II, Adam on alpha, from theta = phi = 0.

    Returns the weights, (K,). Length, warm-up and rate of alpha are those of the planted objectives
    (protocol.yaml, task planted)."""
    K, d = problem.c.shape
    theta, phi = Point(problem.t.new_zeros(d)), Point(problem.t.new_zeros(d))
    alpha = method.start_logits(K).double()
    optimizers = [
        torch.optim.SGD(theta.parameters(), lr=lr),
        torch.optim.SGD(phi.parameters(), lr=lr),
        torch.optim.Adam([alpha], lr=lr_alpha, fused=True),
    ]
    pair, prox = method.matched(phi, theta), method.SquaredDistance(problem.gamma)
    levels = method.Levels(*pair, alpha, optimizers, prox, mode)
    one, two = lambda: problem.level_one(theta.x), lambda: problem.level_two(phi.x)
    three = lambda: problem.level_three(phi.x)  # noqa: E731
    for t in range(steps):
        method.cycle(levels, [[one]], [two], (three, [one]), learn=t >= warmup)
    return method.weights(alpha)


def gate(problems: int = 20, first: int = 0) -> tuple[int, float]:
    """(how many of the problems `first`, `first` + 1, ... end with an exact outer loss below that
    of uniform weights, largest error of exact_implicit)

    The error is relative to central differences of the closed-form outer loss."""
    improved, worst = 0, 0.0
    for seed in range(first, first + problems):
        problem = draw(seed)
        lam = method.weights(method.start_logits(4).double())
        probes = 1e-5 * torch.eye(4, dtype=torch.float64)
        change = torch.stack([problem.outer(lam + e) - problem.outer(lam - e) for e in probes])
        numeric = change / 2e-5
        worst = max(worst, float((exact_implicit(problem, lam) - numeric).norm() / numeric.norm()))
        improved += bool(problem.outer(run(problem)) < problem.outer(lam))
    return improved, worst
