"""shared/hypergrad.py against autograd through one inner step; its conventions; two processes."""

import functools
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypergrad_problem import ONE_STEP, Problem, named

from shared import vectors
from shared.hypergrad import (
    FiniteDifference,
    FirstOrder,
    ForwardOverReverse,
    OneStep,
    Unrolled,
    hypergrad,
    stepped,
    through_level,
)


@pytest.mark.parametrize("method", ONE_STEP, ids=named)
@pytest.mark.parametrize("per_tensor", [False, True])
def test_equals_full_autograd_through_one_step(method, per_tensor):
    p = Problem()
    lr = [torch.rand(7, 5, dtype=torch.float64), 0.3, 0.1, 0.5] if per_tensor else 0.3
    g = hypergrad(p.outer, p.inner, p.theta, p.lam, lr, method)
    exact = p.unrolled(lr)
    tolerance = 1e-6 if isinstance(method, FiniteDifference) else 1e-12
    assert vectors.relative_error(g.grads, exact) < tolerance
    assert (
        vectors.relative_error(g.implicit, torch._foreach_sub(list(exact), g.direct))
        < 10 * tolerance
    )
    assert vectors.norm(g.implicit) > 1e-2 * vectors.norm(g.direct)


def test_finite_difference_in_float32():
    p = Problem(torch.float32)
    g = hypergrad(p.outer, p.inner, p.theta, p.lam, 0.3)
    exact = hypergrad(p.outer, p.inner, p.theta, p.lam, 0.3, OneStep())
    assert vectors.relative_error(g.implicit, exact.implicit) < 1e-3


def test_first_order_is_the_outer_gradient_at_theta():
    p = Problem()
    g = hypergrad(p.outer, p.inner, p.theta, p.lam, 0.3, FirstOrder())
    direct = torch.autograd.grad(p.outer(), p.lam, allow_unused=True)
    assert torch.equal(g.grads[0], direct[0]) and torch.equal(g.grads[2], direct[2])
    assert vectors.norm(g.implicit) == 0 and vectors.norm(g.grads[1:2]) == 0
    assert g.outer_loss == pytest.approx(p.outer().item())


@pytest.mark.parametrize("method", ONE_STEP, ids=named)
def test_through_level_is_the_implicit_term(method):
    p = Problem()
    lam, v = p.lam[:2], [torch.randn_like(w) for w in p.theta]
    got = through_level(p.inner, p.theta, lam, v, 0.3, method)
    g = torch.autograd.grad(p.inner(), p.theta, create_graph=True)
    exact = torch.autograd.grad(g, lam, [-0.3 * x for x in v])
    assert vectors.relative_error(got, exact) < 1e-6
    assert [x.shape for x in got] == [x.shape for x in lam]


@pytest.mark.parametrize(
    ("method", "count", "losses"),
    [
        (FirstOrder(), 1, 1),
        (FiniteDifference(), 4, 4),
        (OneStep(), 3, 2),
        (ForwardOverReverse(), 3, 3),
    ],
)
def test_gradient_evaluations(method, count, losses):
    p, calls = Problem(), [0]

    def counted(loss):
        def run():
            calls[0] += 1
            return loss()

        return run

    g = hypergrad(counted(p.outer), counted(p.inner), p.theta, p.lam, 0.3, method)
    assert g.gradient_evaluations == count
    assert calls[0] == losses


def test_conventions():
    p, lr = Problem(), 0.3
    stepped = vectors.clone(p.theta)
    vectors.add_(stepped, torch.autograd.grad(p.inner(), p.theta), -lr)
    usual = hypergrad(p.outer, p.inner, p.theta, p.lam, lr, OneStep())
    unscaled = hypergrad(p.outer, p.inner, p.theta, p.lam, lr, OneStep(), lr_factor=False)
    around = [
        hypergrad(p.outer, p.inner, p.theta, p.lam, lr, m, around="stepped") for m in ONE_STEP
    ]
    vectors.copy_(p.theta, stepped)
    there = [hypergrad(p.outer, p.inner, p.theta, p.lam, lr, m, look_ahead=False) for m in ONE_STEP]
    assert vectors.relative_error([lr * x for x in unscaled.implicit], usual.implicit) < 1e-12
    for a, b in zip(around, there):
        assert vectors.relative_error(a.grads, b.grads) < 1e-9
    assert vectors.relative_error(around[0].grads, around[1].grads) < 1e-6
    assert vectors.relative_error(around[1].grads, usual.grads) > 1e-3


def test_a_zero_vector_gives_a_zero_implicit_term():
    p = Problem()
    zero = hypergrad(lambda: p.outer() * 0, p.inner, p.theta, p.lam, 0.3)
    assert vectors.norm(zero.grads) == 0


@pytest.mark.parametrize("method", [FiniteDifference(), OneStep(), Unrolled(2)], ids=named)
def test_the_stepped_weights_can_be_kept(method):
    p = Problem()
    g = hypergrad(p.outer, p.inner, p.theta, p.lam, 0.3, method, keep_stepped=True)
    after, _ = stepped(p.inner, p.theta, 0.3, method)
    assert (
        vectors.relative_error(g.stepped, after) == 0 and vectors.relative_error(after, p.theta) > 0
    )
    assert hypergrad(p.outer, p.inner, p.theta, p.lam, 0.3, method).stepped is None


def test_two_processes_equal_one(tmp_path):
    """Half of each batch in each of two gloo processes, against the whole batch in one."""
    root = Path(__file__).parents[2]
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = str(s.getsockname()[1])
    alone = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")}
    alone |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    pair = alone | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ranks = [pair | {"RANK": str(r), "LOCAL_RANK": str(r)} for r in range(2)]
    script = str(root / "tests" / "shared" / "two_processes.py")
    launch = functools.partial(subprocess.Popen, cwd=root, stderr=subprocess.PIPE, text=True)
    processes = [
        launch([sys.executable, script, str(tmp_path / name)], env=environment)
        for environment, name in [(alone, "one.pt"), (ranks[0], "two.pt"), (ranks[1], "unused.pt")]
    ]
    try:
        for p in processes:
            _, err = p.communicate(timeout=600)
            assert p.returncode == 0, err[-2000:]
    finally:
        for p in processes:
            p.kill()
    one, two = torch.load(tmp_path / "one.pt"), torch.load(tmp_path / "two.pt")
    assert list(one) == list(two) and len(one) == 9
    for name in one:
        assert vectors.relative_error(two[name], one[name]) < 1e-6, name
