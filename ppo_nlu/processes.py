"""Several processes: who takes which part of a batch, sharded weights, one checkpoint for all.

Start with `accelerate launch` or `torchrun`.  Trainable tensors that are not sharded get their gradients averaged
(`average_gradients`); sharded ones are averaged by FSDP2 itself.  Every process answers every test question.
"""

import os

import torch
import torch.distributed as dist
from torch import Tensor, nn

from shared import runs


def join_processes(config: runs.RunConfig) -> int:
    """Rank of this process; joins the group that `accelerate launch` or `torchrun` describes in the environment."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return 0
    if not dist.is_initialized():
        dist.init_process_group("nccl" if torch.cuda.is_available() and config.device != "cpu" else "gloo")
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    return dist.get_rank()


def shard(config: runs.RunConfig, policy: nn.Module) -> None:
    """FSDP2: each block's weights are divided among the processes; the value head stays whole."""
    from ppo_nlu.starting import base_of, is_hub

    if dist.is_initialized() and is_hub(config.model):
        from torch.distributed.fsdp import fully_shard

        blocks = set(base_of(policy.lm)._no_split_modules)  # what transformers keeps on one device
        for module in policy.lm.modules():
            if type(module).__name__ in blocks:
                fully_shard(module)
        fully_shard(policy.lm)


def mine(rows: Tensor) -> list[int]:
    """This process's share of a batch."""
    return rows[dist.get_rank() :: dist.get_world_size()].tolist() if dist.is_initialized() else rows.tolist()


def share(saved):
    """The checkpoint that process 0 read, on all processes."""
    if not dist.is_initialized():
        return saved
    box = [saved]
    dist.broadcast_object_list(box)
    return box[0]


def full(p: Tensor) -> Tensor:
    return p.full_tensor() if hasattr(p, "full_tensor") else p


def trained_state(policy: nn.Module, optimizer) -> dict:
    """Trainable tensors and the optimiser, whole also when they are divided among processes."""
    return {
        "trained": {n: full(p).detach() for n, p in policy.named_parameters() if p.requires_grad},
        "optimizer": {
            k: {m: full(v) if isinstance(v, Tensor) else v for m, v in state.items()}
            for k, state in enumerate(optimizer.state_dict()["state"].values())
        },
    }


def load_trained(policy: nn.Module, optimizer, saved: dict) -> None:
    from torch.distributed.tensor import distribute_tensor

    def like(p, value):
        return (
            distribute_tensor(value.to(p.device), p.device_mesh, p.placements)
            if hasattr(p, "device_mesh")
            else value.to(p.device)
        )

    trained = [(n, p) for n, p in policy.named_parameters() if p.requires_grad]
    with torch.no_grad():
        for n, p in trained:
            p.copy_(like(p, saved["trained"][n]))
    for k, (_, p) in enumerate(trained):
        state = saved["optimizer"].get(k, {})
        optimizer.state[p] = {
            m: like(p, v) if isinstance(v, Tensor) and v.shape == p.shape else v for m, v in state.items()
        }


def all_sum(x: Tensor) -> Tensor:
    """Sum over processes; x itself where there is one."""
    if dist.is_initialized():
        x = x.clone()
        dist.all_reduce(x)
    return x


def average_gradients(policy: nn.Module) -> None:
    """Mean of the gradients over processes; sharded parameters (DTensor) were averaged by FSDP in their backward."""
    if dist.is_initialized():
        own = [p.grad for p in policy.parameters() if p.grad is not None and not hasattr(p, "device_mesh")]
        flat = torch.cat([g.flatten() for g in own])  # one message instead of one per tensor
        dist.all_reduce(flat)
        for g, mean in zip(own, (flat / dist.get_world_size()).split([g.numel() for g in own])):
            g.copy_(mean.view_as(g))
