"""The weights and their gradient: docs/papers/tapweight.md, section 11, checks 1 to 5 and 10."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tapweight_problems import MODES, Three, cycle, levels

from shared import multilevel, vectors
from shared.hypergrad import FiniteDifference
from tapweight import method, toys


def test_1_weights_start_uniform_and_stay_on_the_open_simplex():
    for K in (1, 3, 5):
        even = torch.full((K,), 1 / K)
        assert torch.allclose(method.weights(method.start_logits(K)), even, atol=1e-7, rtol=0)
    alpha = method.start_logits(5)
    optimizer = torch.optim.Adam([alpha], lr=0.05)
    g = torch.Generator().manual_seed(0)
    for _ in range(1000):
        aligned = method.Alignment(torch.randn(5, generator=g))
        method.level_three_step(optimizer, alpha, aligned, "none")
        lam = method.weights(alpha)
        assert (lam > 0).all() and abs(float(lam.double().sum()) - 1) < 1e-6


def test_there_must_be_an_objective():
    with pytest.raises(ValueError, match="K = 0"):
        method.start_logits(0)


def test_2_gamma_is_the_only_wire():
    problem = Three()
    phi, theta = list(problem.phi.parameters()), problem.theta_e
    h = {}
    for gamma in (0.0, 0.1, 0.3):
        u = method.SquaredDistance(gamma).pull_back(problem.v, phi, theta)
        for mode in MODES:
            torch.manual_seed(1)
            h[mode, gamma] = method.alignment([problem.losses], theta, u, 3, mode).h
    for mode in MODES:
        assert (h[mode, 0.0] == 0).all()
        assert torch.allclose(h[mode, 0.3], 3 * h[mode, 0.1], rtol=1e-5)
    lam = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    assert (method.to_logits(torch.zeros(3, dtype=torch.float64), lam) == 0).all()
    jacobian = torch.autograd.functional.jacobian(lambda a: torch.softmax(a, 0), lam.log())
    assert torch.allclose(method.to_logits(h["jvp", 0.1], lam), jacobian.T @ h["jvp", 0.1])


@pytest.mark.parametrize("mode", MODES)
def test_2_without_gamma_the_weights_stay_uniform(mode):
    problem = Three()
    three = levels(3, problem.phi, problem.theta, gamma=0.0, mode=mode)
    task = lambda: F.cross_entropy(problem.heads[0](problem.phi(problem.x)), problem.y[0])  # noqa: E731
    for _ in range(3):
        cycle(three, problem.losses, task)
    assert torch.equal(three.alpha, method.start_logits(3).double())


def test_3_modes_agree_on_a_dropout_network():
    problem = Three()
    torch.manual_seed(1)
    exact, jvp = problem.h("exact-dot"), problem.h("jvp")
    assert torch.allclose(jvp, exact, rtol=1e-10)
    assert torch.allclose(problem.h("finite-difference"), exact, rtol=1e-4)
    small = Three(torch.float32)
    torch.manual_seed(1)
    assert torch.allclose(small.h("jvp"), small.h("exact-dot"), rtol=1e-5, atol=1e-7)


def test_3_modes_agree_on_two_micro_batches():
    problem = Three(dropout=0.0)
    other = Three(dropout=0.0, seed=1)
    both = [problem.losses, lambda: [F.cross_entropy(head(problem.theta(other.x)), y)
                                     for head, y in zip(problem.heads, other.y)]]  # fmt: skip
    h = [method.alignment(both, problem.theta_e, problem.u, 3, mode).h for mode in MODES]
    assert torch.allclose(h[0], h[1], rtol=1e-4) and torch.allclose(h[2], h[1], rtol=1e-10)
    apart = [method.alignment([one], problem.theta_e, problem.u, 3, "jvp").h for one in both]
    assert torch.allclose(h[2], (apart[0] + apart[1]) / 2)


def test_a_weight_that_underflowed_does_not_spoil_the_others():
    """The official rate of 200 can carry a logit so far that its weight is exactly 0."""
    alpha = torch.tensor([0.0, 800.0])
    assert method.weights(alpha).tolist() == [0.0, 1.0]
    aligned = method.Alignment(torch.tensor([1.0, -4.0]))
    method.level_three_step(torch.optim.SGD([alpha], lr=200.0), alpha, aligned, "none")
    assert alpha.isfinite().all() and method.weights(alpha).tolist() == [0.0, 1.0]


def test_cosines_in_place_of_h_need_the_gradients():
    problem = Three(dropout=0.0)
    optimizer_of = lambda alpha: torch.optim.SGD([alpha], lr=1.0)  # noqa: E731
    alpha = method.start_logits(3)
    exact = method.alignment([problem.losses], problem.theta_e, problem.u, 3, "exact-dot")
    method.level_three_step(optimizer_of(alpha), alpha, exact, "cosine")
    cosines = exact.gram[:3, 3]
    assert torch.allclose(cosines.double() * exact.norms, -exact.h / vectors.norm(problem.u))
    assert torch.allclose(alpha, 1 + (cosines - cosines.mean()) / 3)
    jvp = method.alignment([problem.losses], problem.theta_e, problem.u, 3, "jvp")
    with pytest.raises(ValueError, match="only mode exact-dot"):
        method.level_three_step(optimizer_of(alpha), alpha, jvp, "cosine")


def test_3_the_general_three_level_chain_gives_the_same():
    """(*) is multilevel.chain with the identity rule at the present point: the levels, composed."""
    problem = Three(dropout=0.0)
    gamma, lam = 0.3, torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64, requires_grad=True)
    phi, head = list(problem.phi.parameters()), problem.heads[0]
    head.requires_grad_(False)

    def task(y):
        return F.cross_entropy(head(problem.phi(problem.x)), y)

    def level_one():
        return lam @ torch.stack(problem.losses())

    def level_two():
        distance = sum(((p - t) ** 2).sum() for p, t in zip(phi, problem.theta_e))
        return task(problem.y[1]) + gamma * distance

    chained = multilevel.chain(
        lambda: task(problem.y[2]),
        [
            multilevel.Level(level_one, problem.theta_e, 1.0, FiniteDifference()),
            multilevel.Level(level_two, phi, 1.0, FiniteDifference()),
        ],
        [lam],
        look_ahead=False,
        lr_factor=False,
    )
    v, _ = method.validation_gradient(lambda: task(problem.y[2]), phi)
    u = method.SquaredDistance(gamma).pull_back(v, phi, problem.theta_e)
    exact = method.alignment([problem.losses], problem.theta_e, u, 3, "exact-dot").h
    assert torch.allclose(chained.grads[0], exact, rtol=1e-5, atol=1e-9)


def independent_difference(losses: method.Losses, theta: vectors.Vector, u: vectors.Vector):
    """The two evaluations of the difference quotient draw dropout masks of their own. (K,)"""
    eps = vectors.probe_step(u, 1e-4 if u[0].dtype == torch.float64 else 1e-2)
    values = []
    for sign in (1, -1):
        with vectors.perturbed(theta, u, sign * eps), torch.no_grad():
            values.append(torch.stack(losses()))
    return -(values[0] - values[1]) / (2 * eps)


def test_4_independent_masks_drown_the_answer():
    problem = Three()
    cosines = []
    for draw in range(50):
        torch.manual_seed(draw)
        exact = problem.h("exact-dot")
        torch.manual_seed(draw)
        noisy = independent_difference(problem.losses, problem.theta_e, problem.u)
        cosines.append(float(F.cosine_similarity(exact, noisy, dim=0)))
    assert np.mean(cosines) < 0.5


def test_5_and_10_quadratic():
    """The exact gradient against the closed form; (*) lowers the exact outer loss on most."""
    improved, worst = toys.gate(4)
    assert worst < 1e-6 and improved >= 3
    problem, lam = toys.draw(0), torch.full((4,), 0.25, dtype=torch.float64)
    exact, shortcut = toys.exact_implicit(problem, lam), toys.identity(problem, lam)
    centred = [x - x.mean() for x in (exact, shortcut)]  # the softmax sees differences alone
    assert F.cosine_similarity(*centred, dim=0) > 0.3


@pytest.mark.slow
def test_10_a1_on_twenty_development_problems():
    improved, worst = toys.gate(20, first=1000)
    assert improved >= 18 and worst < 1e-6
