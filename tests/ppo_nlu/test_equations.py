"""The equations: by hand, against a second formula and finite differences, on a known answer."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ppo_nlu import method, models, stages
from ppo_nlu.config import PPO
from ppo_nlu.policy import Policy, Rollout


def test_gae_by_hand():
    """Two tokens, gamma 1, lambda 0.5: delta = (0 + 0.4 - 0.1, 1 - 0.4) = (0.3, 0.6); A = (0.3 +
    0.5 * 0.6, 0.6)."""
    r, V, mask = (
        torch.tensor([[0.0, 1.0, 9.0]]),
        torch.tensor([[0.1, 0.4, 7.0]]),
        torch.tensor([[1.0, 1.0, 0.0]]),
    )
    A, G = method.gae(r * mask, V, mask, 1.0, 0.5)
    assert torch.allclose(A, torch.tensor([[0.6, 0.6, 0.0]]))
    assert torch.allclose(G, torch.tensor([[0.7, 1.0, 0.0]]))


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0)])
def test_gae_equals_the_double_sum(gamma, lam):
    g = torch.Generator().manual_seed(0)
    B, T = 6, 9
    lengths = torch.randint(1, T + 1, (B,), generator=g)
    mask = (torch.arange(T) < lengths[:, None]).double()
    r = torch.randn(B, T, generator=g, dtype=torch.float64) * mask
    V = torch.randn(B, T, generator=g, dtype=torch.float64)
    A, G = method.gae(r, V, mask, gamma, lam)
    for b in range(B):
        n = int(lengths[b])
        v = [*V[b, :n].tolist(), 0.0]
        delta = [float(r[b, t]) + gamma * v[t + 1] - v[t] for t in range(n)]
        for t in range(n):
            expected = sum((gamma * lam) ** (s - t) * delta[s] for s in range(t, n))
            assert float(A[b, t]) == pytest.approx(expected, abs=1e-6)
            if lam == gamma == 1.0:
                assert float(G[b, t]) == pytest.approx(float(r[b, t:n].sum()), abs=1e-6)


def test_token_rewards_by_hand():
    """k = (0.2, -0.1), beta 0.5, R = 1 on the last REAL token."""
    old, ref = torch.tensor([[-1.0, -2.0, -5.0]]), torch.tensor([[-1.2, -1.9, -9.0]])
    r = method.token_rewards(old, ref, torch.tensor([1.0]), torch.tensor([[1.0, 1.0, 0.0]]), 0.5)
    assert torch.allclose(r, torch.tensor([[-0.1, 1.05, 0.0]]))


def test_clipped_losses_by_hand():
    log_old = torch.zeros(1, 4)
    log_pi = torch.tensor([[1.5, 0.5, 1.5, 0.5]]).log()
    A = torch.tensor([[1.0, 1.0, -1.0, -1.0]])
    # gain cut at 1.2; below 0.8 the gain is the smaller one; a loss is never cut where it grows
    assert torch.allclose(
        method.policy_loss(log_pi, log_old, A, 0.2), torch.tensor([[-1.2, -0.5, 1.5, 0.8]])
    )
    V, V_old, G = torch.tensor([[1.0]]), torch.tensor([[0.0]]), torch.tensor([[2.0]])
    assert float(method.value_loss(V, V_old, G, 0.2)) == pytest.approx(0.5 * 1.8**2)


def test_whitening_ignores_padding():
    A, mask = (
        torch.tensor([[1.0, 3.0, 99.0], [5.0, 7.0, -99.0]]),
        torch.tensor([[1.0, 1.0, 0.0]] * 2),
    )
    w = method.whiten(A, mask)
    assert w[:, :2].mean().abs() < 1e-6 and w[:, :2].std() == pytest.approx(1.0, abs=1e-5)
    assert torch.equal(w[:, 2], torch.zeros(2))


def test_kl_controller():
    h = PPO()
    assert method.next_beta(0.2, 7.3, 16, h) == pytest.approx(0.2 * (1 + 0.2 * 16 / 10_000))
    assert method.next_beta(0.2, 6.0, 16, h) == 0.2
    beta = 0.2
    for _ in range(1000):
        beta = method.next_beta(beta, -50.0, 16, h)
    assert 0 < beta < 0.2
    assert method.next_beta(0.2, 50.0, 16, PPO(kl_horizon=0)) == 0.2


def test_policy_gradient_is_the_weighted_cross_entropy():
    """Two arms, enumerated: d E[R] / d logits = 2 pi_y d log pi_y, and PPO's first gradient is
    minus that."""
    logits = torch.tensor([0.3, -0.4], dtype=torch.float64, requires_grad=True)
    log_pi = logits.log_softmax(0)
    old = log_pi.detach()
    # every action weighted by its probability under pi_old; A = R because there is no value and no
    # baseline
    loss = (
        old.exp() * method.policy_loss(log_pi, old, torch.tensor([1.0, -1.0]).double(), 1e9)
    ).sum()
    (gradient,) = torch.autograd.grad(loss, logits, retain_graph=True)
    (cross_entropy,) = torch.autograd.grad(log_pi[0], logits)
    assert torch.allclose(gradient, -2 * old[0].exp() * cross_entropy, atol=1e-12)


def reference_loss(policy: Policy, answers: Rollout, old, V_old, A, G, h: PPO) -> torch.Tensor:
    """PPO's loss written a second time, answer by answer and token by token, without padding or
    masks."""
    total, tokens = 0.0, int(answers.lengths.sum())
    P = answers.ids.shape[1] - answers.T
    for b in range(len(answers)):
        start = int(answers.mask[b].argmax())
        n = int(answers.lengths[b])
        ids = answers.ids[b : b + 1, start : P + n]
        out = policy.lm(input_ids=ids, output_hidden_states=True)
        for t in range(n):
            at = P - start + t - 1
            log_pi = out.logits[0, at].log_softmax(-1)[ids[0, at + 1]]
            V = policy.value(out.hidden_states[-1][0, at])[0]
            ratio, adv = (log_pi - old[b, t]).exp(), A[b, t]
            pol = -min(ratio * adv, ratio.clamp(1 - h.clip, 1 + h.clip) * adv)
            close = V_old[b, t] + (V - V_old[b, t]).clamp(-h.clip_value, h.clip_value)
            val = 0.5 * max((V - G[b, t]) ** 2, (close - G[b, t]) ** 2)
            total = total + pol + h.value_weight * val
    return total / tokens


def loss_of(policy, answers, old, V_old, A, G, h) -> torch.Tensor:
    """The loss as `update` puts it together."""
    mask = answers.answer_mask().to(old.dtype)
    log_pi, V, _ = policy(answers.ids, answers.mask, answers.T)
    pol = (method.policy_loss(log_pi, old, A, h.clip) * mask).sum() / mask.sum()
    val = (method.value_loss(V, V_old, G, h.clip_value) * mask).sum() / mask.sum()
    return pol + h.value_weight * val


def fixed_case(some_answers, spread: float):
    """A float64 policy, answers, and old values off by `spread`: 0.01 keeps the ratio inside the
    clip, 1 does not."""
    from transformers import (
        GPT2Config,
        GPT2LMHeadModel,
    )  # unlike a Llama, it computes wholly in float64

    torch.manual_seed(0)
    tokenizer = models.digits_tokenizer()
    small = GPT2Config(vocab_size=len(tokenizer), n_positions=32, n_embd=8, n_layer=2, n_head=2)
    policy = Policy(GPT2LMHeadModel(small).double()).double()
    answers = some_answers(policy, tokenizer)
    g = torch.Generator().manual_seed(3)
    with torch.no_grad():
        log_pi, V, _ = policy(answers.ids, answers.mask, answers.T)
    first, second, A, G = torch.randn(4, *log_pi.shape, generator=g, dtype=torch.float64)
    return policy, answers, (log_pi + spread * first, V + spread * second, A, G)


@pytest.mark.parametrize("spread", [0.01, 1.0])
def test_loss_agrees_with_a_second_formula_and_with_finite_differences(spread, some_answers):
    policy, answers, fixed = fixed_case(some_answers, spread)
    h = PPO()
    loss = loss_of(policy, answers, *fixed, h)
    assert float(loss.detach()) == pytest.approx(
        float(reference_loss(policy, answers, *fixed, h).detach()), abs=1e-5
    )
    loss.backward()
    g = torch.Generator().manual_seed(4)
    checked = 0
    for name in (
        "lm.transformer.h.0.attn.c_attn.weight",
        "lm.transformer.h.1.mlp.c_fc.weight",
        "value.weight",
    ):
        p = policy.get_parameter(name)
        for i in torch.randint(p.numel(), (4,), generator=g).tolist():
            eps, values = 1e-6, []
            for sign in (1, -1):
                with torch.no_grad():
                    p.view(-1)[i] += sign * eps
                    values.append(float(loss_of(policy, answers, *fixed, h)))
                    p.view(-1)[i] -= sign * eps
            slope = (values[0] - values[1]) / (2 * eps)
            assert slope == pytest.approx(float(p.grad.view(-1)[i]), rel=1e-4, abs=1e-8), (name, i)
            checked += abs(slope) > 1e-7
    assert checked >= 6


def test_ids_after_the_end_and_more_left_padding_change_nothing(some_answers):
    policy, answers, fixed = fixed_case(some_answers, 0.3)
    fixed = tuple(x * answers.answer_mask() for x in fixed)
    h = PPO()
    base = float(loss_of(policy, answers, *fixed, h).detach())
    after = answers.ids.clone()
    after[:, -answers.T :] = torch.where(answers.answer_mask() > 0, after[:, -answers.T :], 7)
    wider = torch.cat([torch.full((8, 5), 9), answers.ids], 1)
    mask = torch.cat([torch.zeros(8, 5, dtype=answers.mask.dtype), answers.mask], 1)
    for changed in (replace(answers, ids=after), replace(answers, ids=wider, mask=mask)):
        assert float(loss_of(policy, changed, *fixed, h).detach()) == pytest.approx(base, abs=1e-5)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("kind", ["ppo", "grpo", "rloo", "reinforce"])
def test_the_bandit_is_solved(kind, seed):
    assert stages.solve(kind, seed) > 0.9
