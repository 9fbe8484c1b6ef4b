"""A block of seeds trained side by side is each of them trained alone, up to rounding."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from mixup_toys import Training, config, record_of

from shared import protocol, vectors
from shared.protocol import BadInput
from weight_mixup import method, stacked

ARMS = {
    "mixup": {},
    "convex": {"mix_form": "convex"},
    "kavg": {"job": "averaging"},
    "joint": {"job": "joint"},
    "random": {"job": "random_gates", "sigma": 0.45},
    "ema": {"job": "finetuning", "length": "updates", "ema": 0.9},
    "extra_gates": {"extra": 20, "labels": "gates"},
    "more_labels": {"job": "finetuning", "extra": 20, "labels": "all"},
}


@pytest.mark.parametrize("arm", ARMS)
def test_a_row_is_the_run_alone(tmp_path, no_cache, arm):
    settings = config(tmp_path, stack=3, alpha_lr=0.02, seed=4, **ARMS[arm])
    row = stacked.trained(settings)
    alone = Training(tmp_path, **ARMS[arm], alpha_lr=0.02, seed=4)
    if settings.job in ("averaging", "joint", "bilevel"):
        alone.search()
    alone.finetune()
    start = [p - s for p, s in zip(alone.w, alone.network.start, strict=True)]
    moved = [p - s for p, s in zip(row["w"].values(), alone.network.start, strict=True)]
    assert list(row["w"]) == list(alone.network.w)
    assert vectors.relative_error(moved, start) < 1e-2 and vectors.norm(start) > 0.1
    for ours, theirs in zip(row["alpha"], alone.alpha, strict=True):
        assert (ours - theirs).abs().max() < 1e-4
    assert row["evaluations"] == alone.network.counts["evaluations"]
    if alone.alpha:
        assert row["alpha_lowest"] == pytest.approx(alone.network.counts["alpha_lowest"], abs=1e-4)


def test_a_run_of_a_block_ends_as_the_run_alone(tmp_path, no_cache):
    alone, together = (
        record_of(config(tmp_path, f"stack{size}", stack=size, seed=5)) for size in (1, 3)
    )
    same = ("split_sha256", "gradient_evaluations", "chosen_step")
    assert {k: alone[k] for k in same} == {k: together[k] for k in same}
    assert all(gate["passed"] for gate in together["gates"])
    a, b = (dict(np.load(tmp_path / f"stack{size}/predictions.npz")) for size in (1, 3))
    assert np.array_equal(a["id"], b["id"])
    lines = (tmp_path / "stack3/metrics.jsonl").read_text().splitlines()
    assert len(lines) >= 4 and all(len(json.loads(line)["gates"]) == 5 for line in lines)
    assert (a["prediction"] == b["prediction"]).mean() > 0.99


def test_a_block_begins_at_a_multiple_of_its_size(tmp_path):
    blocks = [stacked.block(config(tmp_path, stack=20, seed=seed)) for seed in (100, 119, 120)]
    assert blocks == [range(100, 120), range(100, 120), range(120, 140)]


def test_a_row_that_is_not_finite_stops_its_run(tmp_path, no_cache):
    from weight_mixup import train

    settings = config(tmp_path, stack=2, lr=1e30, search_clip=1e30)
    with pytest.raises(train.runs.Diverged):
        train.run(settings)
    assert protocol.read_record(tmp_path / "run")["status"] == "diverged"


@pytest.mark.parametrize("changes", [{"rank": 2}, {"official": ("drift",)}, {"data": "rte"}])
def test_what_only_a_run_alone_can_have_is_refused(tmp_path, changes):
    with pytest.raises(BadInput, match=next(iter(changes))):
        dataclasses.replace(config(tmp_path, **changes), stack=2)


def test_the_clip_and_the_probe_are_those_of_each_network():
    w = {"layer.0.weight": torch.zeros(2, 1, 2, requires_grad=True)}
    optimizer = torch.optim.SGD([*w.values()], lr=1.0)
    stacked.step(optimizer, w, [torch.tensor([[[3.0, 4.0]], [[0.3, 0.4]]])], clip=1.0)
    lengths = stacked.norms([p.detach() for p in w.values()])
    assert lengths.tolist() == pytest.approx([1.0, 0.5], abs=1e-5)
    groups = [len(g["params"]) for g in stacked.adamw(w, 0.01).param_groups]
    assert groups == [1, 0] and method.adamw([torch.zeros(2, 2)], 0.01).param_groups
