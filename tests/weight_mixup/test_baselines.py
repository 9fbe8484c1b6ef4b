"""The published methods that weight mixup is compared with."""

import numpy as np
import pytest
import torch
from mixup_toys import Training, bert, equal, linear, tokens
from torch import nn

from shared import vectors
from weight_mixup import baselines, data


def test_mixout_has_the_right_mean_and_is_off_in_evaluation():
    W0 = linear().weight.detach().clone()
    W = W0 + 0.5
    mix = baselines.Mixout(W0, 0.7)
    torch.manual_seed(0)
    draws = torch.stack([mix(W) for _ in range(4000)])
    assert (draws.mean(0) - W).abs().max() < 0.06
    assert draws.std(0).min() > 0.1
    assert torch.equal(mix.eval()(W), W)
    model = bert()
    baselines.add_mixout(model, 0.5)
    assert model.bert.encoder.layer[0].output.dropout.p == 0.0 and model.dropout.p > 0


def test_child_tuning_f_keeps_the_mean_of_the_gradients():
    g = torch.ones(100, 100)
    torch.manual_seed(0)
    baselines.child_f_([g], 0.3)
    assert g.unique().tolist() == pytest.approx([0.0, 1 / 0.3]) and abs(float(g.mean()) - 1) < 0.1


def test_child_tuning_d_frees_the_share_p_of_the_layers():
    torch.manual_seed(0)
    net = data.DigitsNet()
    x, y = torch.rand(20, 64), torch.randint(0, 5, (20,))
    w = dict(net.named_parameters())
    fisher = {name: torch.zeros_like(p) for name, p in w.items() if name.startswith("layer")}
    baselines.add_fisher_(fisher, w, data.task_loss(net(x), y))
    for p in w.values():
        p.grad = torch.ones_like(p)
    baselines.child_d(w, fisher, 0.3)(0)
    share = sum(float(w[n].grad.sum()) for n in fisher) / sum(w[n].numel() for n in fisher)
    assert share == pytest.approx(0.3, abs=0.02)
    assert float(w["classifier.weight"].grad.min()) == 1


def test_dps_alternates_between_collecting_and_masking():
    w = {
        "layer.0.weight": nn.Parameter(torch.ones(10, 10)),
        "classifier.weight": nn.Parameter(torch.ones(2, 2)),
    }
    sums = {"layer.0.weight": torch.zeros(10, 10)}
    dps = baselines.DPS(w, sums, steps=40, p=0.3, update_ratio=0.05)  # blocks of two steps
    importance = torch.arange(1.0, 101.0).reshape(10, 10)
    moved = []
    for step in range(4):
        for p in w.values():
            p.grad = importance.clone() if p.numel() == 100 else torch.ones_like(p)
        dps(step)
        moved.append(int((w["layer.0.weight"].grad != 0).sum()))
    assert moved == [100, 100, 70, 70]
    assert float(w["classifier.weight"].grad.sum()) == 4


def test_reinitialisation_touches_the_top_only():
    model, other = bert(layers=3), bert(layers=3)
    baselines.reinitialise(model, 1, torch.Generator().manual_seed(4))
    pairs = zip(model.named_parameters(), other.parameters(), strict=True)
    changed = [name for (name, a), b in pairs if not torch.equal(a, b)]
    assert changed and all(".layer.2." in n or "pooler" in n for n in changed)
    with pytest.raises(ValueError, match=r"1\.\.3"):
        baselines.reinitialise(model, 4, torch.Generator())


STRENGTHS = {"mixout": 0.5, "r3f": 1.0, "r_drop": 1.0, "child_f": 0.3, "child_d": 0.3,
             "reinit": 1.0, "dps": 0.3}  # fmt: skip


@pytest.mark.parametrize("name", STRENGTHS)
def test_each_baseline_trains_a_transformer(tmp_path, name):
    inputs, labels = tokens(12)
    items = data.Items(np.arange(12), inputs, labels)
    problem = data.Problem(bert(), items, items, items, "accuracy")
    settings = {"data": "rte", "job": "finetuning", "epochs": 3, "batch": 4}
    settings |= {"finetune": name, "strength": STRENGTHS[name]}
    training = Training(tmp_path, problem, **settings)
    before = vectors.clone(training.w)
    losses = [line["loss"] for line in training.finetune()]
    assert len(losses) == 9 and np.isfinite(losses).all() and not equal(before, training.w)
    per_step = 2 if name in ("r3f", "r_drop") else 1
    fisher = 3 if name == "child_d" else 0
    assert training.network.counts["evaluations"] == 9 * per_step + fisher
