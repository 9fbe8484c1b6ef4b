"""The losses: docs/papers/tapweight.md, section 11, checks 12 and 14."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tapweight import objectives, official


def test_12_masked_language_modelling():
    g = torch.Generator().manual_seed(0)
    ids = torch.randint(10, 100, (200, 20), generator=g)
    maskable = torch.ones_like(ids, dtype=torch.bool)
    maskable[:, 0] = maskable[:, -1] = False
    altered, at, targets = objectives.mask_tokens(ids, maskable, 3, torch.arange(10, 100), g)
    there = targets != objectives.IGNORED
    assert (at[there] > 0).all() and (at[there] < 19).all()
    assert torch.equal(ids.gather(1, at)[there], targets[there])
    chosen = there.sum().item()
    share = chosen / (200 * 18)
    assert abs(share - 0.15) < 3 * math.sqrt(0.15 * 0.85 / 3600)
    masked = (altered == 3).sum().item()
    assert abs(masked / chosen - 0.8) < 3 * math.sqrt(0.16 / chosen)
    untouched = torch.ones_like(ids, dtype=torch.bool).scatter(1, at, ~there)
    assert torch.equal(altered[untouched], ids[untouched])
    logits = torch.randn(4, 7, requires_grad=True)
    nothing = objectives.masked_lm(logits, torch.full((4,), objectives.IGNORED))
    assert nothing == 0 and nothing.requires_grad
    targets = torch.tensor([2, -100, 5, -100])
    expected = F.cross_entropy(logits[[0, 2]], targets[[0, 2]])
    assert torch.allclose(objectives.masked_lm(logits, targets), expected)


def test_12_order_and_contrast():
    labels = objectives.order_labels(1000, torch.Generator().manual_seed(0))
    assert abs(labels.float().mean() - 0.5) < 3 * math.sqrt(0.25 / 1000)
    assert objectives.halves([1, 2, 3], 9) is None
    assert objectives.halves([1, 2, 3, 4, 5], 9) == ([1, 2], [3, 4])
    assert objectives.halves([1, 2, 3, 4, 5, 6], 4) == ([1], [2, 3])
    a = torch.eye(4)
    assert objectives.contrastive(a, a) < 1e-6 < objectives.contrastive(a, a.roll(1, 0))


def test_12_jigsaw_and_mask_contrast():
    permutations = objectives.permutations(100)
    assert torch.equal(permutations[0], torch.arange(9))
    assert len({tuple(p.tolist()) for p in permutations}) == 101
    classes = objectives.jigsaw_labels(20_000, 101, torch.Generator().manual_seed(0))
    expected = 0.8 + 0.2 / 101
    limit = 3 * math.sqrt(expected * (1 - expected) / 20_000)
    assert abs((classes == 0).float().mean() - expected) < limit
    images = torch.randn(5, 3, 9, 9)
    order = permutations[torch.tensor([0, 1, 17, 50, 100])]
    shuffled = objectives.shuffle_tiles(images, order)
    assert torch.equal(shuffled[0], images[0])
    top, left = 3 * (order[2, 0] // 3), 3 * (order[2, 0] % 3)
    assert torch.equal(shuffled[2, :, :3, :3], images[2, :, top:, left:][:, :3, :3])
    assert torch.equal(objectives.shuffle_tiles(shuffled, order.argsort(1)), images)
    with pytest.raises(ValueError, match="images of 9 pixels do not divide into 2 x 2"):
        objectives.shuffle_tiles(images, order, side=2)
    g = torch.Generator().manual_seed(0)
    assert torch.equal(objectives.erase(images, 0, g), images)
    features = torch.randn(5, 4, requires_grad=True)
    zero = objectives.mask_contrast(features, features)
    zero.backward()
    assert zero == 0 and torch.isfinite(features.grad).all()
    assert (objectives.erase(images, 4, g) != images).flatten(2).sum(2).max() <= 16


def test_12_masked_bce():
    logits, labels = torch.randn(6, 3), torch.randint(2, (6, 3)).float()
    plain = F.binary_cross_entropy_with_logits(logits, labels)
    assert torch.equal(objectives.masked_bce(logits, labels), plain)
    holes = labels.clone()
    holes[0, 0], holes[1, 1] = float("nan"), -1
    there = torch.ones(6, 3, dtype=torch.bool)
    there[0, 0] = there[1, 1] = False
    expected = F.binary_cross_entropy_with_logits(logits[there], labels[there])
    assert torch.allclose(objectives.masked_bce(logits, holes), expected)
    assert objectives.masked_bce(logits, torch.full((6, 3), float("nan"))) == 0


def test_mask_contrast_alone_collapses():
    """Constant features are its optimum (section 8, item 7): the trap is real."""
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Flatten(), nn.Linear(27, 8)), torch.randn(32, 3, 3, 3)
    g = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.05)
    before = net(x).var(0).sum()
    for _ in range(100):
        optimizer.zero_grad()
        objectives.mask_contrast(net(x), net(objectives.erase(x, 2, g))).backward()
        optimizer.step()
    assert net(x).var(0).sum() < 0.2 * before


def test_14_regression_refuses_to_broadcast():
    with pytest.raises(ValueError, match=r"\(4, 1\) and target \(4,\)"):
        objectives.squared_error(torch.zeros(4, 1), torch.zeros(4))


def test_official_losses():
    prediction, target = torch.tensor([0.0, 1.0]), torch.tensor([0.0, 1.0])
    assert official.broadcast_squared_error(prediction, target) == 0.5
    losses = official.without_mask_contrast([torch.tensor(1.0), torch.tensor(2.0)])
    assert [float(x) for x in losses] == [1.0, 0.0]
