"""Items of every task, their parts and their order; what cannot be used is refused."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ppo_nlu import asking, data, method, models, prompts
from ppo_nlu.config import PPO, Config
from shared.protocol import BadInput


def digits(seed: int = 0) -> data.Data:
    return data.load(DIGITS(seed=seed))


DIGITS = partial(Config, task="digits", model="digits")


def test_digits_parts():
    a, b = digits(0), digits(1)
    assert [len(x) for x in (a.start, a.validation, a.train, a.test)] == [300, 300, 800, 397]
    assert [x.id for x in a.test] == [x.id for x in b.test] and [x.id for x in a.train] != [
        x.id for x in b.train
    ]
    parts = [{x.id for x in part} for part in (a.start, a.validation, a.train, a.test)]
    assert len(set.union(*parts)) == sum(map(len, parts)) == 1797
    taught = data.half_knowing(a.task, a.start, 0.6, torch.Generator().manual_seed(0))
    read = [prompts.parse(a.task, text) for text in taught]
    assert 0.1 < np.mean([r is None for r in read]) < 0.2
    assert 0.5 < np.mean([r == x.label for r, x in zip(read, a.start) if r is not None]) < 0.7


@pytest.mark.parametrize(
    ("name", "limit", "sizes"),
    [
        ("movie", 0, (400, 100, 400)),
        ("rating", 0, (1920, 100, 600)),
        ("rating", 400, (400, 100, 600)),
    ],
)
def test_rated_sentences_are_the_same_for_every_seed_in_another_order(name, limit, sizes):
    """So that prompts are computed once."""
    a, b = (data.load(Config(task=name, seed=seed, train_limit=limit)) for seed in (0, 1))
    assert (len(a.train), len(a.everything) - len(a.train) - len(a.test), len(a.test)) == sizes
    assert {x.id for x in a.everything} == {x.id for x in b.everything}
    assert a.test == b.test and a.train != b.train and len(a.validation) == 100
    labels = [x.label for x in a.train]
    if name == "movie":
        assert np.mean(labels) == 0.5
    else:
        assert min(labels) >= 0 and max(labels) <= 5 and np.std(labels) > 0.8


ALL_TASKS = [
    "cola",
    "sst2",
    "mrpc",
    "qqp",
    "stsb",
    "mnli",
    "qnli",
    "rte",
    "wnli",
    "copa",
    "wsc",
    "wic",
    "boolq",
    "cb",
    "multirc",
    "record",
    "super_rte",
]


@pytest.mark.parametrize("name", ALL_TASKS)
def test_every_benchmark_task_loads_and_asks(name):
    """Made-up rows in the benchmark's own layout go through the usual loader into prompts; labels
    are valid."""
    items = data.load_task(name, Config(scale="rehearsal", model="tiny-llama"))
    ids = [{x.id for x in part} for part in (items.train, items.validation, items.test)]
    assert all(ids) and not ids[0] & ids[1] and not (ids[0] | ids[1]) & ids[2]
    for item in items.train[:4] + items.test[:4]:
        text = prompts.prompt(items.task, item.fields)
        assert text.endswith(prompts.OPEN) and all(
            str(item.fields[k]) in text for k, _ in items.task.fields
        )
        assert (
            prompts.parse(items.task, prompts.target(items.task, items.task.label(item.label)))
            is not None
        )


@pytest.mark.parametrize(
    ("name", "positive"),
    [("rte", 0), ("qnli", 0), ("cola", 1), ("sst2", 1), ("cb", 0), ("boolq", 1)],
)
def test_answer_words_follow_the_labels_of_the_loader(name, positive):
    from shared import glue

    first = {"entailment", "acceptable", "positive", "True"}
    assert glue.spec(name).labels[positive] in first
    assert prompts.task(name).words[positive] in {"Yes", "Positive", "Entailment"}
    if name == "cb":
        assert [w.lower() for w in prompts.task("cb").words] == list(glue.spec("cb").labels)


def test_real_glue_rows(repro_data, monkeypatch):
    monkeypatch.setenv("REPRO_DATA", str(repro_data))
    items = data.load_task("rte", Config(model="tiny-llama"))
    assert (
        len(items.test) == 277
        and len(items.train) + len(items.validation) + len(items.start) == 2490
    )
    assert {x.label for x in items.test} == {0, 1}


def test_record_trains_on_one_right_and_one_wrong_candidate():
    items = [data.Item(i, {}, int(i % 3 == 0), group=i // 6) for i in range(12)]
    chosen = data._record_pairs(items, torch.Generator().manual_seed(0))
    assert [(x.group, x.label) for x in chosen] == [(0, 1), (0, 0), (1, 1), (1, 0)]


def test_what_cannot_work_is_refused(tiny_policy, some_answers):
    with pytest.raises(BadInput, match="unknown answer format"):
        data.load(Config(task="squad"))
    with pytest.raises(BadInput, match=r"is not one of 0\.\.1"):
        prompts.task("rte").label(2)
    with pytest.raises(BadInput, match="lacks sentence2"):
        prompts.prompt(prompts.task("rte"), {"sentence1": "a"})
    with pytest.raises(BadInput, match="padding token"):
        models.check_pad(SimpleNamespace(pad_token_id=None))
    with pytest.raises(BadInput, match="0 training and 0 test items"):
        data.checked("digits", prompts.task("digits"), [], [])
    policy, tokenizer = tiny_policy()
    answers = some_answers(policy, tokenizer)
    optimizer = torch.optim.SGD(policy.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="minibatches of 3"):
        method.update(policy, optimizer, answers, torch.zeros(8), 0.2, PPO(minibatch=3))
    before = [p.clone() for p in policy.parameters()]
    R = torch.tensor([0.0, 0, float("nan"), 0, 0, 0, 0, 0])
    with pytest.raises(FloatingPointError, match="reward of answer 2 is nan"):
        method.update(policy, optimizer, answers, R, 0.2, PPO(minibatch=8))
    assert all(torch.equal(a, b) for a, b in zip(before, policy.parameters()))


def test_a_prompt_beyond_the_context_is_refused():
    tokenizer, config = models.digits_tokenizer(), DIGITS(shots=5)
    with pytest.raises(BadInput, match="context of 64"):
        asking.questions_of(config, tokenizer, digits(), 64, print)


def test_prompts_that_are_too_long_are_left_out_and_said():
    """Digits take 17 tokens each: one that is longer goes, and none is left below that."""
    tokenizer, items, lines = models.digits_tokenizer(), digits(), []
    longer = replace(items.train[0], fields={"pixels": items.train[0].fields["pixels"] + " g1"})
    items = replace(items, train=[longer, *items.train[1:]])
    questions = asking.questions_of(DIGITS(max_prompt=17), tokenizer, items, 64, lines.append)
    assert questions.train == items.train[1:] and "1 of 800" in lines[0]
    with pytest.raises(BadInput, match="every training prompt exceeds max_prompt = 16"):
        asking.questions_of(DIGITS(max_prompt=16), tokenizer, items, 64, print)


@pytest.mark.parametrize("left", range(1, 9))
def test_what_an_epoch_leaves_over_is_left_out(left):
    rows = data.rows_of_steps(32 + left, 16, 5, torch.Generator().manual_seed(0))
    assert rows.shape == (5, 16)
    for epoch in (rows[:2], rows[2:4]):
        assert len(set(epoch.flatten().tolist())) == 32
    with pytest.raises(ValueError, match="do not fill one batch"):
        data.rows_of_steps(left, 16, 1, torch.Generator())
