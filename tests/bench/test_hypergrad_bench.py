"""benchmarks/hypergradients: cells run, tables say what the records say, the example learns."""

import json
import os
import re
import subprocess
import sys

import pytest
import torch

from benchmarks import readme
from benchmarks.hypergradients import cell, hand, ours, peers, tables, tasks
from benchmarks.hypergradients.toy import Toy
from shared import vectors


def test_every_estimator_of_ours_beats_its_bound_on_the_toy():
    rows = {row["name"]: row for row in cell.accuracy("ours", 10, "")}
    assert not [row for row in rows.values() if "failed" in row]
    assert rows["ours: ConjugateGradient(20)"]["relative_error"] < 1e-10
    one_step = [
        rows[f"ours: {name}"]["relative_error"]
        for name in ("FiniteDifference", "OneStep", "ForwardOverReverse")
    ]
    assert max(one_step) - min(one_step) < 1e-4
    assert (
        rows["ours: Neumann(20)"]["relative_error"] < rows["ours: Neumann(5)"]["relative_error"] < 1
    )


@pytest.fixture
def small(monkeypatch):
    sizes = {"hidden": 16, "mlp_batch": 8, "d": 16, "length": 4, "batch": 4}
    monkeypatch.setitem(tasks.SIZES, "cpu", sizes)


@pytest.mark.parametrize("model", tasks.MODELS)
def test_steps_of_one_kind_do_the_same(small, model):
    """By hand and with the library: weights and hyperparameters after one bilevel step."""
    after = {}
    for module in (hand, ours):
        for name, (_, make) in module.COST.items():
            task = tasks.Task(model)
            task.lr, task.outer_lr = 0.5, 1.0
            before = vectors.clone(task.lam)
            make(task)()
            after[name] = vectors.minus(task.lam, before), vectors.clone(task.theta)
    same = [
        ("by hand: reverse over reverse", "ours: OneStep"),
        ("by hand: finite difference", "ours: FiniteDifference"),
    ]
    for a, b in [*same, ("ours: OneStep", "ours: ForwardOverReverse")]:
        assert vectors.relative_error(after[a][0], after[b][0]) < 1e-2, (a, b)
        assert vectors.relative_error(after[a][1], after[b][1]) < 1e-5, (a, b)
    assert vectors.norm(after["ours: OneStep"][0]) > 0


def test_a_cost_cell(small, monkeypatch):
    row = cell.cost("ours", "mlp", "ours: FiniteDifference", 3, "cpu")
    assert row["finite"] and len(row["ratios"]) == 3 and row["kind"] == "finite difference"


def test_entries_have_kinds_that_are_compared():
    kinds = {kind for kind, _ in ours.COST.values()}
    assert {kind for kind, _ in peers.COST.values()} <= kinds
    assert {kind for kind, _ in peers.ACCURACY.values()} <= {
        kind for kind, _ in ours.ACCURACY.values()
    }


def test_tables_show_failures_and_missed_targets():
    good = {"model": "mlp", "kind": "finite difference", "megabytes": 10.0, "ratios": [2.0, 9.0]}
    record = {
        "cost": [
            {
                "model": "mlp",
                "name": "plain SGD",
                "kind": "plain",
                "megabytes": 9.0,
                "time": 1.0,
                "memory": 1.0,
            },
            {**good, "name": "ours: FiniteDifference", "time": 9.0, "memory": 1.1},
            {**good, "name": "betty: darts", "time": 3.0, "memory": 1.5},
            {"model": "mlp", "name": "higher: unrolled, 1 step", "failed": "install: no wheel"},
        ],
        "accuracy": [{"toy": 10, "name": "ours: ConjugateGradient(20)", "relative_error": 1e-12}],
    }
    assert "FAILED: install: no wheel" in tables.cost_table(record["cost"])
    assert re.search(r"mlp: time over the floor.*3\.38.*MISSED", tables.targets_table(record))
    assert re.search(r"relative error.*1e-12.*reached", tables.targets_table(record))
    assert "| mlp | finite difference | 9.00 | 3.00 (betty: darts) |" in tables.rivals_table(
        record["cost"]
    )


def test_the_readme_says_what_was_recorded():
    if not (tables.RESULTS / "cpu.json").exists():
        pytest.skip("nothing recorded yet: python -m benchmarks.hypergradients.run --record")
    assert readme.outdated(tables.README, tables.tables()) == []
    record = json.loads((tables.RESULTS / "cpu.json").read_text())
    assert record["machine"]["torch"] and record["command"]


def test_the_example_learns(tmp_path):
    """As the README runs it; the validation loss must fall."""
    environment = os.environ | {"MPLBACKEND": "agg", "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable,
        "-m",
        "benchmarks.hypergradients.example",
        str(tmp_path / "digits.png"),
    ]
    done = subprocess.run(command, cwd=tables.ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    losses = [float(x) for x in re.findall(r"validation loss ([\d.]+)", done.stdout)]
    assert losses[-1] < 0.6 * losses[0] and (tmp_path / "digits.png").stat().st_size > 1000


def test_the_toy_is_at_its_minimum():
    toy = Toy(10)
    g = torch.autograd.grad(toy.inner(toy.theta, toy.lam), toy.theta)[0]
    assert g.norm() < 1e-12


@pytest.mark.gpu
@pytest.mark.parametrize("model", tasks.MODELS)
def test_cells_on_cuda(model):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    for name in ours.COST:
        row = cell.cost("ours", model, name, 2, "cuda")
        assert row["finite"] and row["megabytes"] > 0
