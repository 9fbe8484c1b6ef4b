"""Accidents of the official code that a comparison may need, named by their row in README's table of differences.

A student may skip this file. Rows that are plain options live where they act: the cap on lambda
(`method.mgda_weight(cap=0.01)`), half-precision list sizes (`hashing.list_sizes(size_rounding="fp16")`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ts_watermark.method import SoftText, wide

MGDA_CAP = 0.01  # row 1: the largest weight that L_D ever gets
WEIGHTED_SUM_FACTOR = 4e-4  # the factor of -zhat in the weighted-sum variant


def two_class_gumbel_mask(
    gamma: Tensor, shape, generator: torch.Generator, tau: float = 0.1
) -> Tensor:
    """Row 6: the green mask as a two-class Gumbel-softmax, two noise values per entry. (B,) -> (B, V)

    Same law as `method.relaxed_green_mask` (tested); 20 times its cost where drawn on the CPU.
    """
    u = torch.rand((*shape, 2), generator=generator).clamp_(1e-7, 1 - 1e-7).to(gamma.device)
    gumbel = -torch.log(-torch.log(u))
    logits = torch.stack([torch.log(1 - gamma), torch.log(gamma)], dim=-1)[:, None]
    return torch.softmax((logits + gumbel) / tau, dim=-1)[..., 1]


def prefix_decode(
    model, prompt, steps, sim_embedding, generators=None, mask_of=None, mix=0.5
) -> SoftText:
    """Row 7: soft decoding that runs the whole prefix again for each token, with logits of every position.

    Equal to `method.soft_decode` up to rounding, since the language model carries no gradient; work O(T^2).
    mask_of: (gamma, shape) -> relaxed green mask.
    """
    table = model.get_input_embeddings().weight
    E, mask = table[prompt["input_ids"]], prompt["attention_mask"]
    sentence, q, gammas, deltas = [], [], [], []
    for _ in range(steps):
        with torch.no_grad():
            logits = wide(
                model(inputs_embeds=E.detach(), attention_mask=mask, use_cache=False).logits[:, -1]
            )
        if generators is not None:
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
        sentence.append(a[:, : len(sim_embedding)] @ sim_embedding)
    stack = [torch.stack(x, dim=1) if x else None for x in (q, gammas, deltas)]
    return SoftText(torch.stack(sentence, dim=1), *stack)
