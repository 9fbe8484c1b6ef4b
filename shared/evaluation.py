"""One call of the hypergradient library: evaluates losses under equal conditions, counts, averages, refuses, and undoes.

`hypergrad.py` holds the mathematics and uses only `Call` and `checked` from here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from shared import processes, vectors
from shared.vectors import Rate, Vector

Loss = Callable[[], Tensor]
Losses = Loss | Sequence[Loss]  # a list is a list of micro-batches, and its mean is the loss
Partial = Sequence[Tensor | None]  # a vector with None where a loss does not reach


class Call:
    """Within the block: gradients of losses at whatever theta now is. After it: the caller's state, bit for bit.

    method: for messages, and for its `probe_dtype`. unreached: "refuse" or "zero", for `check_reached`.
    moves: the method writes to theta, so that a copy must be kept.
    """

    def __init__(
        self, theta: Vector, lam: Vector, method: Any, unreached: str = "refuse", moves: bool = True
    ) -> None:
        if unreached not in ("refuse", "zero"):
            raise ValueError(f"unreached={unreached!r}: the choices are 'refuse' and 'zero'")
        self.theta, self.lam, self.method, self.unreached = theta, lam, method, unreached
        self.moved = theta if moves else []
        self.gradient_evaluations = 0
        self.value = 0.0  # of the loss evaluated last

    def __enter__(self) -> Call:
        with ExitStack() as stack:
            self.snapshot = stack.enter_context(
                vectors.Snapshot(self.moved, [*self.theta, *self.lam])
            )
            stack.enter_context(_precision(self.theta[0].device, self.method))
            stack.enter_context(torch.enable_grad())
            self._exits = stack.pop_all()
        self.base = self.snapshot.values  # the point at which the level is differentiated
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self._exits.__exit__(kind, error, trace)
        torch.clear_autocast_cache()  # casts of weights that are no more
        if isinstance(error, RuntimeError) and any(text in str(error) for text in _NOT_TWICE):
            raise NotImplementedError(
                f"{self.method} differentiates the inner loss twice and an operation in it cannot be ({error}). If it is "
                "an attention kernel, load the model with attn_implementation='eager' or make the call inside `with "
                "torch.nn.attention.sdpa_kernel(SDPBackend.MATH):`; or use FiniteDifference(), which differentiates once"
            ) from error

    def evaluations(self, losses: Losses) -> Iterator[Tensor]:
        """Each micro-batch's share of the loss, from the random state and the buffers that the call found."""
        self.snapshot.rewind()
        torch.clear_autocast_cache()  # theta may have moved since a cast of it was cached
        self.gradient_evaluations += 1
        self.value = 0.0
        micro = [losses] if callable(losses) else list(losses)
        for i, loss in enumerate(micro):
            out = loss()
            if not isinstance(out, Tensor) or out.numel() != 1:
                raise ValueError(
                    f"a loss must return a tensor with one element, got {_describe(out)}"
                )
            value = out.item()
            if not math.isfinite(value):
                raise FloatingPointError(
                    f"the loss is {value} (micro-batch {i}): lower lr, or look at this batch"
                )
            self.value += value / len(micro)
            yield out if len(micro) == 1 else out / len(micro)

    def gradient(
        self, losses: Losses, inputs: Vector, create_graph: bool = False
    ) -> list[Tensor | None]:
        """d loss / d inputs, this process's share; None where the loss does not reach."""
        total: list[Tensor | None] = [None] * len(inputs)
        for loss in self.evaluations(losses):
            if loss.requires_grad:
                g = torch.autograd.grad(loss, inputs, create_graph=create_graph, allow_unused=True)
                total = [plus(a, b) for a, b in zip(total, g)]
        return total

    def pull(
        self, losses: Losses, inputs: Vector, d: Vector, graph: Partial | None = None
    ) -> list[Tensor | None]:
        """d/d inputs of < d loss / d theta, d > by reverse over reverse, this process's share. graph: of d loss / d theta."""
        total: list[Tensor | None] = [None] * len(inputs)
        if graph is not None:
            total = pull(graph, inputs, d)
        else:
            for loss in self.evaluations(
                losses
            ):  # one micro-batch at a time: only its own two graphs are in memory
                g = torch.autograd.grad(loss, self.theta, create_graph=True, allow_unused=True)
                total = [plus(a, b) for a, b in zip(total, pull(edges(g), inputs, d))]
        self.gradient_evaluations += 1
        return total

    def averaged(self, v: Partial) -> list[Tensor | None]:
        """The mean over all processes. A tensor that is None must be None in all of them."""
        if not (processes.world_size() > 1):
            return list(v)
        mean = iter(processes.all_mean([x for x in v if x is not None]))
        return [None if x is None else next(mean) for x in v]

    def vector(self, v: Partial, like: Sequence[Tensor]) -> Vector:
        """The mean over all processes, zero where nothing reaches, without a graph."""
        dense = [torch.zeros_like(p) if x is None else x.detach() for x, p in zip(v, like)]
        return [x for x in self.averaged(dense) if x is not None]

    def check_reached(self, name: str, v: Partial) -> None:
        missing = [i for i, x in enumerate(v) if x is None]
        if missing and self.unreached == "refuse":
            raise unreached_error(name, missing, len(v))


def unreached_error(name: str, missing: Sequence[int], n: int) -> ValueError:
    return ValueError(
        f"no loss reaches {name}{list(missing[:5])} ({len(missing)} of {n} tensors): leave them out of {name}, or let the "
        "loss use these very tensors, or pass unreached='zero' to count their gradient as zero"
    )


def check_finite(name: str, v: Vector) -> float:
    """The norm of v."""
    if not math.isfinite(size := vectors.norm(v)):
        raise FloatingPointError(f"the {name} has norm {size}: lower lr, or look at this batch")
    return size


def plus(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a + b


def edges(g: Partial) -> list[Any]:
    """Where in its graph each tensor of a gradient comes from; None for constants. Enough to differentiate it, without its
    values, which take as much memory as the weights."""
    return [None if x is None or not x.requires_grad else get_gradient_edge(x) for x in g]


def pull(
    graph: Sequence[Any], inputs: Vector, d: Vector, retain_graph: bool = False
) -> list[Tensor | None]:
    """d/d inputs of < g, d > for a gradient g, given by its `edges`."""
    pairs = [(edge, x) for edge, x in zip(graph, d) if edge is not None]
    if not pairs:  # the gradient is a constant
        return [None] * len(inputs)
    heads, directions = zip(*pairs)
    return list(
        torch.autograd.grad(heads, inputs, directions, retain_graph=retain_graph, allow_unused=True)
    )


def freeze(theta: Vector) -> None:
    """No graph for the weights until the call ends: a probe costs a forward pass and the part of a backward that leads to lam."""
    for p in theta:
        p.requires_grad_(False)


@contextmanager
def _precision(device: torch.device, method: Any) -> Iterator[None]:
    """Autocast off (or on, to probe_dtype) and TF32 off: a difference quotient divides rounding by a small number."""
    wants = getattr(method, "probe_dtype", None)
    backends: list[Any] = (
        [torch.backends.cuda.matmul, torch.backends.cudnn] if device.type == "cuda" else []
    )
    before = [b.fp32_precision for b in backends]

    def refuse_autocast(_module: object, _inputs: object) -> None:
        if torch.is_autocast_enabled(device.type):
            raise ValueError(
                "a loss switches autocast on for itself, which drowns a difference of radius 1e-2 in rounding: switch it "
                "on outside the loss, or pass FiniteDifference(probe_dtype=torch.bfloat16), whose radius fits"
            )

    watch = hasattr(method, "probe_dtype") and wants is None
    hook = nn.modules.module.register_module_forward_pre_hook(refuse_autocast) if watch else None
    try:
        for b in backends:
            b.fp32_precision = "ieee"
        with torch.autocast(device.type, dtype=wants or torch.bfloat16, enabled=wants is not None):
            yield
    finally:
        for b, p in zip(backends, before):
            b.fp32_precision = p
        if hook:
            hook.remove()


# What torch says when an operation has no second derivative (in reverse mode, in forward mode, in a custom function).
_NOT_TWICE = ("derivative for aten::", "Trying to use forward AD with", "once_differentiable")


def checked(
    theta: Sequence[Tensor],
    lam: Sequence[Tensor],
    lr: Rate | None,
    names: tuple[str, str] = ("theta", "lam"),
) -> tuple[Vector, Vector, Any]:
    """theta without its frozen tensors, lam, and lr as a float or a list beside theta; or what is wrong with them."""
    for name, tensors in zip(names, (theta, lam)):
        if isinstance(tensors, Tensor) or not all(isinstance(p, Tensor) for p in tensors):
            raise TypeError(f"{name} must be a list of tensors, got {_describe(tensors)}")
    if isinstance(lr, Sequence):
        if len(lr) != len(theta):
            raise ValueError(f"lr has {len(lr)} entries for {len(theta)} tensors of theta")
        lr = [r for r, p in zip(lr, theta) if p.requires_grad]
    elif lr is not None:
        lr = float(lr)
    for r in lr if isinstance(lr, list) else [lr]:
        if isinstance(r, int | float) and not 0 <= r < math.inf:
            raise ValueError(f"lr={r}: a learning rate is a finite number, at least 0")
    theta, lam = [p for p in theta if p.requires_grad], list(lam)  # frozen weights are constants
    if not theta or not lam:
        raise ValueError(
            f"nothing to differentiate: {len(theta)} trainable tensors in {names[0]}, {len(lam)} tensors in {names[1]}"
        )
    if not all(p.is_leaf for p in theta):
        raise ValueError(
            f"{names[0]} holds the result of a computation: pass the parameter itself (a leaf)"
        )
    for i, p in enumerate(lam):
        if not p.requires_grad:
            raise ValueError(
                f"{names[1]}[{i}] does not require grad: call requires_grad_() before the losses use it"
            )
    # A tensor in two places would be moved and differentiated at once.
    spans = sorted(
        (p.data_ptr(), p.numel() * p.element_size()) for p in [*theta, *lam] if p.numel()
    )
    if any(a + size > b for (a, size), (b, _) in pairwise(spans)):
        raise ValueError(
            f"{names[0]} and {names[1]} overlap, or hold a tensor twice: each tensor belongs to one level, once"
        )
    return theta, lam, lr


def _describe(x: Any) -> str:
    return (
        f"{type(x).__name__} of shape {tuple(x.shape)}"
        if isinstance(x, Tensor)
        else type(x).__name__
    )
