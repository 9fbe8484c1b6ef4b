"""The least code that does each thing on the cost tasks: what a library costs on top of it.

No checks, no restored state, no options.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.func import functional_call

from benchmarks.hypergradients.tasks import Builder, Task, inner_sgd


def outer_gradients(task: Task, theta: list, forward: Callable | None = None) -> tuple[list, list]:
    g = torch.autograd.grad(task.outer(forward), [*theta, *task.lam], allow_unused=True)
    return list(g[: len(theta)]), list(g[len(theta) :])


def plus_direct(implicit: list, direct: list) -> list:
    return [x if d is None else x + d for x, d in zip(implicit, direct)]


def finite_difference(task: Task) -> Callable[[], None]:
    """Two probes without a graph for the weights, weights moved in place and back by arithmetic."""

    def step() -> None:
        inner_sgd(task)
        v, direct = outer_gradients(task, task.theta)
        eps = 1e-2 / torch.stack(torch._foreach_norm(v)).norm().item()
        probes = []
        for p in task.theta:
            p.requires_grad_(False)
        for shift in (eps, -2 * eps):
            torch._foreach_add_(task.theta, v, alpha=shift)
            probes.append(torch.autograd.grad(task.inner(), task.lam))
        torch._foreach_add_(task.theta, v, alpha=eps)
        for p in task.theta:
            p.requires_grad_(True)
        implicit = [(b - a) * (task.lr / (2 * eps)) for a, b in zip(*probes)]
        task.outer_step(plus_direct(implicit, direct))

    return step


def one_step(task: Task) -> Callable[[], None]:
    """Reverse over reverse through the inner step, on functional copies of the weights."""
    names = [n for n, _ in task.model.named_parameters()]

    def step() -> None:
        g = torch.autograd.grad(task.inner(), task.theta, create_graph=True)
        new: list[torch.Tensor] = [
            (p - task.lr * d).detach().requires_grad_() for p, d in zip(task.theta, g)
        ]
        weights = dict(zip(names, new))
        v, direct = outer_gradients(task, new, lambda x: functional_call(task.model, weights, (x,)))
        implicit = torch.autograd.grad(g, task.lam, [-task.lr * x for x in v])
        del g
        with torch.no_grad():
            torch._foreach_copy_(task.theta, new)
        task.outer_step(plus_direct(list(implicit), direct))

    return step


COST: dict[str, tuple[str, Builder]] = {
    "by hand: finite difference": ("finite difference", finite_difference),
    "by hand: reverse over reverse": ("exact, one step", one_step),
}
