"""shared/hypergrad.py against closed forms, full autograd, and everything it promises to leave alone."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from shared import vectors
from shared.hypergrad import (
    FiniteDifference,
    FirstOrder,
    ForwardOverReverse,
    OneStep,
    hypergrad,
    self_check,
    through_level,
)

ONE_STEP = [FiniteDifference(), OneStep(), ForwardOverReverse()]


def named(method):
    return type(method).__name__


class Problem:
    """A two-layer network with hyperparameters inside it (a gate for each hidden unit), outside it (a log penalty for each
    weight matrix), and in the outer loss alone (a scale)."""

    def __init__(self, dtype=torch.float64, dropout=0.0, norm=False):
        g = torch.Generator().manual_seed(0)

        def draw(*shape):
            return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)

        middle = nn.BatchNorm1d(7) if norm else nn.Identity()
        self.net = nn.Sequential(nn.Linear(5, 7), middle, nn.Tanh(), nn.Dropout(dropout), nn.Linear(7, 3)).to(
            dtype
        )
        with torch.no_grad():
            for p in self.net.parameters():
                p.copy_(draw(*p.shape) / 2)
        self.theta = list(self.net.parameters())
        self.gate = draw(7).requires_grad_()
        self.penalty = torch.full((2,), -1.0, dtype=dtype).requires_grad_()
        self.scale = torch.tensor(0.7, dtype=dtype).requires_grad_()
        self.lam = [self.gate, self.penalty, self.scale]
        self.x, self.y = draw(2, 8, 5), torch.randint(0, 3, (2, 8), generator=g)

    def forward(self, x):
        return self.net[4](self.net[:4](x) * self.gate)

    def inner(self, rows=slice(None)):
        loss = F.cross_entropy(self.forward(self.x[0][rows]), self.y[0][rows])
        weights = (self.net[0].weight, self.net[4].weight)
        return loss + sum(e * w.pow(2).sum() for e, w in zip(self.penalty.exp(), weights))

    def outer(self, rows=slice(None)):
        return self.scale.exp() * F.cross_entropy(self.forward(self.x[1][rows]), self.y[1][rows])

    def unrolled(self, lr):
        """d outer(theta - lr grad inner) / d lam by autograd through everything, with functional copies of the weights."""
        g = torch.autograd.grad(self.inner(), self.theta, create_graph=True)
        rates = lr if isinstance(lr, list) else [lr] * len(g)
        w0, b0, w1, b1 = (p - r * d for p, d, r in zip(self.theta, g, rates))
        logits = (torch.tanh(self.x[1] @ w0.T + b0) * self.gate) @ w1.T + b1
        return torch.autograd.grad(self.scale.exp() * F.cross_entropy(logits, self.y[1]), self.lam)


@pytest.mark.parametrize("method", ONE_STEP, ids=named)
@pytest.mark.parametrize("per_tensor", [False, True])
def test_equals_full_autograd_through_one_step(method, per_tensor):
    p = Problem()
    lr = [torch.rand(7, 5, dtype=torch.float64), 0.3, 0.1, 0.5] if per_tensor else 0.3
    g = hypergrad(p.outer, p.inner, p.theta, p.lam, lr, method)
    exact = p.unrolled(lr)
    tolerance = 1e-6 if isinstance(method, FiniteDifference) else 1e-12
    assert vectors.relative_error(g.grads, exact) < tolerance
    assert vectors.relative_error(g.implicit, torch._foreach_sub(list(exact), g.direct)) < 10 * tolerance
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
    [(FirstOrder(), 1, 1), (FiniteDifference(), 4, 4), (OneStep(), 3, 2), (ForwardOverReverse(), 3, 3)],
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
    around = [hypergrad(p.outer, p.inner, p.theta, p.lam, lr, m, around="stepped") for m in ONE_STEP]
    vectors.copy_(p.theta, stepped)
    there = [hypergrad(p.outer, p.inner, p.theta, p.lam, lr, m, look_ahead=False) for m in ONE_STEP]
    assert vectors.relative_error([lr * x for x in unscaled.implicit], usual.implicit) < 1e-12
    for a, b in zip(around, there):
        assert vectors.relative_error(a.grads, b.grads) < 1e-9
    assert vectors.relative_error(around[0].grads, around[1].grads) < 1e-6
    assert vectors.relative_error(around[1].grads, usual.grads) > 1e-3


# --------------------------------------------------------------------------------------------------- what is left alone
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


ALL = [FirstOrder(), *ONE_STEP]


@pytest.mark.parametrize("method", ALL, ids=named)
def test_everything_is_bit_identical_afterwards(method):
    p = Problem(torch.float32, dropout=0.3, norm=True)
    state = State(p)
    for _ in range(2):
        hypergrad(p.outer, p.inner, p.theta, p.lam, 0.3, method)
        through_level(p.inner, p.theta, p.lam[:2], [w.detach() for w in p.theta], 0.3, method)
    assert state.unchanged()


@pytest.mark.parametrize("method", ALL, ids=named)
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
    for method in ALL:
        hypergrad(p.outer, p.inner, p.theta, p.lam, 0.3, method)
    assert all(torch.equal(a, b) for a, b in zip(before, torch.autograd.grad(loss, p.theta)))


# ------------------------------------------------------------------------------------------------------------ self_check
@pytest.mark.parametrize("method", ONE_STEP, ids=named)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_self_check_passes_a_sound_problem(method, dtype):
    p = Problem(dtype, dropout=0.3)
    found = self_check(p.outer, p.inner, p.theta, p.lam, 0.3, method)
    assert found["relative_error"] < 1e-3 and found["cosine"] > 0.99999
    assert found["relative_error_total"] < 1e-3


def test_self_check_measures_first_order():
    p = Problem()
    found = self_check(p.outer, p.inner, p.theta, p.lam, 0.3, FirstOrder())
    assert found["relative_error"] == 1 and found["relative_error_total"] > 0.01


@pytest.mark.parametrize("method", [FiniteDifference(), OneStep()], ids=named)
def test_self_check_finds_a_detached_dependence(method):
    """Meta-Weight-Net as usually written: the weight of an example depends on its detached loss."""
    p, lam = Problem(), torch.tensor([1.0, 0.0], dtype=torch.float64, requires_grad=True)

    def inner():
        losses = F.cross_entropy(p.forward(p.x[0]), p.y[0], reduction="none")
        return (torch.sigmoid(lam[0] * losses.detach() + lam[1]) * losses).mean()

    with pytest.raises(ValueError, match="detaches something"):
        self_check(p.outer, inner, p.theta, [lam], 0.3, method)
    found = self_check(p.outer, inner, p.theta, [lam], 0.3, ForwardOverReverse())
    assert found["relative_error"] < 1e-12


def test_self_check_finds_noise_of_its_own():
    p, own = Problem(), torch.Generator().manual_seed(0)

    def inner():
        return (
            p.inner()
            + 0.1 * (torch.randn(7, generator=own, dtype=torch.float64) * p.net[0].bias * p.gate).sum()
        )

    with pytest.raises(ValueError, match="draw its noise outside"):
        self_check(p.outer, inner, p.theta, p.lam, 0.3)
