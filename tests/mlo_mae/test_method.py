"""The levels and the hypergradient: constants are constant, estimators agree, all is put back."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.autograd import grad
from torch.nn.attention import SDPBackend, sdpa_kernel
from toy_levels import TINY, estimate, levels, networks, point, stream

from mlo_mae import method, official
from mlo_mae.estimators import ESTIMATORS, alignment_jvp
from mlo_mae.method import (
    alignment,
    head_reaction,
    mask_gradient,
    validation_direction,
    weighted_loss,
)
from shared import hypergrad, multilevel, vectors

HEAD_RATES = {"identity": 1.0, "unrolled": 0.3, "none": 0.0}


# --- the levels -----------------------------------------------------------------------------------


def test_level_1_leaves_T_alone_and_takes_scores_as_constants():
    nets = networks()
    at = point(nets)
    E, T = list(nets.E.parameters()), list(nets.T.parameters())
    s, m = method.scores(nets, at.x), at.mask.m
    errors = nets.errors(at.x, at.mask)
    ours = grad(weighted_loss(errors, m, s), E + T, retain_graph=True, allow_unused=True)
    assert all(g is None for g in ours[len(E) :])
    through_T = nets.T(nets.E.embed(at.x).detach())  # its input is detached: nothing reaches E
    same = grad(weighted_loss(errors, m, through_T), E, retain_graph=True)
    assert all(torch.equal(a, b) for a, b in zip(ours, same))
    attached = official.attached_scores(nets, at.x)  # row 1 of the differences
    leaked = grad(weighted_loss(errors, m, attached), E)
    assert vectors.relative_error(leaked, list(ours[: len(E)])) > 1e-3


def caught(L, t=0):
    """The point of level 3 in cycle t, and the networks there: `estimate` sees both."""
    seen = {}

    def estimator(nets, at, radius):
        flat = [*nets.E.parameters(), *nets.D.parameters()]
        seen.update(at=at, theta=vectors.clone(flat), training=nets.C.training)
        return method.hypergradient(nets, at, radius)

    _, last = method.cycle(L, t, estimator)
    return seen, last


def test_levels_2_and_3_do_not_train_the_encoder():
    L, plain = levels(), levels()
    T = vectors.clone(list(L.nets.T.parameters()))
    seen, _ = caught(L)
    method.cycle(plain, 0, None)  # level 1 alone
    for theta in ([*L.nets.E.parameters(), *L.nets.D.parameters()], seen["theta"]):
        alone = [*plain.nets.E.parameters(), *plain.nets.D.parameters()]
        assert all(torch.equal(p, q) for p, q in zip(theta, alone))
    assert any(not torch.equal(p, q) for p, q in zip(L.nets.T.parameters(), T))


def test_level_3_sees_the_last_batches_and_a_head_without_dropout():
    L = levels()
    seen, last = caught(L, 3)
    at = seen["at"]
    assert not seen["training"] and at.x is last.x
    assert torch.equal(at.x, L.batch["first"](7).x) and torch.equal(at.x2, L.batch["second"](3).x)
    assert torch.equal(at.xv, L.batch["third"](3).x)
    assert at.mask.m.sum(1).eq(12).all()


def test_a_kept_graph_is_the_same_gradient():
    one, two = (levels(replace(TINY, keep_graph=kept)) for kept in (False, True))
    for L in (one, two):
        method.cycle(L, 0, method.hypergradient)
    assert all(torch.equal(p, q) for p, q in zip(one.nets.T.parameters(), two.nets.T.parameters()))


@pytest.mark.parametrize(
    ("path", "rate"), [("unrolled", 1e-3 * 0.854), ("identity", 1.0), ("none", 0.0)]
)
def test_what_stands_for_the_heads_inverse_hessian(path, rate):
    """Step 3 of 12 has (1 + cos(pi / 4)) / 2 = 0.854 of the peak."""
    L = levels(replace(TINY, head_path=path))
    assert caught(L, 3)[0]["at"].head_rate == pytest.approx(rate, rel=1e-3)


# --- g_T ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head_path", HEAD_RATES)
@pytest.mark.parametrize("name", ["fd_forward", "fd_darts", "jvp"])
def test_estimators_match_double_backward(name, head_path):
    nets = networks(normalise=name == "fd_forward")
    at = point(nets, head_rate=HEAD_RATES[head_path])
    ours, true = estimate(name, nets, at), estimate("exact", nets, at)
    assert vectors.cosine(ours, true) > 0.9999
    assert 0.999 < vectors.norm(ours) / vectors.norm(true) < 1.001


def test_the_paths_differ_where_the_head_counts():
    nets = networks()
    each = [estimate("exact", nets, point(nets, head_rate=r)) for r in HEAD_RATES.values()]
    assert vectors.relative_error(each[0], each[2]) > 1e-3
    assert vectors.relative_error(each[1], each[2]) > 1e-3


def test_float32_is_enough_for_the_closed_form():
    nets = networks(dtype=torch.float32)
    at = point(nets)
    assert vectors.cosine(estimate("fd_forward", nets, at), estimate("exact", nets, at)) > 0.9999


def test_the_closed_form_is_the_generic_chain_of_three_levels():
    """shared/multilevel.py walks the same graph without knowing the closed form."""
    nets = networks()
    at = point(nets)
    E, C, T = (list(n.parameters()) for n in (nets.E, nets.C, nets.T))

    def level1():
        return weighted_loss(nets.errors(at.x, at.mask), at.mask.m, nets.T(at.e))

    def level2():
        return nets.head_loss(nets.features(at.x2), at.y2)

    def outer():
        return nets.head_loss(nets.features(at.xv), at.yv)

    with sdpa_kernel(SDPBackend.MATH):
        below = [
            multilevel.Level(level1, E, 1.0, hypergrad.OneStep()),
            multilevel.Level(level2, C, 1.0, hypergrad.OneStep()),
        ]
        g = multilevel.chain(outer, below, T, look_ahead=False, lr_factor=False).grads
    assert vectors.relative_error(estimate("fd_forward", nets, at), g) < 1e-4
    assert vectors.relative_error(estimate("exact", nets, at), g) < 1e-9


def test_no_weight_no_gradient():
    nets = networks()
    at = point(nets)
    v = validation_direction(nets, at)
    a = alignment(nets, at.x, at.mask, v, 1e-4)
    ones = torch.ones_like(a) * (0 * nets.T(at.e) + 1)
    g = grad(-weighted_loss(a, at.mask.m, ones), list(nets.T.parameters()))
    assert all(torch.count_nonzero(x) == 0 for x in g)


def test_alignments_are_directional_derivatives():
    nets = networks()
    at = point(nets)
    v = validation_direction(nets, at)
    a = alignment(nets, at.x, at.mask, v, 1e-4)
    torch.testing.assert_close(a, alignment_jvp(nets, at.x, at.mask, v), rtol=1e-3, atol=1e-6)
    i, j = 2, int(at.mask.m[2].argmax())
    by_hand = grad(nets.errors(at.x, at.mask)[i, j], list(nets.E.parameters()), allow_unused=True)
    slope = sum((g * d).sum().item() for g, d in zip(by_hand, v) if g is not None)
    assert a[i, j].item() == pytest.approx(slope, rel=1e-4)


def test_the_heads_mixed_product_needs_no_probe_of_the_encoder():
    nets = networks()
    at = point(nets)
    z = nets.features(at.x2)
    E, C = list(nets.E.parameters()), list(nets.C.parameters())
    v_C = [torch.randn(p.shape, dtype=p.dtype, generator=stream(4)) for p in C]
    ours = grad(z, E, head_reaction(nets, z, at.y2, v_C))
    eps = 1e-4
    slopes = []
    for sign in (1, -1):
        with vectors.perturbed(C, v_C, sign * eps):
            slopes.append(grad(nets.head_loss(nets.features(at.x2), at.y2), E))
    difference = [(a - b) / (2 * eps) for a, b in zip(*slopes)]
    assert vectors.relative_error(list(ours), difference) < 1e-6


def test_three_quadratics_in_closed_form():
    """L1 = |E - A T|^2 / 2, L2 = |C - B E|^2 / 2 + |C|^2 / 2, L3 = (|E - p|^2 + |C - q|^2) / 2."""
    g = stream(5)
    shapes = ((4, 3), (2, 4), (4,), (2,))
    A, B, p, q = (torch.randn(*s, generator=g, dtype=torch.float64) for s in shapes)
    E, C, T = (
        torch.randn(n, generator=g, dtype=torch.float64, requires_grad=True) for n in (4, 2, 3)
    )

    def L1():
        return 0.5 * (E - A @ T).square().sum()

    def L2():
        return 0.5 * (C - B @ E).square().sum() + 0.5 * C.square().sum()

    def L3(e, c):
        return 0.5 * (e - p).square().sum() + 0.5 * (c - q).square().sum()

    def ours(lr_C):
        v_E, v_C = grad(L3(E, C), [E, C])
        how = hypergrad.OneStep()
        v = [v_E + hypergrad.through_level(L2, [C], [E], [v_C], lr_C, how)[0]]
        return hypergrad.through_level(L1, [E], [T], v, 1.0, how)[0]

    v = (E - p) + B.T @ (C - q)  # -d2L2/dEdC = B^T
    torch.testing.assert_close(ours(1.0), (A.T @ v).detach())  # -d2L1/dTdE = A^T
    lr_E, lr_C = 0.1, 0.07
    (slope,) = grad(L1(), E, create_graph=True)
    stepped_E = E - lr_E * slope
    stepped_C = C - lr_C * ((C - B @ stepped_E) + C)
    full = grad(L3(stepped_E, stepped_C), T)[0]
    # one step of each level, differentiated where the steps ended, as for L2 and L3
    v_E, v_C = stepped_E - p, stepped_C - q
    torch.testing.assert_close(lr_E * A.T @ (v_E + lr_C * B.T @ v_C).detach(), full)


@pytest.mark.parametrize("head_path", HEAD_RATES)
def test_a_step_of_each_level_by_brute_force(head_path):
    """One short SGD step of E, one of C where the path counts its rate, masks held: the slope of L3
    along a move of T is lr_E times that of g_T. For `identity` the head has Hessian 1 and goes to
    its optimum."""
    nets, lr_E = networks(), 1e-6
    rate = HEAD_RATES[head_path]
    at = point(nets, head_rate=rate)
    E, C, T = (list(part.parameters()) for part in (nets.E, nets.C, nets.T))
    if head_path == "identity":  # L2 = |C - C_0|^2 / 2 + <C, grad L2(C_0)>: the same mixed product
        first = vectors.clone(C)

    def L3(direction, eps):
        start = vectors.clone(E + C)
        with vectors.perturbed(T, direction, eps):
            w = nets.T(at.e).detach()
        slope = grad(weighted_loss(nets.errors(at.x, at.mask), at.mask.m, w), E)
        vectors.add_(E, slope, -lr_E)
        slope = grad(nets.head_loss(nets.features(at.x2), at.y2), C)
        if head_path == "identity":
            vectors.copy_(C, [c - s for c, s in zip(first, slope)])  # argmin of L2
        else:
            vectors.add_(C, slope, -rate)
        loss = nets.head_loss(nets.features(at.xv), at.yv).item()
        moved = vectors.clone(C)
        vectors.copy_(E + C, start)
        return loss, moved

    direction = [torch.randn(p.shape, dtype=p.dtype, generator=stream(9)) for p in T]
    eps = 1e-3
    slope = (L3(direction, eps)[0] - L3(direction, -eps)[0]) / (2 * eps * lr_E)
    here = vectors.clone(C)
    vectors.copy_(C, L3(direction, 0.0)[1])  # L3 is differentiated where the head's step ended ...
    flat = grad(nets.head_loss(nets.features(at.xv), at.yv), E + C)
    v, v_C = list(flat[: len(E)]), list(flat[len(E) :])
    vectors.copy_(C, here)  # ... and the mixed product is that of where it began
    if rate:
        z2 = nets.features(at.x2)
        vectors.add_(v, grad(z2, E, head_reaction(nets, z2, at.y2, v_C)), -rate)
    a = alignment_jvp(nets, at.x, at.mask, v)
    g = mask_gradient(nets, at.e, at.mask.m, a)
    assert slope == pytest.approx(vectors.dot(g, direction), rel=1e-3)


def test_a_helpful_patch_rises_and_a_harmful_one_falls():
    nets = networks()
    at = point(nets, B=1)
    up, down, *rest = at.mask.m[0].nonzero().flatten().tolist()
    a = torch.zeros_like(at.mask.m)
    a[0, up], a[0, down] = 1.0, -1.0
    with torch.no_grad():  # no score reacts to another's gradient through the shared hidden layer
        nets.T.net[3].weight.zero_()
    before = nets.T(at.e)[0].detach()
    vectors.add_(list(nets.T.parameters()), mask_gradient(nets, at.e, at.mask.m, a), -0.5)
    after = nets.T(at.e)[0].detach()
    assert after[up] > before[up] and after[down] < before[down]
    assert torch.equal(after[rest], before[rest])


# --- the official code's way ----------------------------------------------------------------------


def test_official_draws_other_dropout_and_the_default_does_not():
    nets = networks(dropout=0.1)
    at = point(nets)
    nets.C.eval()
    torch.manual_seed(0)
    theirs = [official.hypergradient(nets, at, 1e-4) for _ in range(2)]
    assert vectors.relative_error(*theirs) > 1e-3
    ours = [estimate("fd_forward", nets, at) for _ in range(2)]
    assert all(torch.equal(p, q) for p, q in zip(*ours))


@pytest.mark.parametrize("head_path", HEAD_RATES)
def test_official_without_accidents_is_the_default(head_path):
    """No dropout, and a T that does not see the perturbed embedding: without rows 7 and 8 they
    agree."""
    nets = networks(dropout=0.0)
    at = point(nets, head_rate=HEAD_RATES[head_path])
    e, network = at.e, nets.T

    class Cached(torch.nn.Module):
        def forward(self, _):
            return network(e)

        def parameters(self, recurse=True):
            return network.parameters()

    nets.T = Cached()
    theirs = official.hypergradient(nets, at, 1e-4)
    nets.T = network
    assert vectors.relative_error(theirs, estimate("exact", nets, at)) < 1e-4


# --- nothing is left behind -----------------------------------------------------------------------


@pytest.mark.parametrize("name", ESTIMATORS)
def test_everything_is_put_back(name):
    nets = networks(dropout=0.1, dtype=torch.float32)
    at = point(nets)
    parts = list(nets.parts().values())
    nets.E.train()
    before = [[p.detach().clone() for p in part.parameters()] for part in parts]
    flags = [part.training for part in parts]
    estimate(name, nets, at)
    for part, old in zip(parts, before):
        for p, q in zip(part.parameters(), old):
            assert torch.equal(p, q) and p.grad is None and p.requires_grad
    assert [part.training for part in parts] == flags


def test_a_failing_probe_puts_the_encoder_back():
    nets = networks()
    at = point(nets)
    v = validation_direction(nets, at)
    before = vectors.clone(list(nets.E.parameters()))
    nets.D.forward = lambda *_: (_ for _ in ()).throw(RuntimeError("stop"))
    with pytest.raises(RuntimeError, match="stop"):
        alignment(nets, at.x, at.mask, v)
    assert all(torch.equal(p, q) for p, q in zip(nets.E.parameters(), before))
