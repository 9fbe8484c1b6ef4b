"""shared/vectors.py: arithmetic beside flattened tensors, and changes that leave no trace."""

import math

import pytest
import torch
from torch import nn

from shared import vectors


def pair(dtype=torch.float32):
    g = torch.Generator().manual_seed(0)
    return [
        [torch.randn(s, generator=g, dtype=dtype) for s in ((3, 4), (5,), ())] for _ in range(2)
    ]


def flat(v):
    return torch.cat([x.detach().double().flatten() for x in v])


def test_arithmetic():
    a, b = pair()
    assert vectors.dot(a, b) == pytest.approx((flat(a) @ flat(b)).item(), rel=1e-6)
    assert vectors.norm(a) == pytest.approx(flat(a).norm().item(), rel=1e-6)
    assert vectors.cosine(a, b) == pytest.approx(
        torch.cosine_similarity(flat(a), flat(b), dim=0).item(), rel=1e-5
    )
    assert vectors.relative_error(a, b) == pytest.approx(
        ((flat(a) - flat(b)).norm() / flat(b).norm()).item(), rel=1e-6
    )
    assert torch.equal(flat(vectors.scaled(a, 2)), 2 * flat(a))
    assert torch.equal(
        flat(vectors.scaled(a, [2.0, torch.full((5,), 3.0), 0.5])[:2]), flat([2 * a[0], 3 * a[1]])
    )
    zero = vectors.zeros_like(a)
    assert vectors.norm(zero) == 0 and math.isnan(vectors.cosine(a, zero))
    assert vectors.relative_error(zero, zero) == 0 and vectors.relative_error(a, zero) == math.inf


def test_norm_of_broken_vectors():
    a, _ = pair()
    a[1][2] = math.nan
    assert math.isnan(vectors.norm(a))
    with pytest.raises(FloatingPointError, match="norm nan"):
        vectors.probe_step(a)


def test_probe_step():
    a, _ = pair()
    assert vectors.probe_step(a, 0.01) * vectors.norm(a) == pytest.approx(0.01)
    assert vectors.probe_step(a, 0.01, size=2.0) == pytest.approx(0.005)
    assert vectors.probe_step(vectors.zeros_like(a)) == 0.0
    assert vectors.probe_step([x * 1e-37 for x in a]) == 0.0


@pytest.mark.parametrize("fails", [False, True])
def test_perturbed_returns_the_same_bits(fails):
    g = torch.Generator().manual_seed(0)
    a, b = [torch.randn(1000, generator=g)], [torch.randn(1000, generator=g)]
    assert not torch.equal(a[0] + 0.37 * b[0] - 0.37 * b[0], a[0])  # arithmetic does not lead back
    theta = [nn.Parameter(a[0].clone())]
    try:
        with vectors.perturbed(theta, b, 0.37):
            assert torch.allclose(theta[0], a[0] + 0.37 * b[0])
            if fails:
                raise KeyError
    except KeyError:
        pass
    assert torch.equal(theta[0], a[0]) and theta[0]._version == 0


def test_shift_and_copy():
    a, b = pair()
    theta = [nn.Parameter(torch.zeros_like(x)) for x in a]
    vectors.shift_(theta, a, b, -0.5)
    assert torch.allclose(flat(theta), flat(a) - 0.5 * flat(b))
    vectors.add_(theta, b, 0.5)
    assert torch.allclose(flat(theta), flat(a))
    vectors.copy_(theta, b)
    assert torch.equal(flat(theta), flat(b)) and all(p._version == 0 for p in theta)


def test_adam_rates_are_the_step_of_adam():
    """With beta1 = 0 Adam's step is exactly rate * gradient."""
    a, b = pair(torch.float64)
    theta = [nn.Parameter(x.clone()) for x in a]
    optimizer = torch.optim.Adam(theta, lr=0.1, betas=(0.0, 0.9))
    with pytest.raises(ValueError, match="take one real Adam step"):
        vectors.adam_rates(optimizer, theta)
    for _ in range(3):
        for p, x in zip(theta, b):
            p.grad = x.clone()
        before = vectors.clone(theta)
        optimizer.step()
    step = torch._foreach_sub(before, vectors.clone(theta))
    rates = vectors.adam_rates(optimizer, theta)
    assert torch.allclose(flat(step), flat(vectors.scaled(b, rates)), rtol=1e-12)


def test_snapshot_rewinds_masks_and_buffers():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
    theta, x = list(net.parameters()), torch.randn(8, 4)
    before = [t.clone() for t in [*net.parameters(), *net.buffers(), torch.get_rng_state()]]
    theta[0].grad = gradient = torch.ones(4, 4)
    with vectors.Snapshot(theta) as snapshot:
        first = net(x)
        snapshot.rewind()
        assert torch.equal(first, net(x))
        net[1].running_mean = torch.zeros(4)  # a buffer replaced, not overwritten
        net(x).sum().backward()
        vectors.add_(theta, theta)
        theta[0].requires_grad_(False)
    after = [*net.parameters(), *net.buffers(), torch.get_rng_state()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert theta[0].grad is gradient and torch.equal(gradient, torch.ones(4, 4))
    assert theta[0].requires_grad
    assert theta[1].grad is None
