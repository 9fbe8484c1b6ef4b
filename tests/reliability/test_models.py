"""A model that cannot be what a paper needs is refused on its command line, before training."""

from __future__ import annotations

import importlib
import shutil
import signal
import sys
from pathlib import Path

import pytest
from reliable import ROOT

from shared import glue, protocol, runs

# the least of each paper that reads a model given by the user
ENCODERS = {
    "autolora": "--scale gpu --arm uniform_2 --task rte --steps 1 --batch 4 --max-length 24",
    "weight_mixup": "--scale paper --arm plain --task rte --n 8 --batch 4 --max-length 24",
    "tapweight": "--scale gpu --arm base --task rte --base-steps 1 --max-length 24",
    "ppo_nlu": "--scale paper --arm bert_base --task rte --max-prompt 24 --batch 4",
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    """data/: a few rows of GLUE; bert/, gpt2/: tiny random models with one tokenizer."""
    import transformers as hf
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    root = tmp_path_factory.mktemp("inputs")
    for task in ("rte", "cola"):
        glue.write_sample(root / "data", task, 24, runs.stream(0, "rows", task))
    texts = [path.read_text("utf-8") for path in (root / "data").rglob("*.tsv")]
    plain = Tokenizer(models.BPE())
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<pad>", "</s>", "<s>", "<mask>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    plain.train_from_iterator(
        texts, trainers.BpeTrainer(special_tokens=special, initial_alphabet=alphabet)
    )
    names = dict(zip(("pad_token", "eos_token", "cls_token", "mask_token"), special))
    words = hf.PreTrainedTokenizerFast(tokenizer_object=plain, **names)
    n = len(words)
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    small |= {"intermediate_size": 16, "max_position_embeddings": 24}
    gpt2 = hf.GPT2Config(vocab_size=n, n_embd=16, n_layer=2, n_head=2, n_positions=24)
    for model in (
        hf.BertForPreTraining(hf.BertConfig(vocab_size=n, **small)),
        hf.GPT2LMHeadModel(gpt2),
    ):
        folder = root / model.config.model_type
        model.save_pretrained(folder)
        words.save_pretrained(folder)
    return root


@pytest.fixture
def refusal(inputs, tmp_path, monkeypatch, capsys):
    """refusal(paper, words) -> what the command says as it ends with status 2."""
    monkeypatch.setenv("REPRO_DATA", str(inputs / "data"))
    monkeypatch.setattr(signal, "signal", lambda *words: None)
    monkeypatch.setattr(runs, "_with_used", lambda paper, scale, node, config, run: config)

    def run(paper: str, words: str, *more: str) -> str:
        train = importlib.import_module(f"{paper}.train")
        place = ["--device", "cpu", "--out", str(tmp_path / "out")]
        monkeypatch.setattr(sys, "argv", ["train", *words.split(), *more, *place])
        with pytest.raises(SystemExit) as error:
            runs.command_line(train.Config, train.run, train.__doc__, train.__file__)
        said = capsys.readouterr().err
        assert error.value.code == 2 and "error: " in said, said
        assert not (tmp_path / "out" / "record.json").exists()
        return said

    return run


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"space": "other"}', b"\xe9"])
def test_an_export_of_a_cell_that_is_damaged(text, tmp_path):
    from dasgm import networks

    content = text if isinstance(text, bytes) else text.encode()
    (tmp_path / "genotype.json").write_bytes(content)
    with pytest.raises(runs.BadInput, match="is no whole export"):
        networks.load(tmp_path)


def spoiled(inputs: Path, kind: str, folder: Path, name: str) -> str:
    """A copy of a tiny model without the file `name`."""
    (shutil.copytree(inputs / kind, folder) / name).unlink()
    return str(folder)


@pytest.mark.parametrize("paper", ENCODERS)
def test_an_encoder_without_tokenizer(paper, refusal, inputs, tmp_path):
    model = spoiled(inputs, "bert", tmp_path / "model", "tokenizer.json")
    assert "has no tokenizer" in refusal(paper, ENCODERS[paper], "--model", model)


@pytest.mark.parametrize("paper", ENCODERS)
def test_a_language_model_is_no_encoder(paper, refusal, inputs):
    said = refusal(paper, ENCODERS[paper], "--model", str(inputs / "gpt2"))
    assert "is a gpt2: an encoder is needed here (bert, roberta" in said


@pytest.mark.parametrize("paper", ["autolora", "weight_mixup", "tapweight"])
def test_texts_longer_than_the_positions(paper, refusal, inputs):
    words = ENCODERS[paper].replace("--max-length 24", "--max-length 60")
    said = refusal(paper, words, "--model", str(inputs / "bert"))
    assert "= 60: the model is a bert of 24 positions; give at most 24" in said


def test_a_language_model_without_tokenizer(refusal, inputs, tmp_path):
    model = spoiled(inputs, "gpt2", tmp_path / "model", "tokenizer.json")
    words = "--scale paper --arm base --task c4 --corpus sample"
    assert "has no tokenizer" in refusal("ts_watermark", words, "--model", model)


@pytest.mark.parametrize(
    ("kind", "file", "message"),
    [
        ("gpt2", "tokenizer.json", "has no tokenizer"),
        ("gpt2", "model.safetensors", "has no weights"),
        ("bert", "README.md", "is a bert: a causal language model is needed here"),
    ],
)
def test_what_a_policy_cannot_be_made_of(kind, file, message, inputs, tmp_path):
    """In ppo_nlu, whose runs that read a language model use others."""
    from ppo_nlu import config, models

    (inputs / kind / "README.md").touch()
    paper = protocol.Protocol(ROOT / "ppo_nlu")
    settings = paper.config("paper", paper.node("paper", "zero_shot", "rte", 0))
    name = spoiled(inputs, kind, tmp_path / "model", file)
    with pytest.raises(runs.BadInput, match=message):
        models.base_model(config.Config(**settings | {"model": name}))
