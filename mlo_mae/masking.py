"""The masking network T and the choice of patches: a high score is masked.

s = T(e)  (B, N) in (0, 1),   e (B, N, d): embedded patches with positions
the N - K patches with the largest s are masked;  m (B, N): 1 = masked
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


class MaskNet(nn.Module):
    """T of the paper: flatten(N d) -> hidden -> ReLU -> N -> sigmoid. Larger than a small encoder, and bound to one image size."""

    def __init__(self, N: int, width: int, hidden: int):
        super().__init__()
        self.net = nn.Sequential(
            nn.Flatten(),
            nn.Linear(N * width, hidden),
            nn.ReLU(),
            nn.Linear(hidden, N),
            nn.Sigmoid(),
        )

    def forward(self, e: Tensor) -> Tensor:
        return self.net(e)


class PatchMaskNet(nn.Module):
    """A small T of our own: the same map for each patch, which also sees the mean over patches."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.hidden = nn.Linear(width, hidden)
        self.score = nn.Linear(2 * hidden, 1)

    def forward(self, e: Tensor) -> Tensor:
        h = self.hidden(self.norm(e)).relu()
        context = h.mean(1, keepdim=True).expand_as(h)
        return self.score(torch.cat([h, context], -1)).squeeze(-1).sigmoid()


def mask_network(arch: str, N: int, width: int, hidden: int) -> nn.Module:
    if arch not in ("mlp", "patchwise"):
        raise ValueError(f"T_arch {arch!r} is unknown; it is mlp or patchwise")
    return MaskNet(N, width, hidden) if arch == "mlp" else PatchMaskNet(width, hidden)


@dataclass(frozen=True)
class Mask:
    keep: Tensor  # (B, K) visible patches
    restore: Tensor  # (B, N) place of each patch in [visible, masked]
    m: Tensor  # (B, N) 1.0 where masked


def visible(N: int, ratio: float) -> int:
    """K = int(N (1 - r)), at least one patch on either side."""
    K = int(N * (1 - ratio))
    if not 1 <= K < N:
        raise ValueError(
            f"mask ratio {ratio} leaves {K} of {N} patches visible; between 1 and {N - 1} must be"
        )
    return K


def rank(scores: Tensor, K: int) -> Mask:
    """Keep the K lowest scores of each image, mask the rest; ties go by position. No gradient passes here."""
    order = scores.detach().argsort(dim=1, stable=True)
    restore = order.argsort(dim=1)
    return Mask(order[:, :K], restore, (restore >= K).to(scores.dtype))


def random_scores(B: int, N: int, generator: torch.Generator) -> Tensor:
    """Uniform scores: ranking them masks N - K patches at random, as a plain MAE does."""
    return torch.rand(B, N, generator=generator)


def gumbel(s: Tensor, generator: torch.Generator) -> Tensor:
    """logit(s) + Gumbel noise: exploration, for a comparison; the paper ranks s itself."""
    u = torch.rand(s.shape, generator=generator).clamp(1e-7, 1 - 1e-7).to(s)
    return torch.logit(s.detach().clamp(1e-6, 1 - 1e-6)) - (-u.log()).log()


def mixed(s: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """A share of the images gets random masks instead of learned ones."""
    noise = torch.rand(s.shape, generator=generator).to(s)
    chosen = (torch.rand(len(s), 1, generator=generator) < share).to(s.device)
    return torch.where(chosen, noise, s.detach())


def statistics(s: Tensor, m: Tensor) -> dict[str, float]:
    """How T behaves on a batch: mean score, spread between positions and images, entropy and overlap of the masks."""
    s, m = s.detach().double(), m.double()
    frequency = m.mean(0).clamp(1e-9, 1 - 1e-9)
    entropy = -(frequency * frequency.log2() + (1 - frequency) * (1 - frequency).log2()).mean()
    pairs = m @ m.T
    union = m.sum(1)[:, None] + m.sum(1)[None] - pairs
    off = ~torch.eye(len(m), dtype=torch.bool, device=m.device)
    return {
        "mean_score": s.mean().item(),
        "spread_positions": s.mean(0).std().item(),
        "spread_images": s.std(0).mean().item() if len(s) > 1 else 0.0,
        "mask_entropy": entropy.item(),  # bits per position; 0: one mask for all images
        "mask_overlap": (pairs / union)[off].mean().item() if len(s) > 1 else 1.0,
    }
