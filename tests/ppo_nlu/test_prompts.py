"""Prompts, parsers and rewards of every task, strict and official."""

from __future__ import annotations

import pytest
import torch

from ppo_nlu import models, official, prompts

WORD_TASKS = [t for t in prompts.TASKS.values() if not t.number]
FIELDS = {key: f"{key} text" for t in prompts.TASKS.values() for key, _ in t.fields}
FIELDS["question"] = "cause"


@pytest.mark.parametrize("task", WORD_TASKS, ids=lambda t: t.name)
def test_reward_table_of_every_task(task):
    right, wrong = task.words[0], task.words[1]
    no_word = -1.0 if task.name == "record" else -3.0
    table = {
        f" {right} </Judgement>": 1.0,
        f" {wrong} </Judgement>": -1.0,
        f" {right}": -3.0,  # no tag
        "": -3.0,
        " </Judgement>": no_word,
        f" {right} and {wrong} </Judgement>": no_word,
        f" I think {right} </Judgement>": no_word,
        f"\n{right.lower()}\n</Judgement> because": 1.0,
        f"{right.upper()}</Judgement>": 1.0,
    }
    for text, expected in table.items():
        assert prompts.reward(task, text, prompts.parse(task, text), 0) == expected, text


@pytest.mark.parametrize("task", WORD_TASKS, ids=lambda t: t.name)
def test_a_chat_answer_is_the_whole_turn(task):
    right, wrong = task.words[0], task.words[1]
    table = {
        right: 1.0,
        f" {right.lower()}\n": 1.0,
        wrong: 0.0,
        "": -1.0,
        f"{right}.": 1.0,
        f"{right}..": -1.0,
        f"{right}!": -1.0,
        f"{right} </Judgement>": -1.0,
        f"{right} or {wrong}": -1.0,
    }
    for text, expected in table.items():
        answer = prompts.parse(task, text, "chat")
        assert prompts.reward(task, text, answer, 0, "paper") == expected, text
    rating = prompts.task("rating")
    assert prompts.parse(rating, prompts.target(rating, 3.7, "chat"), "chat") == 4


def test_the_official_reward_is_twice_the_papers_less_one():
    official_reward = [2 * R - 1 for R in prompts.REWARDS["paper"]]
    assert official_reward == list(prompts.REWARDS["official"])


@pytest.mark.parametrize("task", list(prompts.TASKS.values()), ids=lambda t: t.name)
def test_messages_hold_every_field_and_all_answers(task):
    system, *shown, question = prompts.messages(task, FIELDS, [(FIELDS, 1)])
    assert [m["role"] for m in (system, *shown, question)] == [
        "system",
        "user",
        "assistant",
        "user",
    ]
    assert all(str(FIELDS[key]) in question["content"] for key, _ in task.fields)
    assert all(word.lower() in question["content"].lower() for word in task.words)
    assert shown[1]["content"] == task.word(1)


def test_reward_of_a_number():
    stsb = prompts.task("stsb")
    for text, label, expected in [
        (" 3.2 </Judgement>", 3.2, 2.5),
        (" 5 </Judgement>", 2.5, 0.0),
        (" 0 </Judgement>", 5.0, -2.5),
        (" many </Judgement>", 1.0, -2.5),
        (" 3.2", 3.2, -2.5),
        (" 3 or 4 </Judgement>", 3.0, -2.5),
        ("", 3.0, -2.5),
    ]:
        assert prompts.reward(stsb, text, prompts.parse(stsb, text), label) == pytest.approx(
            expected
        ), text


def test_strict_parser_refuses_what_contains_an_answer():
    rte, copa = prompts.task("rte"), prompts.task("copa")
    for text in ("Yes and No", "None", "Nothing", "Not", "someone", "Yes.", "No Yes"):
        assert prompts.parse(rte, f"{text} </Judgement>") is None, text
    assert prompts.parse(copa, "someone </Judgement>") is None
    assert prompts.parse(copa, " option   ONE </Judgement>") == 0


def test_official_parser_takes_what_contains_an_answer():
    rte, copa, sst2, mnli = (prompts.task(n) for n in ("rte", "copa", "sst2", "mnli"))
    read = official.parse_in_training
    assert read(rte, "None </Judgement>") == 1  # "No" is in "None"
    assert read(rte, "Yes and No </Judgement>") is None and read(rte, "yes </Judgement>") is None
    assert read(rte, "Yes") is None  # training demands the tag; the test does not
    assert read(copa, "someone knows </Judgement>") == 0
    assert read(sst2, "Negative or Positive </Judgement>") == 1
    assert (
        read(mnli, "neutral </Judgement>") == 1
        and read(mnli, "Neutral, Entailment </Judgement>") is None
    )
    rng = torch.Generator().manual_seed(0)
    assert official.parse_in_test(rte, "well, Yes or No", rng) == 0  # label 0 of RTE is Yes
    assert official.parse_in_test(copa, "anyone: Option two", rng) == 0
    assert {official.parse_in_test(rte, "gibberish", rng) for _ in range(50)} == {0, 1}
    assert official.sft_target(prompts.task("boolq"), 1) == " 1 </Judgement>"
    assert official.sft_target(sst2, 0) == " No </Judgement>"
    assert official.sft_target(prompts.task("cb"), 2) == " 3 </Judgement>"


@pytest.mark.parametrize("task", WORD_TASKS, ids=lambda t: t.name)
def test_official_reward_table_of_every_task(task):
    right, wrong = task.words[0], task.words[1]
    no_word = -1.0 if task.name == "record" else -3.0
    first_found = task.name in (
        "sst2",
        "record",
    )  # "Positive", "Yes" is looked for first, and is label 1
    any_case = task.name in ("mnli", "ax", "cb", "record", "copa")
    table = {
        f" {right} </Judgement>": 1.0,
        f" {wrong} </Judgement>": -1.0,
        f" {right}": -3.0,
        "": -3.0,
        " </Judgement>": no_word,
        f" {right} and {wrong} </Judgement>": -1.0 if first_found else -3.0,
        f" I think {right} </Judgement>": 1.0,
        f" {right.lower()} </Judgement>": 1.0 if any_case else -3.0,
    }
    for text, expected in table.items():
        assert prompts.reward(task, text, official.parse_in_training(task, text), 0) == expected, (
            text
        )


@pytest.mark.parametrize("task", list(prompts.TASKS.values()), ids=lambda t: t.name)
def test_prompts_hold_every_field_and_end_in_the_tag(task):
    nasty = {key: f'{key} {{curly}} "quoted"\nline {{0}}' for key, _ in task.fields}
    text = prompts.prompt(
        task, nasty | {"question": FIELDS["question"]} if task.name == "copa" else nasty
    )
    assert text.endswith(prompts.OPEN)
    for key, value in nasty.items():
        assert value in text, key
    assert "{" not in prompts.prompt(task, FIELDS)
    shown = prompts.prompt(task, FIELDS, [(FIELDS, 0), (FIELDS, 1)])
    assert shown.count(prompts.target(task, 0).strip()) >= 1 and shown.endswith(prompts.OPEN)


def test_targets_parse_to_their_labels():
    for task in prompts.TASKS.values():
        for label in range(max(len(task.words), 6)) if task.number else range(len(task.words)):
            assert prompts.parse(task, prompts.target(task, label)) == label


def test_prompt_and_target_are_one_tokenisation():
    tokenizer = models.digits_tokenizer()
    q, a = models.encode(tokenizer, "g1 g2 <Judgement>", " Yes </Judgement>")
    assert (
        tokenizer.decode(q) == "g1 g2 <Judgement>"
        and tokenizer.decode(a, skip_special_tokens=True) == "Yes </Judgement>"
    )
    assert a[-1] == tokenizer.eos_token_id
