"""The alternation of the levels: lam = 0 is DARTS, and each level moves its own variables."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from dasgm_small import config, search
from torch import Tensor

from dasgm import method, networks, weighted
from shared import vectors


def plain_darts(
    train_loss: method.Loss,
    val_loss: method.Loss,
    W: Sequence[Tensor],
    A: Sequence[Tensor],
    opt_W: torch.optim.Optimizer,
    opt_A: torch.optim.Optimizer,
) -> None:
    """A step of first-order DARTS, written without the machinery of dasgm/."""
    opt_A.zero_grad()
    for a, g in zip(A, torch.autograd.grad(val_loss(), list(A))):
        a.grad = g
    opt_A.step()
    opt_W.zero_grad()
    for p, g in zip(W, torch.autograd.grad(train_loss(), list(W))):
        p.grad = g
    torch.nn.utils.clip_grad_norm_(list(W), 5.0)
    opt_W.step()


def test_lam_zero_is_plain_darts_and_leaves_the_generator_alone():
    """Twenty steps of `joint` with lam = 0 (no generator is even made), of a loop written anew."""
    s, plain = search(lam=0.0, epochs=10), search(job="darts", epochs=10)
    assert s.gan is None
    for t in range(20):
        s.step(t)
        plain.begin(t)
        held_out = method.real_loss(plain.f, *plain.views.held_out(t))
        f = plain.f
        plain_darts(plain.real(t), held_out, f.W, f.A, f.opt_W, f.opt_A)
    assert torch.equal(s.f.A[0], plain.f.A[0])
    assert all(torch.equal(a, b) for a, b in zip(s.f.W, plain.f.W))


class Gates:
    """Takes the gate as a run does."""

    def __init__(self) -> None:
        self.passed: dict[str, bool] = {}

    def gate(self, name: str, passed: bool, detail: str) -> None:
        self.passed[name] = passed


@pytest.mark.parametrize("job", ["darts", "joint", "adversarial", "aug_val", "train_as_val"])
def test_each_level_moves_its_own_variables(job):
    s, gates = search(job=job), Gates()
    average = vectors.clone(list(s.gan.ema.parameters())) if s.gan else []
    with networks.levels_apart(gates, s.f, s.gan):
        s.step(0)
    assert gates.passed == {"levels-apart": True}
    assert all(p.grad is None for p in [*s.f.W, *s.f.A])
    if s.gan:
        assert not all(torch.equal(a, b) for a, b in zip(average, s.gan.ema.parameters()))
        assert not any(p.requires_grad for p in s.gan.ema.parameters())


def test_the_gate_sees_a_level_that_moves_what_is_not_its_own():
    s, gates = search(job="darts"), Gates()
    s.f.opt_A.register_step_post_hook(lambda *_: s.f.W[0].data.add_(1.0))
    with networks.levels_apart(gates, s.f, s.gan):
        s.step(0)
    assert gates.passed == {"levels-apart": False}


def test_static_never_moves_the_generator_and_weight_decay_never_sees_A():
    s = search(job="static")
    before = vectors.clone(list(s.gan.G.parameters()))
    facts = [s.step(t) for t in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(before, s.gan.G.parameters()))
    assert not any("loss_G" in f for f in facts)
    A = {id(a) for a in s.f.A}
    assert not A & {id(p) for group in s.f.opt_W.param_groups for p in group["params"]}
    assert not A & {id(p) for p in s.f.net.parameters()}


def test_warm_up_leaves_A_alone_and_a_clip_shortens_its_step():
    s = search(job="darts")
    s.begin(0)
    before = vectors.clone(s.f.A)
    facts = method.cycle(s.f, s.gan, s.views, 0, learn_A=False)
    assert torch.equal(before[0], s.f.A[0]) and "loss_A" not in facts
    a = torch.zeros(2, requires_grad=True)
    sgd = torch.optim.SGD([a], 1.0)
    method.architecture_step([torch.tensor([3.0, 4.0])], [a], sgd, clip=1.0)
    assert torch.allclose(a.detach(), torch.tensor([-0.6, -0.8]))


def test_class_weights():
    """Option `weighted`: mean 1, within the clip, no gradient, whatever the order of the batch."""
    running = torch.full((4,), torch.nan)
    assert torch.equal(weighted.omega(running), torch.ones(4))
    logits = (10 * torch.randn(20, 4, generator=torch.Generator().manual_seed(0))).requires_grad_()
    y = torch.arange(20) % 3  # class 3 is absent
    weighted.follow(running, logits, y)
    omega = weighted.omega(running)
    assert running[3].isnan() and not omega.requires_grad
    assert abs(float(omega.mean()) - 1) < 1e-4
    assert float(omega.min()) >= 0.2 - 1e-4 and float(omega.max()) <= 5 + 1e-4
    other = torch.full((4,), torch.nan)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(1))
    weighted.follow(other, logits[order], y[order])
    assert torch.equal(other[:3], running[:3])
    before = running.clone()
    weighted.follow(running, logits[y == 0], y[y == 0])
    assert torch.equal(running[1:3], before[1:3]) and running[3].isnan()


def test_copies_of_a_class_say_no_more_about_it_than_one():
    """A mean, not the sum of the public prototype."""
    once, often = torch.full((2,), torch.nan), torch.full((2,), torch.nan)
    row = torch.tensor([[0.3, -0.2], [1.0, 2.0]])
    weighted.follow(once, row, torch.tensor([0, 1]))
    weighted.follow(often, row[[0, 0, 0, 1]], torch.tensor([0, 0, 0, 1]))
    assert torch.allclose(weighted.omega(once), weighted.omega(often))


def test_a_strange_class_stays_within_the_clip():
    omega = weighted.omega(torch.tensor([100.0] + [1e-6] * 9))
    assert abs(float(omega.mean()) - 1) < 1e-3 and float(omega.max()) <= 5 + 1e-4


def test_weighted_searches_with_the_weights_of_its_classes():
    s, plain = search(job="weighted"), search(job="joint")
    for t in range(2):
        s.step(t)
        plain.step(t)
    assert s.f.class_losses.isfinite().any() and plain.f.class_losses.isnan().all()
    assert not torch.equal(s.f.A[0], plain.f.A[0])
    assert config(job="weighted").generated
