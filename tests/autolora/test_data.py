"""Tasks, the split between the levels, labels of word pieces, and files that cannot be read."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from autolora import corpora, data, evaluate, predictions, rehearsal
from autolora.setting import encode, tagged_tokens, task_loss
from shared import bundled, runs
from shared.runs import BadInput


def stream(*names):
    return runs.stream(0, *names)


@pytest.mark.parametrize("name", ["cola", "stsb", "bionlp2004", "e2e"])
def test_9_levels_split_the_training_set_and_nothing_else(name):
    with rehearsal.inputs():
        task = data.read(name, stream("items"))
    inner, outer = data.levels(task, 0.7, stream("levels"))
    assert sorted([*inner, *outer]) == list(range(len(task.train)))
    assert not set(task.train.ids) & set(task.test.ids)
    if task.kind == "generation":
        assert not {task.train.texts[i] for i in inner} & {task.train.texts[i] for i in outer}
    if name == "cola":
        assert abs(task.train.labels[inner].sum() - 0.7 * task.train.labels.sum()) <= 1


def test_tagging_labels_sit_on_the_first_piece_of_a_word():
    tokenizer = bundled.minilm()[1]
    part = data.Part(np.arange(1), [["BRCA1", "mutations", "."]], [[1, 0, 0]])
    columns, labels = tagged_tokens(part, tokenizer, 32)
    pieces = tokenizer.convert_ids_to_tokens(columns["input_ids"][0])
    labelled = [piece for piece, tag in zip(pieces, labels[0]) if tag != -100]
    assert labelled[1:] == ["mutations", "."] and labels[0].count(1) == 1


@pytest.mark.parametrize("words, tags, max_length, lost", [
    (["BRCA1", "gene", "."], [1, 2, 0], 32, 0), (["\u200b"], [0], 32, 0), ([], [], 32, 0),
    (["\u200b", "wine"], [1, 0], 32, 1), (["a"] * 20 + ["APC"], [0] * 20 + [1], 16, 1),
    (["a"] * 13 + ["red", "wine"], [0] * 13 + [1, 2], 16, 1), (["red", ""], [1, 1], 16, 1),
])  # fmt: skip
def test_entities_that_the_network_does_not_see_are_missed(words, tags, max_length, lost, capsys):
    """A network that is right on every piece: what it misses is what was cut off or is no piece."""
    labels = ("O", "B-Gene", "I-Gene")
    texts = [words, ["BRCA1", "acts"]]
    part = data.Part(np.arange(2), texts, [tags, [1, 0]])
    task = data.Task("ncbi", "tagging", "f1", labels, part, part)
    network = SimpleNamespace(model=nn.Module(), tokenizer=bundled.minilm()[1])
    setting = SimpleNamespace(task=task, network=network, device=torch.device("cpu"))
    config = SimpleNamespace(drop_last_eval=False, eval_batch=8, max_length=max_length)
    config.upper_blocks = 0
    truth = encode(task, part, network, config).batch(np.arange(2), setting.device)[1]
    right = nn.functional.one_hot(truth.clamp(min=0), len(labels)).float()
    network.model.forward = lambda **inputs: SimpleNamespace(logits=right)
    items = predictions.Items(config, setting, part)
    scores = evaluate.score(items.arrays(items.predict(0)))
    entities = 1 + sum(tag == 1 for tag in tags)
    assert scores["recall"] == (entities - lost) / entities
    assert (f"{lost} of {entities} entities" in capsys.readouterr().out) == (lost > 0)


@pytest.mark.parametrize("kind", ["tagging", "generation"])
def test_a_batch_without_labels_has_loss_zero(kind):
    logits = torch.randn(2, 3, 4, requires_grad=True)
    loss = task_loss(kind, logits, torch.full((2, 3), -100))
    loss.backward()
    assert loss.item() == 0 and not logits.grad.any()
    labels = torch.tensor([[1, -100, 2], [3, 0, -100]])
    usual = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
    assert kind == "generation" or torch.isclose(task_loss(kind, logits, labels), usual)


@pytest.mark.parametrize("line, message", [("BRCA1 O", "row 1"), ("BRCA1\tB", "row 1")])
def test_a_tagging_file_with_a_bad_line_names_it(line, message, tmp_path):
    (tmp_path / "train.tsv").write_text(line + "\n")
    with pytest.raises(BadInput, match=message):
        corpora.read_iob(tmp_path / "train.tsv")


def test_real_files_of_glue_tagging_and_generation(repro_data, monkeypatch):
    monkeypatch.setenv("REPRO_DATA", str(repro_data))
    rte = data.read("rte", stream("items"))
    ncbi = data.read("ncbi", stream("items"), train_items=50)
    assert (len(rte.train), len(rte.test)) == (2490, 277)
    assert rte.labels == ("entailment", "not_entailment")
    assert (len(ncbi.train), len(ncbi.test)) == (50, 940)
    assert ncbi.labels == ("O", "B-Disease", "I-Disease")
    lines = corpora.read_pairs(Path(repro_data) / "nlg" / "e2e" / "test.txt")
    assert len(lines) == 4693 and len({m for m, _ in lines}) == 630
    assert corpora.linear("name[Aromi], area[city centre]") == "name : Aromi | area : city centre"


def test_15_an_unknown_task_is_refused_with_those_there_are():
    with pytest.raises(
        BadInput, match="unknown task 'colla'; one of: planted, planted_rules, movie"
    ):
        data.read("colla", stream("x"))
