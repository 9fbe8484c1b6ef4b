"""The tables of ground truth: what they hold, and what they refuse."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from dasgm_small import make, record

from dasgm import evaluate, nasbench, tables, truth_table
from shared import runs

ROOT = Path(__file__).resolve().parents[2]


def test_the_published_table(repro_data):
    table = tables.nasbench_table(repro_data / "nasbench201.csv.gz")
    assert len(table.cells) == 15625
    best = [round(100 * float(v.max()), 3) for v in table.columns.values()]
    assert best == [94.373, 73.513, 47.311]
    all_skip = table.number(nasbench.to_string(["skip_connect"] * 6, 4))
    scores = [round(100 * float(v[all_skip]), 3) for v in table.columns.values()]
    assert scores == [54.297, 15.607, 16.322]
    with pytest.raises(KeyError, match="15625"):
        table.number("|none~0|+|none~0|none~1|")
    with pytest.raises(ValueError, match="nor_conv_7x7"):
        table.number("|nor_conv_7x7~0|+|none~0|none~1|+|none~0|none~1|none~2|")
    # the quoted DARTS rows are the all-skip cell, digit by digit: the collapse that must show
    entries = yaml.safe_load((ROOT / "dasgm/reported.yaml").read_text())["entries"]
    reported = {e["id"]: e for e in entries}
    quoted = [reported[f"nb201_darts_v1_{k}"]["value"] for k in ("cifar10", "cifar100")]
    assert quoted == [round(s, 2) for s in scores[:2]]


def test_the_digits_table():
    table = tables.digits_table()
    assert len(table.cells) == 125 and table.correct.shape == (125, 897)
    skip = table.score[table.number("|skip_connect~0|+|skip_connect~0|skip_connect~1|")]
    conv = table.score[table.number("|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|")]
    cut = table.score[table.number("|none~0|+|none~0|none~1|")]
    assert cut < 0.2 < skip < conv
    assert table.percentile(int(table.score.argmax())) > 0.98
    with pytest.raises(KeyError, match="125"):
        table.number("|none~0|")  # two nodes: well formed, but not in the table
    text = (ROOT / "dasgm/results/digits_cells.csv").read_text()
    assert text.startswith("# made by: python -m dasgm.truth_table")


def test_a_damaged_digits_table_is_refused(tmp_path):
    bits = np.zeros(897, bool)
    path = tmp_path / "cells.csv"
    truth_table.write(path, {(nasbench.all_cells(3)[0], 0): bits}, 1)
    with pytest.raises(runs.BadInput, match="124 of 125"):
        tables.digits_table(path)
    path.write_text(path.read_text().replace("0.000000", "0.500000"))
    with pytest.raises(ValueError, match="disagree"):
        tables.digits_rows(path)


def test_looked_up_cells_are_scored_per_image(tmp_path):
    table = tables.digits_table()
    directory = make(tmp_path, "darts", job="darts", n=0, batch=225)
    with np.load(directory / "predictions.npz") as archive:
        predictions = {k: archive[k] for k in archive.files}
    cell = record(directory)["details"]["cell"]
    metrics = evaluate.score(predictions)
    assert metrics["accuracy"] == pytest.approx(table.score[table.number(cell)], abs=1e-12)
    assert metrics["skips"] == nasbench.skips(cell) and abs(metrics["correlation"]) <= 1
    per_image = evaluate.item_values(predictions)["accuracy"]
    assert per_image.mean() == pytest.approx(metrics["accuracy"], abs=1e-12)


def test_rank_correlation_of_the_architecture_with_the_table():
    """alpha of each operation's mean score orders the cells about right, its negative wrongly, and
    a constant on an edge changes nothing."""
    table = tables.digits_table()
    cells = nasbench.all_cells(3, exclude_none=True)
    score = np.array([table.score[table.number(c)] for c in cells])
    alpha = torch.zeros(3, 5)
    for edge in range(3):
        for column, name in enumerate(nasbench.OPERATIONS[1:], start=1):
            with_it = [nasbench.from_string(c)[edge] == name for c in cells]
            alpha[edge, column] = float(score[with_it].mean())
    right = table.correlation(alpha, 3, True)
    assert right > 0.85
    assert table.correlation(-alpha, 3, True) == pytest.approx(-right)
    assert table.correlation(alpha + torch.rand(3, 1), 3, True) == pytest.approx(right)
    assert table.correlation(alpha, 3, False) != pytest.approx(right)  # `none` counts there


def test_random_is_the_mean_over_the_allowed_cells(tmp_path):
    table = tables.digits_table()
    chance = make(tmp_path, "random", job="random", n=0, exclude_none=True)
    with np.load(chance / "predictions.npz") as archive:
        floor = evaluate.score({k: archive[k] for k in archive.files})
    assert floor["correlation"] == 0.0
    allowed = [table.number(c) for c in nasbench.all_cells(3, exclude_none=True)]
    assert abs(floor["accuracy"] - table.score[allowed].mean()) < 0.005
    best = 100 * (table.score.max() - floor["accuracy"])
    assert 100 * floor["regret"] == pytest.approx(best, abs=1e-6)


def test_the_committed_table_is_what_its_script_makes():
    """One training again: the row of the cheapest cell."""
    from dasgm import data

    cell = "|none~0|+|skip_connect~0|none~1|"
    problem = data.load("digits", seed=0)
    bits = truth_table.train_cell(cell, 0, problem)
    assert (bits == tables.digits_rows()[cell, 0]).mean() > 0.99
