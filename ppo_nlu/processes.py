"""A 7B model divided among the processes of `shared/processes.py` (FSDP2), and one checkpoint for all.

Frozen weights alone are divided: the adapter, the biases and the value head stay whole in every process, so that any optimiser,
checkpoint and export works as on one GPU.  Every process answers every test question.
"""

import os

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ppo_nlu import models
from shared import processes
from shared.runs import BadInput


def shard(policy: nn.Module) -> bool:
    """FSDP2, where the launcher's configuration asks for it (configs/fsdp2.yaml): the frozen weights of each block are divided
    among the processes and put together while the block computes. Returns whether."""
    if not (processes.world_size() > 1 and os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"):
        return False
    from torch.distributed.fsdp import fully_shard

    trained = {p for p in policy.parameters() if p.requires_grad}
    if len(trained) == len(list(policy.parameters())):
        raise BadInput(
            "configs/fsdp2.yaml divides frozen weights and this run has none: give --lora-rank, or launch with configs/ddp.yaml"
        )
    blocks = set(
        models.base_of(policy.lm)._no_split_modules
    )  # what transformers keeps on one device
    for module in policy.lm.modules():
        if type(module).__name__ in blocks:
            fully_shard(module, ignored_params=trained)
    fully_shard(policy.lm, ignored_params=trained)
    return True


def full(p: Tensor) -> Tensor:
    """A tensor that may be divided, whole."""
    return p.full_tensor() if hasattr(p, "full_tensor") else p


def trained_state(policy: nn.Module, optimizer: torch.optim.Optimizer) -> dict:
    """Trainable tensors by name, and the optimiser."""
    trained = {n: p.detach() for n, p in policy.named_parameters() if p.requires_grad}
    return {"trained": trained, "optimizer": optimizer.state_dict()}


def load_trained(policy: nn.Module, optimizer: torch.optim.Optimizer, saved: dict) -> None:
    with torch.no_grad():
        for n, p in policy.named_parameters():
            if p.requires_grad:
                p.copy_(saved["trained"][n])
    optimizer.load_state_dict(saved["optimizer"])


def all_sum(x: Tensor) -> Tensor:
    """Sum over processes; x itself where there is one."""
    if processes.world_size() > 1:
        x = x.clone()
        dist.all_reduce(x)
    return x
