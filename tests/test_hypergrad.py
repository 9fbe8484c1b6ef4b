"""shared/hypergrad.py against closed forms, full autograd, and everything it promises to leave alone."""

import math
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.hypergradients.toy import CONDITIONS, Toy
from shared import vectors
from shared.hypergrad import (
    SGD,
    Adam,
    ConjugateGradient,
    FiniteDifference,
    FirstOrder,
    ForwardOverReverse,
    Neumann,
    OneStep,
    Unrolled,
    hypergrad,
    self_check,
    stepped,
    through_level,
)
from shared.inverse import conjugate_gradient

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
    """A two-layer network with hyperparameters inside it (a gate for each hidden unit), outside it (a log penalty for each
    weight matrix), and in the outer loss alone (a scale)."""

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
        """d outer(theta - lr grad inner) / d lam by autograd through everything, with functional copies of the weights."""
        g = torch.autograd.grad(self.inner(), self.theta, create_graph=True)
        rates = lr if isinstance(lr, list) else [lr] * len(g)
        w0, b0, w1, b1 = (p - r * d for p, d, r in zip(self.theta, g, rates))
        logits = (torch.tanh(self.x[1] @ w0.T + b0) * self.gate) @ w1.T + b1
        return torch.autograd.grad(self.scale.exp() * F.cross_entropy(logits, self.y[1]), self.lam)


@pytest.mark.parametrize("method", ONE_STEP, ids=named)
@pytest.mark.parametrize("per_tensor", [False, True])
def test_equals_full_autograd_through_one_step(method, per_tensor):
    p = Problem()
    lr = [torch.rand(7, 5, dtype=torch.float64), 0.3, 0.1, 0.5] if per_tensor else 0.3
    g = hypergrad(p.outer, p.inner, p.theta, p.lam, lr, method)
    exact = p.unrolled(lr)
    tolerance = 1e-6 if isinstance(method, FiniteDifference) else 1e-12
    assert vectors.relative_error(g.grads, exact) < tolerance
    assert (
        vectors.relative_error(g.implicit, torch._foreach_sub(list(exact), g.direct))
        < 10 * tolerance
    )
    assert vectors.norm(g.implicit) > 1e-2 * vectors.norm(g.direct)


def test_finite_difference_in_float32():
    p = Problem(torch.float32)
    g = hypergrad(p.outer, p.inner, p.theta, p.lam, 0.3)
    exact = hypergrad(p.outer, p.inner, p.theta, p.lam, 0.3, OneStep())
    assert vectors.relative_error(g.implicit, exact.implicit) < 1e-3


def test_first_order_is_the_outer_gradient_at_theta():
    p = Problem()
    g = hypergrad(p.outer, p.inner, p.theta, p.lam, 0.3, FirstOrder())
    direct = torch.autograd.grad(p.outer(), p.lam, allow_unused=True)
    assert torch.equal(g.grads[0], direct[0]) and torch.equal(g.grads[2], direct[2])
    assert vectors.norm(g.implicit) == 0 and vectors.norm(g.grads[1:2]) == 0
    assert g.outer_loss == pytest.approx(p.outer().item())


@pytest.mark.parametrize("method", ONE_STEP, ids=named)
def test_through_level_is_the_implicit_term(method):
    p = Problem()
    lam, v = p.lam[:2], [torch.randn_like(w) for w in p.theta]
    got = through_level(p.inner, p.theta, lam, v, 0.3, method)
    g = torch.autograd.grad(p.inner(), p.theta, create_graph=True)
    exact = torch.autograd.grad(g, lam, [-0.3 * x for x in v])
    assert vectors.relative_error(got, exact) < 1e-6
    assert [x.shape for x in got] == [x.shape for x in lam]


@pytest.mark.parametrize(
    ("method", "count", "losses"),
    [
        (FirstOrder(), 1, 1),
        (FiniteDifference(), 4, 4),
        (OneStep(), 3, 2),
        (ForwardOverReverse(), 3, 3),
    ],
)
def test_gradient_evaluations(method, count, losses):
    p, calls = Problem(), [0]

    def counted(loss):
        def run():
            calls[0] += 1
            return loss()

        return run

    g = hypergrad(counted(p.outer), counted(p.inner), p.theta, p.lam, 0.3, method)
    assert g.gradient_evaluations == count
    assert calls[0] == losses


def test_conventions():
    p, lr = Problem(), 0.3
    stepped = vectors.clone(p.theta)
    vectors.add_(stepped, torch.autograd.grad(p.inner(), p.theta), -lr)
    usual = hypergrad(p.outer, p.inner, p.theta, p.lam, lr, OneStep())
    unscaled = hypergrad(p.outer, p.inner, p.theta, p.lam, lr, OneStep(), lr_factor=False)
    around = [
        hypergrad(p.outer, p.inner, p.theta, p.lam, lr, m, around="stepped") for m in ONE_STEP
    ]
    vectors.copy_(p.theta, stepped)
    there = [hypergrad(p.outer, p.inner, p.theta, p.lam, lr, m, look_ahead=False) for m in ONE_STEP]
    assert vectors.relative_error([lr * x for x in unscaled.implicit], usual.implicit) < 1e-12
    for a, b in zip(around, there):
        assert vectors.relative_error(a.grads, b.grads) < 1e-9
    assert vectors.relative_error(around[0].grads, around[1].grads) < 1e-6
    assert vectors.relative_error(around[1].grads, usual.grads) > 1e-3


# --------------------------------------------------------------------------------------------------- what is left alone
class State:
    """Copies of all that a call could disturb."""

    def __init__(self, p):
        self.p = p
        for w in [*p.theta, *p.lam]:
            w.grad = torch.randn_like(w)
        self.objects = [w.grad for w in [*p.theta, *p.lam]]
        self.tensors = [t.clone() for t in self.now()]
        self.versions = [t._version for t in p.theta]

    def now(self):
        p = self.p
        return [
            *(w.detach() for w in [*p.theta, *p.lam]),
            *self.objects,
            *p.net.buffers(),
            torch.get_rng_state(),
        ]

    def unchanged(self):
        parameters = [*self.p.theta, *self.p.lam]
        return (
            all(torch.equal(a, b) for a, b in zip(self.now(), self.tensors, strict=True))
            and all(w.grad is g for w, g in zip(parameters, self.objects))
            and all(w.requires_grad for w in parameters)
            and [t._version for t in self.p.theta] == self.versions
        )


@pytest.mark.parametrize("method", EVERY, ids=named)
def test_everything_is_bit_identical_afterwards(method):
    p = Problem(torch.float32, dropout=0.3, norm=True)
    state = State(p)
    for _ in range(2):
        hypergrad(p.outer, p.inner, p.theta, p.lam, 0.3, method)
        through_level(p.inner, p.theta, p.lam[:2], [w.detach() for w in p.theta], 0.3, method)
    assert state.unchanged()


@pytest.mark.parametrize("method", EVERY, ids=named)
@pytest.mark.parametrize("fatal", range(4))
def test_everything_is_bit_identical_after_an_exception(method, fatal):
    p, calls = Problem(torch.float32, dropout=0.3, norm=True), [0]
    state = State(p)

    def failing(loss):
        def run():
            out = loss()
            calls[0] += 1
            if calls[0] > fatal:
                out.backward()  # a loss must not, but if it does the caller's .grad survives
                raise KeyError("planted")
            return out

        return run

    try:
        hypergrad(failing(p.outer), failing(p.inner), p.theta, p.lam, 0.3, method)
        assert fatal >= calls[0]
    except KeyError:
        pass
    assert state.unchanged()


@pytest.mark.parametrize("method", ONE_STEP, ids=named)
def test_all_evaluations_see_the_same_dropout_masks(method):
    p, drawn = Problem(dropout=0.5), []
    p.net[3].register_forward_hook(lambda _m, _i, out: drawn.append(out == 0))
    hypergrad(p.outer, p.inner, p.theta, p.lam, 0.3, method)
    p.inner()  # the caller's real step
    assert len(drawn) > 2 and all(torch.equal(d, drawn[0]) for d in drawn)
    assert drawn[0].any()
    p.inner()
    assert not torch.equal(drawn[0], drawn[-1])


def test_a_graph_of_the_caller_survives():
    p = Problem()
    loss = p.inner()
    before = torch.autograd.grad(p.inner(), p.theta)
    for method in EVERY:
        hypergrad(p.outer, p.inner, p.theta, p.lam, 0.3, method)
    assert all(torch.equal(a, b) for a, b in zip(before, torch.autograd.grad(loss, p.theta)))


# ------------------------------------------------------------------------------------------------------------ self_check
@pytest.mark.parametrize("method", ONE_STEP, ids=named)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_self_check_passes_a_sound_problem(method, dtype):
    p = Problem(dtype, dropout=0.3)
    found = self_check(p.outer, p.inner, p.theta, p.lam, 0.3, method)
    assert found["relative_error"] < 1e-3 and found["cosine"] > 0.99999
    assert found["relative_error_total"] < 1e-3


def test_self_check_measures_first_order():
    p = Problem()
    found = self_check(p.outer, p.inner, p.theta, p.lam, 0.3, FirstOrder())
    assert found["relative_error"] == 1 and found["relative_error_total"] > 0.01


@pytest.mark.parametrize("method", [FiniteDifference(), OneStep()], ids=named)
def test_self_check_finds_a_detached_dependence(method):
    """Meta-Weight-Net as usually written: the weight of an example depends on its detached loss."""
    p, lam = Problem(), torch.tensor([1.0, 0.0], dtype=torch.float64, requires_grad=True)

    def inner():
        losses = F.cross_entropy(p.forward(p.x[0]), p.y[0], reduction="none")
        return (torch.sigmoid(lam[0] * losses.detach() + lam[1]) * losses).mean()

    with pytest.raises(ValueError, match="detaches something"):
        self_check(p.outer, inner, p.theta, [lam], 0.3, method)
    found = self_check(p.outer, inner, p.theta, [lam], 0.3, ForwardOverReverse())
    assert found["relative_error"] < 1e-12


def test_self_check_finds_noise_of_its_own():
    p, own = Problem(), torch.Generator().manual_seed(0)

    def inner():
        return (
            p.inner()
            + 0.1
            * (torch.randn(7, generator=own, dtype=torch.float64) * p.net[0].bias * p.gate).sum()
        )

    with pytest.raises(ValueError, match="draw its noise outside"):
        self_check(p.outer, inner, p.theta, p.lam, 0.3)


# ---------------------------------------------------------------------------------- inner problems solved or unrolled
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

    params, kept = list(p.theta), vectors.clone(p.theta)
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
    vectors.copy_(p.theta, kept)


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


# --------------------------------------------------------------------------------------------- the ways models are trained
@pytest.mark.parametrize("method", EVERY, ids=named)
def test_a_vector_without_memory_of_its_own(method):
    """autograd may hand out one number, expanded, as the gradient of a whole tensor; the caller's v is not written either."""
    p, ones = Problem(), torch.ones(1, dtype=torch.float64)
    inputs = p.inner, p.theta, p.lam[:2], 0.1, method
    expanded = hypergrad(lambda: sum(w.sum() for w in p.theta) + p.gate.sum(), *inputs)
    written = hypergrad(
        lambda: sum((w * torch.ones_like(w)).sum() for w in p.theta) + p.gate.sum(), *inputs
    )
    assert vectors.relative_error(expanded.grads, written.grads) < 1e-12
    v = [ones.expand(w.shape) for w in p.theta]
    through_level(p.inner, p.theta, p.lam[:2], v, 0.1, method)
    own = [torch.ones_like(w) for w in p.theta]
    through_level(p.inner, p.theta, p.lam[:2], own, 0.1, method)
    assert ones.item() == 1 and all(torch.equal(x, torch.ones_like(x)) for x in own)


@pytest.mark.parametrize("method", EVERY, ids=named)
def test_gradient_accumulation(method):
    """Two micro-batches of four are one batch of eight, at both levels."""
    p = Problem()
    whole = hypergrad(p.outer, p.inner, p.theta, p.lam, 0.3, method)
    halves = [slice(0, 4), slice(4, 8)]
    micro = hypergrad(
        [lambda r=r: p.outer(r) for r in halves],
        [lambda r=r: p.inner(r) for r in halves],
        p.theta,
        p.lam,
        0.3,
        method,
    )
    assert vectors.relative_error(micro.grads, whole.grads) < 1e-8
    assert vectors.relative_error(micro.implicit, whole.implicit) < 1e-7
    assert micro.outer_loss == pytest.approx(whole.outer_loss)


@pytest.mark.parametrize("method", EVERY, ids=named)
def test_tied_weights(method):
    g = torch.Generator().manual_seed(0)
    table = torch.randn(9, 4, generator=g, dtype=torch.float64).requires_grad_()
    mix = torch.randn(4, generator=g, dtype=torch.float64).requires_grad_()
    tokens = torch.randint(0, 9, (2, 12), generator=g)

    def loss(table, which):
        return (
            F.cross_entropy((table[tokens[which]] * mix) @ table.T, tokens[which].roll(1))
            + 0.5 * table.pow(2).mean()
        )

    method = (
        Unrolled(1, SGD()) if isinstance(method, Unrolled | Neumann | ConjugateGradient) else method
    )
    got = hypergrad(lambda: loss(table, 1), lambda: loss(table, 0), [table], [mix], 0.2, method)
    if isinstance(method, FirstOrder):
        exact = torch.autograd.grad(loss(table, 1), mix)
    else:
        new = table - 0.2 * torch.autograd.grad(loss(table, 0), table, create_graph=True)[0]
        exact = torch.autograd.grad(loss(new, 1), mix)
    assert vectors.relative_error(got.grads, exact) < 1e-6


@pytest.mark.parametrize("method", ONE_STEP, ids=named)
def test_frozen_parts_are_constants(method):
    p = Problem()
    p.net[0].requires_grad_(False)
    some = hypergrad(p.outer, p.inner, p.theta, p.lam, [9.0, 9.0, 0.3, 0.3], method)
    listed = hypergrad(p.outer, p.inner, p.theta[2:], p.lam, 0.3, method)
    assert vectors.relative_error(some.grads, listed.grads) < 1e-14
    assert not p.net[0].weight.requires_grad


@pytest.mark.parametrize("method", EVERY, ids=named)
def test_parameters_without_gradient(method):
    p, idle = Problem(), torch.zeros(3, dtype=torch.float64, requires_grad=True)
    plain = hypergrad(p.outer, p.inner, p.theta, p.lam, 0.3, method)
    more = hypergrad(
        p.outer,
        p.inner,
        [idle, *p.theta],
        [*p.lam, idle.clone().detach().requires_grad_()],
        0.3,
        method,
        unreached="zero",
    )
    assert vectors.relative_error(more.grads[:3], plain.grads) < 1e-12
    assert torch.equal(more.grads[3], torch.zeros(3, dtype=torch.float64))


def test_batch_norm_in_training_mode():
    p = Problem(norm=True)
    a = hypergrad(p.outer, p.inner, p.theta, p.lam, 0.3, OneStep())
    for method in (FiniteDifference(), ForwardOverReverse(), Unrolled(1, replay=True)):
        b = hypergrad(p.outer, p.inner, p.theta, p.lam, 0.3, method)
        assert vectors.relative_error(b.implicit, a.implicit) < 1e-6


def test_bf16_probes():
    p = Problem(torch.float32)
    exact = hypergrad(p.outer, p.inner, p.theta, p.lam, 0.3, OneStep())
    rough = hypergrad(
        p.outer, p.inner, p.theta, p.lam, 0.3, FiniteDifference(probe_dtype=torch.bfloat16)
    )
    assert 1e-5 < vectors.relative_error(rough.implicit, exact.implicit) < 0.3
    assert vectors.relative_error(rough.implicit, exact.implicit) < vectors.relative_error(
        hypergrad(
            p.outer,
            p.inner,
            p.theta,
            p.lam,
            0.3,
            FiniteDifference(radius=1e-3, probe_dtype=torch.bfloat16),
        ).implicit,
        exact.implicit,
    )


@pytest.mark.parametrize(
    "method", [FiniteDifference(), FiniteDifference(probe_dtype=torch.bfloat16)], ids=str
)
def test_inside_the_callers_autocast(method):
    """Same numbers as outside, and no cast of a perturbed weight stays in the caller's cache."""
    p = Problem(torch.float32)
    outside = hypergrad(p.outer, p.inner, p.theta, p.lam, 0.3, method)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        before = p.forward(p.x[0])
        inside = hypergrad(p.outer, p.inner, p.theta, p.lam, 0.3, method)
        after = p.forward(p.x[0])
        assert torch.is_autocast_enabled("cpu")
    assert all(torch.equal(a, b) for a, b in zip(inside.grads, outside.grads))
    assert torch.equal(before, after) and before.dtype == torch.bfloat16


def test_optimiser_aware_rates():
    """With Adam's own metric as lr, the implicit term is that of the preconditioned step."""
    p = Problem()
    optimizer = torch.optim.Adam(p.theta, lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        p.inner().backward()
        optimizer.step()
    rates = vectors.adam_rates(optimizer, p.theta)
    for method in ONE_STEP:
        g = hypergrad(p.outer, p.inner, p.theta, p.lam, rates, method)
        assert vectors.relative_error(g.grads, p.unrolled(rates)) < 1e-6


# ------------------------------------------------------------------------------------------------------------- refusals
class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.qkv = nn.Linear(8, 24)

    def forward(self, x):
        q, k, v = self.qkv(x).view(2, 5, 3, 2, 4).permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(2, 5, 8)


@pytest.mark.parametrize(
    "method", [m for m in EVERY if not isinstance(m, FirstOrder | FiniteDifference)], ids=named
)
def test_attention_kernels_without_a_second_derivative(method):
    model, gate = Attention(), torch.ones(8, requires_grad=True)
    x, theta = torch.randn(2, 5, 8), list(model.parameters())
    loss = lambda: (model(x) * gate).pow(2).mean() + 10 * sum(p.pow(2).sum() for p in theta)  # noqa: E731
    before = vectors.clone(theta)
    with pytest.raises(NotImplementedError, match="attn_implementation='eager'"):
        hypergrad(loss, loss, theta, [gate], 0.01, method)
    assert all(torch.equal(a, b) for a, b in zip(before, theta))
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        exact = hypergrad(loss, loss, theta, [gate], 0.01, method)
    assert torch.isfinite(exact.grads[0]).all()


def test_finite_differences_accept_any_attention_and_self_check_uses_the_math_kernel():
    model, gate = Attention(), torch.ones(8, requires_grad=True)
    x = torch.randn(2, 5, 8)
    loss = lambda: (model(x) * gate).pow(2).mean()  # noqa: E731
    found = self_check(loss, loss, list(model.parameters()), [gate], 0.1)
    assert found["relative_error"] < 1e-2


def refused(error, text, **change):
    p = Problem()
    inputs = {
        "outer_loss": p.outer,
        "inner_loss": p.inner,
        "theta": p.theta,
        "lam": p.lam,
        "lr": 0.3,
    }
    inputs.update({k: v(p) if callable(v) and k != "inner_loss" else v for k, v in change.items()})
    before = vectors.clone(p.theta)
    with pytest.raises(error, match=text):
        hypergrad(**inputs)
    assert all(torch.equal(a, b) for a, b in zip(before, p.theta))


def test_refusals_of_lists():
    refused(ValueError, "nothing to differentiate", theta=lambda p: [])
    refused(ValueError, "nothing to differentiate", lam=lambda p: [])
    refused(ValueError, "nothing to differentiate", theta=lambda p: [w.detach() for w in p.theta])
    refused(ValueError, "overlap", lam=lambda p: [*p.lam, p.theta[0]])
    refused(ValueError, "overlap", theta=lambda p: [*p.theta, p.theta[0]])
    refused(ValueError, "overlap", lam=lambda p: [p.gate, p.gate.detach()[2:4].requires_grad_()])
    refused(TypeError, "list of tensors", theta=lambda p: p.theta[0])
    refused(ValueError, "a leaf", theta=lambda p: [w * 1 for w in p.theta])
    refused(ValueError, r"lam\[0\] does not require grad", lam=lambda p: [p.gate.detach()])
    refused(ValueError, "2 entries for 4 tensors", lr=lambda p: [0.1, 0.1])
    refused(ValueError, "finite number", lr=-0.1)
    refused(ValueError, "needs the inner learning rate", lr=None)
    refused(ValueError, "or alpha", lr=None, method=Neumann())


def test_refusals_of_what_no_loss_reaches():
    stray = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    refused(ValueError, r"reaches theta\[4\]", theta=lambda p: [*p.theta, stray])
    refused(ValueError, r"reaches lam\[3\]", lam=lambda p: [*p.lam, stray])
    for method in EVERY[1:]:
        refused(ValueError, r"reaches lam\[3\]", lam=lambda p: [*p.lam, stray], method=method)
    refused(ValueError, r"reaches lam\[0\]", lam=lambda p: [stray], method=FirstOrder())
    refused(ValueError, "reaches no tensor of theta", outer_loss=lambda p: lambda: p.scale.exp())
    p = Problem()
    with pytest.raises(ValueError, match=r"reaches wrt\[1\]"):
        through_level(p.inner, p.theta, [p.gate, p.scale], vectors.clone(p.theta), 0.3)
    with pytest.raises(ValueError, match="shapes of theta"):
        through_level(p.inner, p.theta, [p.gate], vectors.clone(p.theta)[:2], 0.3)


def test_refusals_of_values():
    inf = torch.tensor(math.inf, dtype=torch.float64)
    refused(FloatingPointError, "loss is", outer_loss=lambda p: lambda: p.outer() * inf)
    refused(
        FloatingPointError,
        "loss is nan",
        inner_loss=lambda: torch.tensor(math.nan, requires_grad=True),
    )
    refused(
        FloatingPointError,
        "outer gradient",
        outer_loss=lambda p: lambda: p.theta[0].sub(p.theta[0]).sum().sqrt(),
    )
    refused(
        FloatingPointError,
        "hypergradient",
        outer_loss=lambda p: lambda: p.outer() + (p.gate * 0).sum().sqrt(),
    )
    refused(ValueError, "one element", outer_loss=lambda p: lambda: p.forward(p.x[0]))
    refused(ValueError, "one element, got float", outer_loss=lambda p: lambda: 1.0)


def test_refusals_of_conventions():
    refused(ValueError, "'stepped'", around="elsewhere")
    refused(ValueError, "'refuse'", unreached="maybe")
    refused(ValueError, "radius=0", method=FiniteDifference(radius=0.0))
    refused(ValueError, "k must be", method=Unrolled(0))
    refused(ValueError, "k must be", method=lambda p: Unrolled(3, losses=[p.inner]))
    for method in (Neumann(), ConjugateGradient(), Unrolled()):
        refused(ValueError, "no single look-ahead", method=method, around="stepped")
        refused(ValueError, "no single look-ahead", method=method, lr_factor=False)
    refused(ValueError, "no single look-ahead", method=Unrolled(), look_ahead=False)


def test_refusals_of_precision():
    p = Problem(torch.bfloat16)
    with pytest.raises(ValueError, match="keep theta in float32"):
        hypergrad(p.outer, p.inner, p.theta, p.lam, 0.3)
    q = Problem(torch.float32)

    def inner():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return q.inner()

    with pytest.raises(ValueError, match="switches autocast on for itself"):
        hypergrad(q.outer, inner, q.theta, q.lam, 0.3)
    hypergrad(q.outer, inner, q.theta, q.lam, 0.3, FiniteDifference(probe_dtype=torch.bfloat16))


def test_a_zero_vector_gives_a_zero_implicit_term():
    p = Problem()
    zero = hypergrad(lambda: p.outer() * 0, p.inner, p.theta, p.lam, 0.3)
    assert vectors.norm(zero.grads) == 0


# --------------------------------------------------------------------------------------------------- several processes
def test_two_processes_equal_one(tmp_path):
    """Half of each batch in each of two gloo processes under accelerate, against the whole batch in one."""
    root = Path(__file__).parents[1]
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = str(s.getsockname()[1])
    alone = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")}
    alone |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    pair = alone | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ranks = [pair | {"RANK": str(r), "LOCAL_RANK": str(r)} for r in range(2)]
    processes = [
        subprocess.Popen([sys.executable, str(root / "tests" / "two_processes.py"), str(tmp_path / name)],
                         env=environment, cwd=root, stderr=subprocess.PIPE, text=True)
        for environment, name in [(alone, "one.pt"), (ranks[0], "two.pt"), (ranks[1], "unused.pt")]
    ]  # fmt: skip
    try:
        for p in processes:
            _, err = p.communicate(timeout=600)
            assert p.returncode == 0, err[-2000:]
    finally:
        for p in processes:
            p.kill()
    one, two = torch.load(tmp_path / "one.pt"), torch.load(tmp_path / "two.pt")
    assert list(one) == list(two) and len(one) == 9
    for name in one:
        assert vectors.relative_error(two[name], one[name]) < 1e-6, name


@pytest.mark.parametrize("method", [FiniteDifference(), OneStep(), Unrolled(2)], ids=named)
def test_the_stepped_weights_can_be_kept(method):
    p = Problem()
    g = hypergrad(p.outer, p.inner, p.theta, p.lam, 0.3, method, keep_stepped=True)
    after, _ = stepped(p.inner, p.theta, 0.3, method)
    assert (
        vectors.relative_error(g.stepped, after) == 0 and vectors.relative_error(after, p.theta) > 0
    )
    assert hypergrad(p.outer, p.inner, p.theta, p.lam, 0.3, method).stepped is None
