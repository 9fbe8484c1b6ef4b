"""What a hypergradient leaves alone, and what `self_check` finds."""

import pytest
import torch
from hypergrad_problem import EVERY, ONE_STEP, Problem, named
from torch.nn import functional as F

from shared.hypergrad import (
    FiniteDifference,
    FirstOrder,
    ForwardOverReverse,
    OneStep,
    hypergrad,
    self_check,
    through_level,
)


class State:
    """Copies of all that a call could disturb."""

    def __init__(self, p):
        self.p = p
        for w in [*p.theta, *p.lam]:
            w.grad = torch.randn_like(w)
        self.objects = [w.grad for w in [*p.theta, *p.lam]]
        self.tensors = [t.clone() for t in self.now()]
        self.versions = [t._version for t in p.theta]

    def now(self):
        p = self.p
        return [
            *(w.detach() for w in [*p.theta, *p.lam]),
            *self.objects,
            *p.net.buffers(),
            torch.get_rng_state(),
        ]

    def unchanged(self):
        parameters = [*self.p.theta, *self.p.lam]
        return (
            all(torch.equal(a, b) for a, b in zip(self.now(), self.tensors, strict=True))
            and all(w.grad is g for w, g in zip(parameters, self.objects))
            and all(w.requires_grad for w in parameters)
            and [t._version for t in self.p.theta] == self.versions
        )


@pytest.mark.parametrize("method", EVERY, ids=named)
def test_everything_is_bit_identical_afterwards(method):
    p = Problem(torch.float32, dropout=0.3, norm=True)
    state = State(p)
    for _ in range(2):
        hypergrad(p.outer, p.inner, p.theta, p.lam, 0.3, method)
        through_level(p.inner, p.theta, p.lam[:2], [w.detach() for w in p.theta], 0.3, method)
    assert state.unchanged()


@pytest.mark.parametrize("method", EVERY, ids=named)
@pytest.mark.parametrize("fatal", range(4))
def test_everything_is_bit_identical_after_an_exception(method, fatal):
    p, calls = Problem(torch.float32, dropout=0.3, norm=True), [0]
    state = State(p)

    def failing(loss):
        def run():
            out = loss()
            calls[0] += 1
            if calls[0] > fatal:
                out.backward()  # a loss must not, but if it does the caller's .grad survives
                raise KeyError("planted")
            return out

        return run

    try:
        hypergrad(failing(p.outer), failing(p.inner), p.theta, p.lam, 0.3, method)
        assert fatal >= calls[0]
    except KeyError:
        pass
    assert state.unchanged()


@pytest.mark.parametrize("method", ONE_STEP, ids=named)
def test_all_evaluations_see_the_same_dropout_masks(method):
    p, drawn = Problem(dropout=0.5), []
    p.net[3].register_forward_hook(lambda _m, _i, out: drawn.append(out == 0))
    hypergrad(p.outer, p.inner, p.theta, p.lam, 0.3, method)
    p.inner()  # the caller's real step
    assert len(drawn) > 2 and all(torch.equal(d, drawn[0]) for d in drawn)
    assert drawn[0].any()
    p.inner()
    assert not torch.equal(drawn[0], drawn[-1])


def test_a_graph_of_the_caller_survives():
    p = Problem()
    loss = p.inner()
    before = torch.autograd.grad(p.inner(), p.theta)
    for method in EVERY:
        hypergrad(p.outer, p.inner, p.theta, p.lam, 0.3, method)
    assert all(torch.equal(a, b) for a, b in zip(before, torch.autograd.grad(loss, p.theta)))


# --- self_check


@pytest.mark.parametrize("method", ONE_STEP, ids=named)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_self_check_passes_a_sound_problem(method, dtype):
    p = Problem(dtype, dropout=0.3)
    check = self_check(p.outer, p.inner, p.theta, p.lam, 0.3, method)
    assert check["relative_error"] < 1e-3 and check["cosine"] > 0.99999
    assert check["relative_error_total"] < 1e-3


def test_self_check_measures_first_order():
    p = Problem()
    check = self_check(p.outer, p.inner, p.theta, p.lam, 0.3, FirstOrder())
    assert check["relative_error"] == 1 and check["relative_error_total"] > 0.01


@pytest.mark.parametrize("method", [FiniteDifference(), OneStep()], ids=named)
def test_self_check_finds_a_detached_dependence(method):
    """Meta-Weight-Net as usually written: the weight of an example depends on its detached loss."""
    p, lam = Problem(), torch.tensor([1.0, 0.0], dtype=torch.float64, requires_grad=True)

    def inner():
        losses = F.cross_entropy(p.forward(p.x[0]), p.y[0], reduction="none")
        return (torch.sigmoid(lam[0] * losses.detach() + lam[1]) * losses).mean()

    with pytest.raises(ValueError, match="detaches something"):
        self_check(p.outer, inner, p.theta, [lam], 0.3, method)
    check = self_check(p.outer, inner, p.theta, [lam], 0.3, ForwardOverReverse())
    assert check["relative_error"] < 1e-12


def test_self_check_finds_noise_of_its_own():
    p, own = Problem(), torch.Generator().manual_seed(0)

    def inner():
        return (
            p.inner()
            + 0.1
            * (torch.randn(7, generator=own, dtype=torch.float64) * p.net[0].bias * p.gate).sum()
        )

    with pytest.raises(ValueError, match="draw its noise outside"):
        self_check(p.outer, inner, p.theta, p.lam, 0.3)
