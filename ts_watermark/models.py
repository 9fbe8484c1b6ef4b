"""The frozen models of a run, and what they are asked: to write, to embed, to judge.

A language model, a sentence encoder that shares its token ids, a judge of fluency. At `cpu` and
`gpu` the language model is trained here (stage `base`) on the encoder's own word pieces, because
soft tokens must mean something to both (the official pair, OPT and RoBERTa, shares its ids). For
any other model MiniLM reads each token as the mean of its own pieces of that token's text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedModel

from shared import bundled, pretrained, runs, smollm2
from ts_watermark import method
from ts_watermark.config import Config
from ts_watermark.data import Codec, load_codec

DECODER = pretrained.Kind("a causal language model", (), "facebook/opt-1.3b")
ENCODER = pretrained.Kind(
    "a sentence encoder", pretrained.BERT_LIKE, "princeton-nlp/sup-simcse-roberta-base"
)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

Rows = Sequence[Sequence[int]]


@dataclass
class Base(method.Frozen):
    """codec: the language model's vocabulary. encoder_codec: the encoder's, read instead of `sim`
    where ids are not shared (LLaMA). judge: measures perplexity, None for no measurement."""

    codec: Codec
    encoder_codec: Codec
    shared_ids: bool
    judge: PreTrainedModel | None


# --- loading --------------------------------------------------------------------------------------


def frozen(
    model: PreTrainedModel, device: torch.device, dtype: torch.dtype = torch.float32
) -> PreTrainedModel:
    return model.to(device=device, dtype=dtype).eval().requires_grad_(False)  # type: ignore[call-arg]


def minilm_encoder(keep: Tensor | None) -> tuple[PreTrainedModel, Codec, Tensor]:
    """MiniLM with mean pooling, its codec, and its word embeddings for the kept ids."""
    encoder, tokenizer = bundled.minilm()
    sim = encoder.get_input_embeddings().weight.detach()
    return encoder, Codec(tokenizer), sim if keep is None else sim[keep]


@torch.no_grad()
def mean_pieces(codec: Codec, encoder_codec: Codec, words: Tensor) -> Tensor:
    """Embedding of each token of another vocabulary: the mean of those of the encoder's pieces of
    its text; 0 where there are none. words: (V_enc, d_sim) -> (V, d_sim)."""
    rows = encoder_codec.encode_all([codec.decode([i]) for i in range(len(codec))])
    lengths = torch.tensor([len(row) for row in rows])
    owner = torch.repeat_interleave(torch.arange(len(rows)), lengths)
    pieces = torch.tensor([piece for row in rows for piece in row], dtype=torch.long)
    sums = torch.zeros(len(rows), words.shape[1]).index_add_(0, owner, words[pieces])
    return sums / lengths.clamp(min=1)[:, None]


def named(name: str, stand_ins: Path) -> str | Path:
    """What `shared.pretrained` finds a model by: `tiny:<name>` is a rehearsal's stand-in, `smollm2`
    the packaged SmolLM2-135M-Instruct."""
    if name == "smollm2":
        return smollm2.smollm2()
    return stand_ins / name.removeprefix("tiny:") if name.startswith("tiny:") else name


def load(config: Config, device: torch.device) -> Base:
    """The models of a run; those of stage `base` are in the run that it uses."""
    from transformers import AutoModel, AutoModelForCausalLM

    folder = Path(config.uses["base"])
    evaluated = config.max_prompt + config.new_tokens
    longest = max(evaluated, config.train_max_prompt + config.train_tokens)

    def causal(where: Path | str) -> PreTrainedModel:
        model = pretrained.load_model(where, AutoModelForCausalLM, DECODER)
        pretrained.check_length(model, longest, "prompt and new tokens")
        return frozen(model, device, DTYPES[config.precision])

    small = config.model == "small"
    where = folder / "model" if small else named(config.model, folder)
    model = causal(where)
    codec = load_codec(folder / "tokenizer" if small else where, model.config.vocab_size)
    if config.encoder == "minilm":
        encoder, encoder_codec, sim = minilm_encoder(codec.keep)
        if not small and (config.shared_ids or config.job == "generators"):  # else text is read
            sim = mean_pieces(codec, encoder_codec, sim)
    else:
        name = named(config.encoder, folder)
        encoder = pretrained.load_model(name, AutoModel, ENCODER)
        sim = encoder.get_input_embeddings().weight.detach()
        encoder_codec = load_codec(name, len(sim))
    if config.shared_ids:
        embedded = method.CONTEXT + max(config.new_tokens, config.train_tokens)
        pretrained.check_length(encoder, embedded, "new_tokens (train_tokens) + 5")
    judge: PreTrainedModel | None = None
    if config.judge:
        judge = model if config.judge == "self" else causal(named(config.judge, folder))
    pooling = "mean" if config.encoder == "minilm" else "pooler"
    sim = sim.to(device=device, dtype=torch.float32)
    return Base(
        model, frozen(encoder, device), sim, pooling, codec, encoder_codec, config.shared_ids, judge
    )


# --- writing, embedding, judging ------------------------------------------------------------------


def left_padded(rows: Rows, device: torch.device | str) -> dict[str, Tensor]:
    """input_ids and attention_mask (B, longest) of ragged rows, padded on the left with id 0."""
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(r)) + list(r) for r in rows], device=device)
    mask = torch.tensor([[0] * (width - len(r)) + [1] * len(r) for r in rows], device=device)
    return {"input_ids": ids, "attention_mask": mask}


@torch.no_grad()
def generate(
    config: Config, base: Base, prompts: Rows, batch: int, processor: LogitsProcessor | None
) -> Tensor:
    """Exactly T new tokens after each prompt of batch number `batch`: (B, T).

    The sampler is seeded anew for each batch, alike for all arms: two arms draw the same token as
    long as their texts and logits agree."""
    fed = left_padded(prompts, base.model.device)
    runs.seed_global(config.seed, "sampling", batch)
    sampled = {"do_sample": True, "top_k": config.top_k, "temperature": 1.0}
    how: dict[str, Any] = {"do_sample": False} if config.greedy else sampled
    if base.model.config.eos_token_id is not None:
        how["min_new_tokens"] = config.new_tokens
    out = base.model.generate(  # type: ignore[operator]
        **fed,
        **how,
        max_new_tokens=config.new_tokens,
        pad_token_id=0,
        logits_processor=[processor] if processor else None,
    )
    return out[:, fed["input_ids"].shape[1] :].cpu()


@torch.no_grad()
def encoded(base: Base, prompts: Rows, texts: Rows | Tensor, batch: int = 50) -> Tensor:
    """Sentence embeddings (n, d_out) of the last 5 prompt tokens + text. texts: n rows of ids."""
    tails = [list(p[-method.CONTEXT :]) for p in prompts]
    rows = [tail + list(map(int, text)) for tail, text in zip(tails, texts)]
    device = base.sim.device

    def embed(ids: Tensor) -> Tensor:
        return method.sentence_embedding(base.encoder, base.sim[ids], base.pooling)

    if not base.shared_ids:  # another tokenizer: the encoder reads the decoded text
        most = (pretrained.positions(base.encoder) or 512) - 2
        rows = [r[:most] for r in base.encoder_codec.encode_all(base.codec.decode_all(rows))]
        return torch.cat([embed(torch.tensor([row], device=device)) for row in rows])
    ids = torch.tensor(rows, device=device).clamp(max=len(base.sim) - 1)
    return torch.cat([embed(part) for part in ids.split(batch)])


@torch.no_grad()
def judged(base: Base, prompts: Rows, texts: Tensor, batch: int = 20) -> np.ndarray:
    """Mean negative log-likelihood (nats) of each text (n, T) after its prompt: (n,).

    The first new token is left out. 0 without a judge."""
    if base.judge is None:
        return np.zeros(len(texts))
    values, T = [], texts.shape[1]
    for start in range(0, len(texts), batch):
        part = texts[start : start + batch]
        rows = [list(p) + t.tolist() for p, t in zip(prompts[start : start + batch], part)]
        fed = left_padded(rows, base.judge.device)
        logits = base.judge(**fed, logits_to_keep=T).logits[:, :-1].float()  # predict tokens 2..T
        following = fed["input_ids"][:, 1 - T :]
        flat = logits.flatten(0, 1), following.flatten()  # CUDA has no ordered kernel for (n, V, T)
        losses = torch.nn.functional.cross_entropy(*flat, reduction="none")
        values.append(losses.view_as(following).mean(1).cpu())
    return torch.cat(values).double().numpy()
