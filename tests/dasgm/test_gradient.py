"""The gradient of the architecture, equations (4) to (6), against closed forms and differences."""

from __future__ import annotations

import pytest
import torch
from dasgm_small import Search, search
from torch.nn.functional import cross_entropy

from dasgm import method
from shared import vectors
from shared.hypergrad import FirstOrder, OneStep, hypergrad
from shared.multilevel import Level
from shared.vectors import Vector


def two_levels(F, L_tr, W, A, xi: float, exact: bool, drift=None) -> Vector:
    drift = [torch.zeros_like(w) for w in W] if drift is None else drift
    ahead = method.LookAhead(L_tr, W, xi, drift, exact)
    return method.architecture_gradient(F, ahead, None, A).grads


@pytest.mark.parametrize("exact", [True, False], ids=["exact", "difference"])
def test_unrolled_gradient_has_its_closed_form(exact):
    """L_tr = |W - B A|^2 / 2, F = |W - c|^2 / 2, with momentum and weight decay."""
    g = torch.Generator().manual_seed(0)
    B, c, m = (torch.randn(*s, generator=g, dtype=torch.float64) for s in ((5, 3), (5,), (5,)))
    W = torch.randn(5, generator=g, dtype=torch.float64, requires_grad=True)
    A = torch.randn(3, generator=g, dtype=torch.float64, requires_grad=True)
    xi, mu, wd = 0.3, 0.9, 3e-2

    def L_tr():
        return 0.5 * (W - B @ A).square().sum()

    def F():
        return 0.5 * (W - c).square().sum()

    drift = wd * W.detach() + mu * m
    (got,) = two_levels(F, L_tr, [W], [A], xi, exact, [drift])
    with torch.no_grad():
        stepped = W - xi * (W - B @ A + wd * W + mu * m)
        closed = xi * B.T @ (stepped - c)  # dW'/dA = xi B
    assert float((got - closed).norm() / closed.norm()) < 1e-6


def test_drift_is_what_sgd_adds_to_the_gradient():
    """The weights really go where the look-ahead goes: mu m + wd W, from the optimiser's state."""
    s = search(job="darts", weight_decay=1e-2)
    for t in range(2):
        s.step(t)
        s.begin(t + 1)
        before, drift = vectors.clone(s.f.W), s.f.drift(s.config.weight_decay)
        rate = s.f.opt_W.param_groups[0]["lr"]
        g = [torch.full_like(w, 1e-3) for w in s.f.W]
        for w, x in zip(s.f.W, g):
            w.grad = x
        s.f.opt_W.step()
        ahead = [w - rate * (x + d) for w, x, d in zip(before, g, drift)]
        assert vectors.relative_error(s.f.W, ahead) < 1e-6


def double_search() -> Search:
    """The small supernet on digits in float64."""
    s = search(job="darts")
    s.f.net.double()
    s.f.A = [a.detach().double().requires_grad_() for a in s.f.A]
    return s


def losses(s: Search) -> tuple[method.Loss, method.Loss]:
    """F on images of noise and L_tr on real ones, float64, fixed."""
    g = torch.Generator().manual_seed(0)
    x, y = s.views.training(0)
    xs = torch.randn(32, 1, 8, 8, generator=g, dtype=torch.float64)
    ys = torch.randint(10, (32,), generator=g)
    return method.real_loss(s.f, xs, ys), method.real_loss(s.f, x.double(), y)


def test_difference_and_double_backward_agree_and_everything_is_put_back():
    s = double_search()
    F, L_tr = losses(s)
    W, A = s.f.W, s.f.A
    before, state = vectors.clone(W), torch.get_rng_state()
    buffers = [b.clone() for b in s.f.net.buffers()]
    exact = two_levels(F, L_tr, W, A, 0.1, exact=True)
    # ReLU kinks: digits share a constant background, so many units cross zero together; a shorter
    # probe stays between them
    still = [torch.zeros_like(w) for w in W]
    close = method.second_order(F, method.LookAhead(L_tr, W, 0.1, still), A, radius=1e-6).grads
    direct = two_levels(F, L_tr, W, A, 0.0, exact=True)
    implicit = hypergrad(F, L_tr, W, A, 0.1, OneStep()).implicit
    assert vectors.norm(implicit) > 1e-6  # the second order is there
    assert vectors.relative_error(direct, exact) > 1e-3
    assert vectors.cosine(close, exact) > 0.999 and vectors.relative_error(close, exact) < 1e-2
    assert all(torch.equal(a, b) for a, b in zip(before, W))
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(buffers, s.f.net.buffers()))
    assert all(p.grad is None and p.requires_grad for p in [*W, *A])


def test_xi_zero_is_first_order_exactly():
    s = double_search()
    F, L_tr = losses(s)
    got = two_levels(F, L_tr, s.f.W, s.f.A, 0.0, exact=False)
    same = hypergrad(F, L_tr, s.f.W, s.f.A, 0.0, FirstOrder()).grads
    assert all(torch.equal(a, b) for a, b in zip(got, same))


def test_nested_gradient_is_the_derivative_of_the_unrolled_objective():
    """Linear generator, logistic classifier with an architecture vector: numerical d F(A)."""
    g = torch.Generator().manual_seed(1)
    double = {"generator": g, "dtype": torch.float64}
    a, w, theta = (torch.randn(*s, **double).requires_grad_() for s in ((4,), (4, 3), (2, 4)))
    x, y = torch.randn(6, 4, **double), torch.randint(3, (6,), generator=g)
    z, ys = torch.randn(8, 2, **double), torch.randint(3, (8,), generator=g)
    phi, xi_w, xi_t = torch.randn(4, **double), 0.4, 0.3

    def logits(images, a, w):
        return (images * torch.sigmoid(a)) @ w

    def L(a, w):
        return cross_entropy(logits(x, a, w), y)

    def J(theta, a, w, eta):
        return -((z @ theta) @ phi).mean() - eta * method.weakness(logits(z @ theta, a, w), ys)

    def objective(theta, a, w):
        return method.synthesized_loss(logits(z @ theta, a, w), ys)

    def unrolled(a, eta):
        w1 = (w.detach() - xi_w * torch.autograd.grad(L(a, w), w)[0]).requires_grad_()
        t1 = theta.detach() - xi_t * torch.autograd.grad(J(theta, a, w1, eta), theta)[0]
        return objective(t1, a, w1).item()

    weights = method.LookAhead(lambda: L(a, w), [w], xi_w, [torch.zeros_like(w)], exact=True)
    for eta in (0.1, 0.0):
        steps = 1e-5 * torch.eye(4, dtype=torch.float64)
        rises = [unrolled(a.detach() + d, eta) - unrolled(a.detach() - d, eta) for d in steps]
        numeric = torch.tensor(rises, dtype=torch.float64) / 2e-5
        generator = Level(lambda e=eta: J(theta, a, w, e), [theta], xi_t, OneStep())
        F = lambda: objective(theta, a, w)  # noqa: E731
        got = method.architecture_gradient(F, weights, generator, [a])
        assert float((got.grads[0] - numeric).norm() / numeric.norm()) < 1e-5
    # eta = 0: the generator's step holds neither A nor W, so the two-level gradient is left
    moved = theta.detach() - xi_t * torch.autograd.grad(J(theta, a, w, 0.0), theta)[0]
    two = method.architecture_gradient(lambda: objective(moved, a, w), weights, None, [a])
    assert vectors.relative_error(got.grads, two.grads) < 1e-10


@pytest.mark.parametrize("job", ["joint", "adversarial"])
def test_common_random_numbers(job):
    """One step's difference quotient twice: identical; with another z: not."""
    s = search(job=job, order=2)
    L_tr = s.real(0)

    def gradient(t):
        levels = method.architecture_losses(s.f, s.gan, s.views, t, L_tr)
        return method.architecture_gradient(*levels, s.f.A).grads

    first, again = gradient(0), gradient(0)
    redrawn = gradient(1)
    assert all(torch.equal(a, b) for a, b in zip(first, again))
    assert vectors.relative_error(redrawn, first) > 1e-3


def test_gradients_are_counted():
    """A first-order step: W, A, and one each of phi and theta; the look-ahead takes more."""
    counts = {
        (job, order, estimator): search(job=job, order=order, estimator=estimator).step(0)
        for job, order, estimator in [
            ("darts", 1, "exact"),
            ("joint", 1, "exact"),
            ("darts", 2, "exact"),
            ("darts", 2, "finite_difference"),
        ]
    }
    assert [f["gradient_evaluations"] for f in counts.values()] == [2, 4, 4, 5]
