"""This repository's estimators, as entries of the benchmark: name -> (kind, function).

Accuracy functions take a `Toy` and return a hypergradient; cost functions take a `Task` and return
one bilevel step (an inner SGD step, a hypergradient, an outer SGD step). Estimators of one kind
compute the same thing and are compared.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks.hypergradients.tasks import Builder, Task, inner_sgd
from benchmarks.hypergradients.toy import Toy
from shared import vectors
from shared.hypergrad import (
    ConjugateGradient,
    FiniteDifference,
    ForwardOverReverse,
    Method,
    Neumann,
    OneStep,
    Unrolled,
    hypergrad,
)


def at_minimum(method: Method, toy: Toy) -> Tensor:
    """At theta*, so without a look-ahead; lr = 1, as in peers, where one step stands for H^-1."""
    one_step = isinstance(method, FiniteDifference | OneStep | ForwardOverReverse)
    outer, inner = lambda: toy.outer(toy.theta), lambda: toy.inner(toy.theta, toy.lam)
    lr = 1.0 if one_step else toy.rate
    levels = outer, inner, [toy.theta], [toy.lam]
    return hypergrad(*levels, lr, method, look_ahead=not one_step).grads[0]


def from_zero(k: int, toy: Toy) -> Tensor:
    theta = torch.zeros_like(toy.theta).requires_grad_()
    outer, inner = lambda: toy.outer(theta), lambda: toy.inner(theta, toy.lam)
    return hypergrad(outer, inner, [theta], [toy.lam], toy.rate, Unrolled(k)).grads[0]


ACCURACY: dict[str, tuple[str, Callable[[Toy], Tensor]]] = {
    "ours: FiniteDifference": ("one step", partial(at_minimum, FiniteDifference())),
    "ours: OneStep": ("one step", partial(at_minimum, OneStep())),
    "ours: ForwardOverReverse": ("one step", partial(at_minimum, ForwardOverReverse())),
    "ours: ConjugateGradient(20), not reorthogonalised": (
        "conjugate gradient, k=20",
        partial(at_minimum, ConjugateGradient(20, reorthogonalise=False)),
    ),
}
for k in (5, 20):
    conjugate, neumann = partial(at_minimum, ConjugateGradient(k)), partial(at_minimum, Neumann(k))
    ACCURACY[f"ours: ConjugateGradient({k})"] = (f"conjugate gradient, k={k}", conjugate)
    ACCURACY[f"ours: Neumann({k})"] = (f"Neumann, k={k}", neumann)
for k in (20, 100):
    ACCURACY[f"ours: Unrolled({k})"] = (f"unrolled, k={k}", partial(from_zero, k))


def look_ahead_is_the_step(method: Method) -> Builder:
    """The look-ahead also is the real step, so it is evaluated once (as in higher and TorchOpt)."""

    def step(task: Task) -> None:
        g = hypergrad(*task.levels, method, keep_stepped=True)
        task.outer_step(g.grads)
        assert g.stepped is not None
        vectors.copy_(task.theta, g.stepped)

    return lambda task: partial(step, task)


def step_then(method: Method) -> Builder:
    """The real step first, then the hypergradient at the point that it reached (as in Betty)."""
    look_ahead = isinstance(method, Neumann | ConjugateGradient)

    def step(task: Task) -> None:
        inner_sgd(task)
        task.outer_step(hypergrad(*task.levels, method, look_ahead=look_ahead).grads)

    return lambda task: partial(step, task)


def retaken(method: Method) -> Builder:
    """Look-ahead, hypergradient, outer step, then the real step with the new lam, as DARTS does."""

    def step(task: Task) -> None:
        task.outer_step(hypergrad(*task.levels, method).grads)
        inner_sgd(task)

    return lambda task: partial(step, task)


FD, EXACT = FiniteDifference(), "exact, one step"
# Damped, because after a few steps the Hessian of a network still has negative curvature; the cost
# is the same.
CG = ConjugateGradient(3, damping=100.0)
REPLAY = look_ahead_is_the_step(Unrolled(5, replay=True))
COST: dict[str, tuple[str, Builder]] = {
    "ours: FiniteDifference": ("finite difference", step_then(FD)),
    "ours: FiniteDifference around theta": ("finite difference", look_ahead_is_the_step(FD)),
    "ours: FiniteDifference, step retaken": ("finite difference, step retaken", retaken(FD)),
    "ours: ForwardOverReverse": (EXACT, look_ahead_is_the_step(ForwardOverReverse())),
    "ours: OneStep": (EXACT, look_ahead_is_the_step(OneStep())),
    "ours: Neumann(3)": ("Neumann, k=3", step_then(Neumann(3))),
    "ours: ConjugateGradient(3)": ("conjugate gradient, k=3", step_then(CG)),
    "ours: Unrolled(5)": ("unrolled, 5 steps", look_ahead_is_the_step(Unrolled(5))),
    "ours: Unrolled(5, replay)": ("unrolled, 5 steps", REPLAY),
}
