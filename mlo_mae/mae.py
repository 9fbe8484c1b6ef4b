"""A masked autoencoder: encoder E (timm's parameter names), decoder D, and the error of every patch.

x        (B, C, H, W)      images
patches  (B, N, C p p)     N = (H/p)(W/p) patches, row by row, values in the order of a convolution's weight
keep     (B, K)            indices of the visible patches;  restore (B, N): place of each patch in [visible, masked]
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def patchify(x: Tensor, p: int) -> Tensor:
    """(B, C, H, W) -> (B, N, C p p)."""
    B, C, H, W = x.shape
    if H % p or W % p:
        raise ValueError(
            f"images of {H} x {W} pixels do not divide into patches of {p}; choose a divisor"
        )
    x = x.reshape(B, C, H // p, p, W // p, p).permute(0, 2, 4, 1, 3, 5)
    return x.reshape(B, (H // p) * (W // p), C * p * p)


def sincos_positions(width: int, side: int) -> Tensor:
    """(1, 1 + side^2, width): fixed 2-D sine-cosine positions, zero for CLS; half of the width for rows, half for columns."""
    if width % 4:
        raise ValueError(
            f"width {width} must be a multiple of 4: sine and cosine of two coordinates share it"
        )
    omega = 1.0 / 10000 ** (torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    at = torch.arange(side, dtype=torch.float64)[:, None] * omega  # (side, width / 4)
    one = torch.cat([at.sin(), at.cos()], 1)  # (side, width / 2)
    rows = one[:, None].expand(side, side, -1)
    columns = one[None].expand(side, side, -1)
    grid = torch.cat([columns, rows], -1).reshape(1, side * side, width)
    return torch.cat([torch.zeros(1, 1, width), grid.float()], 1)


class Attention(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        B, L, d = x.shape
        q, k, v = self.qkv(x).reshape(B, L, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B, L, d))


class Mlp(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Pre-norm transformer block. `drop_path`: probability that an image skips a branch (finetuning only)."""

    def __init__(self, width: int, heads: int, drop_path: float = 0.0):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width)
        self.drop_path = drop_path

    def forward(self, x: Tensor) -> Tensor:
        x = x + self._skip(self.attn(self.norm1(x)))
        return x + self._skip(self.mlp(self.norm2(x)))

    def _skip(self, branch: Tensor) -> Tensor:
        if not self.training or self.drop_path == 0.0:
            return branch
        kept = torch.rand(len(branch), 1, 1, device=branch.device) >= self.drop_path
        return branch * kept / (1 - self.drop_path)


class PatchEmbed(nn.Module):
    """Holds timm's `patch_embed.proj`, a convolution of stride p; applied as the linear map of a patch that it is."""

    def __init__(self, channels: int, p: int, width: int):
        super().__init__()
        self.p = p
        self.proj = nn.Conv2d(channels, width, p, p)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(patchify(x, self.p), self.proj.weight.flatten(1), self.proj.bias)


class Encoder(nn.Module):
    """E: a vision transformer whose state dict `timm.models.VisionTransformer(num_classes=0)` loads."""

    def __init__(self, size: int, channels: int, p: int, width: int, depth: int, heads: int):
        super().__init__()
        if size % p:
            raise ValueError(
                f"images of {size} x {size} pixels do not divide into patches of {p}; choose a divisor"
            )
        self.p, self.width, self.channels, self.N = p, width, channels, (size // p) ** 2
        self.patch_embed = PatchEmbed(channels, p, width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(
            sincos_positions(width, size // p)
        )  # trained, as in the official code
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def embed(self, x: Tensor) -> Tensor:
        """(B, N, d): patch embedding plus position, no CLS, before any block; what the masking network sees."""
        return self.patch_embed(x) + self.pos_embed[:, 1:]

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """(B, 1 + K, d): CLS and the visible tokens after the blocks and the last LayerNorm; all N without `keep`."""
        tokens = self.embed(x)
        if keep is not None:
            tokens = tokens.gather(1, keep[..., None].expand(-1, -1, tokens.shape[-1]))
        cls = (self.cls_token + self.pos_embed[:, :1]).expand(len(x), -1, -1)
        tokens = torch.cat([cls, tokens], 1)
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)

    def features(self, x: Tensor, pool: str = "cls") -> Tensor:
        """(B, d): the whole image, nothing masked; CLS as in the official code, or the mean of the patches."""
        tokens = self(x)
        return tokens[:, 0] if pool == "cls" else tokens[:, 1:].mean(1)


class Decoder(nn.Module):
    """D: fills masked places with one learned token and predicts the values of every patch."""

    def __init__(self, N: int, encoder_width: int, width: int, depth: int, heads: int, values: int):
        super().__init__()
        self.embed = nn.Linear(encoder_width, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(sincos_positions(width, math.isqrt(N)))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.pred = nn.Linear(width, values)

    def forward(self, tokens: Tensor, restore: Tensor) -> Tensor:
        """tokens (B, 1 + K, d), restore (B, N) -> (B, N, C p p)."""
        z = self.embed(tokens)
        B, N = restore.shape
        masked = self.mask_token.to(z.dtype).expand(B, N + 1 - z.shape[1], -1)
        patches = torch.cat([z[:, 1:], masked], 1).gather(
            1, restore[..., None].expand(-1, -1, z.shape[-1])
        )
        z = torch.cat([z[:, :1], patches], 1) + self.pos_embed
        for block in self.blocks:
            z = block(z)
        return self.pred(self.norm(z))[:, 1:]


class Head(nn.Module):
    """C: LayerNorm, dropout, linear map on the pooled feature. PyTorch's initialisation, as in the official code."""

    def __init__(self, width: int, classes: int, dropout: float):
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(width, classes)

    def forward(self, z: Tensor) -> Tensor:
        return self.linear(self.dropout(self.norm(z)))


def initialise(module: nn.Module, generator: torch.Generator) -> None:
    """Linear maps and the patch projection Xavier-uniform with zero bias, CLS and mask token normal(0, 0.02)."""
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, nn.Linear | nn.Conv2d):
                nn.init.xavier_uniform_(part.weight.view(len(part.weight), -1), generator=generator)
                nn.init.zeros_(part.bias)
        for name, p in module.named_parameters():
            if name in ("cls_token", "mask_token"):
                p.normal_(0, 0.02, generator=generator)


def targets(x: Tensor, p: int, normalise: bool) -> Tensor:
    """(B, N, C p p): pixels of each patch, by default minus their mean and over sqrt(unbiased variance + 1e-6)."""
    values = patchify(x, p)
    if not normalise:
        return values
    variance, mean = torch.var_mean(values, -1, keepdim=True)
    return (values - mean) / (variance + 1e-6).sqrt()


def patch_errors(
    E: Callable[[Tensor, Tensor], Tensor], D: Decoder, x: Tensor, keep: Tensor, restore: Tensor, normalise: bool, p: int
) -> Tensor:  # fmt: skip
    """l (B, N): mean squared error of every patch of side p, reconstructed from the visible ones alone."""
    error = D(E(x, keep), restore).to(x.dtype) - targets(
        x, p, normalise
    )  # x is never half precision
    return error.square().mean(-1)
