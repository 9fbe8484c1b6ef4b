"""What token-specific watermarking is compared with, and the controls. All but SWEET are tables of gamma and delta."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ts_watermark.method import SoftText, detection_loss
from ts_watermark.official import WEIGHTED_SUM_FACTOR
from ts_watermark.watermark import Watermark, WatermarkLogitsProcessor

SWEET_ENTROPY = 2.33  # mean entropy (nats) of human text under OPT-1.3B; other models: measured on validation text


def kgw(gamma: float, delta: float, vocab_size: int, **settings) -> Watermark:
    """The soft red/green list of Kirchenbauer et al.: the same gamma and delta after every token."""
    ones = torch.ones(settings.pop("previous_size", vocab_size))
    return Watermark(gamma * ones, delta * ones, vocab_size, **settings)


def permuted(watermark: Watermark, generator: torch.Generator) -> Watermark:
    """Control: the same pairs (gamma, delta), given to other tokens. Same marginals, no token specificity."""
    order = torch.randperm(len(watermark.gamma), generator=generator)
    return replace(
        watermark, gamma=watermark.gamma[order], delta=watermark.delta[order], networks={}
    )


def constant_like(watermark: Watermark, gamma: float, delta: float) -> Watermark:
    """Control: KGW at the mean gamma_t and delta_t that the watermark shows on texts of its own (validation prompts)."""
    ones = torch.ones_like(watermark.gamma)
    return replace(watermark, gamma=gamma * ones, delta=delta * ones, networks={})


def weighted_sum_loss(
    text: SoftText, loss_S: Tensor, factor: float = WEIGHTED_SUM_FACTOR
) -> Tensor:
    """The scalarised objective of Figure 9: 4e-4 (-zhat) + L_S, one backward pass."""
    return factor * detection_loss(text) + loss_S


def entropy(logits: Tensor) -> Tensor:
    """Entropy in nats of softmax(logits), (..., V) -> (...)."""
    log_p = torch.log_softmax(logits.float(), dim=-1)
    return -(log_p.exp() * log_p).nan_to_num(0.0).sum(-1)  # a suppressed logit is -inf: p log p = 0


class SweetLogitsProcessor(WatermarkLogitsProcessor):
    """SWEET: KGW only where the next token is uncertain, i.e. its entropy exceeds a threshold."""

    def __init__(
        self, watermark: Watermark, threshold: float, device="cpu", max_bytes: int = 2**28
    ):
        super().__init__(watermark, device, max_bytes)
        self.threshold = threshold

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        uncertain = entropy(scores) > self.threshold
        return torch.where(uncertain[:, None], super().__call__(input_ids, scores), scores)


@torch.no_grad()
def entropies(model, prompts, texts, batch: int = 32) -> list[Tensor]:
    """Entropy with which the model expected each token of each text, after its prompt (which may be empty).

    prompts, texts: lists of id lists. Returns one (n,) tensor per text; without a prompt the first value, which
    nothing predicts, is nan. SWEET's detector needs this pass of the language model; the others need none.
    """
    found = []
    for start in range(0, len(texts), batch):
        rows = [
            list(p) + list(t)
            for p, t in zip(prompts[start : start + batch], texts[start : start + batch])
        ]
        width = max(map(len, rows))
        ids = torch.zeros(len(rows), width, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for i, row in enumerate(rows):  # left padding
            ids[i, width - len(row) :], mask[i, width - len(row) :] = torch.tensor(row), 1
        keep = max(len(t) for t in texts[start : start + batch]) + 1
        logits = model(
            ids.to(model.device), attention_mask=mask.to(model.device), logits_to_keep=keep
        ).logits
        values = entropy(logits).cpu()
        for i, (row, text) in enumerate(zip(rows, texts[start : start + batch])):
            own = values[i, -len(text) - 1 : -1]
            missing = len(text) - min(len(own), len(row) - 1)
            found.append(
                torch.cat(
                    [own.new_full((missing,), float("nan")), own[len(own) - len(text) + missing :]]
                )
            )
    return found
