"""Dropout masks that are drawn once and used again.

The losses of a batch are evaluated at Level I and again for the gradient of the weights, each time
from the same seed. On a CPU drawing the masks is an eighth of a forward pass, so the later
evaluations take the bits of the first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


@dataclass
class _Mask:
    p: float
    noise: Tensor  # 0 or 1 / (1 - p), as F.dropout multiplies with on a CPU
    after: Tensor  # torch's random state once it was drawn


class SharedMasks:
    """The masks of F.dropout in the first block within `evaluation` serve in every later one.

    Evaluations are seeded alike, so a later one would have drawn the same bits; the random state
    moves on as if it had, for draws that are made anew (attention's). A block that asks for another
    mask than the first, or for more of them, raises RuntimeError: it is another function. on: False
    leaves every mask to be drawn."""

    def __init__(self, on: bool = True) -> None:
        self.on = on
        self.masks: list[_Mask] | None = None

    @contextmanager
    def evaluation(self) -> Iterator[None]:
        if not self.on:
            yield
            return
        masks: list[_Mask] = [] if self.masks is None else self.masks
        with _Dropout(masks, drawing=self.masks is None):
            yield
        self.masks = masks


class _Dropout(TorchFunctionMode):
    def __init__(self, masks: list[_Mask], drawing: bool) -> None:
        super().__init__()
        self.masks, self.drawing, self.next = masks, drawing, 0

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is F.dropout:
            return self.dropout(*args, **kwargs or {})
        return func(*args, **kwargs or {})

    def dropout(
        self, x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
    ) -> Tensor:
        if not training or p == 0.0 or x.device.type != "cpu":
            return F.dropout(x, p, training, inplace)
        if self.drawing:
            noise = torch.empty_like(x).bernoulli_(1 - p).div_(1 - p)
            self.masks.append(_Mask(p, noise, torch.get_rng_state()))
        at, self.next = self.next, self.next + 1
        if at >= len(self.masks) or (self.masks[at].noise.shape, self.masks[at].p) != (x.shape, p):
            raise RuntimeError("the losses draw other dropout masks than when first evaluated")
        if not self.drawing:
            torch.set_rng_state(self.masks[at].after)
        return x.mul_(self.masks[at].noise) if inplace else x * self.masks[at].noise
