"""Whole runs: budgets, repeats, stopped and continued in every phase, exports, figures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from dasgm_small import RETRAIN, config, make, problem, record, search

from dasgm import networks, train
from shared import cifar, runs, vectors

# phases of 64 images in batches of 16: search 2, held-out accuracy 4, retraining 4, test 4
SEARCH_STOPS = [1, 4, 8, 12]
# generator 4, reference 2, fidelity 4, held-out accuracy 4
STAGE_STOPS = [2, 5, 8, 12]


@pytest.fixture
def small_batches(monkeypatch):
    monkeypatch.setattr(networks, "TEST_BATCH", 16)


def stopped(monkeypatch, after: int) -> None:
    """From now on a run is asked to stop after so many steps, once."""
    steps = {"n": 0}

    def asked() -> bool:
        steps["n"] += 1
        return steps["n"] == after

    monkeypatch.setattr(runs, "_stop_asked", asked)


def test_runs_of_a_seed_share_budget_split_and_repeat(tmp_path, generator):
    records = {}
    arms = {"darts": {}, "aug_val": {}, "joint": generator, "shuffled": generator}
    for name, uses in arms.items():
        job = {"job": name}
        if name == "shuffled":
            job = {"job": "joint", "labels": "permuted"}
        records[name] = record(make(tmp_path, name, uses=uses, **RETRAIN, **job))
    again = record(make(tmp_path, "again", uses=generator, **RETRAIN))
    assert again["state_sha256"] == records["joint"]["state_sha256"]
    assert again["details"]["cell"] == records["joint"]["details"]["cell"]
    for key in ("weight_steps", "architecture_steps"):
        assert len({r["details"]["counts"][key] for r in records.values()}) == 1
    assert len({r["split_sha256"] for r in records.values()}) == 1
    assert len({r["state_sha256"] for r in records.values()}) == 4
    assert all(g["passed"] for r in records.values() for g in r["gates"])
    assert {g["id"] for g in again["gates"]} == {"levels-apart", "budget"}
    assert train.NOTICE in (tmp_path / "joint" / "log.txt").read_text()


def same(tmp_path: Path, one: str, other: str) -> None:
    """Equal outcome and equal lines."""
    a, b = record(tmp_path / one), record(tmp_path / other)
    for key in ("state_sha256", "predictions_sha256", "validation", "gates"):
        assert a[key] == b[key], key
    lines = [(tmp_path / name / "metrics.jsonl").read_text() for name in (one, other)]
    assert lines[0] == lines[1]


@pytest.mark.parametrize("after", SEARCH_STOPS)
def test_a_stopped_search_continues_bit_for_bit(
    tmp_path, generator, monkeypatch, small_batches, after
):
    make(tmp_path, "whole", uses=generator, **RETRAIN)
    with monkeypatch.context() as patch, pytest.raises(runs.Stopped):
        stopped(patch, after)
        make(tmp_path, "cut", uses=generator, **RETRAIN)
    make(tmp_path, "cut", uses=generator, **RETRAIN)
    same(tmp_path, "whole", "cut")


@pytest.mark.parametrize("after", STAGE_STOPS)
def test_a_stopped_generator_continues_bit_for_bit(tmp_path, monkeypatch, small_batches, after):
    make(tmp_path, "whole", job="generator")
    with monkeypatch.context() as patch, pytest.raises(runs.Stopped):
        stopped(patch, after)
        make(tmp_path, "cut", job="generator")
    make(tmp_path, "cut", job="generator")
    same(tmp_path, "whole", "cut")
    files = [runs.unpack((tmp_path / d / "generator.pt").read_bytes(), d) for d in ("whole", "cut")]
    assert str(files[0]) == str(files[1])


@pytest.fixture
def photographs(tmp_path, monkeypatch):
    cifar.write_sample(tmp_path, "cifar10", 40, runs.stream(0))
    monkeypatch.setenv("REPRO_DATA", str(tmp_path))


@pytest.mark.parametrize("space", ["darts", "pcdarts"])
def test_other_bases_take_the_same_steps(photographs, space):
    """No change but the supernet (claim T3); second order, on generated images."""
    size = {"data": "cifar10", "layers": 3, "n": 8, "batch": 4, "judge": "retrain"}
    gan = {"gan": "residual", "gan_width": 4, "gan_batch": 4}
    s = search(space=space, order=2, **size, **gan)
    before = vectors.clone(s.f.A)
    for t in range(2):
        facts = s.step(t)
    assert {"loss_G", "loss_A", "loss_W"} < set(facts)
    assert len(s.f.A) == (4 if space == "pcdarts" else 2)
    assert not any(torch.equal(a, b) for a, b in zip(before, s.f.A))
    genotype = json.loads(networks.derive(s.config, s.f.A, None))
    assert all(operation != "none" for operation, _ in genotype["normal"])


def test_three_stages_shrink_and_continue_in_the_second(tmp_path, photographs, monkeypatch):
    """P-DARTS: a phase for each stage, with fewer operations each time."""
    size = {"data": "cifar10", "n": 4, "batch": 2, "gan": "residual", "retrain_layers": 3}
    stages = {"space": "pdarts", "pdarts_layers": (3, 3, 3), "most_skips": 2, "retrain_channels": 4}
    changes = {**RETRAIN, **size, **stages, "job": "darts", "retrain_batch": 4}
    whole = make(tmp_path, "whole", **changes)
    with monkeypatch.context() as patch, pytest.raises(runs.Stopped):
        stopped(patch, 3)
        make(tmp_path, "cut", **changes)
    make(tmp_path, "cut", **changes)
    same(tmp_path, "whole", "cut")
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [len(line["softmax"][0][0]) for line in lines if "softmax" in line] == [8, 5, 3]
    details = record(whole)["details"]
    assert details["counts"]["architecture_steps"] == details["counts"]["weight_steps"] == 6
    assert networks.skips(details["cell"]) <= 2


def test_a_loss_that_is_not_finite_names_its_level(tmp_path, monkeypatch):
    problem_of = train.data.load

    def damaged(*arguments):
        p = problem_of(*arguments)
        p.validation.pixels.fill_(torch.nan)
        return p

    monkeypatch.setattr(train.data, "load", damaged)
    with pytest.raises(runs.Diverged, match="architecture level: value nan at step 0"):
        make(tmp_path, "darts", job="darts")
    assert record(tmp_path / "darts")["status"] == "diverged"


def test_export_is_a_plain_network(tmp_path, generator):
    directory = make(tmp_path, "joint", uses=generator, **RETRAIN)
    network = networks.load(directory / "export").eval()
    p = problem(config())
    with np.load(directory / "predictions.npz") as archive:
        guess = network(p.normalise(p.test.pixels)).argmax(1).numpy()
        assert (guess == archive["prediction"]).all()
    with pytest.raises(ValueError, match="space"):
        networks.build({"space": "elsewhere"})


def test_early_is_the_cell_before_skips_take_over():
    c = config()  # three edges
    lines = [{"cell": f"c{i}", "skips": n} for i, n in enumerate((0, 1, 2, 3))]
    assert networks.early(c, lines) == "c1"
    assert networks.early(c, lines[2:]) == "c2"
    assert networks.early(c, lines[:2]) == "c1"


def test_figures_with_everything_and_with_nothing(tmp_path, generator):
    import matplotlib

    matplotlib.use("Agg")
    from dasgm import figures

    directory = make(tmp_path, "joint", uses=generator, **RETRAIN)
    stage = Path(generator["generator"])
    places = {("joint", "digits", 3): directory, ("generator", "digits", 3): stage}
    made = figures.figures({"runs": [record(directory)]}, places)
    names = ["collapse", "accuracies", "cells", "softmax", "skips", "generated"]
    assert [name for name, *_ in made] == names
    assert all(caption and alt for _, caption, alt, _ in made)
    assert figures.figures({}, {}) == []


def test_the_correlations_are_drawn_by_the_number_of_held_out_images():
    import matplotlib

    matplotlib.use("Agg")
    from dasgm import figures

    scores = {"joint": 0.2, "train_as_val": 0.8, "darts_few": 0.3, "darts": 0.6, "random": 0.0}
    runs_of = [
        {"arm": arm, "task": "digits", "seed": s, "metrics": {"correlation": score + 0.1 * s}}
        for arm, score in scores.items()
        for s in range(3)
    ]
    made = figures.correlations({"scale": "cpu", "runs": runs_of})
    assert made is not None
    _, _, alt, figure = made
    assert "joint 0.30" in alt and "darts 0.70" in alt and "random" not in alt
    labels = [tick.get_text() for tick in figure.axes[0].get_xticklabels()]
    assert labels == ["none", "25", "50", "100", "450"]


def test_cells_of_a_recorded_run_are_read_from_its_record(tmp_path, monkeypatch):
    """A fresh clone has no folders of runs: the collapse is drawn from what is committed."""
    import gzip

    from dasgm import figures

    (tmp_path / "results").mkdir()
    cell = "|nor_conv_3x3~0|+|skip_connect~0|avg_pool_3x3~1|"
    lines = [{"state_sha256": "a", "details": {"cell": cell}}, {"state_sha256": "b", "details": {}}]
    with gzip.open(tmp_path / "results" / "cpu.records.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    monkeypatch.setattr(figures, "HERE", tmp_path)
    run = {"arm": "joint", "task": "digits", "seed": 1, "state_sha256": "a"}
    other = {**run, "arm": "darts", "state_sha256": "not recorded"}
    found = figures.found_cells({"scale": "cpu", "runs": [run, other]}, {})
    assert found == {"joint": [["nor_conv_3x3", "skip_connect", "avg_pool_3x3"]]}
