"""The true gradient of a cycle: its steps are those of training, its slope that of L3."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from toy_levels import CPU, TINY

from mlo_mae import data, directions, estimators, figures, method, train
from mlo_mae.evaluate import COLUMNS, STATISTICS, flips
from shared import vectors

SMALL = replace(TINY, labels=60, val_share=0.5, dropout=0.0, batch=16, keep_graph=True)


@pytest.fixture(scope="module")
def begun():
    """A run after two cycles, of two level-1 steps and two of the head each."""
    config = replace(SMALL, k2=2)
    problem = data.load(config, CPU)
    L = train.begin(config, problem, CPU, lambda *_: None)
    for t in range(2):
        method.cycle(L, t, estimators.jvp)
    return L, problem


def test_its_inner_steps_are_those_of_a_cycle(begun):
    L, problem = begun
    inner = directions.Inner(L, problem, 2)
    _, masks, values, L3 = inner.gradient([inner.start[name] for name in inner.T])
    # the same by training itself, from copies of the networks and optimisers
    twin = train.begin(L.config, problem, CPU, lambda *_: None)
    for t in range(2):
        method.cycle(twin, t, estimators.jvp)
    seen = []

    def estimator(nets, at, radius):
        seen.append(at)
        assert nets.head_loss(nets.features(inner.xv.float()), inner.yv).item() == pytest.approx(L3)
        return estimators.jvp(nets, at, radius)

    method.cycle(twin, 2, estimator)
    for name, part in twin.nets.parts().items():
        for p_name, p in part.named_parameters():
            if name != "T":
                torch.testing.assert_close(
                    p.detach().double(), values[f"{name}.{p_name}"], rtol=0, atol=1e-4
                )
    ours = inner.point(values)
    assert torch.equal(ours.mask.m.float(), seen[0].mask.m) and len(masks) == 2


def test_its_gradient_is_the_slope_of_the_loss(begun):
    L, problem = begun
    inner = directions.Inner(L, problem, 2)
    T = [inner.start[name] for name in inner.T]
    g, masks, _, _ = inner.gradient(T)
    for direction in (g, [torch.randn_like(p) for p in T]):
        unit = vectors.scaled(direction, 1e-5 / vectors.norm(direction))
        ends = [[p + sign * d for p, d in zip(T, unit)] for sign in (1, -1)]
        slope = (inner.loss(ends[0], masks) - inner.loss(ends[1], masks)) / 2
        assert slope == pytest.approx(vectors.dot(g, unit), rel=1e-3)


def test_a_trial_changes_nothing_and_fills_its_columns(begun):
    L, problem = begun
    before = [p.clone() for part in L.nets.parts().values() for p in part.parameters()]
    row = dict(zip(COLUMNS, directions.trial(L, problem, 2)))
    after = [p for part in L.nets.parts().values() for p in part.parameters()]
    assert all(torch.equal(p, q) for p, q in zip(before, after))
    assert row["step"] == 4 and row["cosine_unrolled"] == pytest.approx(row["cosine_none"], abs=0.1)
    assert all(abs(row[f"cosine_{path}"]) <= 1 for path in ("unrolled", "identity", "none"))
    assert row["cosine_unrolled"] > 0 > row["small"]  # the derived step descends


def test_statistics_of_the_trials():
    rows = np.zeros((4, len(COLUMNS)))

    def put(name, *values):
        rows[:, COLUMNS.index(name)] = values

    put("small", -1, -1, -1, 1)
    put("taken", 0.01, -0.01, 0.01, -0.01)
    put("free", 1.01, 0.99, -0.99, -1.01)
    run = {"mlo": {"_directions": rows}}
    assert STATISTICS["descent_held"](run) == 0.25 == -STATISTICS["ascent_held"](run)
    assert STATISTICS["descent_free"](run) == 0.0
    assert flips(run) == pytest.approx(2)
    put("small_unrolled", -1, -1, -1, 1)
    better = {"mlo_official": {"_directions": np.where(rows == 1, -1, rows)}}
    assert STATISTICS["derived_over_official"](run) == 0.25
    assert STATISTICS["derived_over_official"](run | better) == 0.375
    name, caption, alt, _ = figures.cosines("mnist", [rows, rows])
    assert name == "cosines-mnist" and "2 pretraining(s)" in caption and "identity +0.00" in alt
