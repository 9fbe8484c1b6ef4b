"""Whole runs: arms share what they must, stop and go on, and say what went wrong."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ppo_nlu import data, evaluate, models, prompts, train
from ppo_nlu.config import Config
from ppo_nlu.policy import Policy, rollout
from shared import runs
from shared.protocol import Protocol


def test_protocol_and_claims_are_read():
    from benchmarks.claims import load_claims

    paper = Protocol(Path(train.__file__).parent)
    claims = load_claims(paper.directory / "claims.yaml")
    for scale in ("cpu", "gpu", "paper"):
        arms = set(paper.selected(scale))
        for claim in claims.claims:
            if scale in claim.scales and claim.kind == "difference":
                assert set(claim.arms.sides) <= arms, claim.id


def test_arms_share_start_examples_and_items(shortly):
    records = {arm: shortly(arm) for arm in ("zero_shot", "few_shot", "sft", "ppo", "sft_ppo")}
    for arm, record in records.items():
        gates = {g["id"]: g["passed"] for g in record["gates"]}
        assert gates and all(gates.values()), (arm, record["gates"])
        assert record["split_sha256"] == records["ppo"]["split_sha256"]
        assert set(record["details"]["budget"]) == {
            "examples",
            "tokens_forward",
            "tokens_backward",
            "gradient_steps",
        }
    assert {"same-start", "ratio-one", "reference-kept"} <= {
        g["id"] for g in records["ppo"]["gates"]
    }
    assert (
        records["ppo"]["details"]["budget"]["examples"]
        == records["sft"]["details"]["budget"]["examples"]
        == 48
    )
    assert (
        records["sft_ppo"]["details"]["budget"]["examples"] == 96
    )  # its supervised stage included
    assert records["ppo"]["details"]["budget"]["gradient_steps"] == 12


def test_budget_gate_fails_when_the_currency_differs(shortly):
    record = shortly("ppo", examples=400, folder="ppo-budget")
    assert [g["passed"] for g in record["gates"] if g["id"] == "budget"] == [False]


def stopped_at(steps: int) -> Callable[[], bool]:
    """Asks a run to stop after this many steps of all its phases."""
    asked = iter([False] * steps + [True])
    return lambda: next(asked, False)


@pytest.mark.parametrize(("arm", "steps"), [("ppo", 1), ("ppo", 5), ("ppo", 7), ("sft", 2)])
def test_a_stopped_run_continues_to_the_same_bits(shortly, arm, steps):
    """Stopped in training (4 steps), in the validation answers (2 batches), in the test's (3)."""
    whole = shortly(arm, folder=f"{arm}-whole", steps=4)
    runs.be_worker(stopped_at(steps))
    with pytest.raises(runs.Stopped):
        shortly(arm, folder=f"{arm}-parts-{steps}", steps=4)
    runs.be_worker(lambda: False)
    parts = shortly(arm, folder=f"{arm}-parts-{steps}", steps=4)
    assert parts["state_sha256"] == whole["state_sha256"]
    assert parts["predictions_sha256"] == whole["predictions_sha256"]
    assert parts["gates"] == whole["gates"] and parts["details"] == whole["details"]
    assert parts["validation"] == whole["validation"]


@pytest.mark.parametrize(("arm", "steps"), [("base", 1), ("start", 2)])
def test_a_stopped_stage_continues_to_the_same_bits(arm, steps, tmp_path):
    paper = Protocol(Path(train.__file__).parent)
    settings = paper.config("tiny", paper.node("tiny", arm, "digits", 0))

    def record(folder: str) -> dict:
        place = tmp_path / folder
        train.run(Config(**{**settings, "uses": {}, "steps": 4, "out": str(place)}))
        return json.loads((place / "record.json").read_text())

    runs.be_worker(lambda: False)
    whole = record("whole")
    runs.be_worker(stopped_at(steps))
    with pytest.raises(runs.Stopped):
        record("parts")
    runs.be_worker(lambda: False)
    parts = record("parts")
    assert parts["state_sha256"] == whole["state_sha256"] and parts["gates"] == whole["gates"]


def test_the_test_split_does_not_reach_training(shortly, monkeypatch):
    """Other test questions with other answers: the same trained weights, other predictions."""
    whole = shortly("ppo", folder="ppo-tested")
    real = data.load

    def other(config):
        items = real(config)
        return replace(items, test=[replace(x, label=1 - x.label) for x in items.test[::-1]])

    monkeypatch.setattr(data, "load", other)
    changed = shortly("ppo", folder="ppo-other-test")
    assert changed["state_sha256"] == whole["state_sha256"]
    assert changed["predictions_sha256"] != whole["predictions_sha256"]


def test_adapter_loads_with_peft_and_gives_the_recorded_answers(shortly):
    from peft import PeftModel

    record = shortly("ppo", folder="ppo-lora", lora_rank=4, lora_targets="all", lr=0.05)
    place, start = (Path(record["config"]["out"]), Path(record["config"]["uses"]["start"]))
    lm, tokenizer = models.load(start / "model")
    digits = data.load(Config(task="digits", model="digits"))
    policy = Policy(PeftModel.from_pretrained(lm, str(place / "export")).eval())
    lines = [json.loads(line) for line in (place / "answers.jsonl").read_text().splitlines()]
    asked = {x.id: prompts.prompt(prompts.task("digits"), x.fields) for x in digits.test}
    q = [models.encode(tokenizer, asked[line["id"]])[0] for line in lines]
    answers = rollout(policy, tokenizer, q, record["config"]["max_new"])
    assert answers.texts == [line["greedy"] for line in lines]
    adapter = [p for n, p in policy.named_parameters() if "lora_B" in n]
    assert adapter and all(p.abs().max() > 0 for p in adapter)


def test_ppo_and_sft_need_no_trl(shortly, monkeypatch):
    monkeypatch.setitem(sys.modules, "trl", None)
    for arm in ("ppo", "sft"):
        assert shortly(arm, folder=f"{arm}-without", steps=1)["status"] == "finished"
    with pytest.raises(runs.BadInput, match="skipped"):
        shortly("grpo", folder="grpo-without", steps=1)


def test_official_accidents_run(shortly):
    record = shortly("ppo_official", steps=1)
    assert record["status"] == "finished" and record["config"]["parser"] == "official"


def test_official_test_parser_draws_a_label_where_ours_says_unreadable(shortly):
    strict = shortly("zero_shot", folder="strictly", temperature=3.0)["metrics"]
    first, again = (
        shortly("zero_shot", folder=f"drawn {k}", temperature=3.0, test_parser="official")
        for k in (1, 2)
    )
    assert strict["invalid_sampled"] > 0 == first["metrics"]["invalid_sampled"]
    assert first["predictions_sha256"] == again["predictions_sha256"]


def test_a_reward_that_is_no_number_stops_the_run_and_is_recorded(shortly, monkeypatch):
    place = Path(shortly("sft")["config"]["out"]).with_name("ppo-nan")
    monkeypatch.setattr(prompts, "reward", lambda *_: float("nan"))
    with pytest.raises(runs.Diverged, match="reward"):
        shortly("ppo", folder="ppo-nan")
    record = json.loads((place / "record.json").read_text())
    assert (record["status"], record["chosen_step"]) == ("diverged", 0)


def test_out_of_memory_while_sampling_names_the_remedy(shortly, monkeypatch):
    def scarce(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Policy, "answers", scarce)
    with pytest.raises(runs.BadInput, match="--batch"):
        shortly("ppo", folder="ppo-scarce")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["grpo", "rloo"])
def test_trl_trainers_run_with_the_rule_as_reward(shortly, kind):
    pytest.importorskip("trl")
    record = shortly(kind, steps=2, batch=4, max_new=4)
    assert record["status"] == "finished" and "score_greedy" in record["metrics"]


@pytest.mark.parametrize("arm", ["ppo", "sft"])
def test_a_run_of_one_answer_begins_anew(shortly, arm):
    """At an absurd rate all answers are the same; the second attempt has draws of its own, sees the
    examples again, and is continued to the same bits where it was stopped."""
    settings = {"steps": 4, "lr": 1e3, "attempts": 2}
    record = shortly(arm, folder=f"{arm}-anew", **settings)
    assert record["details"]["attempts"] == 2
    assert (
        record["details"]["budget"]["examples"]
        == 2 * shortly(arm, steps=4, folder=f"{arm}-one")["details"]["budget"]["examples"]
    )
    runs.be_worker(stopped_at(4 + 2 + 2))
    with pytest.raises(runs.Stopped):
        shortly(arm, folder=f"{arm}-anew-parts", **settings)
    runs.be_worker(lambda: False)
    parts = shortly(arm, folder=f"{arm}-anew-parts", **settings)
    assert parts["state_sha256"] == record["state_sha256"]
    assert parts["predictions_sha256"] == record["predictions_sha256"]


@pytest.mark.parametrize(("arm", "share"), [("ppo", 0.99), ("zero_shot", 1.0)])
def test_one_attempt_where_answers_differ_or_nothing_is_trained(shortly, monkeypatch, arm, share):
    scores = evaluate.score
    monkeypatch.setattr(evaluate, "score", lambda p: {**scores(p), "constant_share": share})
    record = shortly(arm, folder=f"{arm}-once", attempts=3)
    assert record["validation"]["constant_share"] == share
    assert record["details"]["attempts"] == 1
