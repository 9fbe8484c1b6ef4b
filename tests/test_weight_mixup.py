"""weight_mixup: the acceptance checks (docs/papers/weight_mixup.md, section 11), on toys."""

import copy
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from shared import protocol, runs, vectors
from shared.hypergrad import FiniteDifference, OneStep
from weight_mixup import baselines, data, evaluate, method, official, phases, train

FORMS = ("factored", "convex")


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def linear(d_in=6, d_out=5, dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Linear(d_in, d_out, dtype=dtype)


def gated(form, rank=1, value=1.0):
    """(holder, Linear moved away from W0 and gated at `value`, a plain Linear with its W, W0)."""
    plain = linear()
    holder = nn.ModuleDict({"layer": nn.ModuleList([copy.deepcopy(plain)])})
    method.add_gates(holder, rank, form)
    module = holder["layer"][0]
    W, W0 = module.parametrizations.weight.original, plain.weight.detach().clone()
    with torch.no_grad():
        W.add_(0.1 * torch.randn(5, 6, generator=torch.Generator().manual_seed(1)))
        plain.weight.copy_(W)
        for factor in method.alpha_of(holder):
            factor.fill_(value)
    return holder, module, plain, W0


def bert(layers=2):
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    settings = BertConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=layers, num_attention_heads=2, intermediate_size=48,
        max_position_embeddings=16, num_labels=3, attn_implementation="eager",
    )  # fmt: skip
    return BertForSequenceClassification(settings)


def tokens(n=4, length=7):
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(1, 50, (n, length), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, torch.randint(
        0, 3, (n,), generator=generator
    )


def config(tmp_path, name="run", **changes):
    """A digits run of a tenth of a second."""
    settings = {
        "scale": "cpu", "arm": "mixup", "task": "digits30", "data": "digits", "n": 30, "lr": 1e-3, "epochs": 2, "search_epochs": 2, "K": 2,
        "search": "finite_difference", "gates": "learned", "device": "cpu", "out": str(tmp_path / name),
    }  # fmt: skip
    return train.Config(**{**settings, **changes})


@pytest.fixture
def no_cache(tmp_path_factory, monkeypatch):
    """Pretrain the digits network for one epoch, in a cache of its own."""
    monkeypatch.setenv("REPRO_CACHE", str(tmp_path_factory.mktemp("cache")))
    long = data.pretrain_digits
    monkeypatch.setattr(data, "pretrain_digits", lambda x, y: long(x, y, epochs=1))


class NoRun:
    """Stands in for a run where single steps are tested."""

    def finite(self, value, **where):
        assert torch.isfinite(torch.as_tensor(value)).all(), where


def training(tmp_path, **changes):
    settings = config(tmp_path, **changes)
    problem = data.load(settings)
    plan = phases.plan(settings, len(problem.train))
    return phases.Training(settings, NoRun(), problem, plan, torch.device("cpu"))


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


# ------------------------------------------------------------------------------------- 1-6: the mixed weight


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rank", [1, 2])
def test_corner_gates_are_the_task_weight_and_the_pretrained_weight(form, rank):
    x = torch.randn(7, 6, generator=torch.Generator().manual_seed(2))
    _, module, plain, W0 = gated(form, rank, 1.0)
    assert (module(x) - plain(x)).abs().max() < 1e-6
    _, module, plain, W0 = gated(form, rank, 0.0)
    assert (module(x) - nn.functional.linear(x, W0, plain.bias)).abs().max() < 1e-6


def test_coefficients_of_the_factored_form():
    u, v = torch.rand(5, 1), torch.rand(1, 6)
    W, W0 = torch.randn(5, 6), torch.randn(5, 6)
    assert torch.allclose(method.coefficient_sum(u, v), 1 - u - v + 2 * u * v)
    half = torch.full((5, 1), 0.5), torch.full((1, 6), 0.5)
    assert torch.allclose(method.factored(*half, W, W), W / 2)
    assert torch.allclose(method.convex(u, v, W, W), W)
    mistaken = (u @ v) * W + (1 - u @ v) * W0  # 1 - u v where (1 - u)(1 - v) is meant
    assert torch.allclose(method.convex(u, v, W, W0), mistaken, atol=1e-6)
    assert not torch.allclose(method.factored(u, v, W, W0), mistaken, atol=1e-2)


def test_closed_form_gradient_of_the_factored_form():
    """Once and twice, against autograd of Eq. 2 as it is written."""
    generator = torch.Generator().manual_seed(0)
    shapes = (5, 1), (1, 6), (5, 6), (5, 6), (5, 6)
    *inputs, G = (torch.rand(s, generator=generator, dtype=torch.float64) for s in shapes)
    inputs = [x.requires_grad_(i < 3) for i, x in enumerate(inputs)]
    u, v, W, W0 = inputs
    written = (u @ v) * W + ((1 - u) @ (1 - v)) * W0
    assert torch.allclose(method.factored(*inputs), written)
    ours = torch.autograd.grad(method.factored(*inputs), inputs[:3], G)
    theirs = torch.autograd.grad(written, inputs[:3], G)
    assert all(torch.allclose(a, b) for a, b in zip(ours, theirs, strict=True))
    only_gates = torch.autograd.grad(method.factored(u, v, W.detach(), W0), [u, v], G)
    assert all(torch.equal(a, b) for a, b in zip(only_gates, ours, strict=False))
    assert torch.autograd.gradgradcheck(lambda u, v, W: method.factored(u, v, W, W0), (u, v, W))


@pytest.mark.parametrize("rank", [1, 3])
def test_shapes_and_number_of_gates(rank):
    holder, *_ = gated("factored", rank)
    gate = method.gates_of(holder)["layer.0"]
    assert gate.u.shape == (5, rank) and gate.v.shape == (rank, 6)
    assert sum(a.numel() for a in method.alpha_of(holder)) == rank * (5 + 6)


@pytest.mark.parametrize("rank", [0, 6])
def test_a_rank_outside_the_matrix_is_refused(rank):
    with pytest.raises(ValueError, match=rf"rank {rank}.*1\.\.5"):
        method.Mixup(linear().weight, rank)


def test_a_gated_transformer_computes_what_it_did():
    model = bert().eval()
    inputs, _ = tokens()
    before = model(**inputs).logits
    method.add_gates(model)
    assert (model(**inputs).logits - before).abs().max() < 1e-5


def test_exactly_the_intended_maps_are_gated():
    model = bert(layers=2)
    method.add_gates(model)
    names = list(method.gates_of(model))
    assert len(names) == 6 * 2 + 1 and "bert.pooler.dense" in names
    assert not any("embeddings" in n or "LayerNorm" in n or "classifier" in n for n in names)
    with pytest.raises(ValueError, match="gated already"):
        method.add_gates(model)
    with pytest.raises(ValueError, match="nothing to gate"):
        method.add_gates(nn.Linear(3, 3))


def test_pretrained_weight_has_no_gradient_and_no_shared_storage():
    holder, module, *_ = gated("factored", value=0.7)
    module(torch.randn(3, 6)).square().sum().backward()
    gate = method.gates_of(holder)["layer.0"]
    assert gate.W0.grad is None and not gate.W0.requires_grad
    assert gate.W0.data_ptr() != module.parametrizations.weight.original.data_ptr()
    assert gate.u.grad.abs().sum() > 0


# ------------------------------------------------------------------------------------- 7, 8, 13: the hypergradient


def quadratic():
    """w, alpha, lower and upper loss of a gated 4 x 3 least-squares problem in float64."""
    holder = nn.ModuleDict({"layer": nn.ModuleList([linear(3, 4, torch.float64)])})
    method.add_gates(holder)
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(2, 8, 3, generator=generator, dtype=torch.float64)
    y = torch.randn(2, 8, 4, generator=generator, dtype=torch.float64)
    method.draw_gates(method.alpha_of(holder), 0.2, generator)
    net = holder["layer"][0]
    lower, upper = (lambda i=i: (net(x[i]) - y[i]).square().mean() for i in range(2))
    return list(method.w_of(holder).values()), method.alpha_of(holder), lower, upper


def unrolled(w, alpha, lower, upper, xi):
    """The exact gradient of upper(w - xi grad lower) for alpha, and its implicit part, by two plain autograd calls."""
    g = torch.autograd.grad(lower(), w, create_graph=True)
    before = vectors.clone(w)
    vectors.add_(w, g, -xi)
    both = torch.autograd.grad(upper(), [*alpha, *w])
    vectors.copy_(w, before)
    g = torch.autograd.grad(lower(), w, create_graph=True)
    implicit = torch.autograd.grad(g, alpha, [-xi * v for v in both[len(alpha) :]])
    return [d + i for d, i in zip(both[: len(alpha)], implicit, strict=True)], list(implicit)


def by_accident(problem, *names, optimizer=None, masks=lambda i: None, xi=0.3):
    w, alpha, lower, upper = problem
    return official.hypergradient(
        upper, lower, w, alpha, xi, optimizer or phases.adamw(w, 0.0), 5.0, names, masks
    )


def test_hypergradient_is_the_exact_one():
    w, alpha, lower, upper = quadratic()
    exact, implicit = unrolled(w, alpha, lower, upper, xi=0.3)
    for estimator in (FiniteDifference(radius=0.01), OneStep()):
        found = method.hypergradient(upper, lower, w, alpha, 0.3, estimator)
        assert vectors.relative_error(found.grads, exact) < 1e-3
        assert vectors.relative_error(found.implicit, implicit) < 1e-3
    wrong_sign = [d - i for d, i in zip(found.direct, found.implicit, strict=True)]
    no_xi = [d + i / 0.3 for d, i in zip(found.direct, found.implicit, strict=True)]
    assert vectors.relative_error(wrong_sign, exact) > 0.05
    assert vectors.relative_error(no_xi, exact) > 0.05


def test_weights_are_restored_bit_for_bit_and_drift_is_exactly_the_radius():
    problem = w, alpha, lower, upper = quadratic()
    before = vectors.clone(w)
    method.hypergradient(upper, lower, w, alpha, 0.3, FiniteDifference(radius=0.01))
    assert equal(w, before)
    by_accident(problem)
    assert equal(w, before)
    by_accident(problem, "drift")
    moved = vectors.norm([a.detach() - b for a, b in zip(w, before, strict=True)])
    assert abs(moved - 0.01) < 1e-6


def test_official_without_accidents_is_the_default_hypergradient():
    problem = w, alpha, lower, upper = quadratic()
    ours = method.hypergradient(upper, lower, w, alpha, 0.3, FiniteDifference(radius=0.01))
    g, _, _, evaluations = by_accident(problem)
    assert vectors.relative_error(g, ours.grads) < 1e-9 and evaluations == ours.gradient_evaluations
    assert vectors.relative_error(by_accident(problem, "betty_direction")[0], ours.grads) > 0.05


def test_double_step_takes_one_real_step_inside():
    problem = quadratic()
    optimizer = phases.adamw(problem[0], 0.0)
    phases.set_rate(optimizer, 1e-2)
    before = vectors.clone(problem[0])
    by_accident(problem, "double_step", optimizer=optimizer, xi=1e-2)
    assert int(optimizer.state[problem[0][0]]["step"]) == 1 and not equal(problem[0], before)
    with pytest.raises(ValueError, match="drfit"):
        official.check_accidents(["drfit"])


def test_independent_dropout_masks_spoil_the_difference():
    model = bert(layers=1).train()
    method.add_gates(model)
    inputs, labels = tokens(8)
    loss = lambda: phases.task_loss(model(**inputs).logits, labels)  # noqa: E731
    problem = list(method.w_of(model).values()), method.alpha_of(model), loss, loss

    def implicit(*names, start=0):
        """The masks of the validation pass are fixed; those of the difference begin at `start`."""
        return by_accident(
            problem, *names, masks=lambda i: torch.manual_seed(0 if i == 0 else start + i), xi=1e-3
        )[2]

    assert vectors.cosine(implicit(), implicit()) > 0.999
    assert (
        vectors.cosine(implicit("independent_masks"), implicit("independent_masks", start=10)) < 0.9
    )


# ------------------------------------------------------------------------------------- 9-12, 14: the two phases


def test_gates_move_early_and_stay_inside(tmp_path, no_cache):
    t = training(tmp_path, alpha_lr=0.5, search_epochs=3)  # a rate that would leave [0, 1] at once
    t.begin_search(0)
    begin = vectors.clone(t.alpha)
    for step in range(3):
        t.search_step(0, step)
        assert all(float(a.detach().min()) >= 0 and float(a.detach().max()) <= 1 for a in t.alpha)
    assert not equal(t.alpha, begin)
    assert t.facts["alpha_lowest"] < 1


def test_levels_see_disjoint_items_of_the_right_size(tmp_path, no_cache):
    for k in range(3):
        d_tr, d_val = method.split(31, 0.8, runs.stream(0, "split", k))
        assert len(d_tr) == 24 and len(d_val) == 7
        assert sorted([*d_tr.tolist(), *d_val.tolist()]) == list(range(31))
    assert not torch.equal(*(method.split(31, 0.8, runs.stream(0, "split", k))[0] for k in (0, 1)))

    t = training(tmp_path)
    t.begin_search(0)
    t.begin_finetune()
    used = []
    t.loss_of = lambda positions: used.append(set(positions.tolist())) or (lambda: torch.zeros(()))
    t.hypergradient = lambda upper, lower, xi, k, step: ([torch.ones_like(a) for a in t.alpha],) * 3
    t.prepare_search(0)
    method_w_step = method.w_step
    try:
        method.w_step = lambda *a: torch.zeros(())
        for step in range(20):
            t.search_step(0, step)
    finally:
        method.w_step = method_w_step
    lower, upper = set().union(*used[0::2]), set().union(*used[1::2])
    assert lower == set(t.d_tr.tolist()) and upper == set(t.d_val.tolist()) and not lower & upper


def test_phase_two_uses_every_example():
    seen = [phases.batch(torch.arange(30), 16, t, 0, "finetune").tolist() for t in range(4)]
    assert [len(b) for b in seen] == [16, 14, 16, 14]
    assert sorted(seen[0] + seen[1]) == sorted(seen[2] + seen[3]) == list(range(30))
    assert seen[0] != seen[2]


@pytest.mark.parametrize("accidents, leaks", [((), False), (("drift",), True)])
def test_poisoned_validation_labels_reach_w_only_by_accident(tmp_path, no_cache, accidents, leaks):
    w = []
    for poison in (False, True):
        t = training(tmp_path, alpha_lr=0.0, official=accidents)
        t.begin_search(0)
        if poison:
            t.train.labels[t.d_val] = (t.train.labels[t.d_val] + 1) % 5
        for step in range(4):
            t.search_step(0, step)
        w.append(vectors.clone(t.w.values()))
    assert equal(*w) != leaks


def test_kavg_is_mixup_without_gate_learning(tmp_path, no_cache):
    finals = []
    for changes in ({"search": "frozen", "gates": "none"}, {"alpha_lr": 0.0, "sigma": 0.0}):
        t = training(tmp_path, **changes)
        for k in range(t.plan.K):
            t.begin_search(k)
            for step in range(t.plan.T):
                t.search_step(k, step)
            t.end_search()
        t.begin_finetune()
        for step in range(t.plan.finetune):
            t.finetune_step(step)
        finals.append(vectors.clone(t.w.values()))
    assert equal(*finals)


def test_joint_has_one_data_set_and_no_implicit_term(tmp_path, no_cache):
    t = training(tmp_path, search="joint", search_epochs=10)
    t.begin_search(0)
    begin, used = vectors.clone(t.alpha), set()
    loss_of = t.loss_of
    t.loss_of = lambda positions: used.update(positions.tolist()) or loss_of(positions)
    facts = [t.search_step(0, step) for step in range(4)]
    assert not any("implicit" in f for f in facts) and t.evaluations == 4
    assert not equal(t.alpha, begin) and used == set(range(30))


def test_random_gates_never_move(tmp_path, no_cache):
    t = training(tmp_path, search="none", gates="random", sigma=0.45)
    begin = vectors.clone(t.alpha)
    assert float(torch.cat([a.flatten() for a in begin]).std()) > 0.1
    t.begin_finetune()
    for step in range(3):
        t.finetune_step(step)
    assert equal(t.alpha, begin) and not any(a.requires_grad for a in t.alpha)


def test_averaging():
    one = [torch.randn(4, 3), torch.randn(2)]
    mean = None
    for _ in range(5):
        mean = method.add_to_mean(mean, one, 5)
    assert equal([m.float() for m in mean], one)
    assert equal([m.float() for m in method.add_to_mean(None, one, 1)], one)


def test_every_search_starts_from_the_same_head_and_weights(tmp_path, no_cache):
    t = training(tmp_path, search_epochs=3)
    starts = []
    for k in range(2):
        t.begin_search(k)
        starts.append(vectors.clone(t.w.values()))
        for step in range(3):
            t.search_step(k, step)
        assert not equal(starts[-1], t.w.values())
    assert equal(*starts)


def test_numbers_of_steps():
    """With the official settings and N = 300: 48 iterations a search, 57 steps of finetuning (docs/papers/weight_mixup.md, section 6)."""
    settings = train.Config(
        search="finite_difference", gates="learned", K=5, search_epochs=3, epochs=3
    )
    assert phases.plan(settings, 300) == phases.Plan(5, 48, 57)
    sizes = {500: 78, 1000: 153, 2490: 375, 3668: 552, 5749: 864, 8551: 1284}
    assert {n: phases.plan(settings, n).T for n in sizes} == sizes
    longer = dataclasses.replace(settings, search="none", gates="none", length="updates")
    assert phases.plan(longer, 300) == phases.Plan(0, 0, 5 * 48 + 57)
    assert (
        phases.plan(dataclasses.replace(longer, length="passes"), 300).finetune == 5 * 5 * 48 + 57
    )


def test_schedules():
    assert [phases.linear(t, 20, 0.1) for t in (0, 1, 2, 20)] == [0.0, 0.5, 1.0, 0.0]
    assert phases.cosine(11, 20, 0.1) == pytest.approx(0.5)


@pytest.mark.parametrize(
    "search, gates",
    [
        ("frozen", "none"),
        ("joint", "learned"),
        ("first_order", "learned"),
        ("finite_difference", "learned"),
    ],
)
def test_gradient_evaluations_are_counted(tmp_path, no_cache, search, gates):
    settings = config(tmp_path, search=search, gates=gates)
    assert phases.plan(settings, 30) == phases.Plan(
        2, 4, 4
    )  # T = 2 (24 // 16 + 1); 2 epochs of 2 batches
    record = protocol.read_record(train.run(settings))
    assert record["gradient_evaluations"] == 8 * phases.PASSES[search] + 4


# ------------------------------------------------------------------------------------- 11, 15, 16: runs


def test_same_seed_same_result(tmp_path, no_cache):
    records = [protocol.read_record(train.run(config(tmp_path, f"run{i}"))) for i in range(2)]
    assert records[0]["state_sha256"] == records[1]["state_sha256"]
    assert records[0]["predictions_sha256"] == records[1]["predictions_sha256"]
    gates = {gate["id"]: gate["passed"] for gate in records[0]["gates"]}
    assert gates == dict.fromkeys(
        ["restored", "pretrained-untouched", "alpha-in-range", "alpha-frozen", "merged"], True
    )


def test_arms_of_a_seed_share_subset_head_and_test_items(tmp_path, no_cache):
    mixup, plain, other = (
        data.load(config(tmp_path, seed=seed, **changes))
        for seed, changes in ((0, {}), (0, {"search": "none", "gates": "none"}), (1, {}))
    )
    assert np.array_equal(plain.train.ids, mixup.train.ids) and not np.array_equal(
        plain.train.ids, other.train.ids
    )
    assert torch.equal(plain.model.classifier.weight, mixup.model.classifier.weight)
    assert not torch.equal(plain.model.classifier.weight, other.model.classifier.weight)
    assert np.array_equal(plain.test.ids, other.test.ids)


@pytest.mark.parametrize("stop_at", [1, 6, 10])  # in the first search, in the second, in phase 2
def test_a_stopped_run_continues_bit_for_bit(tmp_path, no_cache, monkeypatch, stop_at):
    reference = protocol.read_record(train.run(config(tmp_path, "reference")))
    steps = []
    monkeypatch.setattr(runs, "_stop_asked", lambda: steps.append(1) or len(steps) == stop_at)
    with pytest.raises(runs.Stopped):
        train.run(config(tmp_path, "stopped"))
    record = protocol.read_record(train.run(config(tmp_path, "stopped")))
    assert record["state_sha256"] == reference["state_sha256"]
    assert record["gradient_evaluations"] == reference["gradient_evaluations"]


def test_merged_transformer_gives_the_same_logits(tmp_path):
    from transformers import AutoModelForSequenceClassification

    model = bert().eval()
    names = set(model.state_dict())
    method.add_gates(model)
    generator = torch.Generator().manual_seed(1)
    method.draw_gates(method.alpha_of(model), 0.3, generator)
    with torch.no_grad():
        for p in method.w_of(model).values():
            p.add_(0.02 * torch.randn(p.shape, generator=generator))
    inputs, _ = tokens()
    before = model(**inputs).logits
    method.merge(model)
    assert set(model.state_dict()) == names
    assert (model(**inputs).logits - before).abs().max() < 1e-5
    model.save_pretrained(tmp_path)
    again = AutoModelForSequenceClassification.from_pretrained(
        tmp_path, attn_implementation="eager"
    ).eval()
    assert (again(**inputs).logits - before).abs().max() < 1e-5


def test_stored_activations_compute_what_the_whole_model_does(no_cache):
    model = bert(layers=3).eval()
    inputs, labels = tokens(5)
    inputs["attention_mask"][0, 4:] = 0
    items = data.Items(np.arange(5), inputs, labels)
    before = model(**inputs).logits
    stored = data.below(model, items, 1, "tiny")
    whole = data.keep_top(model, 1)
    assert len(model.bert.encoder.layer) == 1
    assert (model(**stored.inputs).logits - before).abs().max() < 1e-5
    assert (whole(model)(**inputs).logits - before).abs().max() < 1e-5


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"mix_form": "convexe"}, "factored, convex"),
        ({"sigma": -0.1}, "negative"),
        ({"search": "darts"}, "finite_difference"),
        ({"gates": "none"}, "learns them"),
        ({"official": ("drfit",)}, "drift"),
        ({"search": "none", "gates": "none", "finetune": "mixout"}, "positive strength"),
        ({"n": 4}, "at least 5"),
        ({"n": 5000}, "only"),
        ({"data": "imdb"}, "digits, documentation"),
        ({"export": True}, "text task"),
    ],
)
def test_bad_settings_are_refused(tmp_path, no_cache, changes, message):
    with pytest.raises(ValueError, match=message):
        train.run(config(tmp_path, **changes))


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, no_cache):
    with pytest.raises(runs.Diverged, match="level"):
        train.run(config(tmp_path, lr=1e30, search_clip=1e30))
    assert protocol.read_record(tmp_path / "run")["status"] == "diverged"


def test_gates_outside_the_unit_interval_are_refused():
    for bad in (1.2, float("nan")):
        with pytest.raises(ValueError, match="outside"):
            method.check_gates([torch.tensor([0.5, bad])])


# ------------------------------------------------------------------------------------- baselines


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


def test_gradient_masks():
    g = torch.ones(100, 100)
    torch.manual_seed(0)
    baselines.child_f_([g], 0.3)
    assert g.unique().tolist() == pytest.approx([0.0, 1 / 0.3]) and abs(float(g.mean()) - 1) < 0.1
    torch.manual_seed(0)
    net = data.DigitsNet()
    x, y = torch.rand(20, 64), torch.randint(0, 5, (20,))
    w = dict(net.named_parameters())
    masks = baselines.child_d_masks(w, [lambda: phases.task_loss(net(x), y)], 0.3)
    assert set(masks) == {n for n in w if n.startswith("layer")}
    kept = sum(float(m.sum()) for m in masks.values()) / sum(m.numel() for m in masks.values())
    assert kept == pytest.approx(0.3, abs=0.02)


def test_dps_alternates_between_collecting_and_masking():
    w = {
        "layer.0.weight": nn.Parameter(torch.ones(10, 10)),
        "classifier.weight": nn.Parameter(torch.ones(2, 2)),
    }
    dps = baselines.DPS(w, ["layer.0"], steps=40, p=0.3, update_ratio=0.05)  # blocks of two steps
    importance = torch.arange(1.0, 101.0).reshape(10, 10)
    moved = []
    for step in range(4):
        for p in w.values():
            p.grad = importance.clone() if p.numel() == 100 else torch.ones_like(p)
        dps.mask_(w, step)
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


@pytest.mark.parametrize(
    "name, strength",
    [
        ("mixout", 0.5),
        ("r3f", 1.0),
        ("r_drop", 1.0),
        ("child_f", 0.3),
        ("child_d", 0.3),
        ("reinit", 1.0),
        ("dps", 0.3),
    ],
)
def test_each_baseline_trains_a_transformer(name, strength):
    inputs, labels = tokens(12)
    items = data.Items(np.arange(12), inputs, labels)
    problem = data.Problem(bert(), items, items, items, "accuracy", 3)
    settings = train.Config(
        data="rte", finetune=name, strength=strength, lr=1e-3, epochs=3, batch=4
    )
    t = phases.Training(settings, NoRun(), problem, phases.plan(settings, 12), torch.device("cpu"))
    t.begin_finetune()
    before = vectors.clone(t.w.values())
    losses = [t.finetune_step(step)["loss"] for step in range(t.plan.finetune)]
    assert np.isfinite(losses).all() and not equal(before, t.w.values())
    per_step = 2 if name in ("r3f", "r_drop") else 1
    assert t.evaluations == 9 * per_step + (3 if name == "child_d" else 0)


# ------------------------------------------------------------------------------------- scores, protocol


def test_scores_are_the_tasks_own():
    label, prediction = np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1])
    found = {
        m: evaluate.score({"label": label, "prediction": prediction, "_metric": np.array(m)})
        for m in evaluate.METRICS
    }
    assert found["accuracy"]["score"] == 0.75 and found["f1"]["score"] == pytest.approx(0.8)
    assert (
        found["matthews"]["score"] == pytest.approx(1 / 3**0.5) and found["f1"]["accuracy"] == 0.75
    )
    assert "accuracy" not in found["spearman"]
    with pytest.raises(ValueError, match="bleu"):
        evaluate.score({"label": label, "prediction": prediction, "_metric": np.array("bleu")})


def test_a_degenerate_run_is_counted_and_scores_no_correlation():
    label = np.array([0, 1, 1, 0])
    found = evaluate.score(
        {"label": label, "prediction": np.ones(4, int), "_metric": np.array("matthews")}
    )
    assert found["score"] == 0.0 and found["degenerate"] == 1.0
    found = evaluate.score(
        {"label": np.arange(4.0), "prediction": np.ones(4), "_metric": np.array("spearman")}
    )
    assert found["score"] == 0.0 and found["degenerate"] == 1.0


@pytest.mark.parametrize("scale", ["cpu", "gpu", "paper", "rehearsal"])
def test_every_arm_of_the_protocol_is_accepted(scale):
    paper = protocol.Protocol(Path(train.__file__).parent)
    nodes = paper.nodes(scale, arms="all", seeds=1)
    assert nodes
    for node in nodes:
        train.check(train.Config(**paper.config(scale, node)))


@pytest.mark.parametrize(
    "arm, task",
    [("mixup", "stsb"), ("official", "mrpc"), ("mixup", "mnli_300"), ("kavg", "rte_roberta")],
)
def test_a_rehearsal_trains_the_papers_protocol(tmp_path, arm, task):
    paper = protocol.Protocol(Path(train.__file__).parent)
    settings = paper.config("rehearsal", paper.node("rehearsal", arm, task, 0))
    record = protocol.read_record(
        train.run(train.Config(**{**settings, "device": "cpu", "out": str(tmp_path / "run")}))
    )
    assert record["status"] == "finished" and all(gate["passed"] for gate in record["gates"])
    assert 0 <= abs(record["metrics"]["score"]) <= 1
