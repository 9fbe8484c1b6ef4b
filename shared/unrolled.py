"""Several inner steps with an optimiser, and the way back through them (exact).

Each step has its own graph, from its own theta, so nothing ties the graphs together but the vectors handed from one to the
one before: theta can move in place, and a graph can be kept or computed again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from shared import vectors
from shared.evaluation import Call, Loss, Losses, Partial, plus, pull
from shared.vectors import Vector


@dataclass(frozen=True)
class SGD:
    """Inner update of `Unrolled`: b <- momentum * b + g, theta <- theta - lr * b. buffers: b at the start, None = 0."""

    momentum: float = 0.0
    buffers: Sequence[Tensor] | None = None

    def start(self, theta: Vector) -> list[Vector]:
        return (
            [list(self.buffers) if self.buffers is not None else vectors.zeros_like(theta)]
            if self.momentum
            else []
        )

    def step(
        self, theta: Vector, g: Vector, state: list[Vector], rates: Sequence, _t: int
    ) -> tuple[Vector, list[Vector]]:
        b = [self.momentum * m + x for m, x in zip(state[0], g)] if self.momentum else g
        return [p - r * x for p, r, x in zip(theta, rates, b)], [b] if self.momentum else []


@dataclass(frozen=True)
class Adam:
    """Inner update of `Unrolled`: torch.optim.Adam from a fresh state."""

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def start(self, theta: Vector) -> list[Vector]:
        return [vectors.zeros_like(theta), vectors.zeros_like(theta)]

    def step(
        self, theta: Vector, g: Vector, state: list[Vector], rates: Sequence, t: int
    ) -> tuple[Vector, list[Vector]]:
        a, b = self.betas
        m = [a * x + (1 - a) * y for x, y in zip(state[0], g)]
        s = [b * x + (1 - b) * y * y for x, y in zip(state[1], g)]
        # The root of zero has no derivative: where a gradient always was zero the denominator is eps, a constant.
        roots = [torch.where(x > 0, torch.where(x > 0, x / (1 - b**t), 1.0).sqrt(), 0.0) for x in s]
        new = [p - r * x / (1 - a**t) / (q + self.eps) for p, r, x, q in zip(theta, rates, m, roots)]
        return new, [m, s]


@dataclass(frozen=True)
class Unrolled:
    """k inner steps from theta, differentiated exactly, back to theta (which counts as a constant).

    losses: one inner loss for each step, None = `inner_loss` k times. replay: compute each inner gradient again on the way
    back instead of keeping k graphs: memory of one step, k further gradient evaluations.
    """

    k: int = 1
    update: SGD | Adam = field(default_factory=SGD)
    losses: Sequence[Loss] | None = None
    replay: bool = False


@dataclass
class Step:
    """One step of `Unrolled`, for the way back."""

    loss: Losses
    theta: Vector  # before the step
    g: Vector  # averaged over the processes
    graph: Partial | None  # this process's share of g with its graph, if kept
    state: list[Vector]  # of the inner optimiser, before the step


def unroll(call: Call, method: Unrolled, inner_loss: Losses, lr: Any) -> list[Step]:
    """theta <- theta', in place; the steps, for the way back."""
    steps, state = [], method.update.start(call.theta)
    for t in range(method.k):
        loss = method.losses[t] if method.losses else inner_loss
        keep = not method.replay and callable(loss)
        graph = call.gradient(loss, call.theta, create_graph=keep)
        call.check_reached("theta", graph)
        before = call.base if t == 0 else vectors.clone(call.theta)
        g = call.vector(graph, call.theta)
        steps.append(Step(loss, before, g, graph if keep else None, state))
        new, state = method.update.step(before, g, state, _rates(lr, g), t + 1)
        vectors.copy_(call.theta, new)
    return steps


def unroll_back(call: Call, method: Unrolled, steps: list[Step], v: Vector, lr: Any) -> Partial:
    """Backpropagation through the steps, one at a time: first through the update rule, then through the gradient in it."""
    total: list[Tensor | None] = [None] * len(call.lam)
    v_state = [vectors.zeros_like(x) for x in steps[-1].state]
    n = len(call.theta)
    for t in reversed(range(method.k)):
        step = steps[t]
        v, v_g, v_state = _update_back(method, step, _rates(lr, v), t + 1, v, v_state)
        vectors.copy_(call.theta, step.theta)
        # The first step's theta is a constant.
        inputs = [*call.theta, *call.lam] if t else call.lam
        if step.graph is None:
            back = call.averaged(call.pull(step.loss, inputs, v_g))
        else:
            back = call.averaged(pull(step.graph, inputs, v_g))
            call.gradient_evaluations += 1
            step.graph = None
        if t:
            v = [x if y is None else x + y for x, y in zip(v, back[:n])]
        total = [plus(a, b) for a, b in zip(total, back[n:] if t else back)]
    return total


def _update_back(
    method: Unrolled, step: Step, rates: Sequence, t: int, v: Vector, v_state: list[Vector]
) -> tuple[Vector, Vector, list[Vector]]:
    """The vector-Jacobian product of one update rule (theta, g, state) -> (theta', state')."""
    sizes = [len(step.theta)] * (2 + len(step.state))
    flat = [x.detach().requires_grad_() for x in (*step.theta, *step.g, *(x for s in step.state for x in s))]
    theta, g, *state = _split(flat, sizes)
    new, new_state = method.update.step(theta, g, state, rates, t)
    outputs = [*new, *(x for s in new_state for x in s)]
    heads = [*v, *(x for s in v_state for x in s)]
    v_theta, v_g, *v_state = _split(torch.autograd.grad(outputs, flat, heads), sizes)
    return v_theta, v_g, v_state


def _split(flat: Sequence[Tensor], sizes: Sequence[int]) -> list[Vector]:
    it = iter(flat)
    return [[next(it) for _ in range(n)] for n in sizes]


def _rates(lr: Any, v: Vector) -> Sequence:
    return [lr] * len(v) if isinstance(lr, float) else lr
