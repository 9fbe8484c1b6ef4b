"""A 7B model divided among the processes of a run (FSDP2; configs/fsdp2.yaml).

Frozen weights alone are divided: the adapter, the biases and the value head stay whole in every
process, so that any optimiser, checkpoint and export works as on one GPU. Every process answers
every test question.
"""

from __future__ import annotations

import os
from typing import Any

from ppo_nlu.policy import Policy, base_of
from shared.protocol import BadInput


def divide_frozen(policy: Policy) -> bool:
    """Where the launcher's configuration asks for FSDP: the frozen weights of each block are
    divided among the processes and put together while the block computes. Returns whether."""
    if os.environ.get("ACCELERATE_USE_FSDP", "").lower() != "true":
        return False
    from torch.distributed.fsdp import fully_shard

    trained: Any = {p for p in policy.parameters() if p.requires_grad}
    if len(trained) == len(list(policy.parameters())):
        remedy = "give --lora-rank, or launch with configs/ddp.yaml"
        raise BadInput(f"configs/fsdp2.yaml divides frozen weights and this run has none: {remedy}")
    base: Any = base_of(policy.lm)
    blocks = set(base._no_split_modules)  # what transformers keeps on one device
    for module in policy.lm.modules():
        if type(module).__name__ in blocks:
            fully_shard(module, ignored_params=trained)
    fully_shard(policy.lm, ignored_params=trained)
    return True
