"""Texts: encoders, tasks, and what the rehearsal's runs go through."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
import torch.nn.functional as F
from tapweight_problems import PROTOCOL

from shared import protocol, runs
from shared.sources import MissingInput
from tapweight import data, encoders, language, rehearsal, train
from tapweight.config import Config
from tapweight.dropout import SharedMasks


def rehearsal_config(task: str, **more) -> Config:
    settings = PROTOCOL.config("rehearsal", PROTOCOL.node("rehearsal", "tapweight", task, 0))
    return Config(**(settings | more))


def test_top_blocks_compute_what_the_whole_encoder_computes():
    """The last block at the places looked at only, on cached states, against transformers' own."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    size = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4}
    config = BertConfig(**size, intermediate_size=64)
    model = BertModel(config, add_pooling_layer=False).eval()
    ids = torch.randint(0, 50, (3, 9))
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    tokens, at = {"input_ids": ids, "attention_mask": mask}, torch.tensor([[1, 3], [2, 5], [8, 0]])
    whole = encoders.Whole(model)
    first, places = whole(tokens), whole(tokens, at)
    hidden = encoders.lower_states(model, {k: v.int() for k, v in tokens.items()}, 2)
    assert len(model.encoder.layer) == 4
    top = encoders.TopBlocks(model, 2, torch.arange(10)).eval()
    inputs = {"hidden": hidden, "attention_mask": mask}
    assert torch.allclose(top(inputs), first, atol=1e-5)
    assert torch.allclose(top(inputs, at), places, atol=1e-5)
    with pytest.raises(ValueError, match="top_blocks = 4"):
        encoders.TopBlocks(model, 4, torch.arange(10))


@pytest.mark.parametrize("arm, task", [
    ("tapweight", "cola"), ("blo", "stsb"), ("deberta", "rct"), ("cp-mlm", "mnli"), ("ft", "imdb"),
    ("tapweight", "esol"), ("ft", "esol"),
])  # fmt: skip
def test_rehearsal_of_one_arm(arm, task, rehearsal_cache, tmp_path, monkeypatch):
    monkeypatch.setenv("REPRO_RUNS", str(tmp_path))
    node = PROTOCOL.node("rehearsal", arm, task, 0)
    for key in (*node.uses, node.key):
        used = PROTOCOL.node("rehearsal", *key)
        directory = train.run(Config(**PROTOCOL.config("rehearsal", used)))
    record = protocol.read_record(directory)
    assert record["status"] == "finished" and "score" in record["metrics"]
    assert (directory / "export" / "README.md").exists() == (arm == "tapweight")
    if task == "cola":
        from transformers import AutoModel

        assert AutoModel.from_pretrained(directory / "export").config.model_type == "roberta"


class NoRun:
    """A run that is asked for nothing but whether losses are finite."""

    def finite(self, *_):
        pass


def closures(config: Config, again: bool = False):
    """The first Level II loss and the first K pretraining losses of a run."""
    domain = language.Language(config, torch.device("cpu"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        w = domain.head(0, "head", "level two")
        train.start_levels(config, domain, domain.encoder, w)
    domain.encoder.train()
    unlabelled, labelled = (runs.Batches(torch.arange(n), 3, 0, "x") for n in domain.sizes[:2])
    task = train.task_loss(config, NoRun(), domain, domain.encoder, w, "train", labelled, 0)
    return task, train.objectives(config, NoRun(), domain, unlabelled, 0, again)[0][0]


def test_official_accidents_are_chosen_by_settings(rehearsal_cache):
    """Row 10: preset code compares each prediction with every label. Row 21: masks of its own."""
    task, losses = {}, {}
    for name, more in {
        "ours": {},
        "code": {"preset": "code"},
        "independent": {"independent_masks": True},
    }.items():
        level_two, level_one = closures(rehearsal_config("stsb", **more))
        task[name] = level_two().item()
        losses[name] = level_one()[0].item() - level_one()[0].item()
    assert task["code"] != pytest.approx(task["ours"]) and task["independent"] == task["ours"]
    assert losses["ours"] == 0.0 != losses["independent"]


def test_masks_drawn_once_are_those_drawn_anew(rehearsal_cache):
    """Dropout of modules, shared, and of attention, drawn again: all bits, with grad or not."""
    anew, shared = (closures(rehearsal_config("stsb"), again)[1] for again in (False, True))
    for grad in (True, False, False):
        with torch.set_grad_enabled(grad):
            pairs = list(zip(anew(), shared()))
        assert all(torch.equal(a, b) and a.requires_grad == b.requires_grad for a, b in pairs)


def test_masks_of_another_function_are_refused():
    masks, x = SharedMasks(), torch.ones(2, 3)
    with masks.evaluation():
        first = F.dropout(x, 0.5)
    with masks.evaluation():
        assert torch.equal(F.dropout(x, 0.5), first)
        with pytest.raises(RuntimeError, match="other dropout masks"):
            F.dropout(x, 0.5)
    with masks.evaluation(), pytest.raises(RuntimeError, match="other dropout masks"):
        F.dropout(x[:1], 0.5)


def test_movie_sentences_are_apart():
    task = data.read("movie", 0, 0.75, 100, 300)
    ids, texts = task.unlabelled
    assert len(task.labelled) == 100 and len(set(ids.tolist())) == len(texts) == 300
    assert len(task.inner) == 75 and set(task.labelled.ids) < set(ids)
    for part in (task.test, task.spare):
        assert len(part) and not set(ids.tolist()) & set(part.ids.tolist())
    for texts in (100, 20_000):
        with pytest.raises(ValueError, match=r"unlabelled = .* 1 to"):
            data.read("movie", 0, 0.75, 100, texts)


def test_unlabelled_texts_hold_no_test_text(rehearsal_cache):
    with rehearsal.inputs("rehearsal"):
        for name in ("mnli", "rct", "agnews", "stsb"):
            task = data.read(name, 0, 8 / 9)
            ids, texts = task.unlabelled
            assert not set(ids.tolist()) & set(task.test.ids.tolist())
            assert len(texts) == sum(len(data.sentences(t)) for t in task.labelled.texts)
            assert not set(task.inner) & set(task.validation)
            assert len(task.inner) + len(task.validation) == len(task.labelled)


def test_15_test_texts_among_the_unlabelled_are_refused(rehearsal_cache, monkeypatch):
    leak = property(lambda task: (task.test.ids[:1], [str(task.test.texts[0])]))
    monkeypatch.setattr(data.Task, "unlabelled", leak)
    with pytest.raises(ValueError, match="D_u holds test items"):
        language.Language(rehearsal_config("cola"), torch.device("cpu"))


def test_tap_rows_are_refused_with_their_number(tmp_path, monkeypatch):
    monkeypatch.setenv("REPRO_DATA", str(tmp_path))
    data.sample(tmp_path, "agnews", 4, runs.stream(0))
    path = tmp_path / "tap" / "agnews" / "train.jsonl"
    for row, text in (
        ({"text": "a b c", "label": 9}, "row 1: label 9 is not one of the 4 classes"),
        ({"text": "a b c"}, "row 1: no column 'label'; columns: text"),
    ):
        path.write_text(json.dumps(row) + "\n")
        with pytest.raises(ValueError, match=text):
            data.read("agnews", 0, 0.5)
    path.unlink()
    with pytest.raises(MissingInput, match=r"train\.jsonl"):
        data.read("agnews", 0, 0.5)
