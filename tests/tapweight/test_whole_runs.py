"""Runs from beginning to end: docs/papers/tapweight.md, section 11, checks 15 and 16."""

from __future__ import annotations

import json
import math

import pytest
import torch
from tapweight_problems import PROTOCOL, planted_config

from shared import protocol, runs
from tapweight import baselines, evaluate, language, outcome, planted, train
from tapweight.config import Config


def record_of(config: Config) -> dict:
    return protocol.read_record(train.run(config))


def test_16_a_run_its_record_and_its_repetition(tmp_path):
    first = train.run(planted_config(tmp_path / "run"))
    record = protocol.read_record(first)
    lines = [json.loads(x) for x in (first / "metrics.jsonl").read_text().splitlines()]
    pretrain = [x for x in lines if x["phase"] == "pretrain"]
    assert len(pretrain) == 12 and "h" not in pretrain[0] and "h" in pretrain[-1]
    assert all(abs(sum(x["weights"]) - 1) < 1e-5 for x in pretrain)
    watched = [x for x in pretrain if "cosines" in x]
    assert len(watched) == 3 and min(x.get("agreement", 1) for x in watched) > 0.99
    # 12 Level I, 12 Level II, from cycle 2 on one validation gradient and two probes, 3 steps of
    # finetuning
    assert record["gradient_evaluations"] == 12 + 12 + 10 * 3 + 3
    seconds = record["details"]["level_seconds"]
    assert set(seconds) == {"I", "II", "III"} and all(s > 0 for s in seconds.values())
    assert sum(seconds.values()) < record["seconds"]
    assert {g["id"] for g in record["gates"]} == {"weights-on-simplex", "gradient-of-weights"}
    assert all(g["passed"] for g in record["gates"])
    again = record_of(planted_config(tmp_path / "again"))
    assert again["state_sha256"] == record["state_sha256"]
    scores = evaluate.score(runs.load_arrays(first / "predictions.npz"))
    assert scores["accuracy"] == record["metrics"]["accuracy"]


@pytest.mark.parametrize("stop", [7, 12, 13, 15, 16])
def test_a_stopped_run_continues_bit_for_bit(tmp_path, monkeypatch, stop):
    """Stopped in each of the phases: 12 cycles, 3 steps, 1 batch each of test and validation."""
    whole = record_of(planted_config(tmp_path / "whole", finetune_on="train"))
    count = iter(range(1, 1000))
    monkeypatch.setattr(runs, "_stop_asked", lambda: next(count) == stop)
    cut = planted_config(tmp_path / "cut", finetune_on="train")
    with pytest.raises(runs.Stopped):
        train.run(cut)
    monkeypatch.setattr(runs, "_stop_asked", lambda: False)
    continued = record_of(cut)
    for key in ("state_sha256", "predictions_sha256", "gates", "validation", "metrics"):
        assert continued[key] == whole[key]
    weights = [(tmp_path / name / "weights.json").read_text() for name in ("whole", "cut")]
    assert weights[0] == weights[1]


def test_a_stopped_run_under_fixed_weights_continues_bit_for_bit(tmp_path, monkeypatch):
    whole = record_of(planted_config(tmp_path / "whole", job="fixed"))
    count = iter(range(1, 1000))
    monkeypatch.setattr(runs, "_stop_asked", lambda: next(count) == 5)
    with pytest.raises(runs.Stopped):
        train.run(planted_config(tmp_path / "cut", job="fixed"))
    continued = record_of(planted_config(tmp_path / "cut", job="fixed"))
    assert continued["state_sha256"] == whole["state_sha256"]


@pytest.mark.parametrize("more", [
    {"job": "blo"}, {"job": "fixed", "weights": "random"}, {"job": "finetune"}, {"mode": "jvp"},
    {"mode": "exact-dot", "normalise": "cosine"}, {"preset": "code"},
    {"steps_I": 2, "steps_II": 2, "micro_batches": 2, "whole_batch": True},
    {"optimizer": "sgd", "optimizer_III": "plain", "lr_III": 10.0, "schedule": "step"},
])  # fmt: skip
def test_other_arms_and_options_run(tmp_path, more):
    record = record_of(planted_config(tmp_path / "run", **more))
    assert record["status"] == "finished" and 0 <= record["metrics"]["accuracy"] <= 1


def test_shuffled_labels_reach_the_levels_alone():
    """Levels II and III see them on other images; the finetuning and the test items do not."""
    true, other = (planted.Planted(1, torch.device("cpu"), on) for on in (False, True))
    assert torch.equal(true.y, other.y) and torch.equal(true.level_y, true.y)
    for part in ("train", "validation"):
        rows = true.parts[part]
        moved = other.level_y[rows]
        assert torch.equal(moved.bincount(), true.y[rows].bincount())
        assert float((moved != true.y[rows]).double().mean()) > 0.5
    left = torch.cat([true.parts[part] for part in ("test", "unlabelled")])
    assert torch.equal(other.level_y[left], true.y[left])
    losses = [
        domain.task_loss(domain.encoder, domain.head(), part, torch.arange(50)).item()
        for part in ("labelled", "train")
        for domain in (true, other)
    ]
    assert losses[0] == losses[1] and losses[2] != losses[3]


def test_arms_of_a_seed_share_split_and_head(tmp_path):
    jobs = ("finetune", "fixed", "tapweight")
    records = [record_of(planted_config(tmp_path / job, job=job)) for job in jobs]
    assert len({record["split_sha256"] for record in records}) == 1
    assert len({record["state_sha256"] for record in records}) == len(jobs)


def test_gradient_evaluations_are_counted():
    count = lambda **more: outcome.gradient_evaluations(Config(steps=10, **more), 10)  # noqa: E731
    assert count(job="fixed", micro_batches=4) == 40
    assert count(job="tapweight", warmup_III=0.2) == 10 + 10 + 8 * (1 + 2)
    assert count(job="tapweight", warmup_III=0.0, mode="exact-dot") == 10 + 10 + 10 * (1 + 1)
    four = {"micro_batches": 4, "whole_batch": True, "warmup_III": 0.0}
    assert count(job="tapweight", **four) == 40 + 10 + 10 * (1 + 8)


def test_15_a_non_finite_objective_is_named(tmp_path, monkeypatch):
    real = planted.Planted.losses

    def broken(self, rows, step, micro):
        a, b, c, d = real(self, rows, step, micro)
        return [a, b, c * (math.nan if step == 5 else 1.0), d]

    monkeypatch.setattr(planted.Planted, "losses", broken)
    with pytest.raises(runs.Diverged, match=r"I \(shifted\) level: value nan at step 5"):
        train.run(planted_config(tmp_path / "run"))


def test_15_levels_do_not_share_items(tmp_path):
    run = runs.Run(Config(out=str(tmp_path), task="planted", arm="tapweight"), train.__file__)
    with pytest.raises(ValueError, match="both in 'train' and in 'validation'"):
        run.splits(train=[1, 2], validation=[2], test=[3])
    with pytest.raises(ValueError, match="'validation' of the data is empty"):
        run.splits(train=[1, 2], validation=[], test=[3])


# --------------------------------------------------------------------------------- fixed weights


def test_learned_weights_are_read_back(tmp_path):
    directory = train.run(planted_config(tmp_path / "run"))
    uses = {"tapweight": str(directory)}
    lam = baselines.fixed_weights("learned", planted.NAMES, 1, uses)
    saved = torch.tensor(runs.load_arrays(directory / "predictions.npz")["_weights"])
    assert torch.allclose(lam.double(), saved, atol=1e-6)
    moved = baselines.fixed_weights("permuted", planted.NAMES, 1, uses)
    assert sorted(moved.tolist()) == sorted(lam.tolist()) and not (moved == lam).any()
    with pytest.raises(ValueError, match="no other to trade with"):
        baselines.fixed_weights("permuted", ("alone",), 1, uses)
    with pytest.raises(ValueError, match="this task has"):
        baselines.fixed_weights("learned", language.NAMES, 1, uses)
    with pytest.raises(ValueError, match=r"--uses\.tapweight"):
        baselines.fixed_weights("learned", planted.NAMES, 1, {})


def test_the_grid_takes_the_best_on_validation(tmp_path):
    uses = {"base": "not a candidate"}
    for k, (arm, score) in enumerate({"grid-cl": 0.4, "grid-mlm": 0.6, "grid-sop": 0.5}.items()):
        directory = tmp_path / arm
        directory.mkdir()
        uses[arm] = str(directory)
        runs.write_json(directory / "record.json", {"validation": {"score": score}})
        weights = {"names": language.NAMES, "weights": torch.eye(3)[k]}
        runs.write_json(directory / "weights.json", weights)
    lam = baselines.fixed_weights("best", language.NAMES, 0, uses)
    assert lam.tolist() == [0.0, 1.0, 0.0]
    with pytest.raises(ValueError, match=r"among grid-\.\.\. runs"):
        baselines.fixed_weights("best", language.NAMES, 0, {})


def test_weights_that_nothing_learns():
    uniform = torch.full((3,), 1 / 3)
    assert torch.equal(baselines.fixed_weights("uniform", language.NAMES, 1, {}), uniform)
    assert baselines.fixed_weights("one:MLM", language.NAMES, 1, {}).tolist() == [0.0, 1.0, 0.0]
    random = baselines.fixed_weights("random", language.NAMES, 1, {})
    assert abs(float(random.sum()) - 1) < 1e-6 and not torch.allclose(random, uniform, atol=0.01)
    with pytest.raises(ValueError, match="unknown key 'MLM'; valid"):
        baselines.fixed_weights("one:MLM", planted.NAMES, 0, {})


def test_the_tiny_run_is_that_of_the_protocol():
    tiny = PROTOCOL.document.tiny
    assert PROTOCOL.arm(tiny.arm).uses == ["base"] and tiny.task == "tiny"
