"""What token-specific watermarking is compared with, and the controls.

All but SWEET are tables of gamma and delta.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from shared import processes
from ts_watermark.method import Seen, norms_and_angle, two_gradients
from ts_watermark.official import WEIGHTED_SUM_FACTOR
from ts_watermark.watermark import Converter, Watermark, WatermarkLogitsProcessor

SWEET_ENTROPY = (
    2.33  # nats, mean of human text under OPT-1.3B; other models: measured on validation
)


def kgw(
    gamma: float, delta: float, vocab_size: int, previous_size: int | None = None, **settings: Any
) -> Watermark:
    """The soft red/green list of Kirchenbauer et al.: one gamma and one delta after every token.

    previous_size: P, number of previous tokens, V if None. settings: other fields of Watermark."""
    ones = torch.ones(previous_size or vocab_size)
    return Watermark(gamma * ones, delta * ones, vocab_size, **settings)


def unigram(gamma: float, delta: float, vocab_size: int, **settings: Any) -> Watermark:
    """Unigram (Zhao et al., 2024): one green list after every token, that of `OneList`."""
    return Watermark(torch.full((2,), gamma), torch.full((2,), delta), vocab_size, **settings)


class OneList(Converter):
    """Every context chooses list 1 (that of 0 is the same under every key)."""

    def __init__(self) -> None:
        pass

    def __call__(self, ids: Sequence[int]) -> int:
        return 1


def permuted(watermark: Watermark, generator: torch.Generator) -> Watermark:
    """Control: the same pairs (gamma, delta), of other tokens: same marginals, no specificity."""
    order = torch.randperm(len(watermark.gamma), generator=generator)
    return replace(
        watermark, gamma=watermark.gamma[order], delta=watermark.delta[order], networks={}
    )


def constant_like(watermark: Watermark, gamma: float, delta: float) -> Watermark:
    """Control: KGW at the mean gamma_t and delta_t that the watermark shows in use."""
    ones = torch.ones_like(watermark.gamma)
    return replace(watermark, gamma=gamma * ones, delta=delta * ones, networks={})


def weighted_sum(
    loss_D: Tensor, loss_S: Tensor, parameters: Sequence[nn.Parameter]
) -> tuple[Tensor, Seen]:
    """In place of MGDA, one backward pass of 4e-4 L_D + L_S (Figure 10)."""
    gradients = torch.autograd.grad(WEIGHTED_SUM_FACTOR * loss_D + loss_S, parameters)
    return torch.cat([g.reshape(-1) for g in gradients]), {}


def normalised_mgda(
    loss_D: Tensor, loss_S: Tensor, parameters: Sequence[nn.Parameter]
) -> tuple[Tensor, Seen]:
    """MGDA over gradients of norm 1, which their own scale no longer weighs: their mean.

    MGDA gives both losses the same *absolute* decrease. z and a cosine have other units, so that
    the loss with the smaller gradient alone decides. Here each falls in proportion to its norm."""
    g_D, g_S = processes.all_mean(two_gradients(loss_D, loss_S, parameters))
    parts = [g / g.norm().clamp_min(1e-30) for g in (g_D, g_S)]
    return (parts[0] + parts[1]) / 2, {"lam": 0.5} | norms_and_angle(g_D, g_S)


# --- SWEET ----------------------------------------------------------------------------------------


def entropy(logits: Tensor) -> Tensor:
    """Entropy in nats of softmax(logits), (..., V) -> (...)."""
    log_p = torch.log_softmax(logits.float(), dim=-1)
    return -(log_p.exp() * log_p).nan_to_num(0.0).sum(-1)  # a suppressed logit: p log p = 0


class SweetLogitsProcessor(WatermarkLogitsProcessor):
    """SWEET: KGW only where the next token is uncertain, its entropy above a threshold (nats)."""

    def __init__(
        self,
        watermark: Watermark,
        threshold: float,
        device: torch.device | str = "cpu",
        max_bytes: int = 2**28,
    ):
        super().__init__(watermark, device, max_bytes)
        self.threshold = threshold

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        uncertain = entropy(scores) > self.threshold
        return torch.where(uncertain[:, None], super().__call__(input_ids, scores), scores)


@torch.no_grad()
def entropies(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    texts: Sequence[Sequence[int]],
    batch: int = 32,
) -> list[Tensor]:
    """Entropy with which the model expected each token of each text, after its prompt (or none).

    prompts, texts: lists of id lists. Returns one (n,) tensor per text; without a prompt the first
    value, which nothing predicts, is nan. SWEET's detector needs this pass of the language model;
    the others need none.
    """
    rows: list[Tensor] = []
    for start in range(0, len(texts), batch):
        part = texts[start : start + batch]
        whole = [list(p) + list(t) for p, t in zip(prompts[start : start + batch], part)]
        width = max(map(len, whole))
        ids = torch.zeros(len(whole), width, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for i, row in enumerate(whole):  # left padding
            ids[i, width - len(row) :], mask[i, width - len(row) :] = torch.tensor(row), 1
        fed = {"input_ids": ids.to(model.device), "attention_mask": mask.to(model.device)}
        logits = model(**fed, logits_to_keep=max(map(len, part)) + 1).logits
        for row, text, values in zip(whole, part, entropy(logits).cpu()):
            n = max(0, min(len(text), len(row) - 1))  # that something predicts
            unpredicted = values.new_full((len(text) - n,), float("nan"))
            rows.append(torch.cat([unpredicted, values[len(values) - 1 - n : -1]]))
    return rows
