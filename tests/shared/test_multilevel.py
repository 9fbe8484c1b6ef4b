"""shared/multilevel.py against autograd through everything: the papers' graphs, and deeper."""

import pytest
import torch
from multilevel_problems import MLOMAE, TapWeight, leaf, step
from torch import nn
from torch.nn import functional as F

from shared import vectors
from shared.hypergrad import (
    ConjugateGradient,
    FiniteDifference,
    FirstOrder,
    ForwardOverReverse,
    OneStep,
    Unrolled,
    hypergrad,
)
from shared.multilevel import Level, chain

EXACT = [OneStep(), ForwardOverReverse(), Unrolled(1)]


def named(method):
    return type(method).__name__


@pytest.mark.parametrize("lower", EXACT, ids=named)
@pytest.mark.parametrize("upper", EXACT, ids=named)
def test_tapweight_equals_full_autograd(lower, upper):
    t = TapWeight()
    got = chain(lambda: t.validate(t.phi, t.w), t.levels([lower, upper]), [t.alpha])
    assert vectors.relative_error(got.grads, t.exact()) < 1e-8
    assert vectors.norm(got.direct) == 0 and vectors.norm(got.grads) > 0


def test_tapweight_by_finite_differences():
    t = TapWeight()
    got = chain(
        lambda: t.validate(t.phi, t.w),
        t.levels([FiniteDifference(), FiniteDifference()]),
        [t.alpha],
    )
    assert vectors.relative_error(got.grads, t.exact()) < 1e-6
    assert got.gradient_evaluations == 2 + 1 + 2 * 2


def test_tapweight_identity_rule_is_the_papers_dot_product():
    """h_k = -2 gamma <grad_phi L_val, grad_theta L_k>, through the softmax, without rates."""
    t = TapWeight()
    got = chain(
        lambda: t.validate(t.phi, t.w),
        t.levels([OneStep()] * 2),
        [t.alpha],
        look_ahead=False,
        lr_factor=False,
    )
    v = torch.autograd.grad(t.validate(t.phi, t.w), t.phi)[0]
    each = [torch.autograd.grad(x, t.encoder)[0] for x in t.objectives(t.encoder, t.heads)]
    h = torch.stack([-2 * t.gamma * (v * x).sum() for x in each])
    weights = torch.softmax(t.alpha, 0).detach()
    assert torch.allclose(got.grads[0], weights * (h - (weights * h).sum()), rtol=1e-10)


@pytest.mark.parametrize("method", EXACT, ids=named)
def test_mlo_mae_equals_full_autograd_over_both_paths(method):
    m = MLOMAE()
    got = chain(lambda: m.head(m.c, m.e, 1), m.levels(method), m.t)
    assert vectors.relative_error(got.grads, m.exact()) < 1e-8


def test_mlo_mae_without_the_path_through_the_head():
    m = MLOMAE()
    levels = m.levels(OneStep())
    cut = chain(
        lambda: m.head(m.c, m.e, 1),
        [levels[0], Level(levels[1].loss, [m.c], m.lr2, FirstOrder())],
        m.t,
    )
    full = chain(lambda: m.head(m.c, m.e, 1), levels, m.t)
    assert vectors.relative_error(cut.grads, full.grads) > 1e-3


def test_mlo_mae_identity_rule_is_the_papers_product():
    """g_T = -[d2 L1 / dT dE] (v_E - [d2 L2 / dE dC] v_C) at the present point."""
    m = MLOMAE()
    got = chain(
        lambda: m.head(m.c, m.e, 1), m.levels(OneStep()), m.t, look_ahead=False, lr_factor=False
    )
    v_e, v_c = torch.autograd.grad(m.head(m.c, m.e, 1), [m.e, m.c])
    g_c = torch.autograd.grad(m.head(m.c, m.e), m.c, create_graph=True)[0]
    v = v_e - torch.autograd.grad(g_c, m.e, v_c)[0]
    g_e = torch.autograd.grad(m.reconstruct(m.e, m.d), m.e, create_graph=True)[0]
    exact = [-x for x in torch.autograd.grad(g_e, m.t, v)]
    assert vectors.relative_error(got.grads, exact) < 1e-12


def test_nested_generator_of_dasgm():
    """A -> W' -> theta': the generator sees the stepped classifier and A; the outer loss all."""
    g = torch.Generator().manual_seed(2)
    a, w, theta = leaf(g, 4), leaf(g, 4, 3), leaf(g, 3, 4)
    x, y = (
        torch.randn(6, 4, generator=g, dtype=torch.float64),
        torch.randint(0, 3, (6,), generator=g),
    )
    z = torch.randn(6, 3, generator=g, dtype=torch.float64)

    def classify(w, data):
        return F.cross_entropy((data * torch.sigmoid(a)) @ w, y)

    def generate(theta, w):  # be hard for the classifier, stay small
        return theta.pow(2).sum() - 0.5 * classify(w, torch.tanh(z @ theta))

    def outer(w, theta):
        return classify(w, torch.tanh(z @ theta))

    (new_w,) = step(classify(w, x), [w], 0.5)
    (new_theta,) = step(generate(theta, new_w), [theta], 0.4)
    exact = torch.autograd.grad(outer(new_w, new_theta), [a])
    for method, tolerance in [
        (OneStep(), 1e-8),
        (ForwardOverReverse(), 1e-8),
        (FiniteDifference(), 1e-5),
    ]:
        levels = [
            Level(lambda: classify(w, x), [w], 0.5, method),
            Level(lambda: generate(theta, w), [theta], 0.4, method),
        ]
        got = chain(lambda: outer(w, theta), levels, [a])
        assert vectors.relative_error(got.grads, exact) < tolerance
        assert vectors.norm(got.direct) > 0


def test_four_levels_with_several_steps():
    g = torch.Generator().manual_seed(3)
    lam, weights = leaf(g, 4), [leaf(g, 4, 4) for _ in range(4)]
    x = torch.randn(5, 4, generator=g, dtype=torch.float64)

    def loss(i, ws):
        out = x * lam
        for w in ws[: i + 1]:
            out = torch.tanh(out @ w)
        return (out - x).pow(2).mean() + 0.01 * ws[i].pow(2).sum()

    new = []
    for i, w in enumerate(weights):
        for _ in range(2):
            (w,) = step(loss(i, [*new, w]), [w], 0.3)
        new.append(w)
    exact = torch.autograd.grad(loss(3, new), [lam])
    levels = [Level(lambda i=i: loss(i, weights), [weights[i]], 0.3, Unrolled(2)) for i in range(4)]
    got = chain(lambda: loss(3, weights), levels, [lam])
    assert vectors.relative_error(got.grads, exact) < 1e-8


@pytest.mark.parametrize(
    "kind", [{}, {"around": "stepped"}, {"look_ahead": False}, {"lr_factor": False}], ids=str
)
def test_one_level_is_hypergrad(kind):
    m = MLOMAE()
    inner = Level(lambda: m.reconstruct(m.e, m.d), [m.e, m.d], [0.1, 0.3], FiniteDifference())
    a = chain(lambda: m.head(m.c, m.e, 1), [inner], m.t, **kind)
    b = hypergrad(
        lambda: m.head(m.c, m.e, 1), inner.loss, inner.theta, m.t, inner.lr, inner.method, **kind
    )
    assert vectors.relative_error(a.grads, b.grads) < 1e-9
    assert a.gradient_evaluations == b.gradient_evaluations


def test_implicit_lower_level():
    """A ridge regression solved exactly below, one step above it."""
    g = torch.Generator().manual_seed(4)
    x, y = (
        torch.randn(12, 3, generator=g, dtype=torch.float64),
        torch.randn(12, generator=g, dtype=torch.float64),
    )
    lam, w = leaf(g, 3), torch.zeros(3, dtype=torch.float64, requires_grad=True)
    u = leaf(g, 3)

    def solve(lam):
        return torch.linalg.solve(x.T @ x / 12 + torch.diag(lam.exp()), x.T @ y / 12)

    def ridge():
        return 0.5 * (x @ w - y).pow(2).mean() + 0.5 * (lam.exp() * w * w).sum()

    def upper(u, w):
        return (x @ (u * w) - y).pow(2).mean()

    (new_u,) = step(upper(u, solve(lam)), [u], 0.2)
    exact = torch.autograd.grad(upper(new_u, solve(lam)), [lam])
    vectors.copy_([w], [solve(lam)])
    levels = [
        Level(ridge, [w], None, ConjugateGradient(3)),
        Level(lambda: upper(u, w), [u], 0.2, OneStep()),
    ]
    got = chain(lambda: upper(u, w), levels, [lam])
    assert vectors.relative_error(got.grads, exact) < 1e-8


@pytest.mark.parametrize("fails", [False, True])
def test_chain_leaves_no_trace(fails):
    torch.manual_seed(0)
    low, high = [
        nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.3)) for _ in range(2)
    ]
    gate, x = torch.ones(4, requires_grad=True), torch.randn(8, 4)
    everything = [*low.state_dict().values(), *high.state_dict().values(), gate.detach()]
    low[0].weight.grad = gradient = torch.ones(4, 4)
    before, random, calls = [t.clone() for t in everything], torch.get_rng_state(), [0]

    def counted(loss):
        calls[0] += 1
        if fails and calls[0] == 6:
            raise KeyError
        return loss.pow(2).mean()

    levels = [
        Level(lambda: counted(low(x) * gate), list(low.parameters()), 0.1),
        Level(lambda: counted(high(low(x))), list(high.parameters()), 0.1),
    ]
    try:
        chain(lambda: counted(high(low(x))), levels, [gate])
        assert not fails
    except KeyError:
        pass
    assert all(torch.equal(a, b) for a, b in zip(before, everything))
    assert torch.equal(random, torch.get_rng_state()) and low[0].weight.grad is gradient


def test_refusals():
    m = MLOMAE()
    with pytest.raises(ValueError, match="at least one level"):
        chain(lambda: m.head(m.c, m.e, 1), [], m.t)
    with pytest.raises(ValueError, match=r"no loss reaches lam\[2\]"):
        chain(
            lambda: m.head(m.c, m.e, 1),
            m.levels(OneStep()),
            [*m.t, torch.zeros(1, requires_grad=True)],
        )
    with pytest.raises(ValueError, match="'stepped'"):
        chain(lambda: m.head(m.c, m.e, 1), m.levels(OneStep()), m.t, around="elsewhere")
