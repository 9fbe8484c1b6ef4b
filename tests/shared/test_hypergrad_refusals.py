"""What the hypergradient library refuses, and what it says."""

import math

import pytest
import torch
from hypergrad_problem import EVERY, Problem, named
from torch import nn
from torch.nn import functional as F

from shared import vectors
from shared.hypergrad import (
    ConjugateGradient,
    FiniteDifference,
    FirstOrder,
    Neumann,
    Unrolled,
    hypergrad,
    self_check,
    through_level,
)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.qkv = nn.Linear(8, 24)

    def forward(self, x):
        q, k, v = self.qkv(x).view(2, 5, 3, 2, 4).permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(2, 5, 8)


@pytest.mark.parametrize(
    "method", [m for m in EVERY if not isinstance(m, FirstOrder | FiniteDifference)], ids=named
)
def test_attention_kernels_without_a_second_derivative(method):
    model, gate = Attention(), torch.ones(8, requires_grad=True)
    x, theta = torch.randn(2, 5, 8), list(model.parameters())
    loss = lambda: (model(x) * gate).pow(2).mean() + 10 * sum(p.pow(2).sum() for p in theta)  # noqa: E731
    before = vectors.clone(theta)
    with pytest.raises(NotImplementedError, match="attn_implementation='eager'"):
        hypergrad(loss, loss, theta, [gate], 0.01, method)
    assert all(torch.equal(a, b) for a, b in zip(before, theta))
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        exact = hypergrad(loss, loss, theta, [gate], 0.01, method)
    assert torch.isfinite(exact.grads[0]).all()


def test_finite_differences_accept_any_attention_and_self_check_uses_the_math_kernel():
    model, gate = Attention(), torch.ones(8, requires_grad=True)
    x = torch.randn(2, 5, 8)
    loss = lambda: (model(x) * gate).pow(2).mean()  # noqa: E731
    check = self_check(loss, loss, list(model.parameters()), [gate], 0.1)
    assert check["relative_error"] < 1e-2


def refused(error, text, **change):
    p = Problem()
    inputs = {
        "outer_loss": p.outer,
        "inner_loss": p.inner,
        "theta": p.theta,
        "lam": p.lam,
        "lr": 0.3,
    }
    inputs.update({k: v(p) if callable(v) and k != "inner_loss" else v for k, v in change.items()})
    before = vectors.clone(p.theta)
    with pytest.raises(error, match=text):
        hypergrad(**inputs)
    assert all(torch.equal(a, b) for a, b in zip(before, p.theta))


def test_refusals_of_lists():
    refused(ValueError, "nothing to differentiate", theta=lambda p: [])
    refused(ValueError, "nothing to differentiate", lam=lambda p: [])
    refused(ValueError, "nothing to differentiate", theta=lambda p: [w.detach() for w in p.theta])
    refused(ValueError, "overlap", lam=lambda p: [*p.lam, p.theta[0]])
    refused(ValueError, "overlap", theta=lambda p: [*p.theta, p.theta[0]])
    refused(ValueError, "overlap", lam=lambda p: [p.gate, p.gate.detach()[2:4].requires_grad_()])
    refused(TypeError, "list of tensors", theta=lambda p: p.theta[0])
    refused(ValueError, "a leaf", theta=lambda p: [w * 1 for w in p.theta])
    refused(ValueError, r"lam\[0\] does not require grad", lam=lambda p: [p.gate.detach()])
    refused(ValueError, "2 entries for 4 tensors", lr=lambda p: [0.1, 0.1])
    refused(ValueError, "finite number", lr=-0.1)
    refused(ValueError, "needs the inner learning rate", lr=None)
    refused(ValueError, "or alpha", lr=None, method=Neumann())


def test_refusals_of_what_no_loss_reaches():
    stray = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    refused(ValueError, r"reaches theta\[4\]", theta=lambda p: [*p.theta, stray])
    refused(ValueError, r"reaches lam\[3\]", lam=lambda p: [*p.lam, stray])
    for method in EVERY[1:]:
        refused(ValueError, r"reaches lam\[3\]", lam=lambda p: [*p.lam, stray], method=method)
    refused(ValueError, r"reaches lam\[0\]", lam=lambda p: [stray], method=FirstOrder())
    refused(ValueError, "reaches no tensor of theta", outer_loss=lambda p: lambda: p.scale.exp())
    p = Problem()
    with pytest.raises(ValueError, match=r"reaches wrt\[1\]"):
        through_level(p.inner, p.theta, [p.gate, p.scale], vectors.clone(p.theta), 0.3)
    with pytest.raises(ValueError, match="shapes of theta"):
        through_level(p.inner, p.theta, [p.gate], vectors.clone(p.theta)[:2], 0.3)


def test_refusals_of_values():
    inf = torch.tensor(math.inf, dtype=torch.float64)
    refused(FloatingPointError, "loss is", outer_loss=lambda p: lambda: p.outer() * inf)
    refused(
        FloatingPointError,
        "loss is nan",
        inner_loss=lambda: torch.tensor(math.nan, requires_grad=True),
    )
    refused(
        FloatingPointError,
        "outer gradient",
        outer_loss=lambda p: lambda: p.theta[0].sub(p.theta[0]).sum().sqrt(),
    )
    refused(
        FloatingPointError,
        "hypergradient",
        outer_loss=lambda p: lambda: p.outer() + (p.gate * 0).sum().sqrt(),
    )
    refused(ValueError, "one element", outer_loss=lambda p: lambda: p.forward(p.x[0]))
    refused(ValueError, "one element, got float", outer_loss=lambda p: lambda: 1.0)


def test_refusals_of_conventions():
    refused(ValueError, "'stepped'", around="elsewhere")
    refused(ValueError, "'refuse'", unreached="maybe")
    refused(ValueError, "radius=0", method=FiniteDifference(radius=0.0))
    refused(ValueError, "k must be", method=Unrolled(0))
    refused(ValueError, "k must be", method=lambda p: Unrolled(3, losses=[p.inner]))
    for method in (Neumann(), ConjugateGradient(), Unrolled()):
        refused(ValueError, "no single look-ahead", method=method, around="stepped")
        refused(ValueError, "no single look-ahead", method=method, lr_factor=False)
    refused(ValueError, "no single look-ahead", method=Unrolled(), look_ahead=False)


def test_refusals_of_precision():
    p = Problem(torch.bfloat16)
    with pytest.raises(ValueError, match="keep theta in float32"):
        hypergrad(p.outer, p.inner, p.theta, p.lam, 0.3)
    q = Problem(torch.float32)

    def inner():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return q.inner()

    with pytest.raises(ValueError, match="switches autocast on for itself"):
        hypergrad(q.outer, inner, q.theta, q.lam, 0.3)
    hypergrad(q.outer, inner, q.theta, q.lam, 0.3, FiniteDifference(probe_dtype=torch.bfloat16))
