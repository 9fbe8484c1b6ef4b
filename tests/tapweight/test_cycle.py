"""One cycle of the levels: docs/papers/tapweight.md, section 11, checks 6 to 9 and 11."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from tapweight_problems import MODES, Net, Three, WithBatchNorm, cycle, levels, same
from torch import nn

from shared import vectors
from tapweight import method, official


def test_6_the_aligned_objective_gains():
    torch.manual_seed(0)
    theta, phi = Net(dropout=0.0), Net(dropout=0.0)
    phi.load_state_dict(theta.state_dict())
    head = nn.Linear(16, 3).double()
    x, y = torch.randn(20, 6, dtype=torch.float64), torch.randint(3, (20,))
    loss = lambda net: F.cross_entropy(head(net(x)), y)  # noqa: E731
    three = levels(2, phi, theta, lr=1e-6)
    cycle(three, lambda: [loss(theta), -loss(theta)], lambda: loss(phi))
    lam = method.weights(three.alpha)
    assert lam[0] > lam[1]


def test_7_symmetry():
    problem = Three()

    def run(order):
        torch.manual_seed(3)
        theta, phi = Net(dropout=0.0), Net(dropout=0.0)
        phi.load_state_dict(theta.state_dict())
        three = levels(3, phi, theta)

        def losses():
            a, b = (
                F.cross_entropy(problem.heads[k](theta(problem.x)), problem.y[k]) for k in (0, 1)
            )
            return [[a, b, b][k] for k in order]

        task = lambda: F.cross_entropy(problem.heads[2](phi(problem.x)), problem.y[2])  # noqa: E731
        for _ in range(5):
            cycle(three, losses, task)
        return method.weights(three.alpha)

    lam = run([0, 1, 2])
    assert torch.allclose(lam[1], lam[2], atol=1e-7) and abs(lam[0] - lam[1]) > 1e-4
    assert torch.allclose(run([2, 0, 1]), lam[[2, 0, 1]], atol=1e-7)


# ------------------------------------------------ 8, 9: the passes for the weights leave no trace


def trajectory(K: int, learn: bool, mode: str, plain: bool) -> tuple[dict, dict, torch.Tensor]:
    """Six steps -> theta and its buffers, Adam's moments by parameter, the weights."""
    torch.manual_seed(5)
    theta, phi = WithBatchNorm(), WithBatchNorm()
    phi.load_state_dict(theta.state_dict())
    head = nn.Linear(8, 3)
    x, y = torch.randn(16, 6), torch.randint(3, (K, 16))
    losses = lambda: [F.cross_entropy(head(theta(x)), y[k]) for k in range(K)]  # noqa: E731
    task = lambda: F.cross_entropy(head(phi(x)), y[0])  # noqa: E731
    three = levels(K, phi, theta, mode=mode)
    adam = three.optimizers[0] = torch.optim.Adam(theta.parameters(), lr=1e-2)
    for t in range(6):
        torch.manual_seed(t)
        if plain:
            method.level_one_step(adam, [losses], torch.full((K,), 1 / K))
        else:
            cycle(three, losses, task, learn=learn)
            v, _ = method.validation_gradient(task, three.phi)  # as in a watched cycle
            method.gradient_of_weights(three, [losses], v, "exact-dot")
    states = adam.state_dict()["state"].items()
    moments = {(i, k): value for i, state in states for k, value in state.items()}
    return theta.state_dict(), moments, method.weights(three.alpha)


@pytest.mark.parametrize("mode", MODES)
def test_8_one_objective_is_plain_pretraining(mode):
    learned, plain = trajectory(1, True, mode, False), trajectory(1, True, mode, True)
    assert same(learned[0], plain[0]) and same(learned[1], plain[1])
    assert learned[2].tolist() == [1.0]


def test_9_frozen_weights_are_plain_pretraining():
    """Also BatchNorm's statistics, which every extra pass would move, and the moments."""
    frozen, plain = (trajectory(3, False, "exact-dot", plain) for plain in (False, True))
    assert same(frozen[0], plain[0]) and same(frozen[1], plain[1])
    assert frozen[2].tolist() == plain[2].tolist()


@pytest.mark.parametrize("mode", MODES)
def test_9_alignment_changes_nothing(mode):
    torch.manual_seed(2)
    theta, head = WithBatchNorm(), nn.Linear(8, 3)
    x, y = torch.randn(16, 6), torch.randint(3, (16,))
    parameters = list(theta.parameters())
    parameters[0].grad = torch.ones_like(parameters[0])
    before = {k: t.clone() for k, t in theta.state_dict().items()}
    u = [torch.randn_like(p) for p in parameters]
    state = torch.get_rng_state()
    method.alignment([lambda: [F.cross_entropy(head(theta(x)), y)] * 2], parameters, u, 2, mode)
    assert same(theta.state_dict(), before)
    assert torch.equal(torch.get_rng_state(), state)
    assert (parameters[0].grad == 1).all() and head.weight.grad is None


@pytest.mark.parametrize("what", ["validation", *MODES])
@pytest.mark.parametrize("raises", [False, True])
def test_9_passes_for_the_weights_restore_every_bit(what, raises):
    """Parameters, .grad, requires_grad, BatchNorm's statistics, random state; also on an error."""
    torch.manual_seed(2)
    net, head = WithBatchNorm(), nn.Linear(8, 3)
    x, y = torch.randn(16, 6), torch.randint(3, (16,))
    parameters = list(net.parameters())
    for p in parameters[1:]:
        p.grad = torch.randn_like(p)
    grads = [None if p.grad is None else p.grad.clone() for p in parameters]
    before, random = {k: t.clone() for k, t in net.state_dict().items()}, torch.get_rng_state()
    u = [torch.ones_like(p) for p in parameters]
    calls = []

    def loss():
        value = F.cross_entropy(head(net(x)), y)  # draws a mask and moves the running statistics
        calls.append(1)
        if raises and len(calls) == (2 if what == "finite-difference" else 1):
            raise FloatingPointError("half way")
        return value

    def passes():
        if what == "validation":
            method.validation_gradient(loss, parameters)
        else:
            method.alignment([lambda: [loss(), loss()]], parameters, u, 2, what)

    if raises:
        with pytest.raises(FloatingPointError, match="half way"):
            passes()
    else:
        passes()
    assert calls and same(net.state_dict(), before) and torch.equal(torch.get_rng_state(), random)
    assert all(p.requires_grad for p in parameters)
    for p, grad in zip(parameters, grads, strict=True):
        assert p.grad is None if grad is None else torch.equal(p.grad, grad)


# ---------------------------------------------------------------------------- 11: the proximal term


def test_11_proximal_term():
    prox = method.SquaredDistance(0.7)
    phi, theta = [torch.randn(3, 2, requires_grad=True)], [torch.randn(3, 2)]
    (0.7 * (phi[0] - theta[0]).square().sum()).backward()
    assert torch.allclose(phi[0].grad, prox.gradient(phi, theta)[0])
    assert torch.allclose(prox.gradient(phi, theta)[0], 2 * 0.7 * (phi[0] - theta[0]).detach())
    assert (prox.gradient(theta, theta)[0] == 0).all()


def test_11_level_two_is_pulled_towards_theta():
    """One SGD step on a loss that does not depend on phi moves phi by 2 gamma lr (theta - phi)."""
    phi, theta = nn.Linear(2, 2), nn.Linear(2, 2)
    three = levels(1, phi, theta, gamma=0.5, lr=0.1)
    before = vectors.clone(three.phi)
    method.level_two_step(three.optimizers[1], lambda: 0.0 * phi.weight.sum(), three)
    moved, off = vectors.minus(three.phi, before), vectors.minus(three.theta, before)
    assert all(torch.allclose(a, 0.1 * b, atol=1e-7) for a, b in zip(moved, off))


def test_11_encoders_are_paired_by_name():
    one, two = nn.Sequential(nn.Linear(2, 2)), nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"'1\.weight' is missing in phi and \(2, 2\) in theta"):
        method.matched(one, two)
    with pytest.raises(ValueError, match=r"'1\.weight' is \(2, 2\) in phi and missing in theta"):
        method.matched(two, one)
    with pytest.raises(ValueError, match=r"'0\.weight' is \(3, 2\) in phi and \(2, 2\)"):
        method.matched(nn.Sequential(nn.Linear(2, 3)), nn.Sequential(nn.Linear(2, 2)))


def test_official_absolute_distance_hands_down_spikes():
    with pytest.warns(UserWarning, match="spikes"):
        prox = official.AbsoluteDistance(1.0, frozenset({1}))
    phi, theta = [torch.tensor([0.0, 1.0]), torch.tensor([2.0])], [torch.zeros(2), torch.zeros(1)]
    u = prox.pull_back([torch.tensor([1.0, 1.0]), torch.tensor([1.0])], phi, theta)
    eps = 0.01 / math.sqrt(3)
    assert torch.allclose(u[0], torch.tensor([1 / eps / 3, 0.0]))
    assert torch.allclose(u[1], torch.tensor([2 / 3]))
    gradient = prox.gradient(phi, theta)
    assert torch.allclose(gradient[0], torch.tensor([0.0, 1 / 3])) and gradient[1] == 4 / 3


def test_official_direct_path():
    problem = Three(dropout=0.0)
    three = levels(3, problem.phi, problem.theta, gamma=0.4)
    no_path = method.gradient_of_weights(three, [problem.losses], problem.v)
    both = official.with_direct_path(three, [problem.losses], problem.v)
    u = vectors.scaled(vectors.minus(three.phi, three.theta), -0.8)
    direct = method.alignment([problem.losses], three.theta, u, 3, "exact-dot")
    assert torch.allclose(both.h - no_path.h, direct.h) and direct.h.abs().min() > 0
