"""Eq. 2 for r = 1, made fast: each of its passes over a matrix the size of W costs memory traffic.

    W~ = (u v) * W + ((1 - u)(1 - v)) * W0        u: (..., d_out, 1), v: (..., 1, d_in)

Plain autograd would write about seven such matrices in a backward pass; here the gradients are in
closed form, and are computed only for what is asked for.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def rank_one(u: Tensor, v: Tensor, W: Tensor, W0: Tensor, space: Space | None = None) -> Tensor:
    """W~, of the shape of W. space: memory to write it to; None: new memory."""
    mixed: Tensor = Mixed.apply(u, v, W, W0, GateGradient.apply(u, v, (W, W0)), space)
    if space is not None:
        space.taken_by(mixed)
    return mixed


class Space:
    """Memory of one map's W~, written again once the graph of the pass before is gone: fresh pages
    for every map and pass cost more than the arithmetic on them. A copy of it starts empty."""

    def __init__(self) -> None:
        self._memory: Tensor | None = None
        self._node: Callable[[], object] = type(None)  # of the graph that uses it, None if gone

    def __reduce__(self) -> tuple[type[Space], tuple[()]]:
        return Space, ()

    def free(self, like: Tensor) -> Tensor:
        """Memory of this shape that no graph needs."""
        old = self._memory
        kind = (like.shape, like.dtype, like.device)
        if old is None or self._node() is not None or (old.shape, old.dtype, old.device) != kind:
            old = self._memory = torch.empty_like(like)
        return old.detach()

    def taken_by(self, mixed: Tensor) -> None:
        if mixed.grad_fn is not None:
            self._node = weakref.ref(mixed.grad_fn)


@functools.cache
def scratch(shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
    """For what is used up within one operation of one map."""
    return torch.empty(shape, dtype=dtype, device=device)


class Mixed(torch.autograd.Function):
    """W~ of Eq. 2 for r = 1, and its gradient for W in closed form: dL/dW = u v * G, G = dL/dW~.

    What u and v get is the gradient of `gates`, the value of `GateGradient`: autograd runs a node
    only if what it leads to is asked for, so passes for w alone do not pay for the gates."""

    @staticmethod
    def forward(
        ctx: Any, u: Tensor, v: Tensor, W: Tensor, W0: Tensor, gates: Tensor, space: Space | None
    ) -> Tensor:
        ctx.save_for_backward(u, v)
        mixed = torch.mul(W, v, out=space.free(W) if space else None)
        rest = torch.mul(W0, 1 - v, out=scratch(W.shape, W.dtype, W.device))
        return torch.lerp(rest, mixed, u, out=mixed)

    @staticmethod
    def backward(ctx: Any, G: Tensor) -> tuple[Tensor | None, ...]:
        u, v = ctx.saved_tensors
        dW = None
        if ctx.needs_input_grad[2]:
            dW = G * (u * v) if torch.is_grad_enabled() else torch.mul(G, v).mul_(u)
        return None, None, dW, None, G, None


class GateGradient(torch.autograd.Function):
    """Of W's shape, a value that nobody reads; its gradient is that of Eq. 2 for u and v, in two
    passes over a matrix where plain autograd would write seven of them.

        dL/du_i = sum_j G_ij (v_j W_ij - (1 - v_j) W0_ij),    dL/dv_j likewise
    """

    @staticmethod
    def forward(ctx: Any, u: Tensor, v: Tensor, weights: tuple[Tensor, Tensor]) -> Tensor:
        ctx.save_for_backward(u, v)
        ctx.weights = W, _ = weights  # in a tuple, or autograd would run this node for W too
        return W.detach()

    @staticmethod
    def backward(ctx: Any, G: Tensor) -> tuple[Tensor | None, ...]:
        u, v = ctx.saved_tensors
        W, W0 = ctx.weights
        if torch.is_grad_enabled():  # to be differentiated again: nothing in place
            P, Q = G * W, G * W0
            return P @ v.mT - Q @ (1 - v).mT, u.mT @ P - (1 - u).mT @ Q, None
        P = torch.mul(G, W, out=scratch(W.shape, W.dtype, W.device))
        du, dv = P @ v.mT, u.mT @ P
        Q = torch.mul(G, W0, out=P)
        return du.sub_(Q @ (1 - v).mT), dv.sub_((1 - u).mT @ Q), None
