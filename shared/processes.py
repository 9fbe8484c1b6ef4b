"""One run on several processes (`accelerate launch -m <paper>.train ...`, or torchrun): data parallelism.

Every process holds the whole model and draws the same random numbers. `shard` gives it its rows of a batch;
gradients are averaged before every step of any optimiser (a hook of torch), and where a method needs them earlier:
before a norm is taken, or before a gradient is used in another one. So variables stay equal without being sent; the
record says whether they did. Process 0 alone writes the run, the others work in a folder that is thrown away. With
one process nothing here does anything.

A loss that is a mean over something else than rows (masked tokens, say) is averaged as if every process held
equally many, as under torch's DistributedDataParallel; batch statistics are those of a process's own rows.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle

if TYPE_CHECKING:
    from shared.protocol import RunConfig

_single = False
T = TypeVar("T")


def world_size() -> int:
    """How many processes share this run; 1 inside `single`."""
    return dist.get_world_size() if not _single and dist.is_initialized() else 1


def rank() -> int:
    """Number of this process; 0 where there is one."""
    return dist.get_rank() if world_size() > 1 else 0


@contextlib.contextmanager
def joined(config: RunConfig) -> Iterator[RunConfig]:
    """Within the block the launched processes are one group; yields the configuration of this one."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        yield config
        return
    from accelerate import PartialState

    PartialState(cpu=config.device == "cpu" or not torch.cuda.is_available())
    hook = average_before_steps()
    try:
        with tempfile.TemporaryDirectory() as folder:
            yield config if rank() == 0 else replace(config, out=folder)
        dist.barrier()  # what process 0 wrote is there for a run that uses it
    finally:
        hook.remove()


def average_before_steps() -> RemovableHandle:
    """From now on every optimiser of this process steps along the mean of the processes' gradients."""

    def average(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        mean_gradients(p for group in optimizer.param_groups for p in group["params"])

    return register_optimizer_step_pre_hook(average)


@contextlib.contextmanager
def single() -> Iterator[None]:
    """Within the block this process works by itself, on whole batches: what one makes and all read."""
    global _single
    before, _single = _single, True
    try:
        yield
    finally:
        _single = before


def shard(rows: T) -> T:
    """This process's rows of a batch (tensor, array, list or range): every n-th of n processes.

    Rows that do not divide are repeated from the front, so that all processes hold equally many."""
    n, size = len(rows), world_size()  # type: ignore[arg-type]
    if size == 1:
        return rows
    part = [i % n for i in range(rank(), -(-n // size) * size, size)]
    return [rows[i] for i in part] if isinstance(rows, list | range) else rows[part]  # type: ignore


def noise_names() -> tuple[Any, ...]:
    """Names to add to a stream from which each row draws its own noise: other rows, other noise."""
    return ("process", rank()) if rank() else ()


def all_mean(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Means over the processes, in new tensors; the tensors themselves where there is one process."""
    if world_size() == 1 or not tensors:
        return list(tensors)
    flat = torch.cat([t.detach().reshape(-1) for t in tensors]).to(_meeting())
    dist.all_reduce(flat)  # one message instead of one per tensor
    parts = flat.div_(world_size()).split([t.numel() for t in tensors])
    return [part.view_as(t).to(t) for part, t in zip(parts, tensors)]


def _meeting() -> torch.device:
    """Where messages are exchanged: NCCL takes no CPU tensor, and a method may keep outer variables there."""
    return torch.device("cpu" if dist.get_backend() == "gloo" else "cuda")


def mean_gradients(parameters: Iterable[Tensor]) -> None:
    """`.grad` becomes the mean over the processes; where only some have one, the others count as zero.

    Sharded parameters (DTensor) are left to FSDP2, which averages in its backward pass."""
    if world_size() == 1:
        return
    whole = [p for p in parameters if p.requires_grad and not hasattr(p, "device_mesh")]
    if not whole:
        return
    reached = torch.tensor(
        [p.grad is not None for p in whole], dtype=torch.int32, device=_meeting()
    )
    dist.all_reduce(reached)
    of_dtype: dict[torch.dtype, list[Tensor]] = {}
    for p, n in zip(whole, reached.tolist()):
        if n:
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
            of_dtype.setdefault(p.grad.dtype, []).append(p.grad)
    for gradients in of_dtype.values():
        for g, mean in zip(gradients, all_mean(gradients)):
            g.copy_(mean)


def any_rank(*flags: bool) -> tuple[bool, ...]:
    """Each flag, true in all processes if it is in one: clocks differ, what all do at a step must not."""
    if world_size() == 1:
        return flags
    raised = torch.tensor(flags, dtype=torch.int32, device=_meeting())
    dist.all_reduce(raised, op=dist.ReduceOp.MAX)
    return tuple(map(bool, raised.tolist()))


def broadcast(value: T) -> T:
    """What process 0 holds, in all processes."""
    box = [value]
    if world_size() > 1:
        dist.broadcast_object_list(box)
    return box[0]


def gather(value: T) -> list[T]:
    """What each process holds, in order."""
    values: list[Any] = [value] * world_size()
    if world_size() > 1:
        dist.all_gather_object(values, value)
    return values
