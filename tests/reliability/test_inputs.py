"""Inputs of a person's own: one that changed after a run is noticed, a broken one is refused.

Each method reads a small folder made here, through the command line of its README.
"""

from __future__ import annotations

import gzip
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from reliable import ROOT

from benchmarks import PAPERS
from shared import cifar, runs, scores

LATIN = "caf\u00e9".encode("latin-1")
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
WORDS = "The committee met on Monday and agreed that the bridge should be built by the river"


def sentence(i: int) -> str:
    words = WORDS.split(" ")
    return " ".join(words[(i * 7 + j * (1 + i % 3)) % len(words)] for j in range(9)) + f" {i}."


def rte(data: Path) -> None:
    folder = data / "glue" / "RTE"
    folder.mkdir(parents=True)
    for part, n in (("train", 60), ("dev", 20)):
        rows = ["index\tsentence1\tsentence2\tlabel"]
        for i in range(n):
            label = ("entailment", "not_entailment")[i % 2]
            rows.append(f"{i}\t{sentence(i)}\t{sentence(2 * i + len(part))}\t{label}")
        (folder / f"{part}.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")


def rte_and_model(data: Path) -> None:
    """A decoder of 60,000 numbers whose tokens are bytes, in `data`/made/small."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    rte(data)
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<pad>", "</s>"], initial_alphabet=alphabet
    )
    words.train_from_iterator([WORDS], trainer)
    tokens = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>")
    tokens.save_pretrained(data / "made" / "small")
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    config = LlamaConfig(
        vocab_size=len(tokens), num_attention_heads=2, num_key_value_heads=2, pad_token_id=0,
        bos_token_id=1, eos_token_id=1, max_position_embeddings=4096, **size,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(data / "made" / "small")


def photographs(data: Path) -> None:
    cifar.write_sample(data, "cifar10", 300, runs.stream(0))


def texts(data: Path) -> None:
    (data / "text").mkdir(parents=True)
    lines = [
        json.dumps({"source": f"s{i}", "text": " ".join(sentence(40 * i + j) for j in range(40))})
        for i in range(60)
    ]
    (data / "text" / "english.jsonl.gz").write_bytes(gzip.compress("\n".join(lines).encode()))


def label_of_row_3(content: bytes) -> bytes:
    lines = content.split(b"\n")
    lines[3] = lines[3].rsplit(b"\t", 1)[0] + b"\tmaybe"
    return b"\n".join(lines)


def byte_of_row_3(content: bytes) -> bytes:
    lines = content.split(b"\n")
    lines[3] = lines[3].replace(b"The", LATIN).replace(b"the", LATIN)
    return b"\n".join(lines)


def text_of_row_3(content: bytes) -> bytes:
    lines = gzip.decompress(content).split(b"\n")
    lines[2] = b'{"source": "s2"}'
    return gzip.compress(b"\n".join(lines))


Damage = Callable[[bytes], bytes]
EVERY: dict[str, Damage] = {"pointer": lambda content: POINTER, "empty": lambda content: b""}
IN_A_ROW: dict[str, Damage] = {"label in row 3": label_of_row_3, "byte in row 3": byte_of_row_3}
CUT: dict[str, Damage] = {"cut": lambda content: content[: len(content) // 2]}
NO_TEXT: dict[str, Damage] = {"text in row 3": text_of_row_3}


@dataclass(frozen=True)
class Case:
    """What a method is given, the file that is changed, and how it is broken."""

    write: Callable[[Path], None]
    words: str
    file: str
    damages: dict[str, Damage]


TABLE, IMAGES = "glue/RTE/train.tsv", "cifar10/train.parquet"
CASES = {
    "autolora": Case(rte, "--scale gpu --arm uniform_2 --task rte --max-length 32 --steps 2 "
                     "--batch 4", TABLE, EVERY | IN_A_ROW),
    "tapweight": Case(rte, "--scale gpu --arm base --task rte --max-length 32 --base-steps 2 "
                      "--base-batch 4", TABLE, EVERY | IN_A_ROW),
    "weight_mixup": Case(rte, "--scale gpu --arm plain --task rte_300 --n 16 --epochs 1 --batch 8 "
                         "--max-length 32", TABLE, EVERY | IN_A_ROW),
    "ppo_nlu": Case(rte_and_model, "--scale paper --arm qwen_zero_shot --task rte --test-limit 4 "
                    "--model made/small", TABLE, EVERY | IN_A_ROW),
    "ts_watermark": Case(texts, "--tiny --corpus english", "text/english.jsonl.gz",
                         EVERY | NO_TEXT),
    "mlo_mae": Case(photographs, "--tiny --data cifar10 --patch 8 --steps 20 --finetune-epochs 1",
                    IMAGES, EVERY | CUT),
    "dasgm": Case(photographs, "--tiny --arm darts --data cifar10 --gan residual --epochs 1 "
                  "--retrain-epochs 1", IMAGES, EVERY | CUT),
}  # fmt: skip


def train(paper: str, words: str, data: Path, out: Path) -> tuple[int, str]:
    env = {
        **{**os.environ, "REPRO_DATA": str(data), "REPRO_MODELS": str(data)},
        **{"REPRO_RUNS": str(out), "HF_HUB_OFFLINE": "1"},
        **{"REPRO_CACHE": str(out / "cache"), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
    }
    command = [sys.executable, "-m", f"{paper}.train", *words.split(), "--device", "cpu"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def changed(content: bytes) -> bytes:
    """Other bytes that say nearly the same: a row swapped, or the same packed otherwise."""
    if content[:2] == b"\x1f\x8b":
        lines = gzip.decompress(content).split(b"\n")
        return gzip.compress(b"\n".join([lines[1], lines[0], *lines[2:]]))
    lines = content.split(b"\n")
    return b"\n".join([lines[0], lines[2], lines[1], *lines[3:]])


def change(paper: str, data: Path) -> None:
    path = data / CASES[paper].file
    if path.suffix == ".parquet":
        path.unlink()
        cifar.write_sample(data, "cifar10", 300, runs.stream(1))
    else:
        path.write_bytes(changed(path.read_bytes()))


@pytest.mark.slow
@pytest.mark.parametrize("paper", PAPERS)
def test_a_file_that_changed_after_a_run_is_noticed(paper, tmp_path, record_property):
    case, data = CASES[paper], tmp_path / "data"
    case.write(data)
    status, said = train(paper, case.words, data, tmp_path / "runs")
    assert status == 0, said[-3000:]
    assert "finished before" in train(paper, case.words, data, tmp_path / "runs")[1]
    change(paper, data)
    status, said = train(paper, case.words, data, tmp_path / "runs")
    noticed = status == 0 and "data changed" in said and Path(case.file).name in said
    record_property("figure", f"{int(noticed)}/1")
    assert noticed, said[-3000:]


def test_a_run_of_one_cycle_has_its_gates(tmp_path):
    words = "--tiny --steps 2 --finetune-epochs 1"
    status, said = train("mlo_mae", words, tmp_path, tmp_path / "runs")
    assert status == 0 and "FAILED" not in said, said[-3000:]


@pytest.mark.parametrize("paper", PAPERS)
@pytest.mark.parametrize("content", [
    None, b"", b"text", {"label": np.array([{}], object)}, {"label": np.zeros(0)},
    {"label": np.zeros(2), "prediction": np.zeros(3)}, {"label": np.zeros(2)}, os.mkfifo,
])  # fmt: skip
def test_predictions_that_are_none_are_refused(paper, content, tmp_path, monkeypatch, capsys):
    path = tmp_path / "predictions.npz"
    if callable(content):
        content(path)
    elif isinstance(content, dict):
        np.savez(path, **content)
    elif content is not None:
        path.write_bytes(content)
    monkeypatch.setattr(sys, "argv", ["evaluate", str(tmp_path)])
    with pytest.raises(SystemExit) as left:
        scores.show(paper, importlib.import_module(f"{paper}.evaluate").score)
    said = capsys.readouterr().err
    assert left.value.code == 2 and str(path) in said and "remedy" in said


@pytest.mark.slow
@pytest.mark.parametrize("paper", PAPERS)
def test_a_broken_input_is_refused_by_name(paper, tmp_path, record_property):
    """Exit status 2, the file and, where there is one, the row; never a traceback."""
    case, missed = CASES[paper], []
    for name, damage in case.damages.items():
        data = tmp_path / name.replace(" ", "-")
        case.write(data)
        path = data / case.file
        path.write_bytes(damage(path.read_bytes()))
        status, said = train(paper, case.words, data, tmp_path / "runs")
        row = "row 3" not in name or "3" in said
        if status != 2 or path.name not in said or "Traceback" in said or not row:
            missed.append((name, status, said[-300:]))
    record_property("figure", f"{len(case.damages) - len(missed)}/{len(case.damages)}")
    assert not missed
