"""Inner problems solved to the end or unrolled, against closed forms and full autograd."""

import pytest
import torch
from hypergrad_problem import EVERY, Problem
from torch.nn import functional as F

from benchmarks.hypergradients.toy import CONDITIONS, Toy
from shared import vectors
from shared.hypergrad import (
    SGD,
    Adam,
    ConjugateGradient,
    Neumann,
    OneStep,
    Unrolled,
    hypergrad,
    stepped,
    through_level,
)
from shared.inverse import conjugate_gradient


@pytest.fixture(scope="module")
def toys():
    return {condition: Toy(condition) for condition in CONDITIONS}


def error(toy, method, lr=None):
    inner = lambda: toy.inner(toy.theta, toy.lam)  # noqa: E731
    g = hypergrad(lambda: toy.outer(toy.theta), inner, [toy.theta], [toy.lam], lr, method)
    return vectors.relative_error(g.grads, [toy.exact])


def test_the_closed_form_has_an_independent_witness(toys):
    assert toys[10].witness() < 1e-8


@pytest.mark.parametrize("condition", CONDITIONS)
def test_conjugate_gradient_solves_d_dimensions_in_d_iterations(toys, condition):
    errors = [error(toys[condition], ConjugateGradient(k)) for k in (5, 10, 19, 20, 25)]
    assert errors[0] > errors[1] > errors[2] > 1e-10
    assert errors[3] < 1e-10 and errors[4] < 1e-10


def test_without_reorthogonalisation_a_bad_condition_costs_digits(toys):
    assert error(toys[10], ConjugateGradient(20, reorthogonalise=False)) < 1e-10
    assert error(toys[1000], ConjugateGradient(20, reorthogonalise=False)) > 1e-4
    assert error(toys[1000], ConjugateGradient(60, reorthogonalise=False)) < 1e-10


def test_damping_is_added_to_the_hessian(toys):
    toy = toys[10]
    hessian = torch.autograd.functional.hessian(
        lambda t: toy.inner(t, toy.lam.detach()), toy.theta.detach()
    )
    v = torch.autograd.grad(toy.outer(toy.theta), toy.theta)[0]
    damped = torch.linalg.solve(hessian + 0.5 * torch.eye(20, dtype=torch.float64), v)
    got = conjugate_gradient(lambda x: [hessian @ x[0]], [v], 20, damping=0.5)
    assert vectors.relative_error(got, [damped]) < 1e-12


def test_conjugate_gradient_refuses_negative_curvature():
    saddle = torch.diag(torch.tensor([1.0, -1.0], dtype=torch.float64))
    with pytest.raises(ArithmeticError, match="damping"):
        conjugate_gradient(
            lambda x: [saddle @ x[0]], [torch.tensor([0.1, 1.0], dtype=torch.float64)], 2
        )


def test_neumann_is_the_truncated_series(toys):
    toy, k = toys[10], 6
    hessian = torch.autograd.functional.hessian(
        lambda t: toy.inner(t, toy.lam.detach()), toy.theta.detach()
    )
    v = torch.autograd.grad(toy.outer(toy.theta), toy.theta)[0]
    total = sum(
        torch.matrix_power(torch.eye(20, dtype=torch.float64) - toy.rate * hessian, j) @ v
        for j in range(k + 1)
    )
    exact = -toy.rate * total * toy.lam.detach().exp() * toy.theta.detach()
    for method, lr in [
        (Neumann(k), toy.rate),
        (Neumann(k, alpha=toy.rate), None),
        (Neumann(k), [torch.full((20,), toy.rate)]),
    ]:
        g = hypergrad(
            lambda: toy.outer(toy.theta),
            lambda: toy.inner(toy.theta, toy.lam),
            [toy.theta],
            [toy.lam],
            lr,
            method,
        )
        assert vectors.relative_error(g.grads, [exact]) < 1e-6
        assert g.gradient_evaluations == 1 + 1 + k + 1
    assert error(toy, Neumann(200), toy.rate) < 1e-6


def test_unrolled_from_the_minimum_is_neumann(toys):
    """At a fixed point k + 1 steps are the k-th partial sum."""
    toy = toys[10]
    inputs = (
        lambda: toy.outer(toy.theta),
        lambda: toy.inner(toy.theta, toy.lam),
        [toy.theta],
        [toy.lam],
        toy.rate,
    )
    a, b = hypergrad(*inputs, Unrolled(6)), hypergrad(*inputs, Neumann(5))
    assert vectors.relative_error(a.grads, b.grads) < 1e-10


def torch_optimizer(update, theta, lr):
    if isinstance(update, SGD):
        return torch.optim.SGD(theta, lr=lr, momentum=update.momentum)
    return torch.optim.Adam(theta, lr=lr, betas=update.betas, eps=update.eps)


UPDATES = [SGD(), SGD(momentum=0.9), Adam(), Adam(betas=(0.5, 0.9), eps=1e-3)]


@pytest.mark.parametrize("update", UPDATES, ids=str)
@pytest.mark.parametrize("replay", [False, True])
def test_unrolled_equals_autograd_through_the_optimiser(update, replay):
    """The way there against torch.optim, the way back against functional copies of its formulas."""
    p, lr, k = Problem(), 0.1, 4
    batches = [lambda rows=slice(2 * t, 2 * t + 2): p.inner(rows) for t in range(k)]
    method = Unrolled(k, update, losses=batches, replay=replay)
    theta, _ = stepped(p.inner, p.theta, lr, method)
    got = hypergrad(p.outer, p.inner, p.theta, p.lam, lr, method)
    assert got.gradient_evaluations == (3 * k if replay else 2 * k) + 1

    params, original = list(p.theta), vectors.clone(p.theta)
    a, b = update.betas if isinstance(update, Adam) else (update.momentum, None)
    first, second = ([torch.zeros_like(w) for w in params] for _ in range(2))

    def losses_at(params, rows, outer=False):
        w0, b0, w1, b1 = params
        x, y = (p.x[1], p.y[1]) if outer else (p.x[0][rows], p.y[0][rows])
        logits = (torch.tanh(x @ w0.T + b0) * p.gate) @ w1.T + b1
        if outer:
            return p.scale.exp() * F.cross_entropy(logits, y)
        return F.cross_entropy(logits, y) + sum(
            e * w.pow(2).sum() for e, w in zip(p.penalty.exp(), (w0, w1))
        )

    for t in range(k):
        g = torch.autograd.grad(
            losses_at(params, slice(2 * t, 2 * t + 2)), params, create_graph=True
        )
        if b is None:
            first = [a * m + x for m, x in zip(first, g)]
            params = [w - lr * m for w, m in zip(params, first)]
        else:
            first = [a * m + (1 - a) * x for m, x in zip(first, g)]
            second = [b * s + (1 - b) * x * x for s, x in zip(second, g)]
            moments = [
                (m / (1 - a ** (t + 1)), s / (1 - b ** (t + 1))) for m, s in zip(first, second)
            ]
            params = [w - lr * m / (s.sqrt() + update.eps) for w, (m, s) in zip(params, moments)]
    exact = torch.autograd.grad(losses_at(params, None, outer=True), p.lam)
    assert vectors.relative_error(got.grads, exact) < 1e-9

    optimizer = torch_optimizer(update, p.theta, lr)
    for batch in batches:
        optimizer.zero_grad()
        batch().backward()
        optimizer.step()
    assert vectors.relative_error(theta, p.theta) < 1e-12
    vectors.copy_(p.theta, original)


def test_momentum_buffers_are_used():
    p = Problem()
    buffers = [torch.randn_like(w) for w in p.theta]
    (theta, _) = stepped(p.inner, p.theta, 0.1, Unrolled(1, SGD(0.9, buffers)))
    g = torch.autograd.grad(p.inner(), p.theta)
    exact = [w - 0.1 * (0.9 * b + x) for w, b, x in zip(p.theta, buffers, g)]
    assert vectors.relative_error(theta, exact) < 1e-14


def test_adam_where_a_gradient_is_always_zero():
    """A unit that no example switches on must not turn the hypergradient into nan."""
    w = torch.tensor([1.0, 1.0], dtype=torch.float64, requires_grad=True)
    lam = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    inputs = torch.tensor([1.0, 0.0], dtype=torch.float64)
    g = hypergrad(
        lambda: (w * w).sum(),
        lambda: lam.exp() * (w * inputs).sum() ** 2,
        [w],
        [lam],
        0.1,
        Unrolled(2, Adam()),
    )
    assert torch.isfinite(g.grads[0])


@pytest.mark.parametrize("method", [OneStep(), Unrolled(1), Unrolled(1, replay=True)], ids=str)
def test_one_step_in_three_ways(method):
    p = Problem()
    a = hypergrad(p.outer, p.inner, p.theta, p.lam, 0.3, method)
    assert vectors.relative_error(a.grads, p.unrolled(0.3)) < 1e-12


def test_through_level_of_every_method():
    """v for theta' known: hypergrad's implicit term is what through_level returns."""
    p = Problem()
    for method in EVERY:
        g = hypergrad(p.outer, p.inner, p.theta, p.lam, 0.1, method)
        theta, _ = stepped(p.inner, p.theta, 0.1, method)
        before = vectors.clone(p.theta)
        vectors.copy_(p.theta, theta)
        v = torch.autograd.grad(p.outer(), p.theta)
        vectors.copy_(p.theta, before)
        got = through_level(p.inner, p.theta, p.lam, v, 0.1, method, unreached="zero")
        assert vectors.relative_error(got, g.implicit) < 1e-9, method
