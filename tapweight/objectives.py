"""The pretraining objectives: what the encoder is shown, and the loss on what comes out.

Networks are elsewhere; the losses of the downstream tasks stand first.

language    CL    contrast: a text encoded under two dropout masks must find itself (SimCSE)
            MLM   masked language modelling, 15 % of the word pieces
            SOP   which half came first?
molecules   MG3C  which cluster of molecules is it in (three granularities)?
            JPP   a jigsaw of 3 x 3 tiles: which permutation was applied?
            MCL   the picture with a hole should be encoded like the whole one
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from shared import vectors

IGNORED = -100

# ------------------------------------------------------------------------------ downstream tasks


def squared_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared error that refuses to broadcast.

    (B, 1) against (B) would compare every item with every other (README, row 10)."""
    if prediction.shape != target.shape:
        shapes = f"prediction {tuple(prediction.shape)} and target {tuple(target.shape)}"
        raise ValueError(f"{shapes} differ in shape: squeeze the output")
    return F.mse_loss(prediction, target)


def masked_bce(logits: Tensor, labels: Tensor) -> Tensor:
    """Binary cross-entropy over the labels that are there; -1 and NaN mean missing.

    logits, labels: (B, tasks)."""
    there = ~(torch.isnan(labels) | (labels < 0))
    if not there.any():
        return logits.sum() * 0.0
    return F.binary_cross_entropy_with_logits(logits[there], labels[there])


# -------------------------------------------------------------------------------------- language


def contrastive(a: Tensor, b: Tensor, temperature: float = 0.05) -> Tensor:
    """Cross-entropy of cosine / temperature with the diagonal as target.

    a, b: (B, d), two encodings of each text."""
    similarity = F.cosine_similarity(a[:, None], b[None], dim=-1) / temperature
    return F.cross_entropy(similarity.float(), torch.arange(len(a), device=a.device))


def mask_tokens(
    ids: Tensor,
    maskable: Tensor,
    mask_id: int,
    vocabulary: Tensor,
    generator: torch.Generator,
    rate: float = 0.15,
) -> tuple[Tensor, Tensor, Tensor]:
    """Choose `rate` of the maskable tokens: 80 % become the mask, 10 % a random token, 10 % stay.

    ids: (B, S), maskable: (B, S) bool, false on special tokens and padding, vocabulary: (V,) tokens
    to draw from. Returns the altered ids (B, S), the chosen places (B, M) and the original tokens
    there (B, M), IGNORED where a text has fewer than M. Drawn on the CPU, so that all devices see
    the same masks."""
    shape = tuple(ids.shape)
    chosen = (torch.rand(shape, generator=generator) < rate) & maskable.cpu()
    what = torch.rand(shape, generator=generator)
    other = vocabulary.cpu()[torch.randint(len(vocabulary), shape, generator=generator)]
    altered = torch.where(chosen & (what < 0.8), mask_id, ids.cpu())
    altered = torch.where(chosen & (what >= 0.8) & (what < 0.9), other.to(altered.dtype), altered)
    most = max(1, int(chosen.sum(1).max()))
    places = chosen.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :most]
    targets = torch.where(chosen.gather(1, places), ids.cpu().gather(1, places), IGNORED)
    return altered.to(ids.device), places.to(ids.device), targets.to(ids.device)


def masked_lm(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy over the places with a target; 0, not NaN, where there is none.

    logits: (N, V), targets: (N,)"""
    total = F.cross_entropy(logits.float(), targets, ignore_index=IGNORED, reduction="sum")
    return total / (targets != IGNORED).sum().clamp(min=1)


def halves(tokens: Sequence[int], longest: int) -> tuple[list[int], list[int]] | None:
    """A text's tokens without the last one, cut in the middle; None for fewer than 4 tokens.

    longest: room for both halves together."""
    tokens = list(tokens)[:longest]
    if len(tokens) < 4:
        return None
    tokens = tokens[:-1]
    return tokens[: len(tokens) // 2], tokens[len(tokens) // 2 :]


def order_labels(n: int, generator: torch.Generator) -> Tensor:
    """1 = right order, 0 = swapped, each with probability one half; drawn once. (n,)"""
    return torch.randint(2, (n,), generator=generator)


def order(logits: Tensor, labels: Tensor) -> Tensor:
    """Two-class cross-entropy over texts that are long enough; IGNORED marks the others.

    logits: (B, 2), labels: (B,)"""
    return masked_lm(logits, labels)


# ------------------------------------------------------------------------------------ molecules


def permutations(count: int, tiles: int = 9, seed: int = 0, pool: int = 2000) -> Tensor:
    """The identity, then `count` permutations of greedy maximal Hamming distance, always the same.

    Each next one is, of `pool` random ones, that whose smallest distance to those already chosen is
    largest. (count + 1, tiles)"""
    g = torch.Generator().manual_seed(seed)
    candidates = torch.rand(pool, tiles, generator=g).argsort(1)
    chosen = [torch.arange(tiles)]
    nearest = (candidates != chosen[0]).sum(1)
    for _ in range(count):
        best = int(nearest.argmax())
        if nearest[best] == 0:
            limit = f"{len(chosen) - 1} different ones are there"
            raise ValueError(f"{count} permutations of {tiles} tiles asked for; {limit}")
        chosen.append(candidates[best])
        nearest = torch.minimum(nearest, (candidates != chosen[-1]).sum(1))
    return torch.stack(chosen)


def jigsaw_labels(
    n: int, classes: int, generator: torch.Generator, in_order: float = 0.8
) -> Tensor:
    """Class 0 (identity) with probability 0.8, else one of all classes (0 among them). (n,)"""
    drawn = torch.randint(classes, (n,), generator=generator)
    return torch.where(torch.rand(n, generator=generator) < in_order, 0, drawn)


def shuffle_tiles(images: Tensor, order_: Tensor, side: int = 3) -> Tensor:
    """Tile i of the result is tile order_[i] of the image.

    images: (B, C, H, H), H divisible by side; order_: (B, side^2)"""
    B, C, H, _ = images.shape
    if H % side:
        limit = f"do not divide into {side} x {side} tiles"
        raise ValueError(f"images of {H} pixels {limit}; resize them first")
    h = H // side
    tiles = images.reshape(B, C, side, h, side, h).permute(0, 2, 4, 1, 3, 5)
    tiles = tiles.reshape(B, side * side, C, h, h)
    tiles = tiles[torch.arange(B, device=images.device)[:, None], order_.to(images.device)]
    return tiles.reshape(B, side, side, C, h, h).permute(0, 3, 1, 4, 2, 5).reshape(B, C, H, H)


def erase(images: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """A size x size square at a random place replaced by the channel's mean over the image.

    images: (B, C, H, W)"""
    B, _, H, W = images.shape
    if not 0 <= size <= min(H, W):
        raise ValueError(f"a hole of {size} pixels does not fit into images of {H} x {W}")
    top = torch.randint(H - size + 1, (B, 1, 1), generator=generator)
    left = torch.randint(W - size + 1, (B, 1, 1), generator=generator)
    y, x = torch.arange(H)[None, :, None], torch.arange(W)[None, None, :]
    hole = (y >= top) & (y < top + size) & (x >= left) & (x < left + size)
    return torch.where(hole[:, None].to(images.device), images.mean((2, 3), keepdim=True), images)


def mask_contrast(whole: Tensor, holed: Tensor) -> Tensor:
    """Mean Euclidean distance of two encodings of each picture, (B, d) each.

    Constant features are its trivial optimum (docs/papers/tapweight.md, section 8, item 7)."""
    squares = (whole - holed).square().sum(1)
    distances = vectors.root(squares.clamp(min=1e-20))  # differentiable where both are equal
    return torch.where(squares > 0, distances, 0.0).mean()
