"""The four networks, and what passes between them: patches, scores, masks, errors.

    E  encoder, a vision transformer with timm's parameter names      D  decoder
    T  masking network: patches -> scores                             C  classification head

x        (B, C, H, W)   images
patches  (B, N, C p p)  N = (H/p)(W/p) patches, row by row, values in the order of a convolution's
                        weight
s        (B, N)         scores in (0, 1); a high score is masked
keep     (B, K)         indices of the visible patches
restore  (B, N)         place of each patch in [visible, masked]
m        (B, N)         1 = masked
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared import runs

from .config import Config
from .data import Problem

# --- images and patches ---------------------------------------------------------------------------


def patchify(x: Tensor, p: int) -> Tensor:
    """(B, C, H, W) -> (B, N, C p p). ValueError where p does not divide H and W."""
    B, C, H, W = x.shape
    if H % p or W % p:
        raise ValueError(f"images of {H} x {W} pixels do not divide into patches of {p}")
    x = x.reshape(B, C, H // p, p, W // p, p).permute(0, 2, 4, 1, 3, 5)
    return x.reshape(B, (H // p) * (W // p), C * p * p)


def targets(x: Tensor, p: int, normalise: bool) -> Tensor:
    """(B, N, C p p): pixels; normalised, minus their mean, over sqrt(unbiased variance + 1e-6)."""
    values = patchify(x, p)
    if not normalise:
        return values
    variance, mean = torch.var_mean(values, -1, keepdim=True)
    return (values - mean) * (variance + 1e-6).rsqrt()


def sincos_positions(width: int, side: int) -> Tensor:
    """(1, 1 + side^2, width): sines and cosines of row and column; zero for CLS, the first.

    ValueError where sine and cosine of two coordinates cannot share the width."""
    if width % 4:
        raise ValueError(f"width {width} is not a multiple of 4, which 2-D positions need")
    omega = 1.0 / 10000 ** (torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    at = torch.arange(side, dtype=torch.float64)[:, None] * omega  # (side, width / 4)
    one = torch.cat([at.sin(), at.cos()], 1)  # (side, width / 2)
    rows = one[:, None].expand(side, side, -1)
    columns = one[None].expand(side, side, -1)
    grid = torch.cat([columns, rows], -1).reshape(1, side * side, width)
    return torch.cat([torch.zeros(1, 1, width), grid.float()], 1)


# --- the vision transformer -----------------------------------------------------------------------


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
    """Pre-norm block. `drop_path`: probability that an image skips a branch (finetuning only)."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width)
        self.drop_path = 0.0

    def forward(self, x: Tensor) -> Tensor:
        x = x + self._skip(self.attn(self.norm1(x)))
        return x + self._skip(self.mlp(self.norm2(x)))

    def _skip(self, branch: Tensor) -> Tensor:
        if not self.training or self.drop_path == 0.0:
            return branch
        stays = torch.rand(len(branch), 1, 1, device=branch.device) >= self.drop_path
        return branch * stays / (1 - self.drop_path)


class PatchEmbed(nn.Module):
    """timm's `patch_embed.proj`, a convolution of stride p, applied as the linear map it is."""

    def __init__(self, channels: int, p: int, width: int):
        super().__init__()
        self.p = p
        self.proj = nn.Conv2d(channels, width, p, p)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(patchify(x, self.p), self.proj.weight.flatten(1), self.proj.bias)


class Encoder(nn.Module):
    """E: its state dict is one that `timm.models.VisionTransformer(num_classes=0)` loads."""

    def __init__(self, size: int, channels: int, p: int, width: int, depth: int, heads: int):
        super().__init__()
        if size % p:
            raise ValueError(f"images of {size} x {size} pixels do not divide into patches of {p}")
        self.p, self.width, self.channels, self.N = p, width, channels, (size // p) ** 2
        self.patch_embed = PatchEmbed(channels, p, width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        # trained, as in the official code
        self.pos_embed = nn.Parameter(sincos_positions(width, size // p))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def embed(self, x: Tensor) -> Tensor:
        """e (B, N, d): patch embedding plus position, before any block; what T sees."""
        return self.patch_embed(x) + self.pos_embed[:, 1:]

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """(B, 1 + K, d): CLS and visible tokens after blocks and last norm; all without `keep`."""
        tokens = self.embed(x)
        if keep is not None:
            tokens = tokens.gather(1, keep[..., None].expand(-1, -1, tokens.shape[-1]))
        cls = (self.cls_token + self.pos_embed[:, :1]).expand(len(x), -1, -1)
        tokens = torch.cat([cls, tokens], 1)
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)

    def features(self, x: Tensor, pool: str = "cls") -> Tensor:
        """(B, d): the whole image, nothing masked; CLS, or the mean of the patches."""
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
        index = restore[..., None].expand(-1, -1, z.shape[-1])
        patches = torch.cat([z[:, 1:], masked], 1).gather(1, index)
        z = torch.cat([z[:, :1], patches], 1) + self.pos_embed
        for block in self.blocks:
            z = block(z)
        return self.pred(self.norm(z))[:, 1:]


def initialise(module: nn.Module, generator: torch.Generator) -> None:
    """Linear maps, patch projection Xavier-uniform; biases 0; CLS, mask token normal(0, 0.02)."""
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, nn.Linear | nn.Conv2d):
                nn.init.xavier_uniform_(part.weight.view(len(part.weight), -1), generator=generator)
        for name, p in module.named_parameters():
            if name.endswith("bias"):
                p.zero_()
            elif name in ("cls_token", "mask_token"):
                p.normal_(0, 0.02, generator=generator)


# --- masks and classes ----------------------------------------------------------------------------


class MaskNet(nn.Module):
    """T of the paper: flatten(N d) -> hidden -> ReLU -> N -> sigmoid; bound to one image size."""

    def __init__(self, N: int, width: int, hidden: int):
        super().__init__()
        first, last = nn.Linear(N * width, hidden), nn.Linear(hidden, N)
        self.net = nn.Sequential(nn.Flatten(), first, nn.ReLU(), last, nn.Sigmoid())

    def forward(self, e: Tensor) -> Tensor:
        """e (B, N, d) -> s (B, N)."""
        return self.net(e)


class PatchMaskNet(nn.Module):
    """A small T, for comparisons: one map for each patch, which also sees the mean over patches."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.hidden = nn.Linear(width, hidden)
        self.score = nn.Linear(2 * hidden, 1)

    def forward(self, e: Tensor) -> Tensor:
        h = self.hidden(self.norm(e)).relu()
        context = h.mean(1, keepdim=True).expand_as(h)
        return self.score(torch.cat([h, context], -1)).squeeze(-1).sigmoid()


@dataclass(frozen=True)
class Mask:
    keep: Tensor  # (B, K) visible patches
    restore: Tensor  # (B, N) place of each patch in [visible, masked]
    m: Tensor  # (B, N) 1.0 where masked


def visible(N: int, ratio: float) -> int:
    """K = int(N (1 - r)). ValueError where no patch is left on either side."""
    K = int(N * (1 - ratio))
    if not 1 <= K < N:
        raise ValueError(f"mask ratio {ratio} leaves {K} of {N} patches visible, not 1 to {N - 1}")
    return K


def rank(scores: Tensor, K: int) -> Mask:
    """Keep the K lowest scores of each image, mask the rest; ties by position. No gradient."""
    order = scores.detach().argsort(dim=1, stable=True)
    restore = order.argsort(dim=1)
    return Mask(order[:, :K], restore, (restore >= K).to(scores.dtype))


class Head(nn.Module):
    """C: LayerNorm, dropout, linear map; PyTorch's initialisation, as in the official code."""

    def __init__(self, width: int, classes: int, dropout: float):
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(width, classes)

    def forward(self, z: Tensor) -> Tensor:
        """z (B, d) -> logits (B, classes)."""
        return self.linear(self.dropout(self.norm(z)))


# --- together -------------------------------------------------------------------------------------


@dataclass
class Networks:
    """E, D, T and C of one run. Where an arm has no T or C, `nn.Identity`, without parameters.

    norm_pix: targets normalised per patch. pool: feature of an image. normalise_scores: see
    `method.weights`."""

    E: Encoder
    D: Decoder
    T: nn.Module = field(default_factory=nn.Identity)
    C: nn.Module = field(default_factory=nn.Identity)
    norm_pix: bool = True
    pool: str = "cls"
    normalise_scores: bool = False

    def reconstruction(self, tokens: Tensor, x: Tensor, mask: Mask) -> Tensor:
        """l (B, N): mean squared error of every patch, decoded from tokens (B, 1 + K, d)."""
        decoded = self.D(tokens, mask.restore).to(x.dtype)  # x is never half precision
        return (decoded - targets(x, self.E.p, self.norm_pix)).square().mean(-1)

    def errors(self, x: Tensor, mask: Mask) -> Tensor:
        """l (B, N) of images x of which E sees the visible patches."""
        return self.reconstruction(self.E(x, mask.keep), x, mask)

    def features(self, x: Tensor) -> Tensor:
        return self.E.features(x, self.pool)

    def head_loss(self, z: Tensor, y: Tensor) -> Tensor:
        """Cross-entropy of C on features z (B, d) and labels y (B,)."""
        return F.cross_entropy(self.C(z).to(z.dtype), y)

    def parts(self) -> dict[str, nn.Module]:
        return {"E": self.E, "D": self.D, "T": self.T, "C": self.C}

    def sizes(self) -> dict[str, int]:
        """Numbers of parameters."""
        return {k: sum(p.numel() for p in part.parameters()) for k, part in self.parts().items()}


def scored(config: Config) -> bool:
    """Whether patches have scores, and the arm a masking network."""
    return config.mask == "learned" or config.weight == "scores"


def build(config: Config, problem: Problem, device: torch.device) -> Networks:
    """Networks at their start, which all arms of a seed share."""
    c, seed = config, config.seed
    E = Encoder(problem.size, problem.channels, c.patch, c.width, c.depth, c.heads)
    values = problem.channels * c.patch**2
    D = Decoder(E.N, c.width, c.decoder_width, c.decoder_depth, c.decoder_heads, values)
    initialise(E, runs.stream(seed, "encoder"))
    initialise(D, runs.stream(seed, "decoder"))
    nets = Networks(E, D, norm_pix=c.norm_pix, pool=c.pool, normalise_scores=c.normalise_scores)
    if scored(config):
        runs.seed_global(seed, "masking network")
        mlp = c.T_arch == "mlp"
        nets.T = MaskNet(E.N, c.width, c.T_hidden) if mlp else PatchMaskNet(c.width, c.T_hidden)
    if c.hypergrad != "none" or c.joint_weight:
        runs.seed_global(seed, "head")
        nets.C = Head(c.width, problem.classes, c.dropout)
    for part in nets.parts().values():
        part.to(device)
    return nets


def autocast(config: Config, device: torch.device) -> AbstractContextManager:
    """bf16 for level 1 and finetuning on CUDA; in levels 2 and 3 a probe would vanish in it."""
    on = config.precision == "bf16" and device.type == "cuda"
    return torch.autocast("cuda", torch.bfloat16) if on else nullcontext()
