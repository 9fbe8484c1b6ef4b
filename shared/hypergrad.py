"""Hypergradients as functions on closures: how to differentiate is a small object that is passed in.

    inner problem   theta'(lam) = theta - lr * d inner_loss / d theta          (one step, or the optimum, or k steps)
    wanted          d outer_loss(theta'(lam), lam) / d lam  =  direct + implicit
                    direct   = partial outer_loss / partial lam, at theta'
                    implicit = (d theta' / d lam)^T v,   v = d outer_loss / d theta', at theta'
    one step        implicit = - M^T (lr * v),            M^T d = d/d lam < d inner_loss / d theta, d >, at theta
    optimum         implicit = - M^T H^-1 v,              H = d^2 inner_loss / d theta^2

A loss is a function of no arguments that uses the tensors `theta` and `lam` where they are and returns a scalar; its batch
is fixed inside it. A list of such functions is a list of micro-batches: their mean is the loss (gradient accumulation).
Every evaluation starts from the random state and the buffers that the call found, so all of them see the same dropout
masks, and a real inner step taken right after the call sees them too. theta, buffers, random state, `.grad` and
`requires_grad` are bit-identical after every call, also after an exception. Under torch.distributed every gradient is
averaged over the processes before it is used; losses then call the module inside a DistributedDataParallel wrapper.

README.md of this folder has the mathematics of each method, its cost, and when to use which.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from shared import vectors
from shared.vectors import Rate, Vector

Loss = Callable[[], Tensor]
Losses = Loss | Sequence[Loss]


# ---------------------------------------------------------------------------------------------------------- the methods
@dataclass(frozen=True)
class FirstOrder:
    """implicit = 0, and no look-ahead: the outer gradient at theta (first-order DARTS). One gradient evaluation."""


@dataclass(frozen=True)
class FiniteDifference:
    """M^T d as (grad_lam inner(theta + eps d) - grad_lam inner(theta - eps d)) / (2 eps), eps = radius / |d| (DARTS, eq. 7-8).

    The weights do not require grad in the two probes: where lam sits outside the network they are two forward passes.
    radius: None means 1e-2 in float32, 1e-4 in float64, 1e-1 with probe_dtype. probe_dtype: run all losses of the call
    under autocast to this dtype; by default autocast and TF32 are off.
    """

    radius: float | None = None
    probe_dtype: torch.dtype | None = None


@dataclass(frozen=True)
class OneStep:
    """M^T d by reverse over reverse: exact for one SGD step, any lam; the graph of the inner gradient is kept in memory."""


@dataclass(frozen=True)
class ForwardOverReverse:
    """M^T d as the derivative of grad_lam inner along d (jvp of grad): exact, no step size, no second graph."""


@dataclass(frozen=True)
class Hypergradient:
    """grads = direct + implicit, each a list like lam."""

    grads: Vector
    direct: Vector
    implicit: Vector
    gradient_evaluations: int  # backward passes of a loss: gradients, Hessian-vector and mixed products
    outer_loss: float  # at the point where its gradient was taken


Method = FirstOrder | FiniteDifference | OneStep | ForwardOverReverse


# --------------------------------------------------------------------------------------------------- the two functions
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
) -> Hypergradient:
    """The gradient of `outer_loss` for `lam`, through one inner problem (module docstring). Writes nothing to `.grad`.

    lr: inner learning rate, a float, or for each tensor of theta a float or a tensor (`vectors.adam_rates`).
    around: where the mixed product is taken: "theta" (the derivative of what the look-ahead computed) or "stepped" (at
        theta', as Betty does).
    look_ahead: False takes v at theta itself; for callers whose theta already is stepped.
    lr_factor: False leaves the factor lr out of the implicit term (Betty's scale), not out of the look-ahead.
    unreached: "zero" counts a parameter that a loss does not reach as one with gradient zero.

    Raises ValueError for lists, rates and conventions that cannot be meant, FloatingPointError for a loss or vector that is
    not finite, NotImplementedError for an attention kernel (or other operation) that cannot be differentiated twice.
    """
    theta, lam, lr = _checked(theta, lam, lr, method)
    _check_conventions(method, around, look_ahead, lr_factor)
    with _Call(theta, lam, method, unreached) as call:
        tape = _Tape()
        if look_ahead and not isinstance(method, FirstOrder):
            tape = _advance(call, method, inner_loss, lr, keep=around == "theta")
        v, direct, value = call.outer_gradient(outer_loss)
        if around == "stepped":
            call.base = vectors.clone(theta)
        implicit = _pull_back(call, method, tape, inner_loss, v, lr if lr_factor else 1.0)
        call.check_reached("lam", [a if a is not None else b for a, b in zip(direct, implicit)])
        direct, implicit = call.dense(direct, lam), call.dense(implicit, lam)
        grads = list(torch._foreach_add(direct, implicit))
        call.check_finite("hypergradient", grads)
        return Hypergradient(grads, direct, implicit, call.gradient_evaluations, value)


def through_level(
    inner_loss: Losses,
    theta: Sequence[Tensor],
    wrt: Sequence[Tensor],
    v: Sequence[Tensor],
    lr: Rate | None,
    method: Method = FiniteDifference(),
    unreached: str = "refuse",
) -> Vector:
    """(d theta' / d wrt)^T v, a list like `wrt`: the vector-Jacobian product of one level, at the present theta.

    v: list like theta, the gradient of something above for theta'. Chains of calls give any number of levels
    (`multilevel.py`). lr=1.0 gives the identity rule of other libraries. Raises as `hypergrad` does.
    """
    if len(v) != len(theta) or any(x.shape != p.shape for x, p in zip(v, theta)):
        raise ValueError("v must be a list of tensors with the shapes of theta")
    v = [x for x, p in zip(v, theta) if p.requires_grad]
    theta, wrt, lr = _checked(theta, wrt, lr, method)
    with _Call(theta, wrt, method, unreached) as call:
        result = _pull_back(call, method, _Tape(), inner_loss, v, lr)
        if not isinstance(method, FirstOrder):
            call.check_reached("wrt", result)
        return call.dense(result, wrt)


# ------------------------------------------------------------------------------------------- one level, there and back
@dataclass
class _Tape:
    """What the way there leaves for the way back: the graph of the inner gradient, where the method can use it."""

    graph: Sequence[Tensor | None] | None = None


def _advance(call: _Call, method: Method, inner_loss: Losses, lr: Rate, keep: bool) -> _Tape:
    """theta <- theta', in place."""
    keep = keep and isinstance(method, OneStep) and callable(inner_loss)
    g = call.gradient(inner_loss, call.theta, create_graph=keep)
    call.check_reached("theta", g)
    _step(call.theta, call.averaged(call.dense(g, call.theta)), lr)
    return _Tape(g if keep else None)


def _step(theta: Vector, g: Vector, lr: Rate) -> None:
    """theta <- theta - lr * g, in place."""
    if isinstance(lr, float):
        vectors.add_(theta, g, alpha=-lr)
    else:
        vectors.add_(theta, vectors.scaled(g, lr), alpha=-1.0)


def _pull_back(
    call: _Call, method: Method, tape: _Tape, inner_loss: Losses, v: Vector, lr: Rate | None
) -> list[Tensor | None]:
    """(d theta' / d lam)^T v at call.base. None for a lam that nothing reaches. theta may be left anywhere."""
    # A number times v is left out of the direction and multiplied in at the end: no second copy of v.
    factor = lr if isinstance(lr, float) else 1.0
    d = vectors.scaled(v, lr) if isinstance(lr, list) else v
    size = call.check_finite("outer gradient for theta", d)
    if isinstance(method, FirstOrder):
        return [None] * len(call.lam)
    if isinstance(method, FiniteDifference):
        product = _difference(call, method, inner_loss, d, size)
    else:
        vectors.copy_(call.theta, call.base)
        if isinstance(method, ForwardOverReverse):
            product = _forward_over_reverse(call, inner_loss, d)
        else:
            product = call.pull(inner_loss, call.lam, d, graph=tape.graph)
    return [None if x is None else -factor * x for x in call.averaged(product)]


# ------------------------------------------------------------------------------------------------- the mixed product M^T d
def _difference(
    call: _Call, method: FiniteDifference, loss: Losses, d: Vector, size: float
) -> list[Tensor | None]:
    eps = vectors.probe_step(d, _radius(method, d), size)
    if eps == 0.0:  # M^T 0 = 0, and no step would be long enough to see anything
        return [torch.zeros_like(x) for x in call.lam]
    with _frozen(call.theta):
        vectors.shift_(call.theta, call.base, d, eps)
        plus = call.gradient(loss, call.lam)
        vectors.shift_(call.theta, call.base, d, -eps)
        minus = call.gradient(loss, call.lam)
    return [None if a is None or b is None else (a - b) / (2 * eps) for a, b in zip(plus, minus)]


def _radius(method: FiniteDifference, d: Vector) -> float:
    if method.radius is not None:
        return method.radius
    if method.probe_dtype is not None:
        return 1e-1
    return 1e-4 if all(x.dtype == torch.float64 for x in d) else 1e-2


def _forward_over_reverse(call: _Call, loss: Losses, d: Vector) -> list[Tensor | None]:
    # In-place writes to theta must stay unseen by graphs that the caller still holds (`vectors` writes through .data, which
    # carries no tangent).
    unseen = torch.autograd._unsafe_preserve_version_counter(tuple(call.theta))
    with _frozen(call.theta), unseen, forward_ad.dual_level():
        for p, x in zip(
            call.theta, d
        ):  # in place, so that the loss finds the tangents where it looks for theta
            p.copy_(forward_ad.make_dual(p.detach().clone(), x.detach()))
        g = call.gradient(loss, call.lam)
        tangents = [None if x is None else forward_ad.unpack_dual(x).tangent for x in g]
        return [
            None if x is None else torch.zeros_like(x) if t is None else t.detach().clone()
            for x, t in zip(g, tangents)
        ]


# -------------------------------------------------------------------------------------------------- evaluating the losses
class _Call:
    """One call of the library: evaluates losses under equal conditions, counts, averages over processes, and undoes."""

    def __init__(self, theta: Vector, lam: Vector, method: Method, unreached: str) -> None:
        if unreached not in ("refuse", "zero"):
            raise ValueError(f"unreached={unreached!r}: the choices are 'refuse' and 'zero'")
        self.theta, self.lam, self.method, self.unreached = theta, lam, method, unreached
        self.gradient_evaluations = 0

    def __enter__(self) -> _Call:
        with ExitStack() as stack:
            self.snapshot = stack.enter_context(vectors.Snapshot(self.theta, self.lam))
            stack.enter_context(_precision(self.theta[0].device, self.method))
            stack.enter_context(torch.enable_grad())
            self._exits = stack.pop_all()
        self.base = self.snapshot.values  # where the mixed product is taken, and to where a probe returns
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self._exits.__exit__(kind, error, trace)
        torch.clear_autocast_cache()  # casts of weights that are no more
        if isinstance(error, RuntimeError) and any(text in str(error) for text in _NOT_TWICE):
            raise NotImplementedError(
                f"{self.method} differentiates the inner loss twice and an operation in it cannot be ({error}). If it is an "
                "attention kernel, load the model with attn_implementation='eager' or make the call inside `with "
                "torch.nn.attention.sdpa_kernel(SDPBackend.MATH):`; or use FiniteDifference(), which differentiates once"
            ) from error

    def evaluations(self, losses: Losses) -> Iterator[Tensor]:
        """Each micro-batch's share of the loss, from the random state and the buffers that the call found."""
        self.snapshot.rewind()
        torch.clear_autocast_cache()  # theta may have moved since a cast of it was cached
        self.gradient_evaluations += 1
        micro = [losses] if callable(losses) else list(losses)
        for i, loss in enumerate(micro):
            value = loss()
            if not isinstance(value, Tensor) or value.numel() != 1:
                raise ValueError(f"a loss must return a tensor with one element, got {_describe(value)}")
            if not math.isfinite(value.item()):
                raise FloatingPointError(
                    f"loss is {value.item()} (micro-batch {i}): lower lr or look at this batch"
                )
            yield value if len(micro) == 1 else value / len(micro)

    def gradient(self, losses: Losses, inputs: Vector, create_graph: bool = False) -> list[Tensor | None]:
        """d loss / d inputs, this process's share; None where the loss does not reach."""
        self.value = 0.0
        total: list[Tensor | None] = [None] * len(inputs)
        for loss in self.evaluations(losses):
            self.value += loss.item()
            if loss.requires_grad:
                g = torch.autograd.grad(loss, inputs, create_graph=create_graph, allow_unused=True)
                total = [_plus(a, b) for a, b in zip(total, g)]
        return total

    def outer_gradient(self, outer_loss: Losses) -> tuple[Vector, list[Tensor | None], float]:
        """v (averaged over the processes), the direct term, the value of the loss."""
        n = len(self.theta)
        g = self.gradient(outer_loss, [*self.theta, *self.lam])
        if self.unreached == "refuse" and all(x is None for x in g[:n]):
            raise ValueError(
                "the outer loss reaches no tensor of theta, so the implicit term is zero: compute it from the tensors in theta "
                "themselves, not from copies (or pass unreached='zero')"
            )
        return self.averaged(self.dense(g[:n], self.theta)), self.averaged(g[n:]), self.value

    def pull(self, losses: Losses, inputs: Vector, d: Vector, graph: Any = None) -> list[Tensor | None]:
        """d/d inputs of < d loss / d theta, d > by reverse over reverse, this process's share. graph: d loss / d theta."""
        if graph is not None:
            self.gradient_evaluations += 1
            return _pull(graph, inputs, d)
        total: list[Tensor | None] = [None] * len(inputs)
        for loss in self.evaluations(
            losses
        ):  # one micro-batch at a time: only its own two graphs are in memory
            g = torch.autograd.grad(loss, self.theta, create_graph=True, allow_unused=True)
            total = [_plus(a, b) for a, b in zip(total, _pull(g, inputs, d))]
        self.gradient_evaluations += 1
        return total

    def averaged(self, v: Sequence[Tensor | None]) -> list:
        """The mean over all processes. A tensor that is None must be None in all of them."""
        if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
            return list(v)
        # Copies, because autograd may return one tensor as the gradient of two parameters.
        v = [None if x is None else x.clone(memory_format=torch.contiguous_format) for x in v]
        for x in v:
            if x is not None:
                dist.all_reduce(x)
                x.div_(dist.get_world_size())
        return v

    @staticmethod
    def check_finite(name: str, v: Vector) -> float:
        """The norm of v."""
        if not math.isfinite(size := vectors.norm(v)):
            raise FloatingPointError(f"the {name} has norm {size}: lower lr, or look at this batch")
        return size

    def check_reached(self, name: str, v: Sequence[Tensor | None]) -> None:
        missing = [i for i, x in enumerate(v) if x is None]
        if missing and self.unreached == "refuse" and not isinstance(self.method, FirstOrder):
            raise ValueError(
                f"no loss reaches {name}{missing[:5]} ({len(missing)} of {len(v)} tensors): leave them out of {name}, or let the "
                "loss use these very tensors, or pass unreached='zero' to count their gradient as zero"
            )

    @staticmethod
    def dense(v: Sequence[Tensor | None], like: Sequence[Tensor]) -> Vector:
        return [torch.zeros_like(p) if x is None else x.detach() for x, p in zip(v, like)]


def _plus(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a + b


def _pull(g: Sequence[Tensor | None], inputs: Vector, d: Vector) -> Sequence[Tensor | None]:
    """d/d inputs of < g, d > for a gradient g with a graph; a g that depends on nothing has none."""
    pairs = [(x, y.to(x.dtype)) for x, y in zip(g, d) if x is not None and x.requires_grad]
    if not pairs:
        return [None] * len(inputs)
    heads, directions = zip(*pairs)
    return torch.autograd.grad(heads, inputs, directions, retain_graph=False, allow_unused=True)


@contextmanager
def _frozen(theta: Vector) -> Iterator[None]:
    """No graph for the weights: a probe then costs a forward pass and only the part of a backward that leads to lam."""
    for p in theta:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in theta:
            p.requires_grad_(True)


@contextmanager
def _precision(device: torch.device, method: Method) -> Iterator[None]:
    """Autocast off (or on, to probe_dtype), TF32 off: a difference quotient divides rounding errors by a small number."""
    dtype = getattr(method, "probe_dtype", None)
    backends = [torch.backends.cuda.matmul, torch.backends.cudnn] if device.type == "cuda" else []
    before = [b.fp32_precision for b in backends]

    def refuse_autocast(_module: object, _inputs: object) -> None:
        if torch.is_autocast_enabled(device.type):
            raise ValueError(
                "a loss switches autocast on for itself, which drowns a difference of radius 1e-2 in rounding: switch it on "
                "outside the loss, or pass FiniteDifference(probe_dtype=torch.bfloat16), whose radius fits"
            )

    watch = isinstance(method, FiniteDifference) and dtype is None
    hook = nn.modules.module.register_module_forward_pre_hook(refuse_autocast) if watch else None
    try:
        for b in backends:
            b.fp32_precision = "ieee"
        with torch.autocast(device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None):
            yield
    finally:
        for b, p in zip(backends, before):
            b.fp32_precision = p
        if hook:
            hook.remove()


# What torch says when an operation has no second derivative (reverse, forward mode, custom functions).
_NOT_TWICE = (
    "derivative for aten::",
    "Trying to use forward AD with",
    "once_differentiable",
    "does not support double",
)


# ------------------------------------------------------------------------------------------------------------- the checks
def _checked(
    theta: Sequence[Tensor], lam: Sequence[Tensor], lr: Rate | None, method: Method
) -> tuple[Vector, Vector, Any]:
    """The lists without frozen tensors of theta, and lr as a float or as a list beside theta; or what is wrong with them."""
    for name, tensors in (("theta", theta), ("lam", lam)):
        if isinstance(tensors, Tensor) or not all(isinstance(p, Tensor) for p in tensors):
            raise TypeError(f"{name} must be a list of tensors, got {_describe(tensors)}")
    theta, lam = list(theta), list(lam)
    if lr is not None and not isinstance(lr, int | float):
        if len(lr) != len(theta):
            raise ValueError(f"lr has {len(lr)} entries for {len(theta)} tensors of theta")
        lr = [r for r, p in zip(lr, theta) if p.requires_grad]
    theta = [p for p in theta if p.requires_grad]  # frozen parts are constants
    if not theta or not lam:
        raise ValueError(
            f"nothing to differentiate: {len(theta)} trainable tensors in theta, {len(lam)} in lam"
        )
    for i, p in enumerate(theta):
        if not p.is_leaf:
            raise ValueError(f"theta[{i}] is the result of a computation: pass the parameter itself (a leaf)")
    for i, p in enumerate(lam):
        if not p.requires_grad:
            raise ValueError(
                f"lam[{i}] does not require grad: call requires_grad_() on it before the losses use it"
            )
    # Two lists that share memory would be moved and differentiated at once.
    spans = sorted(
        (p.untyped_storage().data_ptr(), p.data_ptr(), p.numel() * p.element_size()) for p in [*theta, *lam]
    )
    if any(a[0] == b[0] and a[1] + a[2] > b[1] and min(a[2], b[2]) > 0 for a, b in pairwise(spans)):
        raise ValueError(
            "theta and lam overlap, or hold a tensor twice: each tensor belongs to one level, once"
        )
    if isinstance(lr, int | float):
        lr = float(lr)
    if any(
        not isinstance(r, Tensor) and not 0 <= r < math.inf
        for r in (lr if isinstance(lr, list) else [lr or 0.0])
    ):
        raise ValueError(f"lr={lr}: a learning rate is a finite number, at least 0")
    if isinstance(method, FiniteDifference) and any(p.element_size() < 4 for p in theta):
        raise ValueError(
            "theta is kept in half precision, where theta + eps v rounds back to theta: keep theta in float32 (a frozen "
            "backbone may stay in half precision), or use OneStep()"
        )
    return theta, lam, lr


def _check_conventions(method: Method, around: str, look_ahead: bool, lr_factor: bool) -> None:
    if around not in ("theta", "stepped"):
        raise ValueError(f"around={around!r}: the choices are 'theta' and 'stepped'")


def _describe(x: Any) -> str:
    return f"{type(x).__name__} of shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__


def self_check(
    outer_loss: Losses,
    inner_loss: Losses,
    theta: Sequence[Tensor],
    lam: Sequence[Tensor],
    lr: Rate | None,
    method: Method = FiniteDifference(),
    tolerance: float | None = None,
    **conventions: Any,
) -> dict[str, Any]:
    """The chosen method beside another one for the same quantity, on the present batch; for the record of a run.

    FirstOrder, FiniteDifference and ForwardOverReverse are compared with OneStep (with math attention); the others, which
    differentiate twice, are replaced by OneStep and compared with FiniteDifference.
    Returns method, reference, cosine and relative_error of the implicit terms, relative_error_total of the sums.

    Raises ValueError if the inner loss is not deterministic, or if the implicit terms differ by more than `tolerance` (None:
    0.05, with probe_dtype 0.3; math.inf: never) and that difference does not come from the radius: then the loss detaches
    something that depends on theta, as in Meta-Weight-Net's weight(loss.detach()).
    """
    if tolerance is None:
        tolerance = 0.05 if getattr(method, "probe_dtype", None) is None else 0.3
    inputs = (outer_loss, inner_loss, theta, lam, lr)
    chosen = method if isinstance(method, FirstOrder | FiniteDifference | ForwardOverReverse) else OneStep()
    reference = FiniteDifference() if isinstance(chosen, OneStep) else OneStep()
    first, second = (hypergrad(*inputs, reference, **conventions) for _ in range(2))
    if vectors.relative_error(first.grads, second.grads) > 1e-4:
        raise ValueError(
            "a loss gives another value each time it is evaluated: draw its noise outside the closure, or from torch's "
            "global random state, which is put back before each evaluation"
        )
    mine = hypergrad(*inputs, chosen, **conventions)
    with sdpa_kernel(SDPBackend.MATH):
        other = hypergrad(*inputs, reference, **conventions)
    found = {
        "method": str(method),
        "reference": str(reference),
        "cosine": vectors.cosine(mine.implicit, other.implicit),
        "relative_error": vectors.relative_error(mine.implicit, other.implicit),
        "relative_error_total": vectors.relative_error(mine.grads, other.grads),
    }
    if found["relative_error"] > tolerance and not isinstance(method, FirstOrder):
        # A difference quotient that changes with its radius is inaccurate (rounding, curvature) and its error is in the record;
        # one that does not change, and is wrong, is the derivative of something else.
        difference = chosen if isinstance(chosen, FiniteDifference) else reference
        if isinstance(difference, FiniteDifference):
            quotient = mine if difference is chosen else other
            radius = _radius(difference, [p for p in theta if p.requires_grad])
            wider = hypergrad(*inputs, replace(difference, radius=4 * radius), **conventions)
            if vectors.relative_error(wider.implicit, quotient.implicit) > found["relative_error"] / 2:
                return found
        raise ValueError(
            f"{found['method']} and {found['reference']} differ by {found['relative_error']:.2g} of the implicit term (limit "
            f"{tolerance:g}): the inner loss probably detaches something that depends on theta. Compute that part outside the "
            "closure, so that it is a constant, or use OneStep() or ForwardOverReverse(), which differentiate the update itself"
        )
    return found
