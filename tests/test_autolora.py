"""AutoLoRA: the acceptance checks (docs/papers/autolora.md, section 11; numbers in the names)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import nn

from autolora import (
    baselines,
    data,
    evaluate,
    method,
    models,
    official,
    planted,
    rehearsal,
    retrain,
    search,
    train,
)
from autolora.setting import Batches, task_loss
from shared import protocol, runs
from shared.hypergrad import FiniteDifference, FirstOrder, OneStep

ROOT = Path(__file__).resolve().parent.parent
README_RANKS = [
    3,
    2,
    4,
    4,
    5,
    3,
    3,
    4,
    5,
    3,
    5,
    4,
    3,
    3,
    5,
    4,
    2,
    5,
    4,
    4,
    3,
    4,
    3,
    3,
]  # official example, q0 v0 q1 v1 ...


@pytest.fixture(autouse=True)
def _own_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("REPRO_RUNS", str(tmp_path / "runs"))
    runs.be_worker(lambda: False)


def layer(k=4, d_in=6, d_out=5, dtype=torch.float64, seed=0, **more):
    torch.manual_seed(seed)
    made = method.SelectionLoRA(nn.Linear(d_in, d_out), k, **more).to(dtype)
    with torch.no_grad():
        made.B.normal_()
        made.beta.normal_()
    return made


def toy(seed=0, eta=0.1, dropout=0.0, dtype=torch.float64):
    """A LoRA regression: (layer, w, beta, inner loss, outer loss, eta)."""
    made = layer(seed=seed, dtype=dtype, dropout=dropout)
    x, y = torch.randn(2, 20, 6, dtype=dtype), torch.randn(2, 20, 5, dtype=dtype)
    losses = [lambda i=i: F.mse_loss(made(x[i]), y[i]) for i in (0, 1)]
    return made, [made.A, made.B], [made.beta], losses[0], losses[1], eta


def tiny_bert(labels=3):
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    config = BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=12, num_attention_heads=2, intermediate_size=16,
                        max_position_embeddings=16, num_labels=labels)  # fmt: skip
    return BertForSequenceClassification(config)


def stream(*names):
    return runs.stream(0, *names)


# --- 1 to 3: the parameterisation ------------------------------------------------------------------------------------


def test_1_constant_logits_are_plain_lora_with_scale_s_over_k():
    made = layer(dtype=torch.float32)
    x = torch.randn(7, 6)
    with torch.no_grad():
        made.beta.fill_(0.3)
        plain = made.base(x) + made.s / made.k * F.linear(F.linear(x, made.A), made.B)
        assert (made(x) - plain).abs().max() < 1e-6
        made.B.zero_()
        assert torch.equal(made(x), made.base(x))


def test_1_peft_layer_with_alpha_folded_into_b_is_the_same_layer():
    from peft import LoraConfig, get_peft_model

    made = layer(dtype=torch.float32)
    wrapped = get_peft_model(
        nn.Sequential(made.base), LoraConfig(r=4, lora_alpha=16, target_modules=["0"])
    )
    (peft_layer,) = baselines.lora_layers(wrapped).values()
    with torch.no_grad():
        peft_layer.lora_A["default"].weight.copy_(made.A)
        peft_layer.lora_B["default"].weight.copy_(made.B * made.alpha)
    x = torch.randn(7, 6)
    assert torch.allclose(wrapped(x), made(x), atol=1e-5)


def test_2_layer_equals_the_dense_map_and_merging_is_undone():
    made = layer()
    x = torch.randn(7, 6, dtype=torch.float64)
    dense = made.base.weight + made.s * made.B @ torch.diag(torch.softmax(made.beta, 0)) @ made.A
    assert (made(x) - F.linear(x, dense, made.base.bias)).abs().max() < 1e-12
    before = made.base.weight.clone()
    made.merge()
    assert (made.base.weight - dense).abs().max() < 1e-12
    made.merge(-1)
    assert (made.base.weight - before).abs().max() < 1e-6


@pytest.mark.parametrize(
    "beta", [torch.zeros(8), torch.tensor([50.0, -50] * 4), torch.randn(8, generator=stream("b"))]
)
def test_3_alpha_lies_on_the_simplex_of_its_own_map(beta):
    made = layer(k=8, d_in=9, d_out=9, dtype=torch.float32)
    made.beta.data.copy_(beta)
    alpha = made.alpha
    assert (alpha >= 0).all() and abs(alpha.sum().item() - 1) < 1e-6
    made.beta.data.add_(7.0)
    assert torch.allclose(made.alpha, alpha, atol=1e-6)


def test_gpt2_projection_splits_into_query_key_value_and_computes_the_same():
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=30, n_positions=16, n_embd=16, n_layer=2, n_head=2)
    ).eval()
    ids = torch.randint(30, (2, 7))
    before = model(ids).logits
    models.split_fused(model)
    assert torch.allclose(model(ids).logits, before, atol=1e-6)
    names = list(method.adapted_maps(model))
    assert names == [
        f"transformer.h.{i}.attn.c_attn.{m}" for i in (0, 1) for m in ("query", "value")
    ]


# --- 4 to 8: one step --------------------------------------------------------------------------------------------------


def through_the_step(made, inner, outer, eta):
    """L_val(w'(beta), beta) as a differentiable function of beta, written out without the library."""

    def value(beta):
        made_beta = {
            "beta": beta,
            "A": made.A.detach().clone().requires_grad_(),
            "B": made.B.detach().clone().requires_grad_(),
        }
        x = [made_beta["A"], made_beta["B"]]

        def loss(which, a, b):
            features, target = which
            component = F.linear(features, a) * torch.softmax(beta, 0)
            return F.mse_loss(made.base(features) + made.s * F.linear(component, b), target)

        g = torch.autograd.grad(loss(inner, *x), x, create_graph=True)
        return loss(outer, *(p - eta * d for p, d in zip(x, g)))

    return value


@pytest.mark.parametrize("eta", [0.1, 1e-3])
def test_4_hypergradient_agrees_with_autograd_and_with_differences(eta):
    made = layer()
    batches = [
        (torch.randn(20, 6, dtype=torch.float64), torch.randn(20, 5, dtype=torch.float64))
        for _ in range(2)
    ]
    inner, outer = (lambda b=b: F.mse_loss(made(b[0]), b[1]) for b in batches)
    value = through_the_step(made, *batches, eta)
    beta = made.beta.detach().clone().requires_grad_()
    (exact,) = torch.autograd.grad(value(beta), beta)
    for chosen, tolerance in ((OneStep(), 1e-10), (FiniteDifference(), 1e-5)):
        h = method.estimate(outer, inner, [made.A, made.B], [made.beta], eta, chosen)
        assert (h.grads[0] - exact).norm() / exact.norm() < tolerance
    step = 1e-5
    numeric = torch.stack(
        [
            (value(beta + step * e) - value(beta - step * e)).detach() / (2 * step)
            for e in torch.eye(4, dtype=torch.float64)
        ]
    )
    assert (numeric - exact).norm() / exact.norm() < 1e-6


def test_5_without_the_factor_eta_the_vector_is_wrong_and_selectable():
    _, w, beta, inner, outer, eta = toy()
    right = method.estimate(outer, inner, w, beta, eta)
    wrong = official.estimator(coefficient="1", radius=1e-4)(outer, inner, w, beta, eta)
    assert (wrong.grads[0] - right.grads[0]).norm() / right.grads[0].norm() > 1e-5
    assert torch.allclose(wrong.implicit[0], right.implicit[0] / eta, rtol=1e-5)


def test_5_official_estimator_with_no_habit_is_the_default_one():
    _, w, beta, inner, outer, eta = toy()
    mine = official.estimator(radius=1e-4)(outer, inner, w, beta, eta)
    assert torch.allclose(
        mine.grads[0], method.estimate(outer, inner, w, beta, eta).grads[0], rtol=1e-7
    )
    assert mine.gradient_evaluations == 4


def test_5_each_official_habit_changes_the_vector_and_leaves_the_weights():
    _, w, beta, inner, outer, eta = toy(dropout=0.3)
    adam = torch.optim.Adam(w, lr=eta)
    plain = official.estimator(radius=1e-4)(outer, inner, w, beta, eta).grads[0]
    before = [p.clone() for p in w]
    for habit in ({"around": "stepped"}, {"look_ahead": "adam"}, {"masks": "independent"}):
        torch.manual_seed(0)
        other = official.estimator(**habit, optimiser=adam, radius=1e-4)(
            outer, inner, w, beta, eta
        ).grads[0]
        assert not torch.allclose(other, plain, rtol=1e-3), habit
    assert all(torch.equal(p, b) for p, b in zip(w, before)) and not adam.state
    with pytest.raises(ValueError, match="masks"):
        official.estimator(masks="own")


def test_6_with_b_zero_the_direct_gradient_vanishes_at_w_and_not_at_the_look_ahead():
    made, w, beta, inner, outer, eta = toy()
    made.B.data.zero_()
    assert torch.equal(
        method.estimate(outer, inner, w, beta, eta, FirstOrder()).grads[0],
        torch.zeros(4, dtype=torch.float64),
    )
    assert method.estimate(outer, inner, w, beta, eta).direct[0].norm() > 0


def test_7_both_perturbed_evaluations_see_the_same_masks():
    _, w, beta, inner, outer, eta = toy(dropout=0.1)

    def implicit(masks, seed):
        torch.manual_seed(seed)
        return official.estimator(masks=masks, radius=1e-3)(outer, inner, w, beta, eta).implicit[0]

    torch.manual_seed(5)
    once = method.estimate(outer, inner, w, beta, eta).grads[0]
    torch.manual_seed(5)
    assert torch.equal(once, method.estimate(outer, inner, w, beta, eta).grads[0])
    spread = {
        m: torch.stack([implicit(m, s) for s in range(20)]).std(0).norm()
        for m in ("same", "independent")
    }
    assert spread["independent"] > 10 * spread["same"]


def test_8_a_hypergradient_leaves_everything_as_it_was():
    made, w, beta, inner, outer, eta = toy(dropout=0.1)
    optimiser = torch.optim.AdamW(w, lr=eta)
    method.inner_step(inner, w, optimiser)
    before = runs.state_sha256(
        [*w, *beta, *[s for p in w for s in optimiser.state[p].values()], made.base.weight]
    )
    random_state = torch.get_rng_state()
    method.estimate(outer, inner, w, beta, eta)
    after = runs.state_sha256(
        [*w, *beta, *[s for p in w for s in optimiser.state[p].values()], made.base.weight]
    )
    assert before == after and torch.equal(random_state, torch.get_rng_state())
    assert all(p.grad is None for p in [*w, *beta, made.base.weight])


def test_8_the_real_step_sees_the_new_beta_and_no_validation_gradient():
    first, second = toy(), toy()
    for made, w, beta, inner, outer, eta in (first, second):
        sgd, adam = torch.optim.SGD(w, lr=eta), torch.optim.Adam(beta, lr=0.5)
        if made is first[0]:
            method.search_step(inner, outer, w, beta, sgd, adam, eta)
        else:
            beta[0].grad = method.estimate(outer, inner, w, beta, eta).grads[0]
            adam.step()
            for p, g in zip(w, torch.autograd.grad(inner(), w)):
                p.data -= eta * g
    assert all(torch.allclose(a, b) for a, b in zip(first[1] + first[2], second[1] + second[2]))


# --- 9: who is trained ---------------------------------------------------------------------------------------------------


def test_9_inner_and_outer_variables_are_exactly_adapters_head_and_logits():
    model = tiny_bert()
    layers = method.attach(model, 2, "classifier", lambda name: stream("A", name))
    w, beta = method.variables(model)
    wanted = {id(p) for made in layers.values() for p in (made.A, made.B)} | {
        id(p) for p in model.classifier.parameters()
    }
    assert {id(p) for p in w} == wanted and {id(p) for p in beta} == {
        id(made.beta) for made in layers.values()
    }
    assert len(layers) == 24 and list(layers)[:2] == [
        f"bert.encoder.layer.0.attention.self.{m}" for m in ("query", "value")
    ]


def test_9_a_language_model_has_no_head_and_trains_adapters_alone():
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=30, n_positions=16, n_embd=16, n_layer=2, n_head=2)
    )
    models.split_fused(model)
    layers = method.attach(model, 2, "", lambda name: stream("A", name))
    w, beta = method.variables(model)
    assert {id(p) for p in w} == {
        id(p) for made in layers.values() for p in (made.A, made.B)
    } and len(beta) == 4


@pytest.mark.parametrize("name", ["cola", "stsb", "bionlp2004", "e2e"])
def test_9_levels_split_the_training_set_and_nothing_else(name):
    with rehearsal.inputs("rehearsal"):
        task = data.read(name, stream("items"))
    inner, held = data.levels(task, 0.7, stream("levels"))
    assert sorted([*inner, *held]) == list(range(len(task.train)))
    assert not set(task.train.ids) & set(task.test.ids)
    if task.kind == "generation":
        assert not {task.train.texts[i] for i in inner} & {task.train.texts[i] for i in held}
    if name == "cola":
        assert abs(task.train.labels[inner].sum() - 0.7 * task.train.labels.sum()) <= 1


# --- 10, 11: thresholds ----------------------------------------------------------------------------------------------------


def test_10_counts_by_hand():
    assert (
        method.count(torch.full((8,), 1 / 8)) == 8
    )  # the tie rule; `undecided` tells it from a learned 8
    assert method.count(torch.softmax(torch.zeros(7), 0)) == 7
    assert method.count(torch.tensor([1.0, 0, 0, 0])) == 1
    assert method.count(torch.tensor([0.4, 0.3, 0.2, 0.1])) == 2
    for lam in (0.0, -1.0, 1.1):
        with pytest.raises(ValueError, match="lambda"):
            method.count(torch.tensor([0.5, 0.5]), lam)
    alpha = torch.softmax(torch.randn(8, generator=stream("alpha")), 0)
    counts = [method.count(alpha, lam) for lam in np.linspace(0.01, 1, 50)]
    assert counts == sorted(counts, reverse=True)


def test_10_raw_rule_never_gives_less_and_refuses_a_sum_that_is_not_positive():
    generator = stream("beta")
    for _ in range(200):
        beta = 1 + 0.5 * torch.randn(8, generator=generator)
        if beta.sum() > 0.1:
            assert 1 <= official.threshold("softmax", beta) <= official.threshold("raw", beta) <= 8
    for beta in (torch.zeros(8), -torch.ones(8)):
        with pytest.raises(ValueError, match="sum"):
            official.raw_count(beta)
    with pytest.raises(ValueError, match="threshold rule"):
        official.threshold("entropy", torch.ones(8))


def test_10_before_the_first_step_ranks_are_undecided():
    made = {"map": layer(k=4)}
    made["map"].beta.data.fill_(1.0)
    assert method.undecided(made) == ["map"]
    made["map"].beta.data[0] += 0.1
    assert method.undecided(made) == []


def test_11_noise_law():
    counts = method.noise_counts(0.3, 8, 20_000, stream("noise")).double()
    assert abs(counts.mean() - 3.61) < 0.05 and abs(counts.std() - 0.86) < 0.03


def test_rank_rules_count_what_is_there():
    left, right = torch.linalg.qr(torch.randn(9, 3)).Q, torch.linalg.qr(torch.randn(7, 3)).Q.T
    assert method.spectral_rank(left * torch.tensor([1.0, 0.5, 0.05]), right) == 2
    found = SimpleNamespace(
        alpha=torch.full((4,), 0.25), B=torch.diag(torch.tensor([3.0, 3, 0.1, 0.1])), A=torch.eye(4)
    )
    assert method.RANK_RULES["count"](found) == 4 and method.RANK_RULES["norm_weighted"](found) == 2


# --- 12, 13: retraining, opponents, controls ---------------------------------------------------------------------------------


def test_12_readme_ranks_cost_135168_parameters_on_roberta_base_shapes():
    names = [
        f"roberta.encoder.layer.{i}.attention.self.{m}"
        for i in range(12)
        for m in ("query", "value")
    ]
    maps = {name: nn.Linear(768, 768, device="meta") for name in names}
    ranks = official.ranks_from_list(README_RANKS, names)
    assert method.adapter_parameters(ranks, maps) == 135_168
    assert method.adapter_parameters(baselines.uniform(names, 8), maps) == 294_912


@pytest.mark.parametrize("scale", ["per_rank", "constant"])
def test_12_rebuilt_model_has_the_ranks_and_scales_map_by_map(scale):
    model = tiny_bert()
    maps = method.adapted_maps(model)
    ranks = dict(zip(maps, README_RANKS))
    wrapped = baselines.lora(model, ranks, 8, "classifier", lambda n: stream("A", n), scale=scale)
    assert baselines.ranks_read_back(wrapped) == ranks
    assert (
        ranks["bert.encoder.layer.1.attention.self.query"]
        != ranks["bert.encoder.layer.11.attention.self.query"]
    )
    for name, made in baselines.lora_layers(wrapped).items():
        assert made.scaling["default"] == pytest.approx(
            16 / ranks[name] if scale == "per_rank" else 2.0
        )
        assert not made.lora_B["default"].weight.any()
    trained = sum(
        p.numel() for n, p in wrapped.named_parameters() if p.requires_grad and "lora_" in n
    )
    assert trained == sum(r * 32 for r in ranks.values())


@pytest.mark.parametrize(
    "change, message",
    [
        ({"bert.encoder.layer.0.attention.self.query": 0}, "layer.0.attention.self.query"),
        ({"bert.encoder.layer.3.attention.self.value": 17}, "layer.3.attention.self.value"),
        ({"bert.encoder.layer.3.attention.self.value": 2.5}, "integer"),
        ({"bert.encoder.layer.30.attention.self.value": 2}, "layer.30"),
        (None, "no rank given for map 'bert.encoder.layer.0.attention.self.query'"),
    ],
)
def test_12_ranks_that_cannot_be_are_refused_by_name(change, message):
    maps = method.adapted_maps(tiny_bert())
    ranks = dict.fromkeys(maps, 2)
    if change is None:
        ranks.pop(next(iter(maps)))
    with pytest.raises(ValueError, match=message):
        method.check_ranks(ranks | (change or {}), maps)


def test_12_a_rank_of_zero_is_left_out_of_the_patterns():
    found = {"a.query": 2, "b.query": 3}
    made = method.patterns(found, 8)
    assert (
        made["target_modules"] == ["a.query", "b.query"]
        and made["rank_pattern"].keys() == made["alpha_pattern"].keys()
    )
    with pytest.raises(ValueError, match="scale rule"):
        method.patterns(found, 8, scale="none")


def test_13_controls_keep_the_budget():
    names = [f"m{i}" for i in range(24)]
    ranks = dict(zip(names, README_RANKS))
    for seed in range(20):
        shuffled = baselines.permuted(ranks, runs.stream(seed, "p"))
        assert sorted(shuffled.values()) == sorted(README_RANKS) and shuffled != ranks
    same = dict.fromkeys(names, 3)
    assert baselines.permuted(same, stream("p")) == same
    assert (
        sum(baselines.equal_budget(ranks).values()) == 88
        and max(baselines.equal_budget(ranks).values()) == 4
    )
    assert set(baselines.nearest_budget(ranks).values()) == {4}
    beta = {name: (0.3 * torch.randn(8, generator=stream(name))).tolist() for name in names}
    drawn = baselines.random_ranks(beta, stream("r"))
    assert set(drawn) == set(names) and all(1 <= r <= 8 for r in drawn.values())
    with pytest.raises(ValueError, match="24 maps"):
        baselines.choose("3,2", None, names, stream("x"))
    with pytest.raises(ValueError, match="directory of a search"):
        baselines.choose("learned", None, names, stream("x"))


def test_13_ranks_share_their_first_rows_whatever_their_rank():
    starts = []
    for rank in (2, 5):
        made = torch.empty(rank, 16)
        method.start_A(made, stream("A"))
        starts.append(made)
    assert torch.equal(starts[0], starts[1][:2]) and starts[1].abs().max() <= 0.25


def test_adalora_reaches_the_total_and_resumes_its_allocator():
    model = tiny_bert()
    names = list(method.adapted_maps(model))
    runs.seed_global(0, "adalora")
    wrapped = baselines.adalora(model, names, 31, 20, "classifier", dropout=0.0)
    optimiser = torch.optim.AdamW([p for p in wrapped.parameters() if p.requires_grad], lr=1e-2)
    ids, labels = torch.randint(50, (4, 6)), torch.tensor([0, 1, 2, 0])
    for step in range(20):
        loss = F.cross_entropy(
            wrapped(input_ids=ids).logits, labels
        ) + 0.5 * baselines.orthogonality(wrapped)
        loss.backward()
        optimiser.step()
        wrapped.base_model.update_and_allocate(step + 1)
        optimiser.zero_grad()
        if step == 10:
            baselines.restore_allocator(
                wrapped, baselines.allocator_state(wrapped), torch.device("cpu")
            )
    assert sum(baselines.adalora_ranks(wrapped).values()) == 31
    wrapped.eval()
    penalised = wrapped.base_model(
        input_ids=ids, labels=labels
    ).loss  # peft adds it to a model's own loss
    bare = F.cross_entropy(wrapped(input_ids=ids).logits, labels)
    assert torch.allclose(penalised, bare + 0.5 * baselines.orthogonality(wrapped), atol=1e-5)


# --- runs --------------------------------------------------------------------------------------------------------------------


def rehearse(arm, task, out, seed=0, **settings):
    """One rehearsal run (and what it uses) below `out`; returns its directory."""
    paper = protocol.Protocol(ROOT / "autolora")
    node = paper.node("rehearsal", arm, task, seed)
    chosen = paper.config("rehearsal", node) | settings | {"out": str(out / task / f"{seed}" / arm)}
    chosen["uses"] = {key[0]: str(rehearse(key[0], key[1], out, key[2])) for key in node.uses}
    return train.run(train.Config(**chosen))


def of(directory):
    return protocol.read_record(directory)


def test_14_two_searches_with_one_seed_agree_and_cost_five_evaluations_a_step(tmp_path):
    first, second = (rehearse("search", "cola", tmp_path / name) for name in "ab")
    assert (first / "ranks.json").read_bytes() == (second / "ranks.json").read_bytes()
    assert of(first)["gradient_evaluations"] == 5 * 4 and all(
        g["passed"] for g in of(first)["gates"]
    )
    assert of(rehearse("search_first", "cola", tmp_path / "a"))["gradient_evaluations"] == 2 * 4
    again = of(rehearse("search_again", "cola", tmp_path / "a"))
    assert (
        again["splits"] == of(first)["splits"]
        and again["state_sha256"] != of(first)["state_sha256"]
    )
    other = of(rehearse("search", "cola", tmp_path / "a", seed=1))
    assert other["state_sha256"] != of(first)["state_sha256"]


def test_14_arms_of_a_seed_share_data_head_and_cost_is_counted(tmp_path):
    learned, permuted = (rehearse(arm, "mnli", tmp_path) for arm in ("autolora", "permuted"))
    assert of(learned)["splits"] == of(permuted)["splits"]
    assert of(learned)["gradient_evaluations_with_uses"] == 6 + 20 == of(learned)["metrics"]["cost"]
    metrics = of(learned)["metrics"]
    assert {
        "accuracy",
        "accuracy_matched",
        "accuracy_mismatched",
        "parameters",
        "rank_total",
    } <= set(metrics)
    assert metrics == pytest.approx(evaluate.score(evaluate.read(learned)))
    assert (learned / "export" / "adapter_model.safetensors").exists()


@pytest.mark.parametrize("arm", ["adalora", "full", "grid", "spectral", "constant_scale"])
def test_every_kind_of_arm_runs(arm, tmp_path):
    record = of(rehearse(arm, "rte", tmp_path))
    assert record["status"] == "finished" and all(g["passed"] for g in record["gates"])


@pytest.mark.parametrize("task", ["stsb", "bionlp2004", "e2e"])
def test_every_kind_of_task_runs(task, tmp_path):
    directory = rehearse("autolora", task, tmp_path)
    assert evaluate.read(directory)["id"].shape[0] > 0 and "score" in of(directory)["metrics"]


def test_exported_adapter_loads_into_the_base_model(tmp_path):
    from peft import PeftModel

    directory = rehearse("autolora", "rte", tmp_path)
    with rehearsal.inputs("rehearsal"):
        network = models.build(
            "FacebookAI/roberta-base", "classification", 2, runs.stream(9, "other head")
        )
    loaded = PeftModel.from_pretrained(network.model, directory / "export").eval()
    predictions = evaluate.read(directory)
    with rehearsal.inputs("rehearsal"):
        task = data.read("rte", runs.stream(0, "items"))
    encoded = data.encode(task, task.test, network, 64, 0)
    inputs, _ = encoded.batch(np.arange(len(encoded)), torch.device("cpu"))
    assert (loaded(**inputs).logits.argmax(-1).numpy() == predictions["prediction"]).all()


@pytest.mark.parametrize("arm", ["search", "uniform_4", "adalora"])
def test_a_stopped_run_continues_bit_for_bit(arm, tmp_path):
    whole = of(rehearse(arm, "cola", tmp_path / "whole"))
    rehearse("search", "cola", tmp_path / "cut")  # so that the stop below meets the run itself
    stops = iter([False] * 2 + [True])
    runs.be_worker(lambda: next(stops, False))
    if arm == "search":
        stops = iter([False] * 2 + [True])
        path = tmp_path / "other"
    else:
        path = tmp_path / "cut"
    with pytest.raises(runs.Stopped):
        rehearse(arm, "cola", path)
    runs.be_worker(lambda: False)
    continued = of(rehearse(arm, "cola", path))
    assert (
        continued["state_sha256"] == whole["state_sha256"]
        and continued["metrics"] == whole["metrics"]
    )


def test_15_bad_input_is_refused(tmp_path):
    for settings, message in [
        ({"kind": "guess"}, "kind"),
        ({"level_split": 1.0}, "level_split"),
        ({"hypergradient": "magic"}, "hypergradient"),
        ({"select_on": "test"}, "select_on"),
        ({"k": 0}, "k = 0"),
        ({"threshold": 1.5}, "lambda"),
        ({"masks": "independent", "hypergradient": "exact"}, "habits"),
        ({"upper_blocks": 1}, "upper_blocks"),
    ]:
        with pytest.raises(ValueError, match=message):
            rehearse("search", "cola", tmp_path / message.replace(" ", ""), **settings)
    with pytest.raises(runs.BadInput, match="unknown task 'colla'"):
        data.read("colla", stream("x"))


def test_15_nan_stops_the_search_at_its_step_and_level(tmp_path, monkeypatch):
    calls = iter(range(1000))

    def broken(kind, logits, labels, smoothing=0.0):
        return task_loss(kind, logits, labels) * (float("nan") if next(calls) >= 5 else 1.0)

    monkeypatch.setattr(search, "task_loss", broken)
    with pytest.raises(runs.Diverged, match=r"level.*step 1"):
        rehearse("search", "cola", tmp_path, self_check=False)
    assert of(tmp_path / "cola" / "0" / "search")["status"] == "diverged"


def test_15_a_zero_outer_gradient_skips_the_implicit_term():
    made, w, beta, inner, _, eta = toy()
    h = method.estimate(
        lambda: 0.0 * made(torch.ones(1, 6, dtype=torch.float64)).sum(), inner, w, beta, eta
    )
    assert not h.implicit[0].any() and torch.isfinite(h.grads[0]).all()


# --- metrics and loaders -------------------------------------------------------------------------------------------------------


def test_metrics_agree_with_the_libraries():
    from sacrebleu.metrics import BLEU, TER
    from seqeval.metrics import f1_score
    from sklearn.metrics import matthews_corrcoef

    rng = np.random.default_rng(0)
    label, guess = rng.integers(0, 2, 200), rng.integers(0, 2, 200)
    assert evaluate.classification(label, guess)["matthews"] == pytest.approx(
        matthews_corrcoef(label, guess)
    )
    tags = ["O", "B-X", "I-X", "B-Y", "I-Y"]
    truth = [[tags[i] for i in rng.integers(0, 5, 12)] for _ in range(30)]
    found = [[tags[i] for i in rng.integers(0, 5, 12)] for _ in range(30)]
    rows = np.array([evaluate.tagging_row(t, f) for t, f in zip(truth, found)])
    assert evaluate.tagging(rows[:, 2], rows[:, :2])["f1"] == pytest.approx(f1_score(truth, found))
    texts = [
        "Aromi is a place in the city centre .",
        "a coffee shop near the river",
        "Zizzi is cheap",
    ]
    references = [["Aromi is a nice place in the centre of the city .", "Aromi is in the city centre ."],
                  ["There is a coffee shop near the river ."], ["Zizzi is a cheap place to eat by the river", "Zizzi"]]  # fmt: skip
    stats = [evaluate.generation_row(t, r) for t, r in zip(texts, references)]
    mine = evaluate.generation(np.array([r for _, r in stats]), np.array([p for p, _ in stats]))
    columns = [[r[i] if i < len(r) else None for r in references] for i in range(2)]
    assert 100 * mine["bleu"] == pytest.approx(
        BLEU(smooth_method="none").corpus_score(texts, columns).score
    )
    assert 100 * mine["ter"] == pytest.approx(TER().corpus_score(texts, columns).score)


def test_tagging_labels_sit_on_the_first_piece_of_a_word():
    from shared import bundled

    tokenizer = bundled.minilm()[1]
    part = data.Part(np.arange(1), [["BRCA1", "mutations", "."]], [[1, 0, 0]])
    columns, labels = data._align(part, tokenizer, 32)
    pieces = tokenizer.convert_ids_to_tokens(columns["input_ids"][0])
    assert [p for p, t in zip(pieces, labels[0]) if t != -100][1:] == ["mutations", "."] and labels[
        0
    ].count(1) == 1


@pytest.mark.parametrize("line, message", [("BRCA1 O", "line 1"), ("BRCA1\tB", "line 1")])
def test_a_tagging_file_with_a_bad_line_names_it(line, message, tmp_path):
    (tmp_path / "train.tsv").write_text(line + "\n")
    with pytest.raises(runs.BadInput, match=message):
        data.read_iob(tmp_path / "train.tsv")


def test_real_files_of_glue_tagging_and_generation(repro_data, monkeypatch):
    monkeypatch.setenv("REPRO_DATA", str(repro_data))
    rte, ncbi = (
        data.read("rte", stream("items")),
        data.read("ncbi", stream("items"), train_items=50),
    )
    assert (len(rte.train), len(rte.test)) == (2490, 277) and rte.labels == (
        "entailment",
        "not_entailment",
    )
    assert (
        ncbi.labels == ("O", "B-Disease", "I-Disease")
        and len(ncbi.train) == 50
        and len(ncbi.test) == 940
    )
    lines = data._e2e_lines(Path(repro_data) / "nlg" / "e2e", "test")
    assert len(lines) == 4693 and len({m for m, _ in lines}) == 630
    assert data._linear("name[Aromi], area[city centre]") == "name : Aromi | area : city centre"


def test_planted_table_is_a_table_of_ranks():
    cells = planted.table(30, stream("planted"))
    assert len(cells["label"]) == len(cells["prediction"]) == 20 and all(
        1 <= r <= 8 for r in cells["prediction"]
    )
    assert cells["prediction"][:4] != cells["prediction"][8:12]  # more travel, other ranks


def test_more_outer_travel_means_smaller_ranks():
    cells = [
        np.array(planted.table(120, runs.stream(s, "p"))["prediction"]).reshape(5, 4)
        for s in range(4)
    ]
    short, long = sum(c[0].sum() for c in cells), sum(c[2].sum() for c in cells)
    assert long < short


def test_statistics_are_what_they_say():
    uniform, spread = {"_ranks": np.array([3, 3, 3, 3])}, {"_ranks": np.array([1, 2, 3, 4])}
    assert evaluate.rank_spread({"a": uniform}) == 0 and evaluate.rank_spread({"a": spread}) > 1
    assert evaluate.rank_agreement(
        {"a": spread, "b": {"_ranks": np.array([2, 4, 6, 8])}}
    ) == pytest.approx(1)
    assert evaluate.rank_agreement({"a": spread, "b": uniform}) == 0


def test_batches_cover_the_part_and_leave_no_short_batch():
    batches = Batches(np.arange(10, 21), 3, 0, "b")
    epoch = np.concatenate([batches(i) for i in range(3)])
    assert len(set(epoch)) == 9 and not np.array_equal(batches(0), batches(3))
    assert np.array_equal(batches(1), Batches(np.arange(10, 21), 3, 0, "b")(1))


def test_schedule_rises_and_falls():
    rates = [retrain.schedule(step, 100, 0.06) for step in range(100)]
    assert (
        rates[5] == 1.0 == max(rates) and rates[0] == pytest.approx(1 / 6) and 0 < rates[99] < 0.02
    )


def test_16_no_score_of_the_paper_is_on_file_and_none_can_be_passed():
    reported = yaml.safe_load((ROOT / "autolora" / "reported.yaml").read_text())
    own = [e for e in reported["entries"] if e["method"].startswith("AutoLoRA")]
    assert own and {e["metric"] for e in own} <= {
        "learned_rank",
        "sum_of_ranks",
        "mean_rank",
        "adapter_parameters",
    }
    assert all(e["origin"] != "paper" for e in reported["entries"]) and any(
        "GLUE" in t for t in reported["not_found"]
    )


# --- command line ----------------------------------------------------------------------------------------------------------------


def test_tiny_command_survives_a_kill_and_gives_the_same(tmp_path):
    environment = os.environ | {
        "REPRO_RUNS": str(tmp_path / "killed"),
        "REPRO_CHECKPOINT_SECONDS": "0",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "autolora.train", "--tiny", "--device", "cpu"]
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    checkpoints = (
        tmp_path / "killed" / "autolora" / "tiny" / "tiny" / "seed0" / "search" / "checkpoint"
    )
    until = time.monotonic() + 200
    while (
        not (checkpoints.exists() and len(list(checkpoints.glob("step-*"))) == 2)
        and time.monotonic() < until
    ):
        assert process.poll() is None, process.stdout.read().decode()
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    again = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "continues at step" in again.stdout and "nothing" not in again.stderr
    folder = checkpoints.parent.parent
    paper = protocol.Protocol(ROOT / "autolora")
    clean = paper.config("tiny", paper.node("tiny", "search", "tiny", 0)) | {
        "out": str(tmp_path / "clean"),
        "device": "cpu",
    }
    assert (
        of(train.run(train.Config(**clean)))["state_sha256"]
        == of(folder / "search")["state_sha256"]
    )
    shown = subprocess.run(
        [sys.executable, "-m", "autolora.evaluate", str(folder / "autolora")],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert f"accuracy = {of(folder / 'autolora')['metrics']['accuracy']:.4f}" in shown.stdout
    assert json.loads((folder / "search" / "ranks.json").read_text())["budget"] >= 2


def test_what_the_readme_says_of_the_implicit_term_is_recorded():
    """README: with and without it the retrained weights are the same to the bit, on every seed."""
    result = json.loads((ROOT / "autolora" / "results" / "cpu.json").read_text())
    state = {(r["arm"], r["seed"]): r["state_sha256"] for r in result["runs"]}
    assert all(state["autolora", seed] == state["first_order", seed] for seed in result["seeds"])
