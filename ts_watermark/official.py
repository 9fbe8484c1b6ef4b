"""Accidents of the official code that a comparison may need, by their row in README's differences.

A student may skip this file. Rows that are plain options live where they act: the cap on lambda
(`method.mgda_weight(cap=0.01)`), half-precision list sizes (`hashing.list_sizes(..., "fp16")`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ts_watermark.method import Generators, SoftText, wide

MGDA_CAP = 0.01  # row 1: the largest weight that L_D ever gets
WEIGHTED_SUM_FACTOR = 4e-4  # the factor of -zhat in the weighted-sum variant


def two_class_gumbel_mask(
    gamma: Tensor, shape: Sequence[int], generator: torch.Generator, tau: float = 0.1
) -> Tensor:
    """Row 6: the green mask as a two-class Gumbel-softmax, two noise values per entry.

    gamma: (B,). Returns `shape`, (B, V). Same law as `method.relaxed_green_mask` (tested); 20 times
    its cost where drawn on the CPU.
    """
    u = torch.rand((*shape, 2), generator=generator).clamp_(1e-7, 1 - 1e-7).to(gamma.device)
    gumbel = -torch.log(-torch.log(u))
    logits = torch.stack([torch.log(1 - gamma), torch.log(gamma)], dim=-1)[:, None]
    return torch.softmax((logits + gumbel) / tau, dim=-1)[..., 1]


def prefix_decode(
    model: PreTrainedModel,
    prompt: dict[str, Tensor],
    steps: int,
    sim: Tensor,
    generators: Generators | None = None,
    mask_of: Callable[[Tensor, torch.Size], Tensor] | None = None,
    mix: float = 0.5,
) -> SoftText:
    """Row 7: soft decoding that runs the whole prefix again for each token.

    Equal to `method.soft_decode` up to rounding, as the language model carries no gradient; work
    O(T^2). mask_of: (gamma, shape) -> relaxed green mask.
    """
    (table,) = model.get_input_embeddings().parameters()
    E, mask = table[prompt["input_ids"]], prompt["attention_mask"]
    sentence, q, gammas, deltas = [], [], [], []
    for _ in range(steps):
        with torch.no_grad():
            out = model(inputs_embeds=E.detach(), attention_mask=mask, use_cache=False)
        logits = wide(out.logits[:, -1])
        if generators is not None:
            assert mask_of is not None
            gamma, delta = generators(wide(E[:, -1]))
            m = mask_of(gamma, logits.shape)
            logits = logits + delta[:, None] * m
        s = torch.softmax(logits, dim=-1)
        hard = (s == s.max(-1, keepdim=True).values).to(s)  # ties make a multi-hot, as there
        a = mix * hard + (1 - mix) * s
        if generators is not None:
            q.append((a * m).sum(-1))
            gammas.append(gamma)
            deltas.append(delta)
        E = torch.cat([E, (a.to(table.dtype) @ table)[:, None]], dim=1)
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        sentence.append(a[:, : len(sim)] @ sim)
    stacks = [torch.stack(x, dim=1) if x else None for x in (q, gammas, deltas)]
    return SoftText(torch.stack(sentence, dim=1), *stacks)
