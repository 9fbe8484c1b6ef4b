"""Arithmetic on lists of tensors, and changes to parameters that are undone bit for bit.

A *vector* here is a list of tensors shaped like a list of parameters: a gradient, a direction, a
residual. No function builds the flattened vector that it stands for. All writes go through `.data`
except the tangents of hypergrad's forward mode, so that no autograd version counter moves and a
graph recorded before the change is still valid after it is undone. `Snapshot` and `perturbed` put
the old bits back by copying them. (Adding and subtracting again does not: in float32
`(w + e) - e` differs from `w` in the last bit of about a third of the entries.)
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

Vector = list[Tensor]
# one number for all tensors, or for each tensor a number or a tensor of its shape
Rate = float | Sequence[float | Tensor]


def zeros_like(v: Sequence[Tensor]) -> Vector:
    return [torch.zeros_like(x) for x in v]


def dot(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    """Inner product over all tensors together, added up in float64."""
    parts = [(x.detach() * y.detach()).sum(dtype=torch.float64) for x, y in zip(a, b, strict=True)]
    return torch.stack([p.to(parts[0].device) for p in parts]).sum().item()


def norm(v: Sequence[Tensor]) -> float:
    """2-norm over all tensors together; nan or inf if any entry is."""
    parts = torch._foreach_norm([x.detach() for x in v])
    return torch.stack([p.to(parts[0].device, torch.float64) for p in parts]).norm().item()


def cosine(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    """Cosine of the angle between two vectors; nan if one of them is zero."""
    size = norm(a) * norm(b)
    return dot(a, b) / size if size else math.nan


def relative_error(a: Sequence[Tensor], exact: Sequence[Tensor]) -> float:
    """|a - exact| / |exact|; 0 if both are zero, inf if only `exact` is."""
    off, size = norm(minus(a, exact)), norm(exact)
    return off / size if size else (0.0 if off == 0 else math.inf)


def add_(v: Sequence[Tensor], w: Sequence[Tensor], alpha: float = 1.0) -> None:
    """v <- v + alpha w, in place and unseen by autograd."""
    torch._foreach_add_([x.data for x in v], [x.detach() for x in w], alpha=alpha)


def copy_(v: Sequence[Tensor], w: Sequence[Tensor]) -> None:
    """v <- w, in place and unseen by autograd."""
    if v:
        torch._foreach_copy_([x.data for x in v], [x.detach() for x in w])


def minus(v: Sequence[Tensor], w: Sequence[Tensor], alpha: float = 1.0) -> Vector:
    """v - alpha w, as new tensors."""
    return [torch.sub(x.detach(), y.detach(), alpha=alpha) for x, y in zip(v, w, strict=True)]


def scaled(v: Sequence[Tensor], rate: Rate) -> Vector:
    """rate * v, tensor by tensor, as new tensors."""
    if isinstance(rate, int | float):
        return list(torch._foreach_mul([x.detach() for x in v], float(rate)))
    return [x.detach() * r for x, r in zip(v, rate, strict=True)]


def scale_(v: Vector, rate: Rate) -> Vector:
    """v <- rate * v, in place and unseen by autograd; returns v."""
    for x, r in zip(v, [rate] * len(v) if isinstance(rate, int | float) else rate, strict=True):
        x.data.mul_(r)
    return v


def clone(v: Sequence[Tensor]) -> Vector:
    return [x.detach().clone() for x in v]


def root(x: Tensor) -> Tensor:
    """Elementwise square root with the same bits on all processors: torch.sqrt is MKL's on a CPU,
    which rounds differently on processors of different makers; rsqrt is IEEE's. Its derivative
    overflows in single precision below 1e-25."""
    return x.rsqrt().reciprocal()


def adam_rates(optimizer: torch.optim.Optimizer, theta: Sequence[Tensor]) -> Vector:
    """The elementwise rate lr / (sqrt(v_hat) + eps) that `optimizer` (Adam, AdamW) would now use.

    Pass it as `lr` to make a hypergradient aware of an adaptive inner optimiser (the idea of SAMA,
    arXiv 2310.05674): the look-ahead and the mixed product then use the optimiser's own metric
    instead of a plain SGD step. The moments themselves are held constant.
    Raises ValueError where the optimiser has taken no step.
    """
    group_of = {p: group for group in optimizer.param_groups for p in group["params"]}
    rates = []
    for i, p in enumerate(theta):
        state = optimizer.state.get(p, {})
        if "exp_avg_sq" not in state:
            remedy = "take one real Adam step first"
            raise ValueError(f"theta[{i}] has no second moment in the optimiser: {remedy}")
        group = group_of[p]
        correction = 1 - group["betas"][1] ** float(state["step"])
        rates.append(group["lr"] / (root(state["exp_avg_sq"] / correction) + group["eps"]))
    return rates


def shift_(
    theta: Sequence[Tensor], base: Sequence[Tensor], d: Sequence[Tensor], alpha: float
) -> None:
    """theta <- base + alpha d, in place and unseen by autograd."""
    if theta[0].is_cuda:  # few launches; on a CPU one pass over the memory is faster than two
        copy_(theta, base)
        add_(theta, d, alpha)
    else:
        for p, b, x in zip(theta, base, d, strict=True):
            torch.add(b, x.detach(), alpha=alpha, out=p.data)


def probe_step(v: Sequence[Tensor], radius: float = 1e-2, size: float | None = None) -> float:
    """eps = radius / |v|, the step along v of a two-sided difference (DARTS, eq. 8), or 0.0.

    size: |v|, where the caller has it. Raises FloatingPointError if it is not finite.
    """
    size = norm(v) if size is None else size
    if not math.isfinite(size):
        raise FloatingPointError(
            f"the vector of a finite difference has norm {size}: find the loss that produced it"
        )
    smallest = max(torch.finfo(x.dtype).tiny for x in v)
    return radius / size if size > smallest / radius else 0.0


@contextmanager
def perturbed(theta: Sequence[Tensor], v: Sequence[Tensor], alpha: float) -> Iterator[None]:
    """theta + alpha v inside the block, the old bits afterwards, also if the block raises."""
    before = clone(theta)
    try:
        add_(theta, v, alpha)
        yield
    finally:
        copy_(theta, before)


class Snapshot:
    """Within the block anything may happen to `theta`; afterwards all is as before, bit for bit.

    Put back: the values of `theta`; `.grad` and `requires_grad` of `theta` and `others`; torch's
    random state on the CPU and on the CUDA devices of these tensors; every buffer of every module
    that is called inside the block (BatchNorm's running statistics). `rewind()` puts random state
    and buffers back in between, so that two evaluations of one closure see the same dropout masks.
    Not put back: a `torch.Generator` of your own, numpy's and Python's random state; draw such
    noise outside the closures.
    """

    def __init__(self, theta: Sequence[Tensor], others: Sequence[Tensor] = ()) -> None:
        self.theta = list(theta)
        self.tensors = list({id(p): p for p in (*theta, *others)}.values())

    def __enter__(self) -> Snapshot:
        self.values = clone(self.theta)
        self._flags = [(p, p.grad, p.requires_grad) for p in self.tensors if p.is_leaf]
        for p, _, _ in self._flags:
            p.grad = None  # a closure that calls backward() fills this one, not the caller's
        self._devices = sorted({p.device.index for p in self.tensors if p.is_cuda})
        self._random = torch.get_rng_state(), [torch.cuda.get_rng_state(d) for d in self._devices]
        self._buffers: dict[nn.Module, dict[str, tuple[Tensor | None, Tensor | None]]] = {}
        self._hook = nn.modules.module.register_module_forward_pre_hook(self._remember_buffers)
        return self

    def __exit__(self, *error: object) -> None:
        self._hook.remove()
        copy_(self.theta, self.values)
        for p, grad, requires_grad in self._flags:
            p.requires_grad_(requires_grad)
            p.grad = grad
        self.rewind()

    def rewind(self) -> None:
        """Random state and buffers as they were at the start of the block."""
        torch.set_rng_state(self._random[0])
        for device, state in zip(self._devices, self._random[1]):
            torch.cuda.set_rng_state(state, device)
        for module, buffers in self._buffers.items():
            for name, (buffer, value) in buffers.items():
                module._buffers[name] = buffer
                if buffer is not None and value is not None:
                    buffer.data.copy_(value)

    def _remember_buffers(self, module: nn.Module, _inputs: object) -> None:
        if module._buffers and module not in self._buffers:
            self._buffers[module] = {
                name: (b, None if b is None else b.detach().clone())
                for name, b in module._buffers.items()
            }
