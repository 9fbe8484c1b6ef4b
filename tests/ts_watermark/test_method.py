"""MGDA, the relaxation, gradients, initialisation, training steps."""

import math

import numpy as np
import pytest
import torch
from transformers.modeling_outputs import BaseModelOutput
from watermark_toys import Fixed, Replay, prompts_of, tiny_opt

from ts_watermark import baselines, method, official
from ts_watermark.config import Config


def test_mgda_is_the_closest_point_of_the_segment():
    grid, branches = np.linspace(0, 1, 2001), set()
    for seed in range(200):
        g = torch.Generator().manual_seed(seed)
        d, s = torch.randn(2, 5, generator=g, dtype=torch.float64) * torch.tensor(
            [[10.0 ** (seed % 3 - 1)], [1.0]]
        )
        if seed % 4 == 0:
            s = d * 3 + 0.1 * s
        lam = method.mgda_weight(d, s)
        norms = ((grid[:, None] * d.numpy() + (1 - grid[:, None]) * s.numpy()) ** 2).sum(1)
        mixed = lam * d + (1 - lam) * s
        assert float(mixed @ mixed) <= norms.min() + 1e-9
        assert min(float(mixed @ d), float(mixed @ s)) >= float(mixed @ mixed) - 1e-8
        assert method.mgda_weight(d, s, cap=0.01) <= 0.01
        branches.add("one" if lam == 1.0 else "zero" if lam == 0.0 else "inside")
    assert branches == {"one", "zero", "inside"}
    zero, one = torch.zeros(3), torch.ones(3)
    for a, b in [(zero, zero), (one, one), (zero, one), (one, zero)]:
        assert 0 <= method.mgda_weight(a, b) <= 1


def test_relaxed_mask_has_the_right_law():
    from scipy import stats

    draws, generator = 100_000, torch.Generator().manual_seed(0)
    for gamma in (0.1, 0.25, 0.5):
        noise = method.logistic_noise((1, draws), generator)
        m = method.relaxed_green_mask(torch.tensor([gamma]), noise, 0.1)[0]
        share = (m > 0.5).double().mean().item()
        assert abs(share - gamma) < 4 * math.sqrt(gamma * (1 - gamma) / draws)
        two = official.two_class_gumbel_mask(torch.tensor([gamma]), (1, 20_000), generator, 0.5)[0]
        one = method.relaxed_green_mask(torch.tensor([gamma]), noise[:, :20_000], 0.5)[0]
        assert stats.ks_2samp(one.numpy(), two.numpy()).pvalue > 1e-3
        sharp = method.relaxed_green_mask(torch.tensor([gamma]), noise, 1e-4)[0]
        assert ((sharp < 1e-3) | (sharp > 1 - 1e-3)).double().mean() > 0.999


def test_relaxed_z_of_hard_tokens_is_z():
    flags, gamma = (torch.rand(3, 50) < 0.4).double(), 0.1 + 0.4 * torch.rand(3, 50).double()
    expected = [(f.sum() - g.sum()) / (g * (1 - g)).sum().sqrt() for f, g in zip(flags, gamma)]
    assert method.relaxed_z(flags, gamma).item() == pytest.approx(float(sum(expected) / 3))


def test_gradients_equal_finite_differences():
    """d zhat / d(parameters), through the chain of soft embeddings too; float64, V = 50, T = 5.

    The language model's logits are held fixed, as the method does not differentiate them.
    """
    model = tiny_opt()
    with torch.no_grad():  # unit embeddings, so that the chain matters; tau 1: a smooth function
        model.get_input_embeddings().weight.mul_(10)
    generators = method.Generators(
        16, (6,), 0.3, 1.0, generator=torch.Generator().manual_seed(1)
    ).double()
    prompt, sim = prompts_of([[1, 2, 3], [4, 5, 6, 7, 8]]), torch.randn(50, 4, dtype=torch.float64)

    replay = Replay(model)

    def zhat():
        replay.turn = 0
        text = method.soft_decode(replay, prompt, 5, sim, generators, Fixed(), tau=1.0)
        return method.relaxed_z(text.q, text.gamma)

    parameters = list(generators.parameters())
    grads = torch.autograd.grad(zhat(), parameters)
    for p, g in zip(parameters, grads):
        for i in range(0, p.numel(), max(1, p.numel() // 4)):
            flat, eps = p.data.view(-1), 1e-5
            old = flat[i].item()
            flat[i] = old + eps
            up = zhat().item()
            flat[i] = old - eps
            down = zhat().item()
            flat[i] = old
            numeric = (up - down) / (2 * eps)
            assert g.view(-1)[i].item() == pytest.approx(numeric, rel=1e-4, abs=1e-9)
    assert all(p.grad is None for p in model.parameters())


def test_cache_equals_the_official_prefix_loop():
    """With unequal prompts (left padding) and equal noise: the decoding and its gradient."""
    model = tiny_opt()
    generators = method.Generators(
        16, (6,), 0.3, 1.0, generator=torch.Generator().manual_seed(1)
    ).double()
    prompt, sim = prompts_of([[1, 2, 3], [4, 5, 6, 7, 8]]), torch.randn(50, 4, dtype=torch.float64)
    noise, again = Fixed(3), Fixed(3)
    cached = method.soft_decode(model, prompt, 6, sim, generators, noise)
    mask_of = lambda gamma, shape: method.relaxed_green_mask(gamma, again(shape))  # noqa: E731
    whole = official.prefix_decode(model, prompt, 6, sim, generators, mask_of)
    for a, b in zip(cached, whole):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    one, two = (
        torch.autograd.grad(method.relaxed_z(t.q, t.gamma), list(generators.parameters()))
        for t in (cached, whole)
    )
    for a, b in zip(one, two):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)


def test_initialisation():
    generators = method.Generators(2048)
    assert sum(p.numel() for p in generators.gamma.parameters()) == 131_201
    assert sum(p.numel() for p in generators.delta.parameters()) == 131_201
    assert generators.gamma[-1].bias.item() == pytest.approx(math.log(0.25 / 0.75))
    assert generators.delta[-1].bias.item() == pytest.approx(1.75)
    gamma, delta = method.Generators(32, (8,), 0.1, 1.5, zero_last_layer=True)(torch.randn(40, 32))
    assert (gamma - 0.1).abs().max() < 1e-6 and (delta - 1.5).abs().max() < 1e-6
    assert len(method.Generators(32, (256, 32)).gamma) == 5
    assert len(method.Generators(32, (512, 128, 64, 16)).gamma) == 9


class Encoder:
    """A sentence encoder that hands its input on."""

    def __call__(self, inputs_embeds):
        return BaseModelOutput(last_hidden_state=inputs_embeds)


@pytest.mark.parametrize("objective", ["both", "detection", "semantics"])
def test_thirty_training_steps(objective):
    """Both networks move, nothing becomes nan, gamma stays inside; each loss moves its own aim."""
    model = tiny_opt(dtype=torch.float32, seed=4)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(8)
    sim = torch.randn(50, 8, generator=torch.Generator().manual_seed(5))
    frozen = method.Frozen(model, Encoder(), sim, "mean")
    generators = method.Generators(16, (8,), 0.3, 1.5, generator=torch.Generator().manual_seed(6))
    before = [p.detach().clone() for p in generators.parameters()]
    adam = torch.optim.Adam(generators.parameters(), lr=2e-2)
    prompt = prompts_of([[i, i + 1, i + 2] for i in range(8)])
    plain = method.meaning(frozen, prompt, method.soft_decode(model, prompt, 8, sim))
    config = Config(train_tokens=8)

    def alone(loss_D, loss_S, parameters):
        g_D, g_S = method.two_gradients(loss_D, loss_S, parameters)
        return (g_D, 1.0) if objective == "detection" else (g_S, 0.0)

    descent = method.mgda if objective == "both" else alone
    zs, deltas = [], []
    for step in range(30):
        noise = Fixed(step, torch.float32)
        done = method.training_step(frozen, generators, adam, prompt, plain, noise, descent, config)
        zs.append(-done.loss_D.item())
        deltas.append(done.text.delta.mean().item())
        gamma = done.text.gamma
        assert torch.isfinite(done.gradient).all() and bool(((gamma > 0) & (gamma < 1)).all())
    assert all((a != b).any() for a, b in zip(before, generators.parameters()))
    if objective == "detection":
        assert np.mean(zs[-5:]) > np.mean(zs[:5])
    if objective == "semantics":
        assert np.mean(deltas[-5:]) < np.mean(deltas[:5])


def test_weighted_sum_is_the_gradient_of_the_weighted_loss():
    w = torch.tensor([1.0, -2.0], requires_grad=True)
    gradient, seen = baselines.weighted_sum((3 * w).sum(), (w**2).sum(), [w])
    torch.testing.assert_close(gradient, torch.tensor([2 + 3 * 4e-4, -4 + 3 * 4e-4]))
    assert seen == {}


def test_normalised_mgda_does_not_depend_on_the_units_of_a_loss():
    w = torch.tensor([1.0, -2.0], requires_grad=True)
    gradients = []
    for units in (1.0, 1e-3):
        loss_D, loss_S = units * (3 * w).sum(), (w**2).sum()
        gradient, seen = baselines.normalised_mgda(loss_D, loss_S, [w])
        gradients.append(gradient)
        assert seen["norm_D"] == pytest.approx(units * math.sqrt(18))
        assert seen["norm_S"] == pytest.approx(math.sqrt(20))
        assert seen["cosine_DS"] == pytest.approx((2 - 4) / math.sqrt(2 * 20))
    torch.testing.assert_close(*gradients)
    d, s = torch.tensor([3.0, 3.0]), torch.tensor([2.0, -4.0])
    assert gradients[0] @ d > 0 and gradients[0] @ s > 0  # both losses fall
