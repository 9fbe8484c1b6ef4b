"""DASGM: the acceptance checks (docs/papers/dasgm.md, section 11); a killed search continues."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor

from dasgm import (
    darts_space,
    data,
    evaluate,
    export,
    generators,
    method,
    nasbench,
    train,
    warmstart,
)
from dasgm.search import Search
from shared import cifar, protocol, runs, vectors
from shared.hypergrad import FiniteDifference, FirstOrder, OneStep, hypergrad

ROOT = Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")
SMALL = {"data": "digits", "nodes": 3, "channels": 4, "epochs": 1, "batch": 32, "lr": 0.025, "arch_lr": 2e-2, "n": 64, "seed": 3, "gan": "mlp",
             "gan_steps": 4, "gan_batch": 32, "reference_steps": 2, "fidelity_gate": False}  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread(tmp_path, monkeypatch):
    torch.set_num_threads(1)
    monkeypatch.setenv("REPRO_RUNS", str(tmp_path / "runs"))


def config(**given) -> train.Config:
    return train.Config(**{**SMALL, **given})


def problem(c: train.Config) -> data.Problem:
    return data.load(c.data, c.seed, c.split, c.n)


def search(**given) -> Search:
    c = config(**given)
    p = problem(c)
    gan = (
        warmstart.new_gan(c, p, CPU)
        if c.variant in ("static", "joint", "weighted", "adversarial") and c.lam
        else None
    )
    return Search(c, p, CPU, gan)


# --- 1: lam = 0 is DARTS ------------------------------------------------------------------------------------------------


def plain_darts(
    train_losses: Sequence[Callable[[], Tensor]],
    val_losses: Sequence[Callable[[], Tensor]],
    W: Sequence[Tensor],
    A: Sequence[Tensor],
    opt_W: torch.optim.Optimizer,
    opt_A: torch.optim.Optimizer,
    clip: float,
) -> None:
    """First-order DARTS, written without the machinery of dasgm/."""
    for train_loss, val_loss in zip(train_losses, val_losses):
        opt_A.zero_grad()
        for a, g in zip(A, torch.autograd.grad(val_loss(), list(A))):
            a.grad = g
        opt_A.step()
        opt_W.zero_grad()
        for p, g in zip(W, torch.autograd.grad(train_loss(), list(W))):
            p.grad = g
        torch.nn.utils.clip_grad_norm_(list(W), clip)
        opt_W.step()


def test_lam_zero_is_plain_darts_and_leaves_the_generator_alone():
    """Twenty steps of `joint` with lam = 0 (no generator is even made) and of a loop written without this machinery."""
    s = search(variant="joint", lam=0.0, epochs=10)
    assert s.gan is None and s.steps == 20
    plain = search(variant="darts", epochs=10)
    train_losses, val_losses = [], []
    for t in range(20):
        x, y = plain.real(plain.problem.train, t, "batches")
        xv, yv = plain.real(plain.problem.validation, t, "validation batches")
        train_losses.append(lambda x=x, y=y: F.cross_entropy(plain.net(x, plain.A), y))
        val_losses.append(lambda x=xv, y=yv: F.cross_entropy(plain.net(x, plain.A), y))
    for t in range(20):
        s.step(t)
        for group in plain.opt_W.param_groups:
            group["lr"] = plain.rate(t)
        plain_darts(
            train_losses[t : t + 1],
            val_losses[t : t + 1],
            plain.W,
            plain.A,
            plain.opt_W,
            plain.opt_A,
            5.0,
        )
    assert torch.equal(s.A[0], plain.A[0])
    assert all(torch.equal(a, b) for a, b in zip(s.W, plain.W))


# --- 2 to 6: the architecture gradient ----------------------------------------------------------------------------------


@pytest.mark.parametrize("estimator", [OneStep(), FiniteDifference()], ids=["exact", "difference"])
def test_unrolled_gradient_has_its_closed_form(estimator):
    """L_tr = |W - B A|^2 / 2, F = |W - c|^2 / 2, with momentum and weight decay in the look-ahead."""
    g = torch.Generator().manual_seed(0)
    B, c, m = (torch.randn(*s, generator=g, dtype=torch.float64) for s in ((5, 3), (5,), (5,)))
    W = torch.randn(5, generator=g, dtype=torch.float64, requires_grad=True)
    A = torch.randn(3, generator=g, dtype=torch.float64, requires_grad=True)
    xi, mu, wd = 0.3, 0.9, 3e-2

    def L_tr():
        return 0.5 * (W - B @ A).square().sum()

    inner = method.look_ahead_loss(L_tr, [W], [m], mu, wd)
    (got,) = method.architecture_gradient(
        lambda: 0.5 * (W - c).square().sum(), inner, [W], [A], xi, estimator
    )
    with torch.no_grad():
        stepped = W - xi * (W - B @ A + wd * W + mu * m)
        exact = xi * B.T @ (stepped - c)  # dW'/dA = xi B
    assert float((got - exact).norm() / exact.norm()) < 1e-6


def double_search(**given) -> Search:
    """A search in float64: the small supernet on digits."""
    s = search(**given)
    s.net.double()
    s.W = list(s.net.parameters())
    s.A = [a.detach().double().requires_grad_() for a in s.A]
    return s


def losses(s: Search, seed: int = 0):
    """F on generated-like images and L_tr on real ones, float64, fixed."""
    g = torch.Generator().manual_seed(seed)
    x, y = s.real(s.problem.train, 0, "batches")
    xs, ys = (
        torch.randn(32, 1, 8, 8, generator=g, dtype=torch.float64),
        torch.randint(10, (32,), generator=g),
    )
    return (lambda: F.cross_entropy(s.net(xs, s.A), ys)), (
        lambda: F.cross_entropy(s.net(x.double(), s.A), y)
    )


def test_difference_and_double_backward_agree_and_everything_is_put_back():
    s = double_search(variant="darts")
    F_, L_tr = losses(s)
    before, state = vectors.clone(s.W), torch.get_rng_state()
    buffers = [b.clone() for b in s.net.buffers()]
    exact = method.architecture_gradient(F_, L_tr, s.W, s.A, 0.1, OneStep())
    # ReLU kinks: digits share an exactly constant background, so many units cross zero together; a shorter probe stays between
    close = method.architecture_gradient(F_, L_tr, s.W, s.A, 0.1, FiniteDifference(radius=1e-6))
    direct = method.architecture_gradient(F_, L_tr, s.W, s.A, 0.0)
    implicit = [a - b for a, b in zip(exact, hypergrad(F_, L_tr, s.W, s.A, 0.1, OneStep()).direct)]
    assert (
        vectors.norm(implicit) > 1e-6 and vectors.relative_error(direct, exact) > 1e-3
    )  # the second order is there
    assert vectors.cosine(close, exact) > 0.999 and vectors.relative_error(close, exact) < 1e-2
    assert all(torch.equal(a, b) for a, b in zip(before, s.W)) and torch.equal(
        state, torch.get_rng_state()
    )
    assert all(torch.equal(a, b) for a, b in zip(buffers, s.net.buffers()))
    assert all(p.grad is None and p.requires_grad for p in [*s.W, *s.A])


def test_xi_zero_is_first_order_exactly():
    s = double_search(variant="darts")
    F_, L_tr = losses(s)
    got = method.architecture_gradient(F_, L_tr, s.W, s.A, 0.0)
    same = hypergrad(F_, L_tr, s.W, s.A, 0.0, FirstOrder()).grads
    assert all(torch.equal(a, b) for a, b in zip(got, same))


def test_nested_gradient_is_the_derivative_of_the_unrolled_objective():
    """Linear generator, logistic classifier with an architecture vector: against numerical differentiation of F(A)."""
    g = torch.Generator().manual_seed(1)
    double = {"generator": g, "dtype": torch.float64}
    a, w, theta = (torch.randn(*s, **double).requires_grad_() for s in ((4,), (4, 3), (2, 4)))
    x, y = torch.randn(6, 4, **double), torch.randint(3, (6,), generator=g)
    z, ys = torch.randn(8, 2, **double), torch.randint(3, (8,), generator=g)
    phi, xi_w, xi_t, eta = torch.randn(4, **double), 0.4, 0.3, 0.1

    def logits(images, a, w):
        return (images * torch.sigmoid(a)) @ w

    def L(a, w):
        return F.cross_entropy(logits(x, a, w), y)

    def J(theta, a, w, eta):
        return -((z @ theta) @ phi).mean() - eta * method.weakness(logits(z @ theta, a, w), ys)

    def objective(theta, a, w):
        return method.synthesized_loss(logits(z @ theta, a, w), ys)

    def unrolled(a, eta):
        w1 = (w.detach() - xi_w * torch.autograd.grad(L(a, w), w)[0]).requires_grad_()
        t1 = theta.detach() - xi_t * torch.autograd.grad(J(theta, a, w1, eta), theta)[0]
        return objective(t1, a, w1).item()

    for eta_ in (eta, 0.0):
        numeric = torch.zeros(4, dtype=torch.float64)
        for i in range(4):
            step = torch.zeros(4, dtype=torch.float64)
            step[i] = 1e-5
            numeric[i] = (
                unrolled(a.detach() + step, eta_) - unrolled(a.detach() - step, eta_)
            ) / 2e-5
        got = method.nested_gradient(lambda: objective(theta, a, w), lambda: L(a, w),
                                     lambda e=eta_: J(theta, a, w, e), [w], [theta], [a], xi_w, xi_t, OneStep())  # fmt: skip
        assert float((got.grads[0] - numeric).norm() / numeric.norm()) < 1e-5
    # eta = 0: the generator's step holds no A and no W, so what is left is the two-level gradient at the stepped theta
    moved = theta.detach() - xi_t * torch.autograd.grad(J(theta, a, w, 0.0), theta)[0]
    two = method.architecture_gradient(
        lambda: objective(moved, a, w), lambda: L(a, w), [w], [a], xi_w, OneStep()
    )
    assert vectors.relative_error(got.grads, two) < 1e-10


@pytest.mark.parametrize("variant", ["joint", "adversarial"])
def test_common_random_numbers(variant):
    """One step's difference quotient twice: identical; with another z: not."""
    s = search(variant=variant, order=2, eta=0.1 if variant == "adversarial" else 0.0)
    x, y = s.real(s.problem.train, 0, "batches")

    def gradient(t):
        return s.architecture_gradient(t, lambda: F.cross_entropy(s.net(x, s.A), y), x, y)[1]

    first, again = gradient(0), gradient(0)
    redrawn = gradient(1)
    assert all(torch.equal(a, b) for a, b in zip(first, again))
    assert vectors.relative_error(redrawn, first) > 1e-3


# --- 7: who moves when --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["darts", "joint", "adversarial", "aug_val", "train_as_val"])
def test_each_level_moves_its_own_variables(variant):
    s = search(variant=variant, eta=0.1 if variant == "adversarial" else 0.0)
    ema = vectors.clone(list(s.gan.ema.parameters())) if s.gan else []
    s.step(0)
    assert s.facts["levels_apart"] == 1.0
    assert all(p.grad is None for p in [*s.W, *s.A])
    if s.gan:
        assert not all(torch.equal(a, b) for a, b in zip(ema, s.gan.ema.parameters()))
        assert not any(p.requires_grad for p in s.gan.ema.parameters())


def test_static_never_moves_the_generator_and_weight_decay_never_sees_A():
    s = search(variant="static")
    before = s.gan.state()["G"]["net.0.weight"].clone()
    for t in range(2):
        s.step(t)
    assert torch.equal(before, s.gan.G.net[0].weight) and s.counts["gan_steps"] == 0
    assert not {id(a) for a in s.A} & {
        id(p) for group in s.opt_W.param_groups for p in group["params"]
    }
    assert not {id(a) for a in s.A} & {id(p) for p in s.net.parameters()}


# --- 8, 9: discretisation -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", [1, 2, 3, 4])
def test_decided_supernet_is_the_derived_network(row):
    torch.manual_seed(0)
    settings = {"channels": 4, "N": 1, "stages": 2, "nodes": 4, "classes": 5}
    net = nasbench.Network(None, **settings)
    choice = [(row + k) % 5 for k in range(6)]
    alpha = torch.zeros(6, 5)
    alpha[range(6), choice] = 60.0
    cell = nasbench.derive(alpha, 4)
    one = nasbench.Network(cell, affine=False, **settings)
    one.load_state_dict({k: v for k, v in net.state_dict().items() if k in one.state_dict()})
    x = torch.randn(8, 3, 16, 16)
    assert float((net(x, [alpha]) - one(x)).detach().abs().max()) < 1e-4
    assert nasbench.to_string(nasbench.from_string(cell), 4) == cell


def test_derivation_in_nasbench():
    alpha = torch.zeros(6, 5)
    for edge, op in enumerate([0, 1, 2, 3, 4, 0]):
        alpha[edge, op] = 1.0
    alpha[0, 3] = 0.5
    assert (
        nasbench.derive(alpha, 4)
        == "|none~0|+|skip_connect~0|nor_conv_1x1~1|+|nor_conv_3x3~0|avg_pool_3x3~1|none~2|"
    )
    assert nasbench.derive(alpha, 4, exclude_none=True).startswith("|nor_conv_3x3~0|+")
    assert nasbench.skips(nasbench.derive(alpha, 4)) == 1
    assert (
        len(set(nasbench.all_cells(3))) == 125
        and len(nasbench.all_cells(3, exclude_none=True)) == 64
    )


@pytest.mark.parametrize(
    "cell",
    [
        "",
        "|none~0|",
        "|none~0|+|none~1|none~0|",
        "|conv~0|+|none~0|none~1|",
        "|none~0|+|none~0|none~1",
    ],
)
def test_malformed_cells_are_refused(cell):
    if cell == "|none~0|":  # a cell of two nodes: well formed, but not one of the digits table
        with pytest.raises(KeyError, match="125"):
            data.Table(
                {c: i for i, c in enumerate(nasbench.all_cells(3))}, {"accuracy": np.zeros(125)}
            ).number(cell)
    else:
        with pytest.raises(ValueError, match="cell"):
            nasbench.from_string(cell)


def test_derivation_in_the_darts_space():
    """Two edges per node, `none` never, the strongest non-none operation; partial channels weigh edges with beta."""
    alpha = [torch.zeros(14, 8), torch.zeros(14, 8)]
    for row, (_, _target) in enumerate(darts_space.EDGES):
        alpha[0][row, 0] = 5.0  # none is strong everywhere
        alpha[0][row, 1 + row % 7] = 1.0 + 0.1 * row
    genotype = darts_space.derive(alpha)
    assert len(genotype.normal) == len(genotype.reduce) == 8
    assert all(op != "none" for op, _ in (*genotype.normal, *genotype.reduce))
    for node in range(4):
        rows = sorted(
            (r for r, (_, t) in enumerate(darts_space.EDGES) if t == 2 + node), reverse=True
        )[:2]
        expected = {(darts_space.OPERATIONS[1 + r % 7], darts_space.EDGES[r][0]) for r in rows}
        assert set(genotype.normal[2 * node : 2 * node + 2]) == expected
    assert darts_space.Genotype.from_json(genotype.to_json()) == genotype
    beta = torch.zeros(14)
    beta[2] = 9.0  # node 3: its edge from input 0, the weakest so far
    with_beta = darts_space.derive([*alpha, beta, torch.zeros(14)])
    assert 0 in {source for _, source in with_beta.normal[2:4]}


def test_pdarts_limits_skips_and_shrinks():
    alpha = [
        1e-3 * torch.randn(14, 8, generator=torch.Generator().manual_seed(0)) for _ in range(2)
    ]
    alpha[0][:, 3] += 2.0
    assert darts_space.derive(alpha).skips() == 8
    for most in (2, 0):
        assert darts_space.derive(alpha, most_skips=most).skips() == most
    kept = darts_space.shrink(alpha, darts_space.everything(), 5)
    assert all(len(names) == 5 for edges in kept for names in edges) and all(
        "skip_connect" in n for n in kept[0]
    )
    net = darts_space.RelaxedNetwork(4, 3, 10, kept, skip_dropout=0.3)
    assert net(torch.randn(2, 3, 16, 16), darts_space.initial(kept, 1, runs.stream(0))).shape == (
        2,
        10,
    )


@pytest.mark.parametrize("partial", [1, 4])
def test_darts_networks_run_and_every_weight_is_reached(partial):
    torch.manual_seed(0)
    kept = darts_space.everything()
    net = darts_space.RelaxedNetwork(8, 3, 10, kept, partial=partial)
    A = [a.requires_grad_() for a in darts_space.initial(kept, partial, runs.stream(0))]
    loss = F.cross_entropy(net(torch.randn(4, 3, 16, 16), A), torch.arange(4))
    assert all(
        g is not None and torch.isfinite(g).all()
        for g in torch.autograd.grad(loss, [*A, *net.parameters()])
    )
    one = darts_space.DerivedNetwork(darts_space.derive(A), 8, 3, 10, auxiliary=True)
    one.drop_path = 0.5
    logits, extra = one(torch.randn(4, 3, 32, 32))
    assert logits.shape == extra.shape == (4, 10)
    one.eval()
    x = torch.randn(4, 3, 32, 32)
    assert torch.equal(one(x), one(x))  # no drop path, no second head outside training
    wide = darts_space.DerivedNetwork(
        darts_space.random_genotype(runs.stream(1)), 8, 3, 7, auxiliary=False, imagenet=True
    )
    assert wide(torch.randn(2, 3, 64, 64)).shape == (2, 7)


# --- 10: the tables -----------------------------------------------------------------------------------------------------


def test_the_published_table(repro_data):
    table = data.nasbench_table(repro_data / "nasbench201.csv.gz")
    assert len(table.cells) == 15625
    best = [round(100 * float(v.max()), 3) for v in table.columns.values()]
    assert best == [94.373, 73.513, 47.311]
    all_skip = table.number(nasbench.to_string(["skip_connect"] * 6, 4))
    scores = [round(100 * float(v[all_skip]), 3) for v in table.columns.values()]
    assert scores == [54.297, 15.607, 16.322]
    with pytest.raises(KeyError, match="15625"):
        table.number("|none~0|+|none~0|none~1|")
    with pytest.raises(ValueError, match="nor_conv_7x7"):
        table.number("|nor_conv_7x7~0|+|none~0|none~1|+|none~0|none~1|none~2|")
    # the quoted DARTS rows are the all-skip cell, digit by digit: the collapse this test bed must expose
    reported = {
        e["id"]: e for e in yaml.safe_load((ROOT / "dasgm/reported.yaml").read_text())["entries"]
    }
    quoted = [reported[f"nb201_darts_v1_{k}"]["value"] for k in ("cifar10", "cifar100")]
    assert quoted == [round(s, 2) for s in scores[:2]]


def test_the_digits_table():
    table = data.digits_table()
    assert len(table.cells) == 125 and table.correct.shape == (125, 897)
    skip = table.score[table.number("|skip_connect~0|+|skip_connect~0|skip_connect~1|")]
    conv = table.score[table.number("|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|")]
    cut = table.score[table.number("|none~0|+|none~0|none~1|")]
    assert cut < 0.2 < skip < conv
    assert table.percentile(int(table.score.argmax())) > 0.98
    text = (ROOT / "dasgm/results/digits_cells.csv").read_text()
    assert text.startswith("# made by: python -m dasgm.truth_table")


def test_a_damaged_digits_table_is_refused(tmp_path):
    bits = np.zeros(897, bool)
    path = tmp_path / "cells.csv"
    from dasgm import truth_table

    truth_table.write(path, {(nasbench.all_cells(3)[0], 0): bits}, 1)
    with pytest.raises(runs.BadInput, match="124 of 125"):
        data.digits_table(path)
    path.write_text(path.read_text().replace("0.000000", "0.500000"))
    with pytest.raises(ValueError, match="disagree"):
        data.digits_rows(path)


# --- 11, 12, 13: generator ------------------------------------------------------------------------------------------------


def test_T_maps_black_and_white_like_real_pixels(tmp_path, monkeypatch):
    cifar.write_sample(tmp_path, "cifar10", 40, runs.stream(0))
    monkeypatch.setenv("REPRO_DATA", str(tmp_path))
    for p in (problem(config()), data.load("cifar10", 0)):
        shape = (4, *p.shape)
        for level, pixel in ((-1.0, 0), (1.0, 255)):
            stream = [runs.stream(0, "t"), runs.stream(0, "t")]
            real = p.view(torch.full(shape, pixel, dtype=torch.uint8), stream[0])
            made = p.T(torch.full(shape, level), stream[1])
            assert torch.allclose(real, made, atol=1e-6)
        x = torch.zeros(shape, requires_grad=True)
        assert torch.autograd.grad(p.T(x, runs.stream(0)).sum(), x)[0].abs().sum() > 0
        assert torch.allclose(
            p.signed(torch.tensor([0, 255], dtype=torch.uint8)), torch.tensor([-1.0, 1.0])
        )


def test_data_of_the_levels_are_apart():
    p = data.load("digits", 5)
    parts = [set(x.ids.tolist()) for x in (p.train, p.validation, p.test)]
    assert [len(x) for x in parts] == [450, 450, 897] and len(set.union(*parts)) == 1797
    assert set(data.gan_images(p, "train").ids.tolist()) == parts[0]
    assert parts[2] == set(data.load("digits", 6).test.ids.tolist())
    assert parts[0] != set(data.load("digits", 6).train.ids.tolist())
    with pytest.raises(runs.BadInput, match="never from test"):
        data.gan_images(p, "test")
    assert len(search(variant="joint", full_data_weights=True).weight_images) == 128


def test_fidelity_gate(tmp_path):
    """An untrained generator stops the run; one that replays training images passes."""
    c = config(
        n=0,
        fidelity_gate=True,
        variant="generator",
        gan_steps=0,
        reference_steps=60,
        batch=64,
        out=str(tmp_path / "g"),
    )
    with pytest.raises(generators.GeneratorFailed, match="3 times chance"):
        train.run(c)
    p = problem(c)
    reference = warmstart.train_reference(c, p, CPU)
    replay = lambda n, part: (p.signed(p.train.pixels[:n]), p.train.labels[:n])  # noqa: E731
    value = generators.fidelity(replay, reference, lambda x: p.normalise((x + 1) * 127.5), 450)
    assert value > 0.6 and generators.fidelity_gate(value, 10) == ""
    assert "below" in generators.fidelity_gate(0.4, 10)


@pytest.mark.parametrize("kind", ["residual", "dcgan"])
def test_generators_for_photographs(kind):
    gan = generators.GAN(kind, 3, (3, 32, 32), 0, 1e-4, 4e-4, CPU, width=4)
    before = vectors.clone(list(gan.H.parameters()))
    out = gan.step(torch.rand(4, 3, 32, 32) * 2 - 1, torch.tensor([0, 1, 2, 0]))
    assert np.isfinite(list(out.values())).all()
    assert not all(torch.equal(a, b) for a, b in zip(before, gan.H.parameters()))
    images, y = gan.sample(5, "x")
    assert images.shape == (5, 3, 32, 32) and float(images.abs().max()) <= 1 and y.shape == (5,)


# --- 14: class weights ------------------------------------------------------------------------------------------------------


def test_class_weights():
    omega = method.ClassWeights(4)
    assert torch.equal(omega.omega, torch.ones(4))
    logits = (10 * torch.randn(20, 4, generator=torch.Generator().manual_seed(0))).requires_grad_()
    y = torch.arange(20) % 3  # class 3 is absent
    omega.update(logits, y)
    assert omega.running[3].isnan() and not omega.omega.requires_grad
    assert abs(float(omega.omega.mean()) - 1) < 1e-4
    assert float(omega.omega.min()) >= 0.2 - 1e-4 and float(omega.omega.max()) <= 5 + 1e-4
    other, order = (
        method.ClassWeights(4),
        torch.randperm(20, generator=torch.Generator().manual_seed(1)),
    )
    other.update(logits[order], y[order])
    assert torch.equal(other.running[:3], omega.running[:3])
    kept = omega.running.clone()
    omega.update(logits[y == 0], y[y == 0])
    assert torch.equal(omega.running[1:3], kept[1:3]) and omega.running[3].isnan()
    # many copies of a class say no more about it than one: a mean, not the sum of the prototype
    once, often = method.ClassWeights(2), method.ClassWeights(2)
    row = torch.tensor([[0.3, -0.2], [1.0, 2.0]])
    once.update(row, torch.tensor([0, 1]))
    often.update(row[[0, 0, 0, 1]], torch.tensor([0, 0, 0, 1]))
    assert torch.allclose(once.omega, often.omega)


def test_a_strange_class_stays_within_the_clip():
    omega = method.ClassWeights(10, running=torch.tensor([100.0] + [1e-6] * 9))
    assert abs(float(omega.omega.mean()) - 1) < 1e-3 and float(omega.omega.max()) <= 5 + 1e-4


# --- 15: runs -----------------------------------------------------------------------------------------------------------------


def make(tmp_path, name: str, **given) -> Path:
    return train.run(config(arm=name, task="digits", out=str(tmp_path / name), **given))


@pytest.fixture
def generator(tmp_path) -> dict[str, str]:
    return {"generator": str(make(tmp_path, "generator", variant="generator"))}


def record(directory: Path) -> dict:
    return json.loads((directory / "record.json").read_text())


RETRAIN = {
    "judge": "retrain",
    "retrain_epochs": 1,
    "retrain_batch": 32,
    "retrain_lr": 0.1,
    "cutout": 0,
    "auxiliary": 0.0,
    "drop_path": 0.0,
}


def test_runs_of_a_seed_share_budget_split_and_repeat(tmp_path, generator):
    found = {}
    arms = {"darts": {}, "aug_val": {}, "joint": generator, "shuffled": generator}
    for name, uses in arms.items():
        more = (
            {"variant": "joint", "labels": "permuted"} if name == "shuffled" else {"variant": name}
        )
        found[name] = record(make(tmp_path, name, uses=uses, **RETRAIN, **more))
    again = record(make(tmp_path, "again", variant="joint", uses=generator, **RETRAIN))
    assert again["state_sha256"] == found["joint"]["state_sha256"]
    assert again["details"]["cell"] == found["joint"]["details"]["cell"]
    for key in ("weight_steps", "architecture_steps"):
        assert len({r["details"]["counts"][key] for r in found.values()}) == 1
    assert len({r["split_sha256"] for r in found.values()}) == 1
    assert len({r["state_sha256"] for r in found.values()}) == 4
    assert all(g["passed"] for r in found.values() for g in r["gates"])
    assert train.NOTICE in (tmp_path / "joint" / "log.txt").read_text()


@pytest.mark.parametrize("stop_after", [1, 3])
def test_a_stopped_search_continues_bit_for_bit(tmp_path, generator, monkeypatch, stop_after):
    """Once in the search, once in the retraining."""
    whole = record(make(tmp_path, "whole", variant="joint", uses=generator, **RETRAIN))
    calls = {"n": 0}

    def asked() -> bool:
        calls["n"] += 1
        return calls["n"] == stop_after

    monkeypatch.setattr(runs, "_stop_asked", asked)
    with pytest.raises(runs.Stopped):
        make(tmp_path, "cut", variant="joint", uses=generator, **RETRAIN)
    cut = record(make(tmp_path, "cut", variant="joint", uses=generator, **RETRAIN))
    assert cut["state_sha256"] == whole["state_sha256"]
    assert cut["predictions_sha256"] == whole["predictions_sha256"]
    assert (tmp_path / "cut/metrics.jsonl").read_text() == (
        tmp_path / "whole/metrics.jsonl"
    ).read_text()


def test_export_is_a_plain_network(tmp_path, generator):
    directory = make(tmp_path, "joint", variant="joint", uses=generator, **RETRAIN)
    network = export.load(directory / "export").eval()
    p = problem(config())
    with np.load(directory / "predictions.npz") as archive:
        guess = network(p.normalise(p.test.pixels)).argmax(1).numpy()
        assert (guess == archive["prediction"]).all()
    with pytest.raises(ValueError, match="space"):
        export.build({"space": "elsewhere"})


def test_looked_up_cells_are_scored_per_image(tmp_path):
    table = data.digits_table()
    directory = make(tmp_path, "darts", variant="darts", n=0, batch=225)
    with np.load(directory / "predictions.npz") as archive:
        predictions = {k: archive[k] for k in archive.files}
    cell = record(directory)["details"]["cell"]
    metrics = evaluate.score(predictions)
    assert metrics["accuracy"] == pytest.approx(table.score[table.number(cell)], abs=1e-12)
    assert evaluate.item_values(predictions)["accuracy"].mean() == pytest.approx(
        metrics["accuracy"], abs=1e-12
    )
    chance = make(tmp_path, "random", variant="random", n=0, exclude_none=True)
    with np.load(chance / "predictions.npz") as archive:
        floor = evaluate.score({k: archive[k] for k in archive.files})
    allowed = [table.number(c) for c in nasbench.all_cells(3, exclude_none=True)]
    assert abs(floor["accuracy"] - table.score[allowed].mean()) < 0.005
    best = 100 * (table.score.max() - floor["accuracy"])
    assert 100 * floor["regret"] == pytest.approx(best, abs=1e-6)


@pytest.mark.parametrize(
    "wrong, text",
    [
        ({"lam": 1.5}, "outside"), ({"eta": 0.5}, "0.1"), ({"variant": "jiont"}, "joint"), ({"variant": "joint"}, "generator"),
        ({"variant": "darts", "space": "darts"}, "retrain"), ({"variant": "darts", "base": "pcdarts"}, "partial"),
        ({"variant": "darts", "gan_data": "test"}, "gan_data"), ({"variant": "darts", "data": "cifar10"}, "mlp"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_meant_are_refused(tmp_path, wrong, text):
    with pytest.raises(runs.BadInput, match=text):
        make(tmp_path, "bad", **wrong)


def test_every_level_of_the_bases_searches(tmp_path, monkeypatch):
    """The one loop takes DARTS, P-DARTS and PC-DARTS with no change but the supernet (T3); second order in the first."""
    cifar.write_sample(tmp_path, "cifar10", 40, runs.stream(0))
    monkeypatch.setenv("REPRO_DATA", str(tmp_path))
    common = {"data": "cifar10", "space": "darts", "judge": "retrain", "channels": 4, "layers": 3, "n": 8, "batch": 4, "gan": "residual",
                  "gan_width": 4, "gan_batch": 4, "pdarts_layers": (3, 3, 3)}  # fmt: skip
    for more in (
        {"order": 2},
        {"base": "pdarts", "most_skips": 2},
        {"base": "pcdarts", "partial": 4},
    ):
        s = search(variant="joint", **{**common, **more})
        for t in range(s.steps):
            s.step(t)
        genotype = s.cell()
        assert all(op != "none" for op, _ in genotype.normal)
        assert s.counts["architecture_steps"] == s.counts["weight_steps"] == s.steps
        if more.get("base") == "pdarts":
            assert s.stage == 2 and {len(n) for n in s.kept[0]} == {3} and genotype.skips() <= 2
            clone = search(variant="joint", **{**common, **more})
            clone.load(copy.deepcopy(s.state()))
            assert clone.cell() == genotype


def test_imagenet_folder(tmp_path):
    folder = data.write_imagenet(tmp_path / "imagenet", runs.stream(0))
    loader = data.ImageNet(folder, size=32)
    x, y = loader.batch("train", torch.tensor([0, 5]), runs.stream(0, "a"))
    again, _ = loader.batch("train", torch.tensor([0, 5]), runs.stream(0, "a"))
    assert (
        x.shape == (2, 3, 32, 32)
        and y.tolist() == [0, 2]
        and torch.equal(x, again)
        and loader.classes == 3
    )
    assert loader.batch("val", torch.tensor([1]), None)[0].shape == (1, 3, 32, 32)


def test_protocol_and_claims_name_what_there_is():
    p = protocol.Protocol(ROOT / "dasgm")
    assert len(p.seeds("cpu")) >= 8 and p.selected("cpu") == [
        "joint",
        "darts",
        "aug_val",
        "shuffled",
        "random",
    ]
    for scale in protocol.SCALES:
        for node in p.nodes(scale, "all"):
            given = p.config(scale, node)
            train.check(train.Config(**{**given, "uses": given["uses"]}))


def test_figures_with_everything_and_with_nothing(tmp_path, generator):
    import matplotlib

    matplotlib.use("Agg")
    from dasgm import figures

    directory = make(tmp_path, "joint", variant="joint", uses=generator, **RETRAIN)
    places = {
        ("joint", "digits", 3): directory,
        ("generator", "digits", 3): Path(generator["generator"]),
    }
    made = figures.figures({"runs": [record(directory)]}, places)
    assert [name for name, *_ in made] == ["accuracies", "cells", "softmax", "skips", "generated"]
    assert all(caption and alt for _, caption, alt, _ in made)
    assert figures.figures({}, {}) == []
