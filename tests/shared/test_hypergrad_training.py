"""Hypergradients in the ways models are trained: micro-batches, tied weights, autocast, Adam."""

import pytest
import torch
from hypergrad_problem import EVERY, ONE_STEP, Problem, named
from torch.nn import functional as F

from shared import vectors
from shared.hypergrad import (
    SGD,
    ConjugateGradient,
    FiniteDifference,
    FirstOrder,
    ForwardOverReverse,
    Neumann,
    OneStep,
    Unrolled,
    hypergrad,
    through_level,
)


@pytest.mark.parametrize("method", EVERY, ids=named)
def test_a_vector_without_memory_of_its_own(method):
    """autograd may hand out one number, expanded, as a gradient; the caller's v is not written."""
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
