"""Invented texts and tiny random models of the paper's classes, for `--tiny` and rehearsals.

A student may skip this file.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast

from shared import runs
from ts_watermark import data
from ts_watermark.config import Config
from ts_watermark.method import Generators

SYLLABLES = ("ka", "lo", "mi", "ten", "ra", "vos", "du", "per", "sin", "ga", "bel", "or")
PAIRS = [a + b for a in SYLLABLES for b in SYLLABLES]
TRIPLES = [a + b + c for a in SYLLABLES[:5] for b in SYLLABLES for c in SYLLABLES[:4]]


def make(config: Config, folder: Path) -> Path:
    """Texts in C4's layout and the models under `folder`; returns the texts' root for `data.c4`."""
    n = 4 * (config.validation_prompts + config.test_prompts)
    root = sample(config.task, n, runs.stream(config.seed, "sample"), folder)
    models(folder, list(data.c4("train", root)), config.seed)
    return root


def sample(task: str, n: int, stream: torch.Generator, folder: Path, words: int = 40) -> Path:
    """Write n news texts for each part in C4's layout; `data.c4(part, root)` reads them back.

    The words are invented, with the frequencies of Zipf's law, so that tokenizers and models have
    something to fit. Returns the root.
    """
    lexicon, root = PAIRS + TRIPLES, folder / data.C4
    weight = 1.0 / torch.arange(1, len(lexicon) + 1)
    root.mkdir(parents=True, exist_ok=True)
    for part in ("train", "validation"):
        path = root / f"c4-{part}.00000-of-00001.json.gz"
        with gzip.open(path, "wt", encoding="utf-8") as file:
            for i in range(n):
                draw = torch.multinomial(weight, words, replacement=True, generator=stream)
                chosen = [lexicon[w] for w in draw.tolist()]
                sentences = [" ".join(chosen[k : k + 9]) for k in range(0, words, 9)]
                row = {
                    "text": ". ".join(s.capitalize() for s in sentences) + ".",
                    "timestamp": "2019-04-22T00:00:00Z",
                    "url": f"https://example.org/{task}/{i}",
                }
                file.write(json.dumps(row) + "\n")
    return root


def models(folder: Path, texts: list[str], seed: int) -> None:
    """Write opt, opt-judge, llama, simcse and dipper under `folder`.

    All but llama share one byte-level tokenizer trained on the texts (as OPT and RoBERTa share
    theirs); llama has its own, with a leading BOS.
    """
    import transformers as hf

    runs.seed_global(seed, "stand-ins")
    common, llamas = tokenizer(texts, 600, bos=False), tokenizer(texts, 560, bos=True)
    n, ids = len(common), {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
    small: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    reads = {"max_position_embeddings": 256, **small, **ids}
    opt: dict[str, Any] = {"vocab_size": n + 7, "ffn_dim": 64, "word_embed_proj_dim": 32, **reads}
    llama: dict[str, Any] = {"vocab_size": len(llamas), "intermediate_size": 64, **reads}
    roberta: dict[str, Any] = {
        "vocab_size": n,
        "intermediate_size": 64,
        **reads,
        "max_position_embeddings": 260,
    }
    t5: dict[str, Any] = {
        "vocab_size": n,
        "d_model": 32,
        "d_kv": 16,
        "d_ff": 64,
        "num_layers": 1,
        "num_heads": 2,
    }
    t5 |= {"pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    hf.utils.logging.disable_progress_bar()
    for name, words, model in [
        ("opt", common, hf.OPTForCausalLM(hf.OPTConfig(**opt))),
        ("opt-judge", common, hf.OPTForCausalLM(hf.OPTConfig(**opt))),
        ("llama", llamas, hf.LlamaForCausalLM(hf.LlamaConfig(**llama))),
        ("simcse", common, hf.RobertaModel(hf.RobertaConfig(**roberta))),
        ("dipper", common, hf.T5ForConditionalGeneration(hf.T5Config(**t5))),
    ]:
        model.save_pretrained(folder / name)
        words.save_pretrained(folder / name)
    checkpoint(folder / "checkpoints" / "init_0.25_1.75_default.pth", small["hidden_size"])


def checkpoint(path: Path, d: int) -> None:
    """Untrained networks in the layout of the published ones."""
    state = Generators(d, (8,)).state_dict()
    halves = {
        f"{name}_state_dict": {k: v for k, v in state.items() if k.startswith(name)}
        for name in ("gamma", "delta")
    }
    path.parent.mkdir(exist_ok=True)
    torch.save(halves, path)


def tokenizer(texts: list[str], size: int, bos: bool) -> PreTrainedTokenizerFast:
    """Byte-level pieces fitted to the texts."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    if bos:
        special = [("<s>", 0)]
        bpe.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=special)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token="<s>",
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
    )
