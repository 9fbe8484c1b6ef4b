"""What MLO-MAE is compared with. All start from the same E and D and see the same batches.

    mae              random masks, weight 1                             none             finetuning from scratch
    u_mae            mae + lambda * uniformity of the features           mae_compute      mae with as much compute as mlo
    joint            mae + lambda * cross-entropy on the labels: the plain way of using them
    frozen_T         T at its random start, never trained                mask_only        learned ranking, weight 1 in L1
    random+weights   random masks, learned weights

`random+weights`, `frozen_T` and `mask_only` are settings of the same loop (`pretrain.py`); the two extra losses are here.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def uniformity(z: Tensor) -> Tensor:
    """U-MAE's regulariser: mean squared inner product of the normalised features z (B, d) of different images."""
    if len(z) < 2:
        raise ValueError(f"uniformity compares images; the batch has {len(z)}")
    z = F.normalize(z, dim=-1)
    off = ~torch.eye(len(z), dtype=torch.bool, device=z.device)
    return (z @ z.T)[off].square().mean()


def supervised(logits: Tensor, y: Tensor) -> Tensor:
    """The extra term of `joint`; its gradient reaches E, which MLO-MAE's level 2 never does."""
    return F.cross_entropy(logits.float(), y)
