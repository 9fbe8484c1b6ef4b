"""Several processes (`accelerate launch -m mlo_mae.train ...`): one batch, a slice for each, gradients averaged.

Every process draws the whole batch and keeps its slice, so that two processes see what one would; averages are taken before
a norm is (the step of a finite difference depends on it). Only process 0 writes a run.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

WORLD, RANK = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
C = TypeVar("C")


@contextlib.contextmanager
def started(config: C) -> Iterator[C]:
    """Join the other processes; those after the first run in a folder that is thrown away."""
    if WORLD == 1:
        yield config
        return
    from accelerate import PartialState

    state = PartialState(cpu=getattr(config, "device", "") == "cpu")
    with tempfile.TemporaryDirectory() as folder:
        yield config if RANK == 0 else replace(config, out=folder, device=str(state.device))  # type: ignore[type-var]


def from_first(value: Any) -> Any:
    """What process 0 holds: whether the run is finished, and its checkpoint."""
    if WORLD == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def mine(batch: Tensor) -> Tensor:
    """This process's rows of a batch; all processes get equally many."""
    if WORLD == 1:
        return batch
    if len(batch) % WORLD:
        raise ValueError(
            f"a batch of {len(batch)} does not divide among {WORLD} processes; choose a multiple"
        )
    return batch[RANK::WORLD]


def averaged(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Means over the processes, in place where there are several."""
    if WORLD > 1:
        for t in tensors:
            dist.all_reduce(t)
            t /= WORLD
    return list(tensors)


def average_grads(parameters: Sequence[torch.nn.Parameter]) -> None:
    if WORLD > 1:
        averaged([p.grad for p in parameters if p.grad is not None])
