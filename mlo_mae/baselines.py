"""What MLO-MAE is compared with. All start from the same E and D and see the same batches.

    mae              random masks, weight 1
    mae_compute      mae with as much compute as mlo
    none             finetuning from scratch
    u_mae            mae + lambda * uniformity of the features
    joint            mae + lambda * cross-entropy on the labels: the plain way of using them
    frozen_T         T at its random start, never trained
    random+weights   random masks, learned weights
    mask_only        learned ranking, weight 1 in L1
    mlo_official     mlo with the official factor of the path through the head

Most are settings of the same loop (`method.cycle`); what they add to L1 stands here, and what may
replace parts of the masking, for comparisons.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from shared import runs

from .networks import autocast

if TYPE_CHECKING:
    from .method import Levels


def uniformity(z: Tensor) -> Tensor:
    """U-MAE's regulariser: mean squared inner product of normalised features of different images.

    z (B, d). ValueError for a batch of one."""
    if len(z) < 2:
        raise ValueError(f"uniformity compares images, and the batch has {len(z)}; give 2 or more")
    z = F.normalize(z, dim=-1)
    off = ~torch.eye(len(z), dtype=torch.bool, device=z.device)
    return (z @ z.T)[off].square().mean()


def extra(L: Levels, tokens: Tensor, i: int) -> Tensor | float:
    """What u_mae and joint add to L1 in step i; tokens (B, 1 + K, d): of the visible patches.

    The cross-entropy of joint reaches E, which that of MLO-MAE's level 2 never does."""
    c, nets = L.config, L.nets
    loss: Tensor | float = 0.0
    if c.uniformity:
        loss = loss + c.uniformity * uniformity(tokens[:, 0].float())
    if c.joint_weight:
        runs.seed_global(c.seed, "dropout", i)
        x, y, _ = L.batch["second"](i)
        nets.C.train()
        with autocast(c, x.device):
            logits = nets.C(nets.features(x))
        loss = loss + c.joint_weight * F.cross_entropy(logits.float(), y)
    return loss


def gumbel(s: Tensor, generator: torch.Generator) -> Tensor:
    """logit(s) + Gumbel noise: ranks that explore; the paper ranks s itself."""
    u = torch.rand(s.shape, generator=generator).clamp(1e-7, 1 - 1e-7).to(s)
    return torch.logit(s.detach().clamp(1e-6, 1 - 1e-6)) - (-u.log()).log()


def mixed(s: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """A share of the images gets random masks instead of learned ones."""
    noise = torch.rand(s.shape, generator=generator).to(s)
    chosen = (torch.rand(len(s), 1, generator=generator) < share).to(s.device)
    return torch.where(chosen, noise, s.detach())
