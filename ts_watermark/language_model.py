"""The small language model of scales `cpu` and `gpu`: an OPT trained in the run, then frozen.

It reads the sentence encoder's own word pieces (docs/papers/ts_watermark.md, section 9). Stage
`base`; a student of the method may skip this file.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from shared import processes, runs
from shared.protocol import BadInput
from shared.runs import Run
from ts_watermark import models
from ts_watermark.config import Config
from ts_watermark.data import Codec, Passages

UNIGRAM_SHARE = 0.6  # above 60 % of the unigram perplexity too little was learned to go on
LOG_EVERY = 20  # steps between two lines of metrics.jsonl


def train(
    config: Config,
    run: Run,
    device: torch.device,
    codec: Codec,
    texts: list[str],
    validation: Passages,
) -> PreTrainedModel:
    """A small OPT; BadInput if it is hardly better than the unigram model on validation texts."""
    separator = codec.encode_all(["[SEP]"])[0][0]
    stream = stream_of(codec.encode_all(texts), separator)
    whole = [p + h for p, h in zip(validation.prompts, validation.human)]
    unseen = stream_of(whole, separator)
    _, _, embedding = models.minilm_encoder(codec.keep)
    runs.seed_global(config.seed, "language model")
    model = small_language_model(config, len(codec), embedding)
    model.to(device)  # type: ignore[arg-type]
    settings: dict[str, Any] = {"lr": config.lm_lr, "weight_decay": 0.01, "betas": (0.9, 0.98)}
    optimizer = torch.optim.AdamW(model.parameters(), **settings, fused=True)
    warm, places = max(1, config.lm_steps // 20), len(stream) - config.lm_length
    work = runs.Parts(model=model, optimizer=optimizer)
    for step in run.phase("language model", config.lm_steps, work):
        factor = min(1.0, (step + 1) / warm) * (1 - 0.95 * step / config.lm_steps)
        optimizer.param_groups[0]["lr"] = config.lm_lr * factor
        draws = runs.stream(config.seed, "blocks", step)
        begins = processes.shard(torch.randint(places, (config.lm_batch,), generator=draws))
        blocks = stream[begins[:, None] + torch.arange(config.lm_length)].to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            loss = language_model_loss(model, blocks)
        run.finite(loss, level="language model", step=step, batch=begins)
        optimizer.zero_grad()
        loss.backward()
        processes.mean_gradients(model.parameters())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % LOG_EVERY == 0:
            run.log(step=step, lm_loss=loss.item())
    ppl = perplexity(model.eval(), unseen, config.lm_length, 64)
    unigram = unigram_perplexity(stream, unseen, len(codec))
    size = f"{len(stream):,} tokens of text"
    run.say(f"language model: validation perplexity {ppl:.1f}, unigram {unigram:.1f}, {size}")
    run.log(lm_perplexity=ppl, unigram_perplexity=unigram)
    refuse_weak_model(ppl, unigram)
    return model


def small_language_model(config: Config, vocab_size: int, embedding: Tensor) -> PreTrainedModel:
    """A random OPT, but for its token embeddings, which are the encoder's: (V, d_sim) -> (V, d).

    They are projected on their leading d principal directions (or all, beside columns of zeros,
    where d is larger), at the usual scale, so that the generators, which read them, start with
    words of like meaning close together.
    """
    from transformers import OPTConfig, OPTForCausalLM

    d = config.lm_d
    model = OPTForCausalLM(
        OPTConfig(
            vocab_size=vocab_size,
            hidden_size=d,
            word_embed_proj_dim=d,
            num_hidden_layers=config.lm_layers,
            num_attention_heads=config.lm_heads,
            ffn_dim=4 * d,
            max_position_embeddings=config.lm_context,
            dropout=0.0,
            attention_dropout=0.0,
            layerdrop=0.0,
            pad_token_id=0,
            bos_token_id=None,
            eos_token_id=None,
        )
    )
    centred = embedding - embedding.mean(0)
    _, vectors = torch.linalg.eigh(centred.T @ centred)  # ascending
    projected = centred @ vectors[:, -d:]
    start = torch.zeros(vocab_size, d)
    start[:, : projected.shape[1]] = projected / projected.std() * 0.05
    with torch.no_grad():
        model.get_input_embeddings().weight.copy_(start)
    return model


def stream_of(rows: list[list[int]], separator: int) -> Tensor:
    """Documents one after another, each ended by the separator: (N,) ids."""
    return torch.tensor([i for row in rows for i in [*row, separator]])


def language_model_loss(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """Mean next-token cross-entropy (nats) of blocks (B, L)."""
    places = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)  # OPT would count them
    logits = model(ids, position_ids=places).logits[:, :-1]
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten())


@torch.no_grad()
def perplexity(model: PreTrainedModel, stream: Tensor, length: int, blocks: int) -> float:
    """exp of the mean loss over the first `blocks` blocks of a token stream (N,)."""
    usable = stream[: len(stream) // length * length].view(-1, length)[:blocks]
    parts = [part.to(model.device) for part in usable.split(16)]
    total = sum(language_model_loss(model, part).item() * len(part) for part in parts)
    return math.exp(total / len(usable))


def unigram_perplexity(train: Tensor, test: Tensor, vocab_size: int) -> float:
    """Perplexity of add-one unigram frequencies: what a model that knows no context reaches."""
    counts = torch.bincount(train, minlength=vocab_size).double() + 1
    return math.exp(-(counts / counts.sum()).log()[test].mean().item())


def refuse_weak_model(ppl: float, unigram: float) -> None:
    if ppl > UNIGRAM_SHARE * unigram:
        limit = f"{UNIGRAM_SHARE:.0%} of the unigram model's {unigram:.0f}"
        what = f"the language model has perplexity {ppl:.0f} on validation text, above {limit}"
        raise BadInput(f"{what}: its text means nothing; raise lm_steps")
