"""Counts, rank rules, controls, planted ranks; numbers: docs/papers/autolora.md, section 11."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from autolora import method, planted, ranks
from autolora.ranks import RULES
from shared import runs
from shared.runs import BadInput

# the official example: q0 v0 q1 v1 ...
README_RANKS = [*map(int, "324453345354335425443433")]
NAMES = [
    f"roberta.encoder.layer.{i}.attention.self.{m}" for i in range(12) for m in ("query", "value")
]


def stream(*names):
    return runs.stream(0, *names)


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


def test_10_before_the_first_step_ranks_are_undecided(layer):
    made = {"map": layer(k=4)}
    made["map"].beta.data.fill_(1.0)
    assert ranks.undecided(made) == ["map"]
    made["map"].beta.data[0] += 0.1
    assert ranks.undecided(made) == []


def test_11_noise_law():
    counts = ranks.noise_counts(0.3, 8, 20_000, stream("noise")).double()
    assert abs(counts.mean() - 3.61) < 0.05 and abs(counts.std() - 0.86) < 0.03


def test_rank_rules_count_what_is_there():
    left, right = torch.linalg.qr(torch.randn(9, 3)).Q, torch.linalg.qr(torch.randn(7, 3)).Q.T
    assert ranks.spectral_rank(left * torch.tensor([1.0, 0.5, 0.05]), right) == 2
    learned = torch.full((4,), 0.25), torch.eye(4), torch.diag(torch.tensor([3.0, 3, 0.1, 0.1]))
    assert RULES["count"](*learned) == 4 and RULES["norm_weighted"](*learned) == 2


def test_12_readme_ranks_cost_135168_parameters_on_roberta_base_shapes():
    maps = {name: nn.Linear(768, 768, device="meta") for name in NAMES}
    assert ranks.adapter_parameters(ranks.from_list(README_RANKS, NAMES), maps) == 135_168
    assert ranks.adapter_parameters(dict.fromkeys(NAMES, 8), maps) == 294_912


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
def test_12_ranks_that_cannot_be_are_refused_by_name(change, message, tiny_bert):
    maps = method.adapted_maps(tiny_bert)
    asked = dict.fromkeys(maps, 2)
    if change is None:
        asked.pop(next(iter(maps)))
    with pytest.raises(BadInput, match=message):
        ranks.check(asked | (change or {}), maps)


def test_13_controls_keep_the_budget():
    maps = {name: nn.Linear(768, 768, device="meta") for name in NAMES}
    learned = dict(zip(NAMES, README_RANKS))
    for seed in range(20):
        shuffled = ranks.permuted(learned, runs.stream(seed, "p"))
        assert sorted(shuffled.values()) == sorted(README_RANKS) and shuffled != learned
    same = dict.fromkeys(NAMES, 3)
    assert ranks.permuted(same, stream("p")) == same
    equal = ranks.equal_budget(learned).values()
    assert sum(equal) == 88 and max(equal) == 4
    assert set(ranks.nearest_budget(learned).values()) == {4}
    with pytest.raises(BadInput, match="24 maps"):
        ranks.choose("3,2", None, maps, stream("x"))
    with pytest.raises(BadInput, match="directory of a search"):
        ranks.choose("learned", None, maps, stream("x"))


@pytest.mark.parametrize("total", [6, 13, 20, 47])
def test_ranks_scaled_to_a_total_keep_their_order(total):
    ranks_of = dict(zip("abcdef", (8, 1, 4, 2, 8, 3), strict=True))
    scaled = ranks.scaled(ranks_of, total)
    assert sum(scaled.values()) == total and min(scaled.values()) >= 1
    pairs = [(ranks_of[m], scaled[m]) for m in ranks_of]
    assert all(x <= y for a, x in pairs for b, y in pairs if a < b)


def test_uniform_ranks_scale_to_the_uniform_ranks_of_that_total():
    for rank in (1, 5):
        uniform = dict.fromkeys("abcdef", rank)
        assert list(ranks.scaled(uniform, 20).values()) == [3, 3, 3, 3, 4, 4]
    known = dict(zip("abcdef", planted.TRUE_RANKS, strict=True))
    assert ranks.scaled(known, 20) == known
    with pytest.raises(BadInput, match="6 maps need at least that much"):
        ranks.scaled(known, 5)


def test_random_ranks_have_the_learned_total():
    beta = {name: torch.randn(8, generator=stream(name)).tolist() for name in "abcd"}
    for total in (4, 12, 31):  # the outer two the noise law gives almost never
        drawn = ranks.random_ranks(beta, total, stream("r"))
        assert sum(drawn.values()) == total and all(1 <= r <= 8 for r in drawn.values())


def test_the_planted_ranks_are_those_of_the_teacher_and_differ_in_place():
    tasks, students = zip(*(planted.problem("planted", seed) for seed in range(4)))
    assert {tuple(sorted(t.true_ranks, reverse=True)) for t in tasks} == {planted.TRUE_RANKS}
    assert len({t.true_ranks for t in tasks}) > 1
    assert (tasks[0].test.texts[0] == tasks[1].test.texts[0]).all()  # an item is one for all seeds
    assert (tasks[0].train.texts[0] != tasks[1].train.texts[0]).any()
    x = torch.tensor(np.stack(tasks[0].test.texts))
    student, y = students[0].model, torch.from_numpy(tasks[0].test.labels)
    assert method.adapted_maps(student, students[0].pattern).keys() == {
        f"maps.{i}" for i in range(6)
    }
    error = (student(x).logits - y).square().mean()
    assert 0.2 < error / y.var() < 0.8  # without an update much is left to learn


def test_only_a_planted_task_has_an_oracle():
    maps = {name: nn.Linear(4, 4) for name in "ab"}
    assert ranks.choose("oracle", None, maps, stream("x"), (2, 1)) == {"a": 2, "b": 1}
    with pytest.raises(BadInput, match="only a planted task knows its ranks"):
        ranks.choose("oracle", None, maps, stream("x"))
