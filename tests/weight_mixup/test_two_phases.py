"""Searches and finetuning, step by step (docs/papers/weight_mixup.md, section 11: 9 to 14)."""

import dataclasses

import pytest
import torch
from mixup_toys import Training, config, equal, record_of

from shared import runs, vectors
from weight_mixup import baselines, method, schedule, train
from weight_mixup.config import Config


def test_gates_move_early_and_stay_inside(tmp_path, no_cache):
    training = Training(tmp_path, alpha_lr=0.5, search_epochs=3)  # would leave [0, 1] at once
    after = []

    def look(step):
        after.append(vectors.clone(training.alpha))
        assert all(float(a.min()) >= 0 and float(a.max()) <= 1 for a in after[-1])

    training.search(3, look)
    assert len(after) == 3 and not equal(after[0], after[2])
    assert training.network.counts["alpha_lowest"] < 1


def test_levels_see_disjoint_items_of_the_right_size(tmp_path, no_cache, monkeypatch):
    for k in range(3):
        d_tr, d_val = method.split(31, 0.8, runs.stream(0, "split", k))
        assert len(d_tr) == 24 and len(d_val) == 7
        assert sorted([*d_tr.tolist(), *d_val.tolist()]) == list(range(31))
    assert not torch.equal(*(method.split(31, 0.8, runs.stream(0, "split", k))[0] for k in (0, 1)))

    training, used = Training(tmp_path, search_epochs=20), []
    loss_of = train.loss_of
    monkeypatch.setattr(
        train, "loss_of", lambda m, b: used.append(set(b.ids.tolist())) or loss_of(m, b)
    )
    training.search(20)
    d_tr, d_val = method.split(30, 0.8, runs.stream(0, "split", 0))
    lower, upper = set().union(*used[0::2]), set().union(*used[1::2])
    assert lower == set(training.items.ids[d_tr].tolist())
    assert upper == set(training.items.ids[d_val].tolist()) and not lower & upper


def test_phase_two_uses_every_example(tmp_path, no_cache, monkeypatch):
    training, used = Training(tmp_path, job="finetuning"), []
    loss = baselines.finetuning_loss
    monkeypatch.setattr(
        baselines, "finetuning_loss", lambda c, m, b: used.append(b.ids.tolist()) or loss(c, m, b)
    )
    training.finetune()
    assert [len(ids) for ids in used] == [16, 14, 16, 14]
    every = sorted(training.items.ids.tolist())
    assert sorted(used[0] + used[1]) == sorted(used[2] + used[3]) == every
    assert used[0] != used[2]


@pytest.mark.parametrize("accidents, leaks", [((), False), (("drift",), True)])
def test_poisoned_validation_labels_reach_w_only_by_accident(tmp_path, no_cache, accidents, leaks):
    w = []
    for poison in (False, True):
        training = Training(tmp_path, alpha_lr=0.0, official=accidents)
        if poison:
            _, d_val = method.split(30, 0.8, runs.stream(0, "split", 0))
            training.items.labels[d_val] = (training.items.labels[d_val] + 1) % 5
        training.search(4)
        w.append(vectors.clone(training.w))
    assert equal(*w) != leaks


def test_kavg_is_mixup_without_gate_learning(tmp_path, no_cache):
    ends = []
    for changes in ({"job": "averaging"}, {"alpha_lr": 0.0, "sigma": 0.0}):
        training = Training(tmp_path, **changes)
        training.search()
        training.finetune()
        ends.append(vectors.clone(training.w))
    assert equal(*ends)


def test_joint_has_one_data_set_and_no_implicit_term(tmp_path, no_cache, monkeypatch):
    training, used, alpha = Training(tmp_path, job="joint", search_epochs=10), set(), []
    joint_step, loss_of = baselines.joint_step, train.loss_of
    by_loss = {}

    def remember(model, batch):
        loss = loss_of(model, batch)
        by_loss[loss] = batch.ids.tolist()
        return loss

    def step(levels, loss, clip):
        used.update(by_loss[loss])
        return joint_step(levels, loss, clip)

    monkeypatch.setattr(train, "loss_of", remember)
    monkeypatch.setattr(baselines, "joint_step", step)
    lines = training.search(4, lambda step: alpha.append(vectors.clone(training.alpha)))
    assert len(lines) == 4 and not any("implicit" in line for line in lines)
    assert training.network.counts["evaluations"] == 4
    assert not equal(alpha[0], alpha[3]) and used == set(training.items.ids.tolist())


def test_random_gates_never_move(tmp_path, no_cache):
    training = Training(tmp_path, job="random_gates", sigma=0.45)
    begin = vectors.clone(training.alpha)
    assert float(torch.cat([a.flatten() for a in begin]).std()) > 0.1
    training.finetune(3)
    assert equal(training.alpha, begin) and not any(a.requires_grad for a in training.alpha)


@pytest.mark.parametrize("K", [5, 1])
def test_averaging(K):
    w = [torch.randn(4, 3, requires_grad=True), torch.randn(2, requires_grad=True)]
    levels = method.levels_of(w, [], 0.0, 0.0)
    mean = [torch.zeros_like(p, dtype=torch.float64) for p in w]
    for _ in range(K):
        method.end_search(levels, mean, K)
    assert equal([m.float() for m in mean], w)
    start = [torch.zeros_like(p) for p in w]
    method.begin_finetuning(w, [], mean, start, average_all=False)
    assert equal(w, start)
    method.begin_finetuning(w, [], mean, start, average_all=True)
    assert equal(w, [m.float() for m in mean])


def test_every_search_starts_from_the_same_head_and_weights(tmp_path, no_cache, monkeypatch):
    training, starts, moments = Training(tmp_path, search_epochs=3), [], []
    begin_search = method.begin_search

    def begin(levels, *words):
        moments.append((len(levels.opt_w.state), len(levels.opt_alpha.state)))
        begin_search(levels, *words)
        starts.append(vectors.clone(levels.w))

    monkeypatch.setattr(method, "begin_search", begin)
    training.search()
    assert len(starts) == 2 and equal(*starts) and not equal(starts[0], training.w)
    assert moments == [(0, 0), (0, 0)]


def test_numbers_of_steps():
    """N = 300: 48 iterations a search, 57 steps (docs/papers/weight_mixup.md, section 6)."""
    settings = Config(job="bilevel", K=5, search_epochs=3, epochs=3)
    assert schedule.plan_of(settings, 300) == schedule.Plan(5, 48, 57)
    sizes = {500: 78, 1000: 153, 2490: 375, 3668: 552, 5749: 864, 8551: 1284}
    assert {n: schedule.plan_of(settings, n).T for n in sizes} == sizes
    longer = dataclasses.replace(settings, job="finetuning", length="updates")
    assert schedule.plan_of(longer, 300) == schedule.Plan(0, 0, 5 * 48 + 57)
    passes = dataclasses.replace(longer, length="passes")
    assert schedule.plan_of(passes, 300).finetune == 5 * 5 * 48 + 57


def test_rates():
    assert [schedule.rate("linear", t, 20, 0.1) for t in (0, 1, 2, 20)] == [0.0, 0.5, 1.0, 0.0]
    assert schedule.rate("cosine", 11, 20, 0.1) == pytest.approx(0.5)


@pytest.mark.parametrize(
    "passes, settings",
    [
        (1, {"job": "averaging"}),
        (1, {"job": "joint"}),
        (2, {"estimator": "first_order"}),
        (schedule.PASSES, {}),
        (5, {"official": ("double_step",)}),
    ],
)
def test_gradient_evaluations_are_counted(tmp_path, no_cache, passes, settings):
    settings = config(tmp_path, **settings)
    # T = 2 epochs of 24 // 16 + 1 batches; 2 epochs of 2 batches
    assert schedule.plan_of(settings, 30) == schedule.Plan(2, 4, 4)
    assert record_of(settings)["gradient_evaluations"] == 8 * passes + 4


def test_gates_may_learn_on_labels_of_their_own(tmp_path, no_cache, monkeypatch):
    training, used = Training(tmp_path, extra=12, labels="gates"), []
    loss_of = train.loss_of
    monkeypatch.setattr(
        train, "loss_of", lambda m, b: used.append(set(b.ids.tolist())) or loss_of(m, b)
    )
    training.search(4)
    own, aside = training.items.ids[:30].tolist(), training.items.ids[30:].tolist()
    assert set().union(*used[0::2]) <= set(own) and set().union(*used[1::2]) == set(aside)
    assert training.plan == schedule.plan_of(training.config, 30)


def test_more_labels_are_those_put_aside(tmp_path, no_cache):
    few = Training(tmp_path, job="finetuning", extra=12)
    many = Training(tmp_path, job="finetuning", extra=12, labels="all")
    assert many.items.ids[:30].tolist() == few.items.ids.tolist() and len(many.items) == 42
    assert many.plan.finetune == 2 * 3 and few.plan.finetune == 2 * 2


def test_an_average_of_the_weights_is_left_in_their_place(tmp_path, no_cache):
    training, seen = Training(tmp_path, job="finetuning", ema=0.5), []
    average = vectors.clone(training.w)

    def look(step):
        seen.append(vectors.clone(training.w))
        for a, p in zip(average, seen[-1], strict=True):
            a.lerp_(p, 0.5)

    training.finetune(after=look)
    assert all(torch.allclose(a, p) for a, p in zip(average, training.w, strict=True))
    assert not equal(seen[-1], training.w)
