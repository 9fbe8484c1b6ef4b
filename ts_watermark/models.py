"""The frozen models of a run: a language model, a sentence encoder that shares its token ids, a judge of fluency.

At `cpu` and `gpu` the language model is trained here (stage `base`) on the encoder's own word pieces, because the
soft tokens of training must mean something to both (the official pair, OPT and RoBERTa, shares its ids).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from shared import bundled, runs, sources
from ts_watermark.data import Codec, load_codec

UNIGRAM_SHARE = (
    0.6  # a language model above 60 % of the unigram perplexity has learned too little to go on
)


@dataclass
class Base:
    """model, codec: the language model and its vocabulary. encoder: sentence encoder, its word embeddings `sim`
    (V_sim, d_sim), pooling and own codec (where it does not share the ids: LLaMA). judge: perplexity."""

    model: torch.nn.Module
    codec: Codec
    encoder: torch.nn.Module
    sim: Tensor
    pooling: str
    encoder_codec: Codec
    shared_ids: bool
    judge: torch.nn.Module | None


def frozen(model, device, dtype=torch.float32):
    return model.to(device=device, dtype=dtype).eval().requires_grad_(False)


# ---- the small language model ------------------------------------------------------------------------------------


def small_language_model(
    vocab_size: int, d: int, layers: int, heads: int, context: int, embedding: Tensor
):
    """A randomly initialised OPT, its token embeddings set from the encoder's: (V, d_sim) projected to d.

    The projection is the leading d principal directions, at the usual scale, so that the generators, which read
    these embeddings, start with words of like meaning close together.
    """
    from transformers import OPTConfig, OPTForCausalLM

    config = OPTConfig(vocab_size=vocab_size, hidden_size=d, word_embed_proj_dim=d, num_hidden_layers=layers,
                       num_attention_heads=heads, ffn_dim=4 * d, max_position_embeddings=context, dropout=0.0,
                       attention_dropout=0.0, layerdrop=0.0, pad_token_id=0, bos_token_id=None,
                       eos_token_id=None)  # fmt: skip
    model = OPTForCausalLM(config)
    centred = embedding - embedding.mean(0)
    _, vectors = torch.linalg.eigh(centred.T @ centred)  # ascending
    projected = centred @ vectors[:, -d:]
    with torch.no_grad():
        model.get_input_embeddings().weight.copy_(projected / projected.std() * 0.05)
    return model


def stream_of(rows: list[list[int]], separator: int) -> Tensor:
    """Documents one after another, each ended by the separator: (N,) ids."""
    return torch.tensor([i for row in rows for i in [*row, separator]])


def language_model_loss(model, ids: Tensor) -> Tensor:
    """Mean next-token cross-entropy (nats) of blocks (B, L)."""
    logits = model(ids).logits[:, :-1]
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten())


@torch.no_grad()
def perplexity(model, stream: Tensor, length: int, blocks: int) -> float:
    """exp of the mean loss over `blocks` blocks of a token stream."""
    usable = stream[: len(stream) // length * length].view(-1, length)[:blocks]
    device = next(model.parameters()).device
    losses = [
        language_model_loss(model, part.to(device)).item() * len(part) for part in usable.split(16)
    ]
    return math.exp(sum(losses) / len(usable))


def unigram_perplexity(train: Tensor, test: Tensor, vocab_size: int) -> float:
    """Perplexity of add-one unigram frequencies: what a model that knows no context reaches."""
    counts = torch.bincount(train, minlength=vocab_size).double() + 1
    return math.exp(-(counts / counts.sum()).log()[test].mean().item())


def refuse_weak_model(ppl: float, unigram: float) -> None:
    if ppl > UNIGRAM_SHARE * unigram:
        raise runs.BadInput(f"the language model has perplexity {ppl:.0f} on validation text, above {UNIGRAM_SHARE:.0%} "
                            f"of the unigram model's {unigram:.0f}: its text means nothing; raise lm_steps")  # fmt: skip


# ---- loading -------------------------------------------------------------------------------------------------------


def minilm_encoder(keep: Tensor | None):
    """MiniLM with mean pooling, and its word embeddings for the kept ids."""
    encoder, tokenizer = bundled.minilm()
    sim = encoder.get_input_embeddings().weight.detach()
    return encoder, tokenizer, sim if keep is None else sim[keep]


def hub_folder(name: str, stand_ins: Path) -> str:
    """Folder of a model: a rehearsal's stand-in if the name begins with `tiny:`, else found or fetched."""
    return (
        str(stand_ins / name.removeprefix("tiny:"))
        if name.startswith("tiny:")
        else sources.find_model(name)[0]
    )


def load(config, folder: Path, device, encoder: bool = True) -> Base:
    """The models of a run; `folder` is the directory of its `base` stage."""
    from transformers import AutoModel, AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[config.precision]

    def causal(where):
        return frozen(
            AutoModelForCausalLM.from_pretrained(where, local_files_only=True), device, dtype
        )

    where = folder / "model" if config.model == "small" else hub_folder(config.model, folder)
    model = causal(where)
    codec = load_codec(folder / "tokenizer" if config.model == "small" else where)
    enc, sim, enc_codec = None, None, codec
    if encoder and config.encoder == "minilm":
        enc, tokenizer, sim = minilm_encoder(codec.keep)
        enc_codec = Codec(tokenizer)
    elif encoder:
        enc_folder = hub_folder(config.encoder, folder)
        enc = AutoModel.from_pretrained(enc_folder, local_files_only=True)
        sim, enc_codec = enc.get_input_embeddings().weight.detach(), load_codec(enc_folder)
    if enc is not None:
        enc, sim = frozen(enc, device), sim.to(device=device, dtype=torch.float32)
    judge = (
        None
        if not config.judge
        else model
        if config.judge == "self"
        else causal(hub_folder(config.judge, folder))
    )
    pooling = "mean" if config.encoder == "minilm" else "pooler"
    return Base(model, codec, enc, sim, pooling, enc_codec, config.shared_ids, judge)


# ---- stand-ins for a rehearsal -------------------------------------------------------------------------------------


def write_stand_ins(folder: Path, texts: list[str], seed: int) -> None:
    """Tiny random models of the paper's classes under `folder`: opt, opt-judge, llama, simcse, dipper.

    opt, opt-judge and simcse share one byte-level tokenizer trained on the texts (as OPT and RoBERTa share theirs);
    llama has its own, with a leading BOS.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import (
        LlamaConfig,
        LlamaForCausalLM,
        OPTConfig,
        OPTForCausalLM,
        PreTrainedTokenizerFast,
        RobertaConfig,
        RobertaModel,
        T5Config,
        T5ForConditionalGeneration,
    )
    from transformers.utils import logging

    def tokenizer(size: int, bos: bool):
        bpe = Tokenizer(models.BPE())
        bpe.pre_tokenizer, bpe.decoder = (
            pre_tokenizers.ByteLevel(add_prefix_space=False),
            decoders.ByteLevel(),
        )
        special = ["<s>", "<pad>", "</s>", "<unk>"]
        bpe.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=size, special_tokens=special,
                                initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))  # fmt: skip
        if bos:
            bpe.post_processor = processors.TemplateProcessing(
                single="<s> $A", special_tokens=[("<s>", 0)]
            )
        names = {
            "bos_token": "<s>",
            "pad_token": "<pad>",
            "eos_token": "</s>",
            "unk_token": "<unk>",
        }
        return PreTrainedTokenizerFast(tokenizer_object=bpe, **names)

    runs.seed_global(seed, "stand-ins")
    own, other = tokenizer(600, bos=False), tokenizer(560, bos=True)
    n, ids = len(own), {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    opt = dict(
        vocab_size=n + 7,
        ffn_dim=64,
        max_position_embeddings=256,
        word_embed_proj_dim=32,
        **small,
        **ids,
    )
    llama = LlamaConfig(
        vocab_size=len(other), intermediate_size=64, max_position_embeddings=256, **small, **ids
    )
    roberta = RobertaConfig(
        vocab_size=n, intermediate_size=64, max_position_embeddings=260, **small, **ids
    )
    t5 = T5Config(vocab_size=n, d_model=32, d_kv=16, d_ff=64, num_layers=1, num_heads=2, pad_token_id=1, eos_token_id=2,
                  decoder_start_token_id=1)  # fmt: skip
    for name, model, its in [("opt", OPTForCausalLM(OPTConfig(**opt)), own),
                             ("opt-judge", OPTForCausalLM(OPTConfig(**opt)), own),
                             ("llama", LlamaForCausalLM(llama), other), ("simcse", RobertaModel(roberta), own),
                             ("dipper", T5ForConditionalGeneration(t5), own)]:  # fmt: skip
        logging.disable_progress_bar()
        model.save_pretrained(folder / name)
        its.save_pretrained(folder / name)
