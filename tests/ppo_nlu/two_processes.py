"""One PPO update on this process's share of 8 questions; `python two_processes.py ROOT OUT [fsdp]`.

RANK and WORLD_SIZE as a launcher sets them. Process 0 writes trained weights, facts and beta to
OUT."""

from __future__ import annotations

import os
import sys
from typing import Any

import torch
import torch.distributed as dist

root, out, *fsdp = sys.argv[1:]
sys.path.insert(0, root)

from conftest import tiny_policy  # noqa: E402

from ppo_nlu import method  # noqa: E402
from ppo_nlu.config import PPO  # noqa: E402
from ppo_nlu.policy import rollout, whole  # noqa: E402
from shared import processes  # noqa: E402

world, rank = int(os.environ["WORLD_SIZE"]), int(os.environ["RANK"])
if world > 1:
    meeting = f"file://{out}.meet"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world)
    processes.average_before_steps()
policy, tokenizer = tiny_policy()
if fsdp and world > 1:
    from torch.distributed.fsdp import fully_shard

    base: Any = policy.lm.get_base_model()
    for block in base.get_decoder().layers:
        fully_shard(block)
    fully_shard(policy.lm)
g = torch.Generator().manual_seed(1)
asked = [[*torch.randint(8, 24, (3 + i % 4,), generator=g).tolist(), 2] for i in range(8)]
uniforms, R = torch.rand(8, 5, generator=g), torch.linspace(-1, 1, 8)
part = slice(rank, None, world)
answers = rollout(policy, tokenizer, asked[part], 5, uniforms[part])
optimizer = torch.optim.SGD(policy.trained(), lr=0.1)
facts, beta = method.update(policy, optimizer, answers, R[part], 0.2, PPO(minibatch=len(answers)))
weights = torch.cat([whole(p).detach().flatten() for p in policy.trained()])
if rank == 0:
    torch.save([weights, facts, beta], out)
if world > 1:
    dist.barrier()
    dist.destroy_process_group()
