"""Tasks, the split between the levels, labels of word pieces, and files that cannot be read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from autolora import corpora, data, rehearsal
from autolora.setting import tagged_tokens
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
    with pytest.raises(BadInput, match="unknown task 'colla'; one of: documentation, cola"):
        data.read("colla", stream("x"))
