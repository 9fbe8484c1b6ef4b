"""Whole runs (docs/papers/weight_mixup.md, section 11: 11, 15 and 16)."""

import dataclasses

import numpy as np
import pytest
import torch
from mixup_toys import PAPER, bert, config, record_of, tokens

from shared import protocol, runs
from weight_mixup import data, rehearsal, train
from weight_mixup.config import Config


def rehearse(tmp_path, arm, task):
    settings = PAPER.config("rehearsal", PAPER.node("rehearsal", arm, task, 0))
    return Config(**{**settings, "device": "cpu", "out": str(tmp_path)})


def test_same_seed_same_result(tmp_path, no_cache):
    records = [record_of(config(tmp_path, f"run{i}")) for i in range(2)]
    assert records[0]["state_sha256"] == records[1]["state_sha256"]
    assert records[0]["predictions_sha256"] == records[1]["predictions_sha256"]
    gates = {gate["id"]: gate["passed"] for gate in records[0]["gates"]}
    names = ["restored", "pretrained-untouched", "alpha-in-range", "alpha-frozen", "merged"]
    assert gates == dict.fromkeys(names, True)


def test_arms_of_a_seed_share_subset_head_and_test_items(tmp_path, no_cache):
    cases = (0, "bilevel"), (0, "finetuning"), (1, "finetuning")
    mixup, plain, other = (data.load(config(tmp_path, seed=s, job=job)) for s, job in cases)
    assert np.array_equal(plain.train.ids, mixup.train.ids)
    assert not np.array_equal(plain.train.ids, other.train.ids)
    assert torch.equal(plain.model.classifier.weight, mixup.model.classifier.weight)
    assert not torch.equal(plain.model.classifier.weight, other.model.classifier.weight)
    assert np.array_equal(plain.test.ids, other.test.ids)


def test_film_reviews_and_their_labels_are_read():
    settings = PAPER.config("cpu", PAPER.node("cpu", "plain", "movie", 0))
    train_part, validation, test, outputs = data.splits(Config(**settings))
    assert outputs == 2 and [len(p.labels) for p in (train_part, validation, test)] == [
        100,
        300,
        600,
    ]
    assert sorted(train_part.labels.tolist()) == [0] * 50 + [1] * 50


def test_glue_examples_are_put_aside_after_the_n(tmp_path):
    settings = rehearse(tmp_path, "plain", "mrpc")
    alone, aside = (dataclasses.replace(settings, n=6, extra=extra) for extra in (0, 4))
    plain, problem = data.load(alone), data.load(aside)
    assert plain.train.ids.tolist() == problem.train.ids.tolist() and plain.extra is None
    assert len(problem.extra) == 4 and len({*problem.ids()} - {"extra"}) == 3
    both = problem.train.followed_by(problem.extra)
    assert both.ids.tolist() == [*problem.train.ids, *problem.extra.ids] and len(both) == 10


def stopped(settings, monkeypatch, stop_at):
    """The run is stopped after `stop_at` steps of all phases together; where it was."""
    asked = []
    with monkeypatch.context() as patch:
        patch.setattr(runs, "_stop_asked", lambda: asked.append(1) or len(asked) == stop_at)
        with pytest.raises(runs.Stopped):
            train.run(settings)
    return open(f"{settings.out}/log.txt").read().splitlines()[-1]


@pytest.mark.parametrize(
    "stop_at, phase",
    [(1, "search"), (4, "search"), (6, "search"), (10, "finetuning"), (12, "finetuning"),
     (14, "test"), (17, "validation"), (19, "merged")],
)  # fmt: skip
def test_a_stopped_run_continues_bit_for_bit(tmp_path, no_cache, monkeypatch, stop_at, phase):
    reference = record_of(config(tmp_path, "reference"))
    settings = config(tmp_path, "stopped")
    assert f"({phase})" in stopped(settings, monkeypatch, stop_at)
    record = record_of(settings)
    same = ("state_sha256", "predictions_sha256", "gradient_evaluations", "gates", "details")
    assert {k: record[k] for k in same} == {k: reference[k] for k in same}
    lines = [(tmp_path / run / "metrics.jsonl").read_text() for run in ("reference", "stopped")]
    assert lines[0] == lines[1]


@pytest.mark.parametrize(
    "arm, stop_at, phase", [("child_d", 2, "fisher"), ("child_d", 4, "finetuning"),
                            ("dps", 2, "finetuning"), ("official", 3, "search")],
)  # fmt: skip
def test_dropout_and_masks_continue_bit_for_bit(tmp_path, monkeypatch, arm, stop_at, phase):
    reference = record_of(rehearse(tmp_path / "reference", arm, "mrpc"))
    settings = rehearse(tmp_path / "stopped", arm, "mrpc")
    assert f"({phase})" in stopped(settings, monkeypatch, stop_at)
    assert record_of(settings)["state_sha256"] == reference["state_sha256"]


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, no_cache):
    with pytest.raises(runs.Diverged, match="level"):
        train.run(config(tmp_path, lr=1e30, search_clip=1e30))
    assert protocol.read_record(tmp_path / "run")["status"] == "diverged"


def test_stored_activations_compute_what_the_whole_model_does(no_cache):
    model = bert(layers=3).eval()
    inputs, labels = tokens(5)
    inputs["attention_mask"][0, 4:] = 0
    items = data.Items(np.arange(5), inputs, labels)
    before = model(**inputs).logits
    stored = data.below(model, items, 1)
    whole = data.keep_top(model, 1)
    assert len(model.bert.encoder.layer) == 1
    assert (model(**stored.inputs).logits - before).abs().max() < 1e-5
    assert (whole(model)(**inputs).logits - before).abs().max() < 1e-5


def test_a_text_run_is_exported_as_a_plain_checkpoint(tmp_path):
    from transformers import AutoModelForSequenceClassification

    settings = dataclasses.replace(rehearse(tmp_path, "mixup", "mrpc"), export=True)
    record_of(settings)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "export").eval()
    items = data.load(settings).test
    with torch.no_grad():
        guess = model(**items.take(torch.arange(len(items))).inputs).logits.argmax(1)
    with np.load(tmp_path / "predictions.npz") as predictions:
        assert np.array_equal(guess.numpy(), predictions["prediction"])


@pytest.mark.parametrize(
    "arm, task",
    [("mixup", "stsb"), ("official", "mrpc"), ("mixup", "mnli_300"), ("kavg", "rte_roberta")],
)
def test_a_rehearsal_trains_the_papers_protocol(tmp_path, arm, task):
    record = record_of(rehearse(tmp_path / "run", arm, task))
    assert record["status"] == "finished" and all(gate["passed"] for gate in record["gates"])
    assert 0 <= abs(record["metrics"]["score"]) <= 1


def test_the_vocabulary_of_a_rehearsal_is_the_same_each_time():
    texts = [(f"word{i % 7} ties{i}", f"other{i} with{i}") for i in range(40)]
    vocabularies = [rehearsal.tokenizer_of(texts).get_vocab() for _ in range(3)]
    assert vocabularies[0] == vocabularies[1] == vocabularies[2]
    assert rehearsal.tokenizer_of(["one two", "two"]).get_vocab()["two"] == 4
