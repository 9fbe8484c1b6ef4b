"""Option `weighted`: a class counts by how badly the classifier does on it.

docs/papers/dasgm.md, section 3.6.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy


@torch.no_grad()
def follow(running: Tensor, logits: Tensor, y: Tensor, decay: float = 0.9) -> None:
    """Moves running (C,) towards each class's mean loss; a class that is not in the batch stays."""
    losses = cross_entropy(logits.detach(), y, reduction="none").cpu().double()
    y = y.cpu()
    counts = torch.bincount(y, minlength=len(running))
    # sorted within a class, so that the order of the batch cannot show in the last digit
    sums = torch.stack([losses[y == c].sort().values.sum() for c in range(len(running))])
    means = (sums / counts.clamp(min=1)).float()
    new = torch.where(running.isnan(), means, decay * running + (1 - decay) * means)
    running.copy_(torch.where(counts > 0, new, running))


def omega(running: Tensor, clip: tuple[float, float] = (0.2, 5.0)) -> Tensor:
    """(7): running (C,) over its mean, within `clip` and of mean 1; a class without a loss counts
    as average."""
    unseen = running.isnan()
    mean = running[~unseen].mean()
    if unseen.all() or mean == 0:
        return torch.ones_like(running)
    omega = (torch.where(unseen, mean, running) / mean).clamp(*clip)
    for _ in range(
        50
    ):  # rescaling can push an entry over the clip again: alternate until it does not
        omega = (omega / omega.mean()).clamp(*clip)
    return omega
