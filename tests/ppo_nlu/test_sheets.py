"""Sheets of answers: what is chosen by them, what a server takes, what a picture shows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ppo_nlu import asking, data, figures, models, prompts, server, train
from ppo_nlu.config import Config
from shared import glue, runs, sources
from shared.protocol import Protocol

TINY = {"task": "digits", "model": "digits", "form": "tags"}


def rehearsed(arm: str, task: str, out: Path, **more: Any) -> dict[str, Any]:
    """The record of one run of scale rehearsal, without its stages."""
    paper = Protocol(Path(train.__file__).parent)
    values = paper.config("rehearsal", paper.node("rehearsal", arm, task, 0))
    runs.be_worker(lambda: False)
    train.run(Config(**{**values, "uses": {}, "out": str(out), **more}))
    return json.loads((out / "record.json").read_text())


def test_files_for_the_servers(tmp_path):
    """Their names, their labels, a row for each; what the benchmark's own test part holds."""
    for name, answers, lines in (
        ("cola", [0, 1], ["index\tprediction", "0\t0", "1\t1"]),
        ("rte", [0, 1], ["index\tprediction", "0\tentailment", "1\tnot_entailment"]),
        ("stsb", [2.5], ["index\tprediction", "0\t2.5"]),
        ("boolq", [1, 0], ['{"idx": 0, "label": "true"}', '{"idx": 1, "label": "false"}']),
        ("copa", [1], ['{"idx": 0, "label": 1}']),
    ):
        path = server.write(tmp_path, prompts.task(name), answers)
        assert path.read_text().splitlines() == lines
    glue.write_sample(tmp_path, "rte", 8, torch.Generator().manual_seed(0))
    rows = (tmp_path / "glue/RTE/dev.tsv").read_text().splitlines()
    unlabelled = [row.rpartition("\t")[0] for row in rows]
    (tmp_path / "glue/RTE/test.tsv").write_text("\n".join(unlabelled) + "\n")
    with sources.pointed_at(REPRO_DATA=tmp_path):
        items = server.test_items("rte")
    assert len(items) == len(rows) - 1 and set(items[0].fields) == {"sentence1", "sentence2"}
    assert server.test_items("multirc") == []


def test_the_number_of_examples_is_chosen_on_validation_items(tmp_path, monkeypatch):
    """The second of two numbers scores better by construction, so it is taken for the test."""
    asked = []
    real = asking.with_shots

    def noted(questions, items, shots):
        asked.append(shots)
        return real(questions, items, shots)

    monkeypatch.setattr("ppo_nlu.sheets.with_shots", noted)
    monkeypatch.setattr("ppo_nlu.evaluate.greedy_score", lambda _: float(len(asked)))
    record = rehearsed("few_shot", "rte", tmp_path / "few")
    assert record["status"] == "finished" and asked == [1, 2, 2]


def test_an_evaluation_stops_within_a_batch(tmp_path):
    questions = iter([False] * 3 + [True])
    paper = Protocol(Path(train.__file__).parent)
    values = paper.config("rehearsal", paper.node("rehearsal", "zero_shot", "rte", 0))
    runs.be_worker(lambda: next(questions, False))
    with pytest.raises(runs.Stopped):
        train.run(Config(**{**values, "uses": {}, "out": str(tmp_path / "run")}))
    runs.be_worker(lambda: False)
    assert not (tmp_path / "run/record.json").exists()


def test_model_and_precision_reach_the_stage(tmp_path):
    """A run in bfloat16 on another model than the protocol's begins where its stage ended."""
    values = {"model": "tiny-mpt", "precision": "bfloat16", "scale": "rehearsal", "task": "rte"}
    runs.be_worker(lambda: False)
    start = tmp_path / "start"
    stage = Config(**values, arm="start", job="start", steps=0, vocabulary=400, out=str(start))
    train.run(stage)
    out, uses = str(tmp_path / "ppo"), {"start": str(start)}
    short = {"steps": 1, "batch": 4, "minibatch": 4, "probe_every": 0, "samples": 1}
    limits = {"test_limit": 4, "validation_limit": 4, "max_prompt": 2000}
    train.run(Config(**values, **short, **limits, arm="ppo", out=out, uses=uses))
    gates = json.loads((tmp_path / "ppo/record.json").read_text())["gates"]
    assert {g["id"]: g["passed"] for g in gates}["same-start"]


@torch.no_grad()
def test_how_probable_a_readable_answer_is(tiny_policy):
    """By enumeration; a policy that has heard of nothing is warned about."""
    items = data.load(Config(**TINY))
    policy, tokenizer = tiny_policy()
    questions = asking.questions_of(Config(**TINY), tokenizer, items, 64, print)
    mass = asking.readable_mass(policy, questions, items.validation)
    by_hand = 0.0
    for item in items.validation[: asking.ASKED]:
        q = models.encode(tokenizer, questions.text(item))[0]
        for word in ("Yes", "No"):
            ids = [*q, *tokenizer(f"{word} {prompts.CLOSE} [end]")["input_ids"]]
            log_p = policy.lm(input_ids=torch.tensor([ids])).logits.log_softmax(-1)[0]
            judged = range(len(q) - 1, len(ids) - 1)
            by_hand += float(sum(log_p[t, ids[t + 1]] for t in judged).exp())
    # small letters are no words of this tokenizer: they cannot be meant
    assert mass >= by_hand / asking.ASKED - 1e-6
    said: list[str] = []
    asking.check_mass(policy, questions, items.validation, said.append)
    assert "at least" in said[0] and "warning" in said[1]


def test_pictures_of_a_few_runs(tmp_path):
    """Both currencies, and answers before and after, from files as runs write them."""
    dirs = {}
    for arm, steps in (("zero_shot", 0), ("sft", 1), ("ppo", 4)):
        folder = dirs[arm, "movie", 0] = tmp_path / arm
        folder.mkdir()
        looks = {key: 0.5 for key, _ in figures.CURVES}
        lines = [
            {"step": s, "examples": 32 * (s + 1), "gradient_steps": steps * (s + 1), **looks}
            for s in range(2 if steps else 0)
        ]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
        row = {"id": 7, "question": "A film.", "label": 1, "greedy": arm, "sampled": []}
        (folder / "answers.jsonl").write_text(json.dumps(row) + "\n")
    made = {name: (caption, alt) for name, caption, alt, _ in figures.figures({}, dirs)}
    assert set(made) == {"training", "answers"}
    assert "gradient steps" in made["training"][0]
    assert "'zero_shot' became 'ppo' (label 1)" in made["answers"][1]
    points = figures.looks(dirs, "movie")
    assert sorted(points["ppo", "probe_kl"]) == [(32, 4), (64, 8)]


TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}[end]{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture(name="chat_model")
def _chat_model(tmp_path, monkeypatch) -> Path:
    """The folder of a small model with a chat template; each task has 32 + 8 + 8 items."""
    monkeypatch.setitem(data.RATED, "movie", ("movie", True, 32, 8))
    monkeypatch.setitem(data.RATED, "rating", ("tweets", False, 32, 8))
    monkeypatch.setattr(data, "RATED_VALIDATION", 8)
    monkeypatch.setenv("REPRO_CACHE", str(tmp_path / "cache"))
    items = data.load(Config(task="movie"))
    texts = [x.fields["sentence"] for x in items.everything]
    tokenizer = models.trained_tokenizer([*texts, "Negative Positive negative positive"], 400)
    tokenizer.add_tokens(["<assistant>", "<user>"])
    tokenizer.chat_template = TEMPLATE
    torch.manual_seed(0)
    models.save(models.llama(len(tokenizer), 16, 3, 2, 32, 512), tokenizer, tmp_path / "chat")
    return tmp_path / "chat"


def run_small(
    chat_model: Path, out: Path, arm: str, task: str = "movie", **more: object
) -> dict[str, Any]:
    """The record of two small batches of an arm of scale cpu, into `out`/arm."""
    paper = Protocol(Path(train.__file__).parent)
    runs.be_worker(lambda: False)
    values = paper.config("cpu", paper.node("cpu", arm, task, 0))
    small = {"model": str(chat_model), "opening": 1, "lora_blocks": 2, "steps": 2, "batch": 8}
    limits = {"minibatch": 8, "probe_every": 1, "examples": 16, "lr": 0.02, "uses": {}}
    train.run(Config(**{**values, **small, **limits, "out": str(out / arm), **more}))
    record = json.loads((out / arm / "record.json").read_text())
    assert all(gate["passed"] for gate in record["gates"]), record["gates"]
    return record


def test_ppo_goes_on_from_a_supervised_adapter_which_is_its_reference(chat_model, tmp_path):
    run_small(chat_model, tmp_path, "sft_first", examples=0)
    uses = {"sft_first": str(tmp_path / "sft_first")}
    record = run_small(chat_model, tmp_path, "sft_ppo", examples=32, uses=uses, attempts=1)
    assert record["details"]["budget"]["examples"] == 32  # half of them supervised
    before, after = (
        load_file(tmp_path / arm / "export" / "adapter_model.safetensors")
        for arm in ("sft_first", "sft_ppo")
    )
    config = Config(**json.loads((tmp_path / "sft_ppo" / "config.json").read_text())["config"])
    lm, tokenizer = models.load(chat_model)
    items = data.load(config)
    questions = asking.questions_of(config, tokenizer, items, 512, print)
    computed = asking.cached_prompts(questions, items)
    policy = models.adapted(config, lm, torch.device("cpu"), computed, models.opening(tokenizer))
    begun = {name: p.clone() for name, p in policy.lm.named_parameters() if "lora_" in name}
    assert len(begun) == len(before) and any(p.abs().max() > 0 for p in begun.values())
    asked = questions.ask(policy, items.test[:4], 3, None)
    first = policy(asked.ids, asked.mask, asked.T)[0]
    for p in policy.trained():
        p.data += 0.1
    assert torch.equal(policy(asked.ids, asked.mask, asked.T, reference=True)[0], first)
    assert not torch.equal(policy(asked.ids, asked.mask, asked.T)[0], first)
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_questions_beside_the_main_one_on_cached_prompts(chat_model, tmp_path):
    """A rating by every arm that is asked for one; an example in front; the official reward."""
    for arm in ("zero_shot", "sft", "ppo"):
        record = run_small(chat_model, tmp_path / "rating", arm, "rating")
        assert -1 <= record["metrics"]["score_greedy"] <= 1
    for arm in ("few_shot", "ppo_official_reward"):
        run_small(chat_model, tmp_path, arm)
    asked, plain = (
        json.loads((tmp_path / arm / "config.json").read_text())["config"]
        for arm in ("few_shot", "ppo_official_reward")
    )
    assert (asked["shots"], asked["cached"], plain["reward"]) == (1, True, "official")


def test_arms_on_cached_prompts_from_data_to_export(chat_model, tmp_path):
    """Prompting, fine-tuning and PPO on prompts computed once: gates hold, the adapter loads in
    peft, and peft, over whole texts, gives the recorded answers."""
    from peft import PeftModel

    for arm in ("zero_shot", "sft", "ppo"):
        run_small(chat_model, tmp_path, arm)
    lines = [json.loads(x) for x in (tmp_path / "ppo/answers.jsonl").read_text().splitlines()]
    lm, tokenizer = models.load(chat_model)
    lm = PeftModel.from_pretrained(lm, str(tmp_path / "ppo/export")).eval()
    moved = [p for n, p in lm.named_parameters() if "lora_B" in n]
    assert moved and all(p.abs().max() > 0 for p in moved)
    task, items = prompts.task("movie"), {x.id: x for x in data.load(Config(task="movie")).test}
    for line in lines[:4]:
        text = models.chat(tokenizer, prompts.messages(task, items[line["id"]].fields))
        ids = torch.tensor([models.encode(tokenizer, text, special=False)[0]])
        out = lm.generate(input_ids=ids, max_new_tokens=3, do_sample=False, pad_token_id=0)
        answer = tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
        assert answer == line["greedy"]
