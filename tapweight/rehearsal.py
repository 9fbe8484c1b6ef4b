"""Inputs of a rehearsal: made-up rows in each source's own layout, tiny random models under the
real models' names.

The same loaders then read them, so that a rehearsal goes wherever the paper's protocol goes, in
seconds. Molecules are the twenty of `TEXTBOOK`, drawn by RDKit where it is installed. Where it is
not, made-up drawings stand in, and the log says so."""

from __future__ import annotations

import contextlib
import csv
import fcntl
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from shared import glue, runs, sources
from tapweight import data, molecules

ITEMS = 24  # rows of every part
MODELS = ("FacebookAI/roberta-base", "microsoft/deberta-v3-large")
TEXTBOOK = (
    "CCO", "CC(=O)O", "c1ccccc1", "CC(=O)Oc1ccccc1C(=O)O", "Cn1cnc2c1c(=O)n(C)c(=O)n2C",
    "CC(C)Cc1ccc(cc1)C(C)C(=O)O", "CC(=O)Nc1ccc(O)cc1", "OCC1OC(O)C(O)C(O)C1O", "NCC(=O)O",
    "C1CCCCC1", "c1ccc2ccccc2c1", "c1ccncc1", "O=C(O)c1ccccc1", "CCN(CC)CC", "CC(C)=O",
    "ClC(Cl)Cl", "c1ccc(cc1)-c1ccccc1", "Nc1ccccc1", "C1CCOC1", "CN1CCCC1c1cccnc1",
)  # fmt: skip


def inputs(scale: str) -> contextlib.AbstractContextManager[None]:
    """At scale `rehearsal`, REPRO_DATA and REPRO_MODELS are made-up folders inside the block."""
    if scale != "rehearsal":
        return contextlib.nullcontext()
    root = folder()
    return sources.pointed_at(REPRO_DATA=root / "data", REPRO_MODELS=root / "models")


def folder() -> Path:
    """The made-up inputs below .cache/, written once by each version of this code."""
    files = [data.__file__, glue.__file__, molecules.__file__, __file__]
    code = b"".join(Path(str(file)).read_bytes() for file in files)
    root = runs.cache_root() / f"tapweight-rehearsal-{hashlib.sha256(code).hexdigest()[:16]}"
    root.mkdir(parents=True, exist_ok=True)
    with open(root / ".lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (root / "complete").exists():
            write_data(root / "data")
            write_models(root / "models", sorted((root / "data").rglob("*.*")))
            (root / "complete").touch()
    return root


def write_data(root: Path) -> None:
    for task in data.GLUE:
        glue.write_sample(root, task, ITEMS, runs.stream(0, "rehearsal", task))
    for task in data.TAP:
        data.sample(root, task, ITEMS, runs.stream(0, "rehearsal", task))
    (root / "molecules").mkdir(parents=True, exist_ok=True)
    for name, spec in molecules.SETS.items():
        labels = spec.labels or tuple(f"effect {k}" for k in range(3))
        g = runs.stream(0, "rehearsal", name)
        with open(root / "molecules" / spec.file, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow([spec.smiles, *labels])
            for row, smiles in enumerate([*TEXTBOOK, "no molecule"]):
                if spec.kind == "regression":
                    values: list[Any] = torch.randn(len(labels), generator=g).tolist()
                else:
                    values = [(row + k) % 2 for k in range(len(labels))]
                writer.writerow([smiles, *values])


def write_models(root: Path, files: list[Path]) -> None:
    """A RoBERTa and a DeBERTa-v2 (DeBERTa-v3's class), two layers of width 32, and a tokenizer."""
    from transformers import DebertaV2Config, DebertaV2Model, RobertaConfig, RobertaModel

    tokenizer = words([path.read_text("utf-8") for path in files if path.is_file()])
    size: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    size |= {"vocab_size": len(tokenizer), "intermediate_size": 64, "pad_token_id": 1}
    size |= {"max_position_embeddings": 130}
    relative: dict[str, Any] = {"relative_attention": True, "position_biased_input": False}
    relative |= {"position_buckets": 8, "pos_att_type": ["p2c", "c2p"], "share_att_key": True}
    relative |= {"type_vocab_size": 0, "norm_rel_ebd": "layer_norm"}
    runs.seed_global(0, "rehearsal models")
    models: list[torch.nn.Module] = [RobertaModel(RobertaConfig(**size))]
    models.append(DebertaV2Model(DebertaV2Config(**size, **relative)))
    for name, model in zip(MODELS, models):
        model.to(torch.float32).save_pretrained(root / name)  # type: ignore[operator]
        tokenizer.save_pretrained(root / name)


def words(texts: list[str]) -> Any:
    """A byte-level tokenizer of these texts with RoBERTa's special tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet)
    core.train_from_iterator(texts, trainer)
    ends = ("</s>", 2), ("<s>", 0)
    core.post_processor = processors.RobertaProcessing(*ends, add_prefix_space=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<s>",
        eos_token="</s>",
        cls_token="<s>",
        sep_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        mask_token="<mask>",
        model_input_names=["input_ids", "attention_mask"],
    )


# ------------------------------------------------------------------------------------- molecules


def chemistry(scale: str, say: Callable[[str], None]) -> molecules.Chemistry:
    """RDKit; at scale rehearsal, and only there, the made-up stand-in where RDKit is missing."""
    try:
        return molecules.rdkit()
    except sources.MissingInput:
        if scale != "rehearsal":
            raise
        remedy = f"({molecules.INSTALL} to rehearse those)"
        say(f"RDKit is not installed: made-up drawings stand in for its own {remedy}")
        return made_up()


def made_up() -> molecules.Chemistry:
    """Pictures, scaffolds and fingerprints that depend on the SMILES's characters alone, and mean
    nothing."""

    def noise(smiles: str) -> np.random.Generator:
        digest = hashlib.sha256(smiles.encode()).digest()
        return np.random.default_rng(int.from_bytes(digest[:8], "little"))

    def drawing(smiles: str, size: int) -> np.ndarray:
        return noise(smiles).integers(0, 256, (size, size, 3), dtype=np.uint8)

    return molecules.Chemistry(
        "made up",
        canonical=lambda smiles: smiles if " " not in smiles else None,
        scaffold=lambda smiles: hashlib.sha256(smiles.encode()).hexdigest()[:1],
        drawing=drawing,
        fingerprint=lambda smiles: noise(smiles).integers(0, 2, 167).astype(np.float32),
    )
