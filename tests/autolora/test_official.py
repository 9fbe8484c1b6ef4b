"""The official code's habits (docs/papers/autolora.md, section 4); numbers as in section 11."""

from __future__ import annotations

import pytest
import torch

from autolora import method, official
from shared import runs


def test_5_without_the_factor_eta_the_vector_is_wrong_and_selectable(regression):
    at, train_loss, validation_loss, _ = regression()
    inputs = (validation_loss, train_loss, at.w, at.beta, at.eta)
    right = method.hypergradient(*inputs)
    wrong = official.estimator(coefficient="1", radius=1e-4)(*inputs)
    assert (wrong.grads[0] - right.grads[0]).norm() / right.grads[0].norm() > 1e-5
    assert torch.allclose(wrong.implicit[0], right.implicit[0] / at.eta, rtol=1e-5)


def test_5_official_estimator_with_no_habit_is_the_default_one(regression):
    at, train_loss, validation_loss, _ = regression()
    inputs = (validation_loss, train_loss, at.w, at.beta, at.eta)
    ours = official.estimator(radius=1e-4)(*inputs)
    assert torch.allclose(ours.grads[0], method.hypergradient(*inputs).grads[0], rtol=1e-7)
    assert ours.gradient_evaluations == 4


def test_5_each_official_habit_changes_the_vector_and_leaves_the_weights(regression):
    at, train_loss, validation_loss, _ = regression(dropout=0.3)
    inputs = (validation_loss, train_loss, at.w, at.beta, at.eta)
    adam = torch.optim.Adam(at.w, lr=at.eta)
    plain = official.estimator(radius=1e-4)(*inputs).grads[0]
    before = [p.clone() for p in at.w]
    for habit in ({"around": "stepped"}, {"optimizer": adam}, {"masks": "independent"}):
        torch.manual_seed(0)
        other = official.estimator(**habit, radius=1e-4)(*inputs).grads[0]
        assert not torch.allclose(other, plain, rtol=1e-3), habit
    assert all(torch.equal(p, b) for p, b in zip(at.w, before)) and not adam.state


def test_7_both_perturbed_evaluations_see_the_same_masks(regression):
    at, train_loss, validation_loss, _ = regression(dropout=0.1)
    inputs = (validation_loss, train_loss, at.w, at.beta, at.eta)

    def implicit(masks, seed):
        torch.manual_seed(seed)
        return official.estimator(masks=masks, radius=1e-3)(*inputs).implicit[0]

    torch.manual_seed(5)
    once = method.hypergradient(*inputs).grads[0]
    torch.manual_seed(5)
    assert torch.equal(once, method.hypergradient(*inputs).grads[0])
    same, independent = (
        torch.stack([implicit(masks, seed) for seed in range(20)]).std(0).norm()
        for masks in ("same", "independent")
    )
    assert independent > 10 * same


def test_10_raw_rule_never_gives_less_and_refuses_a_sum_that_is_not_positive():
    generator = runs.stream(0, "beta")
    for _ in range(200):
        beta = 1 + 0.5 * torch.randn(8, generator=generator)
        if beta.sum() > 0.1:
            assert 1 <= method.count(torch.softmax(beta, 0)) <= official.raw_count(beta) <= 8
    for beta in (torch.zeros(8), -torch.ones(8)):
        with pytest.raises(ValueError, match="sum"):
            official.raw_count(beta)


def test_the_encoder_is_freed_but_for_the_adapted_maps(tiny_bert):
    layers = method.attach(tiny_bert, 2, "classifier", lambda name: runs.stream(0, "A", name))
    official.free_encoder(tiny_bert)
    frozen = {id(p) for p in tiny_bert.parameters() if not p.requires_grad}
    assert frozen == {id(p) for made in layers.values() for p in made.base.parameters()}
