"""ppo_nlu: the acceptance checks, numbered in brackets as in docs/papers/ppo_nlu.md, section 11."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from ppo_nlu import (
    asking,
    bandit,
    baselines,
    data,
    evaluate,
    method,
    models,
    official,
    prompts,
    steps,
    train,
)
from ppo_nlu.method import Hyper, Policy, Rollout, gae, left_pad, next_beta, rollout, update
from shared import runs
from shared.protocol import Protocol

WORD_TASKS = [t for t in prompts.TASKS.values() if not t.number]
FIELDS = {
    key: f"{key} text" for t in prompts.TASKS.values() for key, _ in t.fields
} | {"question": "cause"}  # fmt: skip


# --- reward, parser, prompts [1, 2, 3] --------------------------------------------------------------------------------


@pytest.mark.parametrize("task", WORD_TASKS, ids=lambda t: t.name)
def test_reward_table_of_every_task(task):
    right, wrong = task.words[0], task.words[1]
    no_word = -1.0 if task.name == "record" else -3.0
    table = {
        f" {right} </Judgement>": 1.0,
        f" {wrong} </Judgement>": -1.0,
        f" {right}": -3.0,  # no tag
        "": -3.0,
        " </Judgement>": no_word,
        f" {right} and {wrong} </Judgement>": no_word,
        f" I think {right} </Judgement>": no_word,
        f"\n{right.lower()}\n</Judgement> because": 1.0,
        f"{right.upper()}</Judgement>": 1.0,
    }
    for text, expected in table.items():
        assert prompts.reward(task, text, prompts.parse(task, text), 0) == expected, text


def test_reward_of_a_number():
    stsb = prompts.task("stsb")
    for text, label, expected in [
        (" 3.2 </Judgement>", 3.2, 2.5), (" 5 </Judgement>", 2.5, 0.0), (" 0 </Judgement>", 5.0, -2.5),
        (" many </Judgement>", 1.0, -2.5), (" 3.2", 3.2, -2.5), (" 3 or 4 </Judgement>", 3.0, -2.5), ("", 3.0, -2.5),
    ]:  # fmt: skip
        assert prompts.reward(stsb, text, prompts.parse(stsb, text), label) == pytest.approx(
            expected
        ), text


def test_strict_parser_refuses_what_contains_an_answer():
    rte, copa = prompts.task("rte"), prompts.task("copa")
    for text in ("Yes and No", "None", "Nothing", "Not", "someone", "Yes.", "No Yes"):
        assert prompts.parse(rte, f"{text} </Judgement>") is None, text
    assert prompts.parse(copa, "someone </Judgement>") is None
    assert prompts.parse(copa, " option   ONE </Judgement>") == 0


def test_official_parser_takes_what_contains_an_answer():
    rte, copa, sst2, mnli = (prompts.task(n) for n in ("rte", "copa", "sst2", "mnli"))
    read = official.parse_in_training
    assert read(rte, "None </Judgement>") == 1  # "No" is in "None"
    assert read(rte, "Yes and No </Judgement>") is None and read(rte, "yes </Judgement>") is None
    assert read(rte, "Yes") is None  # training demands the tag; the test does not
    assert read(copa, "someone knows </Judgement>") == 0
    assert read(sst2, "Negative or Positive </Judgement>") == 1
    assert (
        read(mnli, "neutral </Judgement>") == 1
        and read(mnli, "Neutral, Entailment </Judgement>") is None
    )
    rng = torch.Generator().manual_seed(0)
    assert official.parse_in_test(rte, "well, Yes or No", rng) == 0  # label 0 of RTE is Yes
    assert official.parse_in_test(copa, "anyone: Option two", rng) == 0
    assert {official.parse_in_test(rte, "gibberish", rng) for _ in range(50)} == {0, 1}
    assert official.sft_target(prompts.task("boolq"), 1) == " 1 </Judgement>"
    assert official.sft_target(sst2, 0) == " No </Judgement>"
    assert official.sft_target(prompts.task("cb"), 2) == " 3 </Judgement>"


@pytest.mark.parametrize("task", WORD_TASKS, ids=lambda t: t.name)
def test_official_reward_table_of_every_task(task):
    right, wrong = task.words[0], task.words[1]
    no_word = -1.0 if task.name == "record" else -3.0
    first_found = task.name in (
        "sst2",
        "record",
    )  # "Positive", "Yes" is looked for first, and is label 1
    any_case = task.name in ("mnli", "ax", "cb", "record", "copa")
    table = {
        f" {right} </Judgement>": 1.0,
        f" {wrong} </Judgement>": -1.0,
        f" {right}": -3.0,
        "": -3.0,
        " </Judgement>": no_word,
        f" {right} and {wrong} </Judgement>": -1.0 if first_found else -3.0,
        f" I think {right} </Judgement>": 1.0,
        f" {right.lower()} </Judgement>": 1.0 if any_case else -3.0,
    }
    for text, expected in table.items():
        assert prompts.reward(task, text, official.parse_in_training(task, text), 0) == expected, (
            text
        )


@pytest.mark.parametrize("task", list(prompts.TASKS.values()), ids=lambda t: t.name)
def test_prompts_hold_every_field_and_end_in_the_tag(task):
    nasty = {key: f'{key} {{curly}} "quoted"\nline {{0}}' for key, _ in task.fields}
    text = prompts.prompt(
        task, nasty | {"question": FIELDS["question"]} if task.name == "copa" else nasty
    )
    assert text.endswith(prompts.OPEN)
    for key, value in nasty.items():
        assert value in text, key
    assert "{" not in prompts.prompt(task, FIELDS)
    shown = prompts.prompt(task, FIELDS, [(FIELDS, 0), (FIELDS, 1)])
    assert shown.count(prompts.target(task, 0).strip()) >= 1 and shown.endswith(prompts.OPEN)


def test_targets_parse_to_their_labels():
    for task in prompts.TASKS.values():
        for label in range(max(len(task.words), 6)) if task.number else range(len(task.words)):
            assert prompts.parse(task, prompts.target(task, label)) == label


# --- the equations, by hand [4, 8, 10] --------------------------------------------------------------------------------


def test_gae_by_hand():
    """Two tokens, gamma 1, lambda 0.5: delta = (0 + 0.4 - 0.1, 1 - 0.4) = (0.3, 0.6); A = (0.3 + 0.5 * 0.6, 0.6)."""
    r, V, mask = (
        torch.tensor([[0.0, 1.0, 9.0]]),
        torch.tensor([[0.1, 0.4, 7.0]]),
        torch.tensor([[1.0, 1.0, 0.0]]),
    )
    A, G = gae(r * mask, V, mask, 1.0, 0.5)
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
    A, G = gae(r, V, mask, gamma, lam)
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
    h = Hyper()
    assert next_beta(0.2, 7.3, 16, h) == pytest.approx(0.2 * (1 + 0.2 * 16 / 10_000))
    assert next_beta(0.2, 6.0, 16, h) == 0.2
    beta = 0.2
    for _ in range(1000):
        beta = next_beta(beta, -50.0, 16, h)
    assert 0 < beta < 0.2
    assert next_beta(0.2, 50.0, 16, Hyper(kl_horizon=0)) == 0.2


def test_policy_gradient_is_the_weighted_cross_entropy():
    """Two arms, enumerated: d E[R] / d logits = 2 pi_y d log pi_y, and PPO's first gradient is minus that."""
    logits = torch.tensor([0.3, -0.4], dtype=torch.float64, requires_grad=True)
    log_pi = logits.log_softmax(0)
    old = log_pi.detach()
    # every action weighted by its probability under pi_old; A = R because there is no value and no baseline
    loss = (
        old.exp() * method.policy_loss(log_pi, old, torch.tensor([1.0, -1.0]).double(), 1e9)
    ).sum()
    (found,) = torch.autograd.grad(loss, logits, retain_graph=True)
    (cross_entropy,) = torch.autograd.grad(log_pi[0], logits)
    assert torch.allclose(found, -2 * old[0].exp() * cross_entropy, atol=1e-12)


# --- the update on real networks [5, 6, 7, 9, 11, 16] -----------------------------------------------------------------


def tiny_policy(
    lora: bool = True, dtype: torch.dtype = torch.float32, width: int = 16
) -> tuple[Policy, object]:
    torch.manual_seed(0)
    tokenizer = models.digits_tokenizer()
    lm = models.llama(len(tokenizer), 16, 2, 2, 32, 64)
    if lora:
        lm = models.add_lora(lm, 16, 32, True, "none", "all")
    return Policy(lm), tokenizer


def some_answers(policy, tokenizer, n: int = 8, cache: bool = True) -> Rollout:
    g = torch.Generator().manual_seed(1)
    prompts_ = [[*torch.randint(8, 24, (3 + i % 4,), generator=g).tolist(), 2] for i in range(n)]
    return rollout(policy, tokenizer, prompts_, 5, torch.rand(n, 5, generator=g), cache=cache)


@pytest.mark.parametrize("lora", [True, False])
def test_the_first_inner_pass_has_ratio_one(lora):
    policy, tokenizer = tiny_policy(lora)
    answers = some_answers(policy, tokenizer)
    optimizer = torch.optim.AdamW([p for p in policy.parameters() if p.requires_grad], lr=1e-2)
    for minibatch in (8, 4):  # with and without a separate pass for the old policy
        log, _ = update(policy, optimizer, answers, torch.randn(8), 0.2, Hyper(minibatch=minibatch))
        assert log["ratio_first"] == pytest.approx(1, abs=1e-5)
        assert log["clip_fraction_first"] == 0 and log["kl_old_new_first"] == pytest.approx(
            0, abs=1e-10
        )
    assert log["ratio"] != pytest.approx(1, abs=1e-6) or log["kl_old_new"] > 0


def test_dropout_of_the_base_model_acts_nowhere():
    """Answers are sampled, and both sides of the ratio computed, without dropout, whatever mode the policy came in."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    tokenizer = models.digits_tokenizer()
    half = {"resid_pdrop": 0.5, "embd_pdrop": 0.5, "attn_pdrop": 0.5}
    lm = GPT2LMHeadModel(
        GPT2Config(vocab_size=len(tokenizer), n_positions=32, n_embd=8, n_layer=2, n_head=2, **half)
    )
    policy = Policy(lm)
    found = []
    for training in (True, False):
        policy.train(training)
        found.append(some_answers(policy, tokenizer))
    assert torch.equal(found[0].ids, found[1].ids)
    policy.train()
    optimizer = torch.optim.SGD(policy.parameters(), lr=1e-2)
    log, _ = update(policy, optimizer, found[0], torch.randn(8), 0.2, Hyper(minibatch=4))
    assert log["ratio_first"] == pytest.approx(1, abs=1e-5) and log["clip_fraction_first"] == 0
    shipped = models.add_lora(models.tiny("llama", 32), 16, 32, True, "none", "default")
    assert shipped.peft_config["default"].lora_dropout == 0


def test_an_answer_token_is_judged_at_the_column_before_it():
    """Against one full pass over prompts and answers: nothing shifts."""
    policy, tokenizer = tiny_policy()
    answers = some_answers(policy, tokenizer)
    log_pi, V, entropy = policy(answers.ids, answers.mask, answers.T)
    assert log_pi.requires_grad and V.requires_grad
    positions = (answers.mask.cumsum(1) - 1).clamp(min=0)
    out = policy.lm(input_ids=answers.ids, attention_mask=answers.mask, position_ids=positions, output_hidden_states=True)  # fmt: skip
    before = slice(-answers.T - 1, -1)
    words = torch.distributions.Categorical(logits=out.logits[:, before])
    values = policy.value(out.hidden_states[-1][:, before]).squeeze(-1)
    real = answers.answer_mask().bool()
    assert torch.allclose(
        log_pi[real], words.log_prob(answers.ids[:, -answers.T :])[real], atol=1e-5
    )
    assert torch.allclose(V[real], values[real], atol=1e-5)
    assert torch.allclose(entropy[real], words.entropy()[real], atol=1e-5)


def test_reference_is_the_loaded_model():
    policy, tokenizer = tiny_policy()
    answers = some_answers(policy, tokenizer)
    args = (answers.ids, answers.mask, answers.T)
    with torch.no_grad():
        before = policy(*args, reference=True)[0]
        assert torch.allclose(policy(*args)[0], before, atol=1e-5)
    weights = {n: p.clone() for n, p in policy.named_parameters()}
    trained = [p for p in policy.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    for _ in range(3):
        update(policy, optimizer, answers, torch.randn(8), 0.2, Hyper(minibatch=8))
    with torch.no_grad():
        assert torch.equal(policy(*args, reference=True)[0], before)
        assert not torch.allclose(policy(*args)[0], before, atol=1e-5)
    moved = {n for n, p in policy.named_parameters() if not torch.equal(p, weights[n])}
    assert moved and all("lora_" in n or n.startswith("value.") for n in moved)
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} == {
        id(p) for p in trained
    }
    scales = {
        m.scaling["default"]
        for m in policy.modules()
        if isinstance(getattr(m, "scaling", None), dict)
    }
    assert scales == {8.0}


def test_trained_biases_are_warned_about():
    from transformers import Qwen2Config, Qwen2ForCausalLM

    lm = Qwen2ForCausalLM(Qwen2Config(vocab_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                                      num_key_value_heads=1, intermediate_size=16))  # fmt: skip
    with pytest.warns(UserWarning, match="reference"):
        lm = models.add_lora(lm, 4, 8, True, "all", "default")
    trained = [n for n, p in lm.named_parameters() if p.requires_grad]
    assert any(n.endswith(".bias") for n in trained)
    assert all("lora_" in n or n.endswith(".bias") for n in trained)


def reference_loss(policy: Policy, answers: Rollout, old, V_old, A, G, h: Hyper) -> torch.Tensor:
    """PPO's loss written a second time, answer by answer and token by token, without padding or masks."""
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


def fixed_case(spread: float):
    """A float64 policy, answers, and old values off by `spread`: 0.01 keeps the ratio inside the clip, 1 does not."""
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
    noise = lambda: torch.randn(log_pi.shape, generator=g, dtype=torch.float64)  # noqa: E731
    return policy, answers, (log_pi + spread * noise(), V + spread * noise(), noise(), noise())


@pytest.mark.parametrize("spread", [0.01, 1.0])
def test_loss_agrees_with_a_second_formula_and_with_finite_differences(spread):
    policy, answers, fixed = fixed_case(spread)
    h = Hyper()
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


def test_ids_after_the_end_and_more_left_padding_change_nothing():
    policy, answers, fixed = fixed_case(0.3)
    fixed = tuple(x * answers.answer_mask() for x in fixed)
    h = Hyper()
    base = float(loss_of(policy, answers, *fixed, h).detach())
    after = answers.ids.clone()
    after[:, -answers.T :] = torch.where(answers.answer_mask() > 0, after[:, -answers.T :], 7)
    wider = torch.cat([torch.full((8, 5), 9), answers.ids], 1)
    mask = torch.cat([torch.zeros(8, 5, dtype=answers.mask.dtype), answers.mask], 1)
    for changed in (replace(answers, ids=after), replace(answers, ids=wider, mask=mask)):
        assert float(loss_of(policy, changed, *fixed, h).detach()) == pytest.approx(base, abs=1e-5)


def test_minibatches_change_memory_only():
    gradients = []
    for size in (8, 4, 1):
        policy, tokenizer = tiny_policy()
        answers = some_answers(policy, tokenizer)
        optimizer = torch.optim.SGD([p for p in policy.parameters() if p.requires_grad], lr=1e-2)
        update(
            policy,
            optimizer,
            answers,
            torch.linspace(-1, 1, 8),
            0.2,
            Hyper(minibatch=size, inner_epochs=1),
        )
        gradients.append(
            torch.cat([p.grad.flatten() for p in policy.parameters() if p.requires_grad])
        )
    assert torch.allclose(gradients[0], gradients[1], atol=1e-5) and torch.allclose(
        gradients[0], gradients[2], atol=1e-5
    )


@pytest.mark.parametrize("family", ["llama", "qwen2", "mpt"])
def test_cache_and_padding_give_the_same_answers_for_every_family(family):
    torch.manual_seed(0)
    tokenizer = models.digits_tokenizer()
    policy = Policy(
        models.add_lora(models.tiny(family, len(tokenizer)), 4, 8, True, "none", "default")
    )
    cached, plain = some_answers(policy, tokenizer), some_answers(policy, tokenizer, cache=False)
    assert torch.equal(cached.ids, plain.ids) and cached.texts == plain.texts
    with torch.no_grad():
        log_pi = policy(cached.ids, cached.mask, cached.T)[0]
        for b in range(len(cached)):  # each answer alone, without padding
            start, n = int(cached.mask[b].argmax()), int(cached.lengths[b])
            end = cached.ids.shape[1] - cached.T + n
            alone = policy(cached.ids[b : b + 1, start:end], cached.mask[b : b + 1, start:end], n)[
                0
            ]
            assert torch.allclose(alone[0], log_pi[b, :n], atol=1e-4)


def test_greedy_rollout_equals_generate():
    policy, tokenizer = tiny_policy()
    ids, mask = left_pad([[8, 9, 2], [10, 11, 12, 13, 2]], 0)
    theirs = policy.lm.generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=6,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=1,
    )
    ours = rollout(policy, tokenizer, [[8, 9, 2], [10, 11, 12, 13, 2]], 6, stop=None)
    assert torch.equal(ours.ids, theirs[:, : ours.ids.shape[1]])


def test_a_cold_sample_is_the_greedy_answer():
    policy, tokenizer = tiny_policy()
    asked, u = (
        [[8, 9, 2], [10, 11, 12, 13, 2]],
        torch.rand(2, 6, generator=torch.Generator().manual_seed(0)),
    )
    greedy = rollout(policy, tokenizer, asked, 6)
    assert torch.equal(rollout(policy, tokenizer, asked, 6, u, temperature=1e-6).ids, greedy.ids)
    assert not torch.equal(
        rollout(policy, tokenizer, asked, 6, u, temperature=50.0).ids, greedy.ids
    )


def test_an_empty_answer_is_one_action_and_unreadable():
    """A model that ends at once: the end-of-text token is the answer's only action and carries the reward."""

    class Mute(bandit.Table):
        def forward(self, **inputs):
            out = super().forward(**inputs)
            out.logits[..., bandit.Ids.eos_token_id] += 1e4
            return out

    class Silent(bandit.Ids):
        def batch_decode(self, rows, **_):
            return ["" for _ in rows]

    policy = Policy(Mute())
    answers = rollout(policy, Silent(), [[0], [1]], 4, cache=False)
    assert answers.lengths.tolist() == [1, 1] and answers.texts == ["", ""]
    assert prompts.parse(prompts.task("rte"), answers.texts[0]) is None
    log, _ = update(
        policy,
        torch.optim.SGD(policy.parameters(), lr=0.1),
        answers,
        torch.tensor([-3.0, -3.0]),
        0.2,
        Hyper(minibatch=2),
    )
    assert np.isfinite(log["policy_loss"]) and log["length"] == 1


def test_pad_may_be_the_end_of_text():
    """With one id for both, the end-of-text action keeps its place in the loss: masks come from lengths."""
    policy, tokenizer = tiny_policy()
    tokenizer.pad_token = tokenizer.eos_token
    answers = some_answers(policy, tokenizer, 16)
    ended = (
        answers.ids[torch.arange(16), answers.ids.shape[1] - answers.T + answers.lengths - 1]
        == tokenizer.eos_token_id
    )
    assert ended.any()
    assert torch.equal(answers.answer_mask().sum(1).long(), answers.lengths)


# --- learning [12] ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("kind", ["ppo", "grpo", "rloo", "reinforce"])
def test_the_bandit_is_solved(kind, seed):
    assert bandit.solve(kind, seed) > 0.9


def test_group_advantages_by_hand():
    R = torch.tensor([1.0, -1.0, 1.0, 1.0])
    assert torch.allclose(
        baselines.group_advantages(R, "rloo", 2), torch.tensor([2.0, -2.0, 0.0, 0.0])
    )
    assert torch.allclose(baselines.group_advantages(R, "reinforce", 2), R - (R.sum() - R) / 3)
    a = baselines.group_advantages(R, "grpo", 2)
    assert float(a[0]) == pytest.approx(1 / (2**0.5 + 1e-4)) and float(a[2]) == 0


def test_sft_loss_counts_the_answer_only():
    policy, tokenizer = tiny_policy()
    q, a = [[8, 9, 2], [10, 11, 12, 2]], [[4, 3, 1], [5, 3]]
    found = baselines.sft_loss(policy, q, a, tokenizer.pad_token_id)
    total = 0.0
    for prompt, target in zip(q, a):
        ids = torch.tensor([prompt + target])
        log_p = policy.lm(input_ids=ids).logits.log_softmax(-1)[0]
        total += sum(-float(log_p[len(prompt) + t - 1, x].detach()) for t, x in enumerate(target))
    assert float(found.detach()) == pytest.approx(total / 5, abs=1e-4)


# --- bad input [15, D8, D19] ------------------------------------------------------------------------------------------


def config(**values) -> train.Config:
    return train.Config(
        **{
            "task": "digits",
            "model": "digits",
            "lora_rank": 0,
            "steps": 2,
            "probe_every": 0,
            **values,
        }
    )


def test_what_cannot_work_is_refused():
    with pytest.raises(ValueError, match="minibatch"):
        train.check(config(minibatch=5))
    with pytest.raises(ValueError, match="unknown answer format"):
        train.check(config(task="squad"))
    with pytest.raises(ValueError, match="lr"):
        train.check(config(lr=0.0))
    with pytest.raises(ValueError, match="is not one of"):
        prompts.task("rte").label(2)
    with pytest.raises(ValueError, match="lacks sentence2"):
        prompts.prompt(prompts.task("rte"), {"sentence1": "a"})
    with pytest.raises(ValueError, match="padding token"):
        models.check_pad(SimpleNamespace(pad_token_id=None))
    with pytest.raises(ValueError, match="items"):
        data.checked("digits", prompts.task("digits"), [], [])
    policy, tokenizer = tiny_policy()
    answers = some_answers(policy, tokenizer)
    optimizer = torch.optim.SGD(policy.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="minibatches of 3"):
        update(policy, optimizer, answers, torch.zeros(8), 0.2, Hyper(minibatch=3))
    before = [p.clone() for p in policy.parameters()]
    with pytest.raises(FloatingPointError, match="reward of answer 2 is nan"):
        update(
            policy,
            optimizer,
            answers,
            torch.tensor([0.0, 0, float("nan"), 0, 0, 0, 0, 0]),
            0.2,
            Hyper(minibatch=8),
        )
    assert all(torch.equal(a, b) for a, b in zip(before, policy.parameters()))


def test_a_prompt_beyond_the_context_is_refused():
    policy, tokenizer = tiny_policy(lora=False)  # context 64
    items = digits()
    with pytest.raises(ValueError, match="context of 64"):
        asking.Asker(
            config(shots=5), policy, tokenizer, items.task, items, SimpleNamespace(say=print)
        )


@pytest.mark.parametrize("left", range(1, 9))
def test_what_an_epoch_leaves_over_is_left_out(left):
    rows = steps.schedule_of_rows(32 + left, 16, 5, torch.Generator().manual_seed(0))
    assert rows.shape == (5, 16)
    for epoch in (rows[:2], rows[2:4]):
        assert len(set(epoch.flatten().tolist())) == 32
    with pytest.raises(ValueError, match="do not fill one batch"):
        steps.schedule_of_rows(left, 16, 1, torch.Generator())


def test_out_of_memory_halves_the_minibatch(monkeypatch):
    """The same update in smaller pieces; at one row the remedy is named."""
    policy, tokenizer = tiny_policy()
    answers = some_answers(policy, tokenizer)
    asker = SimpleNamespace(policy=policy)
    sizes, real = [], method.update

    def scarce(policy, optimizer, batch, scores, beta, hyper):
        sizes.append(hyper.minibatch)
        if hyper.minibatch > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(policy, optimizer, batch, scores, beta, hyper)

    monkeypatch.setattr(method, "update", scarce)
    optimizer, limit = torch.optim.SGD(policy.parameters(), lr=0.1), 2
    log, _ = asking.Asker.update(asker, optimizer, answers, torch.randn(8), 0.2, Hyper(minibatch=8))
    assert sizes == [8, 4, 2] and np.isfinite(log["policy_loss"])
    limit = 0
    with pytest.raises(runs.BadInput, match="max-prompt"):
        asking.Asker.update(asker, optimizer, answers, torch.randn(8), 0.2, Hyper(minibatch=8))


def test_without_trl_its_arms_are_skipped(monkeypatch):
    monkeypatch.setitem(sys.modules, "trl", None)
    with pytest.raises(runs.BadInput, match="skipped"):
        baselines.trl_train("grpo", None, None, [], [], None, "", 1, 1, 1.0, 1, 0.0, 0)


# --- data -------------------------------------------------------------------------------------------------------------


def digits(seed: int = 0, flip: float = 0.0) -> data.Data:
    return data.load("digits", runs.stream(seed, "split"), runs.stream(seed, "flip"), flip)


def test_digits_parts():
    a, b, noisy = digits(0), digits(1), digits(0, 0.3)
    assert [len(x) for x in (a.start, a.validation, a.train, a.test)] == [300, 300, 800, 397]
    assert [x.id for x in a.test] == [x.id for x in b.test] and [x.id for x in a.train] != [
        x.id for x in b.train
    ]
    parts = [{x.id for x in part} for part in (a.start, a.validation, a.train, a.test)]
    assert len(set.union(*parts)) == sum(map(len, parts)) == 1797
    changed = np.mean([x.label != y.label for x, y in zip(a.train, noisy.train)])
    assert 0.25 < changed < 0.35 and [x.label for x in a.test] == [x.label for x in noisy.test]
    told = data.half_knowing(a.task, a.start, 0.6, 0.15, torch.Generator().manual_seed(0))
    read = [prompts.parse(a.task, t) for t in told]
    assert 0.1 < np.mean([r is None for r in read]) < 0.2
    assert 0.5 < np.mean([r == x.label for r, x in zip(read, a.start) if r is not None]) < 0.7


ALL_TASKS = [
    "cola",
    "sst2",
    "mrpc",
    "qqp",
    "stsb",
    "mnli",
    "qnli",
    "rte",
    "wnli",
    "copa",
    "wsc",
    "wic",
    "boolq",
    "cb",
    "multirc",
    "record",
    "super_rte",
]


@pytest.mark.parametrize("name", ALL_TASKS)
def test_every_benchmark_task_loads_and_asks(name):
    """Made-up rows in the benchmark's own layout go through the usual loader into prompts; labels are valid."""
    items = data.load(name, torch.Generator().manual_seed(0), torch.Generator(), sample=True)
    ids = [{x.id for x in part} for part in (items.train, items.validation, items.test)]
    assert all(ids) and not ids[0] & ids[1] and not (ids[0] | ids[1]) & ids[2]
    for item in items.train[:4] + items.test[:4]:
        text = prompts.prompt(items.task, item.fields)
        assert text.endswith(prompts.OPEN) and all(
            str(item.fields[k]) in text for k, _ in items.task.fields
        )
        assert (
            prompts.parse(items.task, prompts.target(items.task, items.task.label(item.label)))
            is not None
        )


@pytest.mark.parametrize(
    ("name", "positive"),
    [("rte", 0), ("qnli", 0), ("cola", 1), ("sst2", 1), ("cb", 0), ("boolq", 1)],
)
def test_answer_words_follow_the_labels_of_the_loader(name, positive):
    from shared import glue

    first = {"entailment", "acceptable", "positive", "True"}
    assert glue.spec(name).labels[positive] in first
    assert prompts.task(name).words[positive] in {"Yes", "Positive", "Entailment"}
    if name == "cb":
        assert [w.lower() for w in prompts.task("cb").words] == list(glue.spec("cb").labels)


def test_real_glue_rows(repro_data, monkeypatch):
    monkeypatch.setenv("REPRO_DATA", str(repro_data))
    items = data.load("rte", torch.Generator().manual_seed(0), torch.Generator())
    assert (
        len(items.test) == 277
        and len(items.train) + len(items.validation) + len(items.start) == 2490
    )
    assert {x.label for x in items.test} == {0, 1}


def test_record_trains_on_one_right_and_one_wrong_candidate():
    items = [data.Item(i, {}, int(i % 3 == 0), group=i // 6) for i in range(12)]
    chosen = data._record_pairs(items, torch.Generator().manual_seed(0))
    assert [(x.group, x.label) for x in chosen] == [(0, 1), (0, 0), (1, 1), (1, 0)]


def test_few_shot_examples_are_balanced():
    rows = baselines.examples([0] * 50 + [1] * 50, 5, torch.Generator().manual_seed(0))
    ones = sum(r >= 50 for r in rows)
    assert len(set(rows)) == 5 and ones in (2, 3)
    assert official.first_rows([0] * 9, 5) == [0, 1, 2, 3, 4]


def test_prompt_and_target_are_one_tokenisation():
    tokenizer = models.digits_tokenizer()
    q, a = models.encode(tokenizer, "g1 g2 <Judgement>", " Yes </Judgement>")
    assert (
        tokenizer.decode(q) == "g1 g2 <Judgement>"
        and tokenizer.decode(a, skip_special_tokens=True) == "Yes </Judgement>"
    )
    assert a[-1] == tokenizer.eos_token_id


# --- evaluation -------------------------------------------------------------------------------------------------------


def answers_of(label, greedy, sampled, metric="accuracy", **more) -> dict[str, np.ndarray]:
    n = len(label)
    zero = np.zeros(n)
    return {
        "id": np.arange(n), "label": np.array(label, float), "greedy": np.array(greedy, float),
        "sampled": np.array(sampled, float), "greedy_reward": zero, "sampled_reward": np.zeros((n, 2)),
        "kl": zero, "entropy": zero, "_metric": np.array([metric]), **{k: np.array(v) for k, v in more.items()},
    }  # fmt: skip


def test_scores_by_hand():
    U = evaluate.UNREADABLE
    s = evaluate.score(answers_of([0, 1, 1, 0], [0, 1, U, 1], [[0, 0], [1, 0], [U, U], [U, 1]]))
    assert s["accuracy_greedy"] == 0.5 and s["invalid_greedy"] == 0.25
    assert s["accuracy_sampled"] == pytest.approx(3 / 8) and s["invalid_sampled"] == pytest.approx(
        3 / 8
    )
    assert s["answer_entropy"] == pytest.approx(np.log(2) / 2) and s["constant_share"] == 0.5
    a = answers_of([0, 1], [0, 1], [[0, 0], [1, 1]])
    b = answers_of([0, 1], [0, 0], [[0, 1], [1, 0]])
    assert evaluate.decoder_confound({"a": a, "b": b}) == pytest.approx((1 - 0.5) - (1 - 0.5))


def test_benchmark_metrics_by_hand():
    U = evaluate.UNREADABLE
    y, a = np.array([1.0, 1, 0, 0]), np.array([1.0, U, 0, 1])
    none = (None, None)
    assert evaluate.accuracy_f1(y, a, *none) == pytest.approx((0.5 + 0.5) / 2)
    assert evaluate.multirc(
        y, np.array([1.0, 1, 0, 1]), np.array([0, 0, 1, 1]), None
    ) == pytest.approx((0.8 + 0.5) / 2)
    group, value = np.array([0, 0, 1, 1]), np.array([1.0, 0.5, 0.2, 1.0])
    gold = np.array([1.0, 0, 0, 1])
    assert evaluate.record(gold, np.array([0.0, 1, 0, 0]), group, value) == pytest.approx(
        (0.25 + 0) / 2
    )
    assert evaluate.correlation(
        np.array([0.0, 2.5, 5.0]), np.array([-3.0, 2.5, 9.0]), *none
    ) == pytest.approx(1)
    assert evaluate.matthews(y, np.full(4, U), *none) == 0


# --- whole runs [13, 14], several processes ---------------------------------------------------------------------------


def test_protocol_and_claims_are_read():
    from benchmarks.claims import load_claims

    paper = Protocol(train.Path(train.__file__).parent)
    claims = load_claims(paper.directory / "claims.yaml")
    for scale in ("cpu", "gpu", "paper"):
        arms = set(paper.selected(scale))
        for claim in claims["claims"]:
            if scale in claim["scales"] and claim["kind"] == "difference":
                assert set(claim["arms"].values()) <= arms, claim["id"]


def short(paper: Protocol, arm: str, task: str, out, **more):
    """One short run of an arm, what it uses included; returns its record."""
    node = paper.node("cpu", arm, task, 0)
    uses = {}
    for key in node.uses:
        short(paper, key[0], key[1], out)
        uses[key[0]] = str(out / key[1] / key[0])
    values = {
        **paper.config("cpu", node),
        "steps": 3,
        "probe_every": 2,
        "test_limit": 24,
        "samples": 2,
        "examples": 0,
    }
    place = out / task / (more.pop("folder", None) or arm)
    train.run(train.Config(**{**values, **more, "uses": uses, "out": str(place)}))
    return json.loads((place / "record.json").read_text())


@pytest.fixture(scope="module")
def shortly(tmp_path_factory):
    runs.be_worker(lambda: False)
    out = tmp_path_factory.mktemp("ppo")
    paper = Protocol(train.Path(train.__file__).parent)
    return lambda arm, task="digits", **more: short(paper, arm, task, out, **more)


def test_arms_share_start_examples_and_items(shortly):
    records = {arm: shortly(arm) for arm in ("zero_shot", "few_shot", "sft", "ppo", "sft_ppo")}
    for arm, record in records.items():
        gates = {g["id"]: g["passed"] for g in record["gates"]}
        assert gates and all(gates.values()), (arm, record["gates"])
        assert record["split_sha256"] == records["ppo"]["split_sha256"]
        assert set(record["details"]["budget"]) == {
            "examples",
            "tokens_forward",
            "tokens_backward",
            "gradient_steps",
        }
    assert {"same-start", "ratio-one", "reference-kept"} <= {
        g["id"] for g in records["ppo"]["gates"]
    }
    assert (
        records["ppo"]["details"]["budget"]["examples"]
        == records["sft"]["details"]["budget"]["examples"]
        == 48
    )
    assert (
        records["sft_ppo"]["details"]["budget"]["examples"] == 96
    )  # its supervised stage included
    assert records["ppo"]["details"]["budget"]["gradient_steps"] == 12


def test_budget_gate_fails_when_the_currency_differs(shortly):
    record = shortly("ppo", examples=400, folder="ppo-budget")
    assert [g["passed"] for g in record["gates"] if g["id"] == "budget"] == [False]


def test_a_stopped_run_continues_to_the_same_bits(shortly, monkeypatch):
    whole = shortly("ppo", folder="ppo-whole", steps=4)
    asked = iter([False, True])
    runs.be_worker(lambda: next(asked, False))
    with pytest.raises(runs.Stopped):
        shortly("ppo", folder="ppo-parts", steps=4)
    runs.be_worker(lambda: False)
    parts = shortly("ppo", folder="ppo-parts", steps=4)
    assert parts["state_sha256"] == whole["state_sha256"]
    assert parts["predictions_sha256"] == whole["predictions_sha256"]
    assert parts["gates"] == whole["gates"] and parts["details"] == whole["details"]


def test_the_test_split_does_not_reach_training(shortly, monkeypatch):
    """Other test questions with other answers: the same trained weights, other predictions."""
    whole = shortly("ppo", folder="ppo-tested")
    real = train.load_data

    def other(config, run):
        items = real(config, run)
        return replace(items, test=[replace(x, label=1 - x.label) for x in items.test[::-1]])

    monkeypatch.setattr(train, "load_data", other)
    changed = shortly("ppo", folder="ppo-other-test")
    assert changed["state_sha256"] == whole["state_sha256"]
    assert changed["predictions_sha256"] != whole["predictions_sha256"]


def test_adapter_loads_with_peft_and_gives_the_recorded_answers(shortly):
    from peft import PeftModel

    record = shortly("ppo", folder="ppo-lora", lora_rank=4, lora_targets="all", lr=0.05)
    place, start = (
        train.Path(record["config"]["out"]),
        train.Path(record["config"]["uses"]["start"]),
    )
    lm, tokenizer = models.restore(start / "model")
    policy = Policy(PeftModel.from_pretrained(lm, str(place / "export")).eval())
    told = [json.loads(line) for line in (place / "answers.jsonl").read_text().splitlines()]
    asked = {x.id: prompts.prompt(prompts.task("digits"), x.fields) for x in digits().test}
    q = [models.encode(tokenizer, asked[line["id"]])[0] for line in told]
    assert rollout(policy, tokenizer, q, record["config"]["max_new"]).texts == [
        x["greedy"] for x in told
    ]
    adapter = [p for n, p in policy.named_parameters() if "lora_B" in n]
    assert adapter and all(p.abs().max() > 0 for p in adapter)


def test_ppo_and_sft_need_no_trl(shortly, monkeypatch):
    monkeypatch.setitem(sys.modules, "trl", None)
    for arm in ("ppo", "sft"):
        assert shortly(arm, folder=f"{arm}-without", steps=1)["status"] == "finished"
    with pytest.raises(runs.BadInput, match="skipped"):
        shortly("grpo", folder="grpo-without", steps=1)


def test_official_accidents_run(shortly):
    record = shortly("ppo_official", steps=1)
    assert record["status"] == "finished" and record["config"]["parser"] == "official"


def test_official_test_parser_draws_a_label_where_ours_says_unreadable(shortly):
    strict = shortly("zero_shot", folder="strictly", temperature=3.0)["metrics"]
    first, again = (
        shortly("zero_shot", folder=f"drawn {k}", temperature=3.0, test_parser="official")
        for k in (1, 2)
    )
    assert strict["invalid_sampled"] > 0 == first["metrics"]["invalid_sampled"]
    assert first["predictions_sha256"] == again["predictions_sha256"]


def test_a_reward_that_is_no_number_stops_the_run_and_is_recorded(shortly, monkeypatch):
    place = train.Path(shortly("sft")["config"]["out"]).with_name("ppo-nan")
    monkeypatch.setattr(asking.prompts, "reward", lambda *_: float("nan"))
    with pytest.raises(runs.Diverged, match="reward"):
        shortly("ppo", folder="ppo-nan")
    record = json.loads((place / "record.json").read_text())
    assert (record["status"], record["chosen_step"]) == ("diverged", 0)


def test_out_of_memory_while_sampling_names_the_remedy(shortly, monkeypatch):
    def scarce(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(train, "rollout", scarce)
    with pytest.raises(runs.BadInput, match="--batch"):
        shortly("ppo", folder="ppo-scarce")


PAIR = """
import os, sys, torch, torch.distributed as dist
sys.path[:0] = [{root!r}, {tests!r}]
from test_ppo_nlu import tiny_policy
from ppo_nlu.method import Hyper, rollout, update
from shared import processes
world, rank = int(os.environ["WORLD_SIZE"]), int(os.environ["RANK"])
if world > 1:
    dist.init_process_group("gloo", init_method="file://" + {out!r} + ".meet", rank=rank, world_size=world)
    processes.average_before_steps()
policy, tokenizer = tiny_policy()
g = torch.Generator().manual_seed(1)
asked = [torch.randint(8, 24, (3 + i % 4,), generator=g).tolist() + [2] for i in range(8)]
u, scores = torch.rand(8, 5, generator=g), torch.linspace(-1, 1, 8)
own = slice(rank, None, world)
answers = rollout(policy, tokenizer, asked[own], 5, u[own])
trained = [p for p in policy.parameters() if p.requires_grad]
optimizer = torch.optim.SGD(trained, lr=0.1)
log, beta = update(policy, optimizer, answers, scores[own], 0.2, Hyper(minibatch=len(answers)))
if rank == 0: torch.save([torch.cat([p.detach().flatten() for p in trained]), log, beta], {out!r})
if world > 1:
    dist.barrier()
    dist.destroy_process_group()
"""


def in_processes(world: int, code: str) -> None:
    """Run `code` in `world` processes; none is left behind."""
    env = {**os.environ, "WORLD_SIZE": str(world)}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code], env={**env, "RANK": str(r)}, stderr=subprocess.PIPE
        )
        for r in range(world)
    ]
    try:
        for process in started:
            _, error = process.communicate(timeout=240)
            assert process.returncode == 0, error.decode()[-2000:]
    finally:
        for process in started:
            process.kill()


def test_two_processes_equal_one(tmp_path, root):
    found = []
    for world in (1, 2):
        out = str(tmp_path / f"{world}.pt")
        code = PAIR.format(root=str(root), tests=str(root / "tests"), out=out)
        in_processes(world, code)
        found.append(torch.load(out))
    (one, log_one, beta_one), (two, log_two, beta_two) = found
    assert torch.allclose(one, two, atol=1e-5) and beta_one == pytest.approx(beta_two)
    for key, value in log_one.items():
        if key not in ("skipped", "skipped_first"):
            assert log_two[key] == pytest.approx(value, abs=1e-4), key


# --- exhibits ---------------------------------------------------------------------------------------------------------


class Encoder(nn.Module):
    """The least PrefixLM needs of an encoder."""

    def __new__(cls):
        from transformers import BertConfig, BertModel

        torch.manual_seed(0)
        return BertModel(
            BertConfig(
                vocab_size=32,
                hidden_size=16,
                num_hidden_layers=2,
                num_attention_heads=2,
                intermediate_size=16,
            )
        ).eval()


def test_prefix_model_sees_the_prompt_whole_and_the_answer_causally():
    lm = models.PrefixLM(Encoder(), open_id=2)
    ids, mask = torch.tensor([[8, 9, 10, 2, 4, 3]]), torch.ones(1, 6, dtype=torch.long)
    positions = torch.arange(6)[None]
    with torch.no_grad():
        h = lm(ids, mask, positions).hidden_states[0]
        later_prompt, later_answer = ids.clone(), ids.clone()
        later_prompt[0, 2], later_answer[0, 5] = 11, 5
        assert not torch.allclose(lm(later_prompt, mask, positions).hidden_states[0][0, 0], h[0, 0])
        assert torch.allclose(
            lm(later_answer, mask, positions).hidden_states[0][0, :5], h[0, :5], atol=1e-5
        )
        padded = torch.cat([torch.zeros(1, 2, dtype=torch.long), ids], 1)
        m = torch.cat([torch.zeros(1, 2, dtype=torch.long), mask], 1)
        p = (m.cumsum(1) - 1).clamp(min=0)
        assert torch.allclose(lm(padded, m, p).hidden_states[0][:, 2:], h, atol=1e-5)
        assert (lm(ids, mask, positions, logits_to_keep=1).logits[..., 2] < -1e8).all()


@pytest.mark.slow
def test_minilm_answers_questions_about_real_text(shortly):
    """The exhibit's three arms, a few batches: real encoder, adapter on its queries and values, no cache."""
    records = {
        arm: shortly(arm, "documentation", test_limit=8, batch=4, minibatch=4)
        for arm in ("text_zero_shot", "text_sft", "text_ppo")
    }
    assert {r["status"] for r in records.values()} == {"finished"}
    assert records["text_ppo"]["details"]["budget"]["gradient_steps"] == 12
    assert all(g["passed"] for g in records["text_ppo"]["gates"])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["grpo", "rloo"])
def test_trl_trainers_run_with_the_rule_as_reward(shortly, kind):
    pytest.importorskip("trl")
    record = shortly(kind, steps=2, batch=4, max_new=4)
    assert record["status"] == "finished" and "score_greedy" in record["metrics"]


@pytest.mark.slow
def test_fsdp_update_runs_on_two_processes(tmp_path, root):
    """Sharded base and adapter (FSDP2 over gloo): the first update equals that of one process."""
    shard = "from torch.distributed.fsdp import fully_shard\n" \
            "for block in policy.lm.get_base_model().get_decoder().layers: fully_shard(block)\n" \
            "fully_shard(policy.lm)\ng = torch.Generator().manual_seed(1)\n"  # fmt: skip
    found = []
    for world in (1, 2):
        out = str(tmp_path / f"{world}.pt")
        code = PAIR.format(root=str(root), tests=str(root / "tests"), out=out)
        if world == 2:
            code = code.replace("g = torch.Generator().manual_seed(1)\n", shard)
            code = code.replace("if rank == 0: torch.save", "trained = [p.full_tensor() if hasattr(p, 'full_tensor') else p for p in trained]\nif rank == 0: torch.save")  # fmt: skip
        in_processes(world, code)
        found.append(torch.load(out)[0])
    assert torch.allclose(found[0], found[1], atol=1e-5)
