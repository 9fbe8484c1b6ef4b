"""Inputs of a rehearsal: made-up rows in each source's own layout, and tiny random models.

The models carry the real ones' names and the same loaders read all of it: a rehearsal goes wherever
the paper's protocol goes, in seconds."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
from pathlib import Path
from typing import Any

import torch

from autolora import corpora
from shared import glue, runs, sources

ITEMS = 24  # rows of every part
ENCODERS = ("FacebookAI/roberta-base", "FacebookAI/roberta-large")
DECODER = "openai-community/gpt2-medium"


def inputs() -> contextlib.AbstractContextManager[None]:
    """Inside the block REPRO_DATA and REPRO_MODELS are the made-up folders."""
    root = folder()
    return sources.pointed_at(REPRO_DATA=root / "data", REPRO_MODELS=root / "models")


def folder() -> Path:
    """The made-up inputs below .cache/, written once; other code that writes them, other folder."""
    writers = (Path(str(corpora.__file__)), Path(str(glue.__file__)), Path(__file__))
    code = hashlib.sha256(b"".join(path.read_bytes() for path in writers)).hexdigest()
    root = runs.cache_root() / f"autolora-rehearsal-{code[:16]}"
    root.mkdir(parents=True, exist_ok=True)
    with open(root / ".lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (root / "complete").exists():
            texts = write_data(root / "data")
            write_models(root / "models", texts)
            (root / "complete").touch()
    return root


def write_data(root: Path) -> list[str]:
    """Every task's files; returns their text, for the tokenizers."""
    for task in glue.GLUE:
        glue.write_sample(root, task, ITEMS, runs.stream(0, "rehearsal", task))
    for task in (*corpora.TAGGING, "e2e", "webnlg"):
        files = corpora.sample_files(task, ITEMS, runs.stream(0, "rehearsal", task))
        for name, content in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(content, encoding="utf-8")
    return [path.read_text("utf-8") for path in sorted(root.rglob("*")) if path.is_file()]


def write_models(root: Path, texts: list[str]) -> None:
    """A RoBERTa and a GPT-2 of two layers and width 32, with byte-level tokenizers of the rows."""
    from transformers import GPT2Config, GPT2LMHeadModel, RobertaConfig, RobertaForMaskedLM

    encoder, decoder = tokenizer(texts, roberta=True), tokenizer(texts, roberta=False)
    roberta = RobertaConfig(
        vocab_size=len(encoder),
        max_position_embeddings=130,
        type_vocab_size=1,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
    )
    end = decoder.eos_token_id
    gpt2 = GPT2Config(
        vocab_size=len(decoder),
        n_positions=128,
        n_embd=32,
        n_layer=2,
        n_head=2,
        bos_token_id=end,
        eos_token_id=end,
    )
    runs.seed_global(0, "rehearsal models")
    models: list[Any] = [(name, RobertaForMaskedLM(roberta), encoder) for name in ENCODERS]
    for name, model, words in (*models, (DECODER, GPT2LMHeadModel(gpt2), decoder)):
        model.to(torch.float32).save_pretrained(root / name)
        words.save_pretrained(root / name)


def tokenizer(texts: list[str], roberta: bool) -> Any:
    """A byte-level BPE tokenizer of at most 500 pieces, in the class that the model goes with."""
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"] if roberta else ["<|endoftext|>"]
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=special, initial_alphabet=alphabet)
    words.train_from_iterator(texts, trainer)
    if roberta:
        ends = ("</s>", 2), ("<s>", 0)
        words.post_processor = processors.RobertaProcessing(*ends, add_prefix_space=False)
    name = "RobertaTokenizerFast" if roberta else "GPT2TokenizerFast"
    return getattr(transformers, name)(tokenizer_object=words)
