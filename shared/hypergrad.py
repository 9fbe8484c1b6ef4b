"""Hypergradients as functions on closures: how to differentiate is a small object passed in.

    inner problem   theta'(lam) = theta - lr * d inner_loss / d theta
                    (or k such steps, or the minimum)
    sought          d outer_loss(theta'(lam), lam) / d lam  =  direct + implicit
                    direct   = partial outer_loss / partial lam, at theta'
                    implicit = (d theta' / d lam)^T v,   v = d outer_loss / d theta', at theta'
    one step        implicit = - M^T (lr * v),
                    M^T d = d/d lam < d inner_loss / d theta, d >, at theta
    minimum         implicit = - M^T H^-1 v,     H = d^2 inner_loss / d theta^2

A loss is a function of no arguments that uses the tensors `theta` and `lam` where they are and
returns a scalar; its batch is fixed inside it. A list of such functions is a list of micro-batches:
their mean is the loss (gradient accumulation). Every evaluation starts from the same random state
and buffers, so that all see the same dropout masks, and so does a real inner step right after the
call. theta, buffers, random state, `.grad` and `requires_grad` are bit-identical after every call,
also after an exception. Under torch.distributed every gradient is averaged over the processes
before it is used; losses then call the module inside a DistributedDataParallel wrapper.

README.md of this folder has the mathematics of each method, its cost, and when to use which.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from shared import evaluation, vectors
from shared.evaluation import Call, Edges, Losses, Partial, check_finite, checked
from shared.inverse import conjugate_gradient, neumann
from shared.unrolled import SGD as SGD
from shared.unrolled import Adam as Adam
from shared.unrolled import Step, Unrolled, unroll, unroll_back
from shared.vectors import Rate, Vector


# --- the methods ----------------------------------------------------------------------------------
@dataclass(frozen=True)
class FirstOrder:
    """implicit = 0 and no look-ahead: the outer gradient at theta (first-order DARTS).

    As a level of `chain` it is stepped all the same, and nothing flows through it."""


@dataclass(frozen=True)
class FiniteDifference:
    """M^T d = (grad_lam inner(theta + eps d) - grad_lam inner(theta - eps d)) / (2 eps).

    eps = radius / |d| (DARTS, eq. 8). The weights do not require grad in the two probes: where lam
    sits outside the network they are two forward passes.
    radius: None means 1e-2 in float32, 1e-4 in float64, 1e-1 with probe_dtype. probe_dtype: all
    losses of the call run under autocast to this dtype; by default autocast and TF32 are off.
    """

    radius: float | None = None
    probe_dtype: torch.dtype | None = None


@dataclass(frozen=True)
class OneStep:
    """M^T d by reverse over reverse, exact; keeps the graph of the look-ahead's gradient."""


@dataclass(frozen=True)
class ForwardOverReverse:
    """M^T d as the derivative of grad_lam inner along d (jvp of grad), exact; no second graph."""


@dataclass(frozen=True)
class Neumann:
    """H^-1 v = alpha * sum over j = 0..k of (I - alpha H)^j v, theta at a minimum. No look-ahead.

    These are k + 1 steps unrolled at the minimum. alpha: None means lr. Converges if alpha is below
    2 / (largest eigenvalue of H).
    """

    k: int = 10
    alpha: float | None = None


@dataclass(frozen=True)
class ConjugateGradient:
    """H^-1 v by k iterations of conjugate gradients on (H + damping) x = v, theta at a minimum.

    No look-ahead, lr unused. reorthogonalise: keep all residuals (k copies of theta) and each new
    one orthogonal to them, so that d iterations solve d dimensions also where H is badly
    conditioned.
    """

    k: int = 10
    damping: float = 0.0
    reorthogonalise: bool = True


STILL = (FirstOrder, Neumann, ConjugateGradient)  # theta is never moved: no look-ahead, no probes
AtMinimum = Neumann | ConjugateGradient
Method = FirstOrder | FiniteDifference | OneStep | ForwardOverReverse | AtMinimum | Unrolled


# --- the functions --------------------------------------------------------------------------------
@dataclass(frozen=True)
class Hypergradient:
    """grads = direct + implicit, each a list like lam."""

    grads: Vector
    direct: Vector
    implicit: Vector
    gradient_evaluations: int  # backward passes: gradients, Hessian-vector and mixed products
    outer_loss: float  # where its gradient was taken; this process's share
    stepped: Vector | None = None  # theta', only if asked for


def hypergrad(
    outer_loss: Losses,
    inner_loss: Losses,
    theta: Sequence[Tensor],
    lam: Sequence[Tensor],
    lr: Rate | None,
    method: Method = FiniteDifference(),
    around: str = "theta",
    look_ahead: bool = True,
    lr_factor: bool = True,
    unreached: str = "refuse",
    keep_stepped: bool = False,
) -> Hypergradient:
    """The gradient of `outer_loss` for `lam` through one inner problem; `.grad` is not written.

    lr: inner learning rate: a float, or for each tensor of theta a float or a tensor of its shape
        (`vectors.adam_rates`).
    around: where the level is differentiated: "theta", which is what the look-ahead computed, or
        "stepped", at theta', as in Betty.
    look_ahead: False takes v at theta itself, for callers whose theta already is stepped.
    lr_factor: False leaves the factor lr out of the implicit term (Betty's scale), not out of the
        look-ahead. Neumann, ConjugateGradient and Unrolled, which have no single look-ahead step,
        refuse these conventions.
    unreached: "zero" counts a parameter that a loss does not reach as one with gradient zero,
        "refuse" is an error.
    keep_stepped: return theta' too (copies), for a caller whose real inner step is the look-ahead.

    Raises ValueError for lists, rates and conventions that cannot be meant, FloatingPointError for
    a loss or vector that is not finite, NotImplementedError for an operation (an attention kernel)
    that cannot be differentiated twice.
    """
    theta, lam, lr = checked(theta, lam, lr)
    _check_method(method, theta, lr, around, look_ahead, lr_factor)
    with Call(theta, lam, method, unreached, moves=not isinstance(method, STILL)) as call:
        tape = _Tape()
        if look_ahead and not isinstance(method, STILL):
            tape = _advance(call, method, inner_loss, lr, keep_graph=around == "theta")
        after = vectors.clone(theta) if keep_stepped else None
        g = call.gradient(outer_loss, [*theta, *lam])
        value, at_theta, at_lam = call.value, g[: len(theta)], g[len(theta) :]
        if unreached == "refuse" and all(x is None for x in at_theta):
            raise ValueError(
                "the outer loss reaches no tensor of theta, so the implicit term is zero: compute "
                "it from the tensors in theta themselves, not from copies (or pass "
                "unreached='zero')"
            )
        v = call.vector(at_theta, theta)
        del g, at_theta  # v alone stays in memory
        if around == "stepped":
            call.base = vectors.clone(theta)
        product = _pull_back(call, method, tape, inner_loss, v, lr if lr_factor else 1.0)
        if not isinstance(method, FirstOrder) or all(x is None for x in at_lam):
            call.check_reached("lam", [evaluation.plus(a, b) for a, b in zip(at_lam, product)])
        return summed(call, at_lam, product, value, after)


def summed(
    call: Call, at_lam: Partial, product: Partial, value: float, after: Vector | None = None
) -> Hypergradient:
    """The outer gradient for lam plus what came through the levels."""
    direct = call.vector(at_lam, call.lam)
    implicit = [torch.zeros_like(p) if x is None else x for x, p in zip(product, call.lam)]
    grads = [a + b for a, b in zip(direct, implicit)]
    check_finite("hypergradient", grads)
    return Hypergradient(grads, direct, implicit, call.gradient_evaluations, value, after)


def through_level(
    inner_loss: Losses,
    theta: Sequence[Tensor],
    wrt: Sequence[Tensor],
    v: Sequence[Tensor],
    lr: Rate | None,
    method: Method = FiniteDifference(),
    unreached: str = "refuse",
) -> Vector:
    """(d theta' / d wrt)^T v, a list like `wrt`: the vector-Jacobian product of one level.

    It is taken at the present theta. v: list like theta, the gradient of what lies above for
    theta', the same on all processes. Chains of calls give any number of levels (`multilevel.py`).
    lr=1.0 is the identity rule of other libraries. Raises as `hypergrad` does.
    """
    product, _ = through_level_partial(inner_loss, theta, wrt, v, lr, method)
    missing = [i for i, x in enumerate(product) if x is None]
    if missing and unreached == "refuse" and not isinstance(method, FirstOrder):
        raise evaluation.unreached_error("wrt", missing, len(product))
    return [torch.zeros_like(p) if x is None else x for x, p in zip(product, wrt)]


def through_level_partial(
    inner_loss: Losses,
    theta: Sequence[Tensor],
    wrt: Sequence[Tensor],
    v: Sequence[Tensor],
    lr: Rate | None,
    method: Method,
) -> tuple[Partial, int]:
    """`through_level` with None where the level does not reach, and the gradient evaluations."""
    if len(v) != len(theta) or any(x.shape != p.shape for x, p in zip(v, theta)):
        raise ValueError("v must be a list of tensors with the shapes of theta")
    v = [x.detach() for x, p in zip(v, theta) if p.requires_grad]
    theta, wrt, lr = checked(theta, wrt, lr, ("theta", "wrt"))
    _check_method(method, theta, lr)
    with Call(theta, wrt, method, moves=not isinstance(method, STILL)) as call:
        tape = _advance(call, method, inner_loss, lr) if isinstance(method, Unrolled) else _Tape()
        return _pull_back(call, method, tape, inner_loss, v, lr), call.gradient_evaluations


def stepped(
    inner_loss: Losses,
    theta: Sequence[Tensor],
    lr: Rate | None,
    method: Method = FiniteDifference(),
) -> tuple[Vector, int]:
    """theta' of one level as new tensors (theta stays), and the number of gradient evaluations.

    With Neumann and ConjugateGradient theta' is theta, which is a minimum already.
    """
    after = vectors.clone(theta)
    if isinstance(method, Neumann | ConjugateGradient):
        return after, 0
    trained = [i for i, p in enumerate(theta) if p.requires_grad]
    theta, _, lr = checked(theta, [torch.zeros(1, requires_grad=True)], lr)
    method = method if isinstance(method, Unrolled | FiniteDifference) else FiniteDifference()
    _check_method(method, theta, lr)
    with Call(theta, [], method) as call:
        _advance(call, method, inner_loss, lr)
        for i, p in zip(trained, theta):
            after[i] = p.detach().clone()
        return after, call.gradient_evaluations


# --- one level, there and back --------------------------------------------------------------------
@dataclass
class _Tape:
    """What the way there leaves for the way back."""

    graph: Edges | None = None  # OneStep: of this process's share of the inner gradient
    steps: list[Step] = field(default_factory=list)  # Unrolled


def _advance(
    call: Call, method: Method, inner_loss: Losses, lr: Rate | None, keep_graph: bool = False
) -> _Tape:
    """theta <- theta', in place."""
    assert lr is not None, "refused by _check_method"
    if isinstance(method, Unrolled):
        return _Tape(steps=unroll(call, method, inner_loss, lr))
    # micro-batches come one at a time, and their graphs are not kept
    keep_graph = keep_graph and isinstance(method, OneStep) and callable(inner_loss)
    share = call.gradient(inner_loss, call.theta, create_graph=keep_graph)
    call.check_reached("theta", share)
    g = call.vector(share, call.theta)
    if isinstance(lr, float):
        vectors.add_(call.theta, g, -lr)
    else:
        vectors.add_(call.theta, vectors.scaled(g, lr), -1.0)
    return _Tape(evaluation.edges(share) if keep_graph else None)


def _pull_back(
    call: Call, method: Method, tape: _Tape, inner_loss: Losses, v: Vector, lr: Rate | None
) -> Partial:
    """(d theta' / d lam)^T v at call.base; None where the level does not reach. Moves theta."""
    # A number lr is left out of the direction d and multiplied in at the end: no second copy of v.
    if isinstance(lr, float):
        factor, d = lr, v
    else:
        factor, d = 1.0, v if lr is None else vectors.scaled(v, lr)
    size = check_finite("outer gradient for theta", d)
    if isinstance(method, FirstOrder):
        return [None] * len(call.lam)
    if not isinstance(method, (FiniteDifference, *STILL)):
        vectors.copy_(call.theta, call.base)
    if isinstance(method, Unrolled):
        assert lr is not None, "refused by _check_method"
        return unroll_back(call, method, tape.steps, v, lr)
    if isinstance(method, FiniteDifference):
        product = _difference(call, method, inner_loss, d, size)
    elif isinstance(method, Neumann | ConjugateGradient):
        g = call.gradient(inner_loss, call.theta, create_graph=True)
        call.check_reached("theta", g)
        graph = evaluation.edges(g)
        del g
        factor, solution = 1.0, _inverse(call, method, graph, v, lr)
        product = call.pull(inner_loss, call.lam, solution, graph)
    elif isinstance(method, ForwardOverReverse):
        product = _forward_over_reverse(call, inner_loss, d)
    else:
        product = call.pull(inner_loss, call.lam, d, tape.graph)
    return [None if x is None else -factor * x for x in call.averaged(product)]


# --- the mixed product M^T d ----------------------------------------------------------------------
def _difference(
    call: Call, method: FiniteDifference, loss: Losses, d: Vector, size: float
) -> Partial:
    eps = vectors.probe_step(d, _radius(method, d), size)
    if eps == 0.0:  # M^T 0 = 0, and no step would be long enough to see anything
        return [torch.zeros_like(x) for x in call.lam]
    evaluation.freeze(call.theta)
    vectors.shift_(call.theta, call.base, d, eps)
    above = call.gradient(loss, call.lam)
    vectors.shift_(call.theta, call.base, d, -eps)
    below = call.gradient(loss, call.lam)
    pairs = zip(above, below)
    return [None if a is None or b is None else (a - b) / (2 * eps) for a, b in pairs]


def _radius(method: FiniteDifference, d: Sequence[Tensor]) -> float:
    if method.radius is not None:
        return method.radius
    if method.probe_dtype is not None:
        return 1e-1
    return 1e-4 if all(x.dtype == torch.float64 for x in d) else 1e-2


def _forward_over_reverse(call: Call, loss: Losses, d: Vector) -> Partial:
    # The loss must find the tangents where it looks for theta, so they are written in place; not
    # through .data, which carries no tangent, hence the care for graphs of the caller.
    unnoticed = torch.autograd._unsafe_preserve_version_counter(tuple(call.theta))
    evaluation.freeze(call.theta)
    with unnoticed, forward_ad.dual_level():
        for p, x in zip(call.theta, d):
            p.copy_(forward_ad.make_dual(p.detach().clone(), x))
        g = call.gradient(loss, call.lam)
        return [None if x is None else _tangent(x) for x in g]


def _tangent(x: Tensor) -> Tensor:
    tangent = forward_ad.unpack_dual(x).tangent
    return torch.zeros_like(x) if tangent is None else tangent.detach()


# --- the inverse Hessian --------------------------------------------------------------------------
def _inverse(call: Call, method: AtMinimum, graph: Edges, v: Vector, lr: Rate | None) -> Vector:
    """An approximation of H^-1 v (Neumann with rates D: of (D H)^-1 D v)."""

    def hessian(x: Vector) -> Vector:
        call.gradient_evaluations += 1
        return call.vector(evaluation.pull(graph, call.theta, x, retain_graph=True), call.theta)

    if isinstance(method, ConjugateGradient):
        return conjugate_gradient(hessian, v, method.k, method.damping, method.reorthogonalise)
    rate = lr if method.alpha is None else method.alpha
    assert rate is not None, "refused by _check_method"
    return neumann(hessian, v, method.k, rate)


# --- the checks -----------------------------------------------------------------------------------
def _check_method(
    method: Method,
    theta: Vector,
    lr: Rate | None,
    around: str = "theta",
    look_ahead: bool = True,
    lr_factor: bool = True,
) -> None:
    if around not in ("theta", "stepped"):
        raise ValueError(f"around={around!r}: the choices are 'theta' and 'stepped'")
    unrolled = isinstance(method, Unrolled)
    if isinstance(method, AtMinimum | Unrolled):
        if around != "theta" or not lr_factor or (unrolled and not look_ahead):
            advice = "leave around, look_ahead and lr_factor alone"
            raise ValueError(f"{method} has no single look-ahead step: {advice}")
        losses = method.losses if isinstance(method, Unrolled) else None
        if method.k < 1 or (losses and len(losses) != method.k):
            raise ValueError(f"{method}: k must be at least 1, and `losses` one for each step")
    if lr is None:
        if isinstance(method, Neumann) and method.alpha is None:
            raise ValueError(f"{method} needs the inner learning rate lr or alpha")
        if not isinstance(method, STILL):
            raise ValueError(f"{method} needs the inner learning rate lr")
    if isinstance(method, FiniteDifference):
        if not (method.radius is None or 0 < method.radius < math.inf):
            raise ValueError(
                f"radius={method.radius}: the length of a probe is a positive number, about 1e-2 "
                "in float32"
            )
        if any(p.element_size() < 4 for p in theta):
            raise ValueError(
                "theta is in half precision, where theta + eps v rounds back to theta: keep theta "
                "in float32 (a frozen backbone may stay in half precision), or use OneStep()"
            )


def self_check(
    outer_loss: Losses,
    inner_loss: Losses,
    theta: Sequence[Tensor],
    lam: Sequence[Tensor],
    lr: Rate | None,
    method: Method = FiniteDifference(),
    tolerance: float | None = None,
    **conventions: Any,
) -> dict[str, str | float]:
    """The chosen method beside another one for the same quantity, for the record of a run.

    On the present batch, FirstOrder, FiniteDifference and ForwardOverReverse are compared with
    OneStep (with math attention); the others, which differentiate twice, are replaced by OneStep
    and compared with FiniteDifference.
    Returns method, reference, cosine and relative_error of the implicit terms,
    relative_error_total of the sums.

    Raises ValueError if the inner loss is not deterministic, or if the implicit terms differ by
    more than `tolerance` (None: 0.05, with probe_dtype 0.3; math.inf: never) and that does not come
    from the radius: then the loss detaches something that depends on theta, as in Meta-Weight-Net's
    weight(loss.detach()).
    """
    if tolerance is None:
        tolerance = 0.05 if getattr(method, "probe_dtype", None) is None else 0.3
    chosen: Method = method
    if not isinstance(method, FirstOrder | FiniteDifference | ForwardOverReverse):
        chosen = OneStep()
        if lr is None:
            lr, conventions = 1.0, {"look_ahead": False}  # at the minimum
    inputs = (outer_loss, inner_loss, theta, lam, lr)
    reference: Method = FiniteDifference() if isinstance(chosen, OneStep) else OneStep()
    result, again = (hypergrad(*inputs, chosen, **conventions) for _ in range(2))
    if vectors.relative_error(again.grads, result.grads) > 1e-4:
        raise ValueError(
            "a loss gives another value each time it is evaluated: draw its noise outside the "
            "closure, or from torch's global random state, which is put back before each evaluation"
        )
    with sdpa_kernel(SDPBackend.MATH):
        other = hypergrad(*inputs, reference, **conventions)
    relative_error = vectors.relative_error(result.implicit, other.implicit)
    check: dict[str, str | float] = {
        "method": str(method),
        "reference": str(reference),
        "cosine": vectors.cosine(result.implicit, other.implicit),
        "relative_error": relative_error,
        "relative_error_total": vectors.relative_error(result.grads, other.grads),
    }
    if relative_error <= tolerance or isinstance(method, FirstOrder):
        return check
    # A difference quotient that changes with its radius is inaccurate (rounding, curvature), and
    # its error is in the record; one that does not, and is wrong, differentiates something else.
    difference = chosen if isinstance(chosen, FiniteDifference) else reference
    if isinstance(difference, FiniteDifference):
        quotient = result if difference is chosen else other
        radius = _radius(difference, [p for p in theta if p.requires_grad])
        wider = hypergrad(*inputs, replace(difference, radius=4 * radius), **conventions)
        change = vectors.relative_error(wider.implicit, quotient.implicit)
        if change > relative_error / 2:
            return check
    raise ValueError(
        f"{method} and {reference} differ by {relative_error:.2g} of the implicit term (limit "
        f"{tolerance:g}): the inner loss probably detaches something that depends on theta. "
        "Compute that part outside the closure, so that it is a constant, or use OneStep() or "
        "ForwardOverReverse(), which differentiate the update itself"
    )
