"""Several inner steps with an optimiser, and the way back through them (exact).

Each step has its own graph, from its own theta, so nothing ties the graphs together but the vectors
handed from one to the one before: theta can move in place, and a graph can be kept or made again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from shared import vectors
from shared.evaluation import Call, Edges, Loss, Losses, Partial, edges, plus
from shared.vectors import Rate, Vector

State = list[Tensor]  # what an optimiser holds for one tensor
TensorRate = float | Tensor  # a number or a tensor of the shape of theta's tensor


@dataclass(frozen=True)
class SGD:
    """Inner update of `Unrolled`: b <- momentum * b + g, theta <- theta - lr * b.

    buffers: b at the start, None = 0.
    """

    momentum: float = 0.0
    buffers: Sequence[Tensor] | None = None
    needs_gradient = False  # on the way back: the update is linear

    def start(self, theta: Vector) -> list[State]:
        if not self.momentum:
            return [[] for _ in theta]
        return [[b] for b in (vectors.zeros_like(theta) if self.buffers is None else self.buffers)]

    def step(
        self, p: Tensor, g: Tensor, state: State, rate: TensorRate, _t: int
    ) -> tuple[Tensor, State]:
        if not self.momentum:
            return p - rate * g, []
        b = self.momentum * state[0] + g
        return p - rate * b, [b]

    def back(
        self, _p: Tensor, _g: object, state: State, rate: TensorRate, _t: int, v: State
    ) -> tuple[Tensor, Tensor, State]:
        """From the vectors for (p, b) after the step to those for p, g and b before it."""
        if not state:
            return v[0], -rate * v[0], []
        v_b = v[1] - rate * v[0]
        return v[0], v_b, [self.momentum * v_b]


@dataclass(frozen=True)
class Adam:
    """Inner update of `Unrolled`: torch.optim.Adam from a fresh state."""

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    needs_gradient = True

    def start(self, theta: Vector) -> list[State]:
        return [[torch.zeros_like(p), torch.zeros_like(p)] for p in theta]

    def step(
        self, p: Tensor, g: Tensor, state: State, rate: TensorRate, t: int
    ) -> tuple[Tensor, State]:
        a, b = self.betas
        m, s = a * state[0] + (1 - a) * g, b * state[1] + (1 - b) * g * g
        # The root of zero has no derivative: where the gradient always was zero, eps is a constant.
        root = torch.where(s > 0, torch.where(s > 0, s / (1 - b**t), 1.0).sqrt(), 0.0)
        return p - rate * m / (1 - a**t) / (root + self.eps), [m, s]

    def back(
        self, p: Tensor, g: Tensor | None, state: State, rate: TensorRate, t: int, v: State
    ) -> tuple[Tensor, Tensor, State]:
        assert g is not None, "needs_gradient"
        p, g, *state = (x.detach().requires_grad_() for x in (p, g, *state))
        new, new_state = self.step(p, g, state, rate, t)
        v_p, v_g, *v_state = torch.autograd.grad([new, *new_state], [p, g, *state], v)
        return v_p, v_g, v_state


@dataclass(frozen=True)
class Unrolled:
    """k inner steps from theta, differentiated exactly, back to theta (which counts as a constant).

    losses: one inner loss for each step, None = `inner_loss` k times. replay: compute each inner
    gradient again on the way back instead of keeping k graphs: memory of one step and k copies of
    theta, k further gradient evaluations.
    """

    k: int = 1
    update: SGD | Adam = field(default_factory=SGD)
    losses: Sequence[Loss] | None = None
    replay: bool = False


@dataclass
class Step:
    """One step, for the way back."""

    loss: Losses
    theta: Vector  # before the step
    g: Vector | None  # averaged over the processes, if the update rule needs it
    graph: Edges | None  # of this process's share of g, where it is not made again
    states: list[State]  # of the inner optimiser, before the step


def unroll(call: Call, method: Unrolled, inner_loss: Losses, lr: Rate) -> list[Step]:
    """theta <- theta', in place; the steps, for the way back."""
    update, steps, states = method.update, [], method.update.start(call.theta)
    for t in range(method.k):
        loss = method.losses[t] if method.losses else inner_loss
        keep = not method.replay and callable(loss)
        share = call.gradient(loss, call.theta, create_graph=keep)
        call.check_reached("theta", share)
        before = call.base if t == 0 else vectors.clone(call.theta)
        g = call.vector(share, call.theta)
        needed, graph = g if update.needs_gradient else None, edges(share) if keep else None
        steps.append(Step(loss, before, needed, graph, states))
        del share
        after = []
        for p, x, state, rate in zip(call.theta, g, states, _rates(lr, g)):
            new, state = update.step(p.detach(), x, state, rate, t + 1)
            vectors.copy_([p], [new])
            after.append(state)
        states = after
    return steps


def unroll_back(call: Call, method: Unrolled, steps: list[Step], v: Vector, lr: Rate) -> Partial:
    """Backpropagation through the steps: each update rule, then the gradient in it."""
    n = len(call.theta)
    total: list[Tensor | None] = [None] * len(call.lam)
    v_states = [[torch.zeros_like(x) for x in state] for state in steps[-1].states]
    for t in reversed(range(method.k)):
        step = steps.pop()
        gradient: Sequence[Tensor | None] = step.g or [None] * n
        columns = zip(step.theta, gradient, step.states, _rates(lr, v), v, v_states)
        passed = [
            method.update.back(p, g, state, rate, t + 1, [x, *v_state])
            for p, g, state, rate, x, v_state in columns
        ]
        v, v_g, v_states = [x[0] for x in passed], [x[1] for x in passed], [x[2] for x in passed]
        vectors.copy_(call.theta, step.theta)
        inputs = [*call.theta, *call.lam] if t else call.lam  # the first step's theta is a constant
        back = call.averaged(call.pull(step.loss, inputs, v_g, step.graph))
        if t:
            v = [x if y is None else x + y for x, y in zip(v, back[:n])]
        total = [plus(a, b) for a, b in zip(total, back[n:] if t else back)]
    return total


def _rates(lr: Rate, v: Vector) -> Sequence[TensorRate]:
    return [lr] * len(v) if isinstance(lr, float) else lr
