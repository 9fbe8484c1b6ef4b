"""Whole runs at scale rehearsal: every kind of arm and task, stops in every phase, bad ends."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from autolora import data, evaluate, models, predictions, rehearsal, setting, train
from autolora.config import Config
from shared import bundled, protocol, runs
from shared.runs import BadInput


def test_14_two_searches_with_one_seed_agree_and_cost_five_evaluations_a_step(rehearse, record):
    first, second = (rehearse("search", "cola", folder) for folder in "ab")
    assert (first / "ranks.json").read_bytes() == (second / "ranks.json").read_bytes()
    assert record(first)["gradient_evaluations"] == 5 * 4
    assert all(gate["passed"] for gate in record(first)["gates"])
    assert record(rehearse("search_first", "cola"))["gradient_evaluations"] == 2 * 4
    again = record(rehearse("search_again", "cola"))
    assert again["splits"] == record(first)["splits"]
    assert again["state_sha256"] != record(first)["state_sha256"]
    other = record(rehearse("search", "cola", seed=1))
    assert other["state_sha256"] != record(first)["state_sha256"]


def test_14_arms_of_a_seed_share_data_head_and_cost_is_counted(rehearse, record):
    learned, permuted = (rehearse(arm, "mnli") for arm in ("autolora", "permuted"))
    assert record(learned)["splits"] == record(permuted)["splits"]
    metrics = record(learned)["metrics"]
    assert record(learned)["gradient_evaluations_with_uses"] == 6 + 20 == metrics["cost"]
    names = {"accuracy", "accuracy_matched", "accuracy_mismatched", "parameters", "rank_total"}
    assert names <= set(metrics)
    assert metrics == pytest.approx(evaluate.score(runs.load_arrays(learned / "predictions.npz")))
    assert (learned / "export" / "adapter_model.safetensors").exists()


@pytest.mark.parametrize(
    "arm", ["adalora", "full", "grid", "spectral", "constant_scale", "free_weights"]
)
def test_every_kind_of_arm_runs(arm, rehearse, record):
    content = record(rehearse(arm, "rte"))
    assert content["status"] == "finished" and all(gate["passed"] for gate in content["gates"])


@pytest.mark.parametrize("task", ["stsb", "bionlp2004", "webnlg", "mrpc_large"])
def test_every_kind_of_task_runs(task, rehearse, record):
    directory = rehearse("autolora", task)
    assert (
        len(runs.load_arrays(directory / "predictions.npz")["id"]) > 0
        and "score" in record(directory)["metrics"]
    )


def test_the_best_epoch_stands_beside_the_last(rehearse, record):
    metrics = record(rehearse("uniform_4", "cola", best_epoch=True, steps=12))["metrics"]
    assert metrics["score_best_epoch"] >= metrics["score"]


def test_exported_adapter_loads_into_the_base_model(rehearse):
    from peft import PeftModel

    directory = rehearse("autolora", "rte")
    config = Config(max_length=64)
    with rehearsal.inputs():
        head = runs.stream(9, "other head")
        network = models.build("FacebookAI/roberta-base", "classification", 2, head)
        task = data.read("rte", runs.stream(0, "items"))
    loaded = PeftModel.from_pretrained(network.model, directory / "export").eval()
    encoded = setting.encode(task, task.test, network, config)
    inputs, _ = encoded.batch(np.arange(len(encoded)), torch.device("cpu"))
    expected = runs.load_arrays(directory / "predictions.npz")["prediction"]
    assert (loaded(**inputs).logits.argmax(-1).numpy() == expected).all()


@pytest.mark.parametrize(
    ("arm", "steps", "phase"),
    [
        ("search", 3, "search"),
        ("uniform_4", 3, "training"),
        ("adalora", 3, "training"),
        ("full", 3, "training"),
        ("autolora", 8, "test"),
        ("adalora", 8, "test"),
        ("grid_1", 8, "validation"),
    ],
)
def test_a_run_stopped_in_any_phase_continues_bit_for_bit(arm, steps, phase, rehearse, record):
    whole = record(rehearse(arm, "cola", "whole", eval_batch=3))
    if arm != "search":
        rehearse("search", "cola", "cut")  # so that the stop meets the run itself
    stops = iter([False] * (steps - 1) + [True])
    runs.be_worker(lambda: next(stops, False))
    with pytest.raises(runs.Stopped) as stopped:
        rehearse(arm, "cola", "cut", eval_batch=3)
    log = (Path(str(stopped.value)) / "log.txt").read_text()
    assert f"({phase}); the same command continues it" in log
    continued = record(rehearse(arm, "cola", "cut", eval_batch=3))
    same = ("state_sha256", "predictions_sha256", "metrics", "validation", "gates")
    assert {k: continued[k] for k in same} == {k: whole[k] for k in same}


@pytest.fixture
def plant(tmp_path, root) -> Callable[..., Path]:
    """A short run on the planted problem, and the search it uses; returns its directory."""
    paper = protocol.Protocol(root / "autolora")

    def make(arm, folder="", **settings):
        node = paper.node("cpu", arm, "planted_rules", 0)
        uses = {key[0]: str(make(key[0])) for key in node.uses}
        short = {"search_steps": 20, "steps": 20, "uses": uses}
        short["out"] = str(tmp_path / (folder or arm))
        return train.run(Config(**paper.config("cpu", node) | short | settings))

    return make


def test_arms_on_the_planted_problem_have_the_totals_that_they_name(plant, record):
    names = ("oracle", "uniform_20", "norm_short", "autolora", "adalora")
    made = {arm: record(plant(arm))["metrics"]["rank_total"] for arm in names}
    assert made["oracle"] == made["uniform_20"] == made["norm_short"] == 20
    controls = ("equal", "permuted", "random")
    made |= {r: record(plant("autolora", r, ranks=r))["metrics"]["rank_total"] for r in controls}
    assert len({made[arm] for arm in ("autolora", "adalora", *controls)}) == 1
    assert made["autolora"] == sum(record(plant("search"))["details"]["ranks"])
    oracle = record(plant("oracle"))["metrics"]
    assert oracle["agreement"] == pytest.approx(1) and oracle["r2"] == oracle["score"]


@pytest.mark.parametrize("weights", ["free", "sigmoid"])
def test_the_printed_ablations_of_the_simplex_search_and_count(weights, plant, record):
    content = record(plant("search", weights=weights))
    assert all(gate["passed"] for gate in content["gates"]), content["gates"]


def test_the_arm_with_official_habits_runs(rehearse, record):
    found = record(rehearse("official", "cola"))
    assert found["status"] == "finished" and all(gate["passed"] for gate in found["gates"])


@pytest.mark.parametrize("task", ["rte", "stsb"])
def test_upper_blocks_take_pairs_of_sentences_and_numbers(task, record, tmp_path):
    """GLUE in REPRO_DATA's layout, with every option of the bundled encoder."""
    paper = protocol.Protocol(Path(__file__).resolve().parents[2] / "autolora")
    values = {"scale": "gpu", "arm": "uniform_2", "task": task, "ranks": "2", "model": "minilm"}
    values |= {"upper_blocks": 1, "max_length": 24, "steps": 2, "batch": 4, "device": "cpu"}
    assert paper.defaults["upper_blocks"] == 0
    with rehearsal.inputs():
        made = train.run(Config(**values, out=str(tmp_path / task)))
    assert record(made)["status"] == "finished"


def test_an_adapter_of_upper_blocks_loads_on_the_stock_model(record, tmp_path):
    """Trained on cached states, it predicts on MiniLM as transformers loads it the same."""
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    values = {"arm": "uniform_2", "task": "tiny", "ranks": "2", "upper_blocks": 2, "steps": 8}
    config = Config(**values, max_length=16, lr=1e-2, export=True, out=str(tmp_path / "run"))
    directory = train.run(config)
    folder, _ = bundled._minilm_folder()
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    loaded = PeftModel.from_pretrained(model, directory / "export").eval()
    task = data.read("tiny", runs.stream(0, "items"))
    tokens = tokenizer(task.test.texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        guesses = loaded(**tokens).logits.argmax(-1).numpy()
    saved = runs.load_arrays(directory / "predictions.npz")["prediction"]
    assert (guesses == saved).all() and len(set(saved)) == 2
    with loaded.disable_adapter(), torch.no_grad():
        assert (loaded(**tokens).logits.argmax(-1).numpy() != saved).any()


def test_an_incomplete_batch_is_dropped_only_if_asked(rehearse):
    assert predictions.OFFICIAL_BATCH == 16  # of the 24 items of a rehearsal
    assert len(runs.load_arrays(rehearse("uniform_4", "cola") / "predictions.npz")["id"]) == 24
    dropped = rehearse("uniform_4", "cola", "dropped", drop_last_eval=True)
    assert len(runs.load_arrays(dropped / "predictions.npz")["id"]) == 16


def test_15_upper_blocks_of_another_model_are_refused(rehearse):
    with pytest.raises(BadInput, match="upper_blocks = 1 is offered for model 'minilm' only"):
        rehearse("search", "cola", upper_blocks=1)


def test_15_a_level_that_would_be_empty_is_refused(rehearse):
    with pytest.raises(BadInput, match="leave D_tr or D_val empty"):
        rehearse("search", "cola", train_items=2, level_split=0.9)


def test_15_nan_stops_the_search_at_its_step_and_level(rehearse, record, tmp_path, monkeypatch):
    calls = iter(range(1000))
    loss = setting.task_loss

    def broken(*inputs):
        return loss(*inputs) * (float("nan") if next(calls) >= 5 else 1.0)

    monkeypatch.setattr(setting, "task_loss", broken)
    monkeypatch.setattr(train, "check_first_batch", lambda *inputs: {})
    with pytest.raises(runs.Diverged, match=r"level.*step 1"):
        rehearse("search", "cola")
    assert record(tmp_path / "runs" / "cola" / "0" / "search")["status"] == "diverged"
