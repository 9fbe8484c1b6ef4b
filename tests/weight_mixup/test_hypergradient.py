"""The hypergradient and its accidents (docs/papers/weight_mixup.md, section 11: 7, 8 and 13)."""

import functools

import pytest
import torch
from mixup_toys import bert, equal, linear, tokens
from torch import nn

from shared import vectors
from shared.hypergrad import FiniteDifference, OneStep
from weight_mixup import data, gates, method, official

RADIUS = FiniteDifference(radius=0.01)


def quadratic():
    """w, alpha, lower and upper loss of a gated 4 x 3 least-squares problem in float64."""
    holder = nn.ModuleDict({"layer": nn.ModuleList([linear(3, 4, torch.float64)])})
    gates.attach(holder)
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(2, 8, 3, generator=generator, dtype=torch.float64)
    y = torch.randn(2, 8, 4, generator=generator, dtype=torch.float64)
    method.draw_gates(gates.alpha_of(holder), 0.2, generator)
    net = holder["layer"][0]
    lower, upper = (lambda i=i: (net(x[i]) - y[i]).square().mean() for i in range(2))
    return list(gates.w_of(holder).values()), gates.alpha_of(holder), lower, upper


def unrolled(w, alpha, lower, upper, xi):
    """The exact gradient of upper(w - xi grad lower) for alpha, and its implicit part."""
    g = torch.autograd.grad(lower(), w, create_graph=True)
    before = vectors.clone(w)
    vectors.add_(w, g, -xi)
    both = torch.autograd.grad(upper(), [*alpha, *w])
    vectors.copy_(w, before)
    g = torch.autograd.grad(lower(), w, create_graph=True)
    implicit = torch.autograd.grad(g, alpha, [-xi * v for v in both[len(alpha) :]])
    return [d + i for d, i in zip(both[: len(alpha)], implicit, strict=True)], list(implicit)


def by_accident(problem, *names, optimizer=None, masks=lambda i: None, xi=0.3):
    w, alpha, lower, upper = problem
    optimizer = optimizer or method.adamw(w, 0.0)
    return official.hypergradient(upper, lower, w, alpha, xi, optimizer, 5.0, names, masks)


def test_hypergradient_is_the_exact_one():
    w, alpha, lower, upper = quadratic()
    exact, implicit = unrolled(w, alpha, lower, upper, xi=0.3)
    for estimator in (RADIUS, OneStep()):
        g = method.hypergradient(upper, lower, w, alpha, 0.3, estimator)
        assert vectors.relative_error(g.grads, exact) < 1e-3
        assert vectors.relative_error(g.implicit, implicit) < 1e-3
    wrong_sign = [d - i for d, i in zip(g.direct, g.implicit, strict=True)]
    no_xi = [d + i / 0.3 for d, i in zip(g.direct, g.implicit, strict=True)]
    assert vectors.relative_error(wrong_sign, exact) > 0.05
    assert vectors.relative_error(no_xi, exact) > 0.05


def test_a_search_step_moves_alpha_first_and_w_under_the_new_alpha():
    w, alpha, lower, upper = quadratic()
    levels = method.levels_of(w, alpha, weight_decay=0.0, alpha_weight_decay=0.0)
    method.set_rate(levels.opt_alpha, 0.05)
    method.set_rate(levels.opt_w, 0.05)
    before, gates_before = vectors.clone(w), vectors.clone(alpha)
    estimate = functools.partial(method.hypergradient, estimator=RADIUS)
    g, loss = method.search_step(levels, upper, lower, 0.3, 5.0, estimate)
    assert not equal(w, before) and not equal(alpha, gates_before)
    vectors.copy_(w, before)
    assert float(loss) == float(lower().detach())  # with the new alpha, before the step of w
    descent = [(a - b) * d for a, b, d in zip(gates_before, alpha, g.grads, strict=True)]
    assert all(float(x.detach().min()) >= 0 for x in descent)


def test_weights_are_restored_bit_for_bit_and_drift_is_exactly_the_radius():
    problem = w, alpha, lower, upper = quadratic()
    before = vectors.clone(w)
    method.hypergradient(upper, lower, w, alpha, 0.3, RADIUS)
    assert equal(w, before)
    by_accident(problem)
    assert equal(w, before)
    by_accident(problem, "drift")
    moved = vectors.norm([a.detach() - b for a, b in zip(w, before, strict=True)])
    assert abs(moved - 0.01) < 1e-6


def test_official_without_accidents_is_the_default_hypergradient():
    problem = w, alpha, lower, upper = quadratic()
    ours = method.hypergradient(upper, lower, w, alpha, 0.3, RADIUS)
    g = by_accident(problem)
    assert vectors.relative_error(g.grads, ours.grads) < 1e-9
    assert g.gradient_evaluations == ours.gradient_evaluations
    assert g.outer_loss == pytest.approx(ours.outer_loss)
    betty = by_accident(problem, "betty_direction")
    assert vectors.relative_error(betty.grads, ours.grads) > 0.05


def test_double_step_takes_one_real_step_inside():
    problem = quadratic()
    optimizer = method.adamw(problem[0], 0.0)
    method.set_rate(optimizer, 1e-2)
    before = vectors.clone(problem[0])
    by_accident(problem, "double_step", optimizer=optimizer, xi=1e-2)
    assert int(optimizer.state[problem[0][0]]["step"]) == 1 and not equal(problem[0], before)


def test_a_hypergradient_that_is_not_finite_is_an_error():
    w, alpha, lower, upper = quadratic()
    with pytest.raises(FloatingPointError, match="not finite"):
        by_accident((w, alpha, lower, lambda: upper() * float("inf")))


def test_independent_dropout_masks_spoil_the_difference():
    model = bert(layers=1).train()
    gates.attach(model)
    inputs, labels = tokens(8)
    loss = lambda: data.task_loss(model(**inputs).logits, labels)  # noqa: E731
    problem = list(gates.w_of(model).values()), gates.alpha_of(model), loss, loss

    def implicit(*names, start=0):
        """The masks of the validation pass are fixed; those of the difference begin at `start`."""
        masks = lambda i: torch.manual_seed(0 if i == 0 else start + i)  # noqa: E731
        return by_accident(problem, *names, masks=masks, xi=1e-3).implicit

    assert vectors.cosine(implicit(), implicit()) > 0.999
    spoilt = implicit("independent_masks"), implicit("independent_masks", start=10)
    assert vectors.cosine(*spoilt) < 0.9
