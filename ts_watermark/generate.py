"""Prompts in, texts out: batched generation, sentence embeddings and perplexity, the same for every arm.

`config` is a `train.Config`.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from shared import runs
from ts_watermark import data, method, models


def passages_of(config, part: str) -> data.Passages:
    return data.Passages(
        **json.loads((Path(config.uses["base"]) / "passages.json").read_text())[part]
    )


def hash_key(config) -> int:
    return config.key + 2 * config.seed if config.key_per_seed else config.key


def left_padded(rows: list[list[int]], device) -> dict[str, torch.Tensor]:
    """input_ids and attention_mask (B, longest) of ragged prompts, padded on the left with id 0."""
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(r)) + list(r) for r in rows], device=device)
    mask = torch.tensor([[0] * (width - len(r)) + [1] * len(r) for r in rows], device=device)
    return {"input_ids": ids, "attention_mask": mask}


@torch.no_grad()
def generate(config, base: models.Base, prompts, processor) -> torch.Tensor:
    """Exactly T new tokens after each prompt, (n, T). The sampler is seeded anew for each batch, alike for all arms:
    two arms draw the same token as long as their texts and logits agree."""
    texts = []
    how = (
        {"do_sample": False}
        if config.greedy
        else {"do_sample": True, "top_k": config.top_k, "temperature": 1.0}
    )
    for start in range(0, len(prompts), config.eval_batch):
        batch = left_padded(prompts[start : start + config.eval_batch], base.model.device)
        runs.seed_global(config.seed, "sampling", start // config.eval_batch)
        out = base.model.generate(**batch, **how, max_new_tokens=config.new_tokens, pad_token_id=0,
                                  min_new_tokens=config.new_tokens if base.model.config.eos_token_id is not None else None,
                                  logits_processor=[processor] if processor else None)  # fmt: skip
        texts.append(out[:, batch["input_ids"].shape[1] :].cpu())
    return torch.cat(texts)


@torch.no_grad()
def encoded(config, base: models.Base, prompts, texts, batch: int = 50) -> torch.Tensor:
    """Sentence embeddings (n, d_out) of the last 5 prompt tokens + text. texts: (n, T) ids."""
    rows = [list(p[-config.context_tokens :]) + list(map(int, t)) for p, t in zip(prompts, texts)]
    if not base.shared_ids:  # another tokenizer: the encoder reads the decoded text
        rows = [r[:510] for r in base.encoder_codec.encode_all(base.codec.decode_all(rows))]
        return torch.cat([method.sentence_embedding(base.encoder, base.sim[torch.tensor([r], device=base.sim.device)],
                                                    base.pooling) for r in rows])  # fmt: skip
    ids = torch.tensor(rows, device=base.sim.device).clamp(max=len(base.sim) - 1)
    return torch.cat(
        [
            method.sentence_embedding(base.encoder, base.sim[part], base.pooling)
            for part in ids.split(batch)
        ]
    )


@torch.no_grad()
def judged(config, base, prompts, texts, batch: int = 20) -> np.ndarray:
    """Mean negative log-likelihood (nats) of each text after its prompt, first new token left out; 0 without a judge."""
    if base.judge is None:
        return np.zeros(len(texts))
    values = []
    for start in range(0, len(texts), batch):
        rows = [
            p + t.tolist()
            for p, t in zip(prompts[start : start + batch], texts[start : start + batch])
        ]
        fed = left_padded(rows, base.judge.device)
        T = texts.shape[1]
        logits = base.judge(**fed, logits_to_keep=T).logits[:, :-1].float()  # predict tokens 2..T
        values.append(torch.nn.functional.cross_entropy(logits.transpose(1, 2), fed["input_ids"][:, 1 - T :],
                                                        reduction="none").mean(1).cpu())  # fmt: skip
    return torch.cat(values).double().numpy()
