"""What the policy writes, and where its answers are judged."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ppo_nlu import method, models, prompts, stages
from ppo_nlu.cached import CachedPolicy
from ppo_nlu.config import PPO, Network
from ppo_nlu.policy import Policy, entropy, left_pad, rollout
from shared import sources


def test_an_answer_token_is_judged_at_the_column_before_it(tiny_policy, some_answers):
    """Against one full pass over prompts and answers: nothing shifts."""
    policy, tokenizer = tiny_policy()
    answers = some_answers(policy, tokenizer)
    log_pi, V, logits = policy(answers.ids, answers.mask, answers.T)
    assert log_pi.requires_grad and V.requires_grad
    positions = (answers.mask.cumsum(1) - 1).clamp(min=0)
    out = policy.lm(
        input_ids=answers.ids,
        attention_mask=answers.mask,
        position_ids=positions,
        output_hidden_states=True,
    )
    before = slice(-answers.T - 1, -1)
    words = torch.distributions.Categorical(logits=out.logits[:, before])
    values = policy.value(out.hidden_states[-1][:, before]).squeeze(-1)
    real = answers.answer_mask().bool()
    assert torch.allclose(
        log_pi[real], words.log_prob(answers.ids[:, -answers.T :])[real], atol=1e-5
    )
    assert torch.allclose(V[real], values[real], atol=1e-5)
    assert torch.allclose(entropy(logits)[real], words.entropy()[real], atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "qwen2", "mpt"])
def test_cache_and_padding_give_the_same_answers_for_every_family(family, some_answers):
    torch.manual_seed(0)
    tokenizer = models.digits_tokenizer()
    policy = Policy(models.add_lora(models.tiny(family, len(tokenizer)), Network(lora_rank=4)))
    cached = some_answers(policy, tokenizer)
    policy.caches = False
    plain = some_answers(policy, tokenizer)
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


def test_greedy_rollout_equals_generate(tiny_policy):
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


def test_a_cold_sample_is_the_greedy_answer(tiny_policy):
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
    """A model that ends at once: the end-of-text token is the answer's only action and carries the
    reward."""

    class Mute(stages.Table):
        def forward(self, **inputs):
            out = super().forward(**inputs)
            out.logits[..., stages.Ids.eos_token_id] += 1e4
            return out

    class Silent(stages.Ids):
        def batch_decode(self, sequences, skip_special_tokens=False):
            return ["" for _ in sequences]

    policy = Policy(Mute())
    answers = rollout(policy, Silent(), [[0], [1]], 4)
    assert answers.lengths.tolist() == [1, 1] and answers.texts == ["", ""]
    assert prompts.parse(prompts.task("rte"), answers.texts[0]) is None
    log, _ = method.update(
        policy,
        torch.optim.SGD(policy.parameters(), lr=0.1),
        answers,
        torch.tensor([-3.0, -3.0]),
        0.2,
        PPO(minibatch=2),
    )
    assert np.isfinite(log["policy_loss"]) and log["length"] == 1


def test_pad_may_be_the_end_of_text(tiny_policy, some_answers):
    """With one id for both, the end-of-text action keeps its place in the loss: masks come from
    lengths."""
    policy, tokenizer = tiny_policy()
    tokenizer.pad_token = tokenizer.eos_token
    answers = some_answers(policy, tokenizer, 16)
    ended = (
        answers.ids[torch.arange(16), answers.ids.shape[1] - answers.T + answers.lengths - 1]
        == tokenizer.eos_token_id
    )
    assert ended.any()
    assert torch.equal(answers.answer_mask().sum(1).long(), answers.lengths)


OPENING = [5, 2]  # what opens an answer


def cached_policy(folder) -> tuple[CachedPolicy, list[list[int]]]:
    """A policy on eight prompts computed once: an adapter, moved, in the last of two blocks."""
    torch.manual_seed(0)
    lm = models.llama(24, 16, 2, 2, 32, 64)
    lm = models.add_lora(lm, Network(lora_rank=4, lora_blocks=1), OPENING).eval()
    for name, p in lm.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.5)
    g = torch.Generator().manual_seed(1)
    prompts = [
        [*torch.randint(8, 24, (3 + i % 4,), generator=g).tolist(), *OPENING] for i in range(8)
    ]
    with sources.pointed_at(REPRO_CACHE=folder):
        return CachedPolicy(lm, prompts), prompts


def test_prompts_computed_once_change_no_answer_and_no_gradient(tmp_path):
    """Against the same adapter over whole texts, as peft runs it."""
    policy, prompts = cached_policy(tmp_path)
    tokenizer = models.digits_tokenizer()
    uniforms = torch.rand(8, 5, generator=torch.Generator().manual_seed(0))
    answers = policy.answers(tokenizer, [[row] for row in range(8)], 5, uniforms)
    plain = Policy(policy.lm)
    plain.value.load_state_dict(policy.value.state_dict())
    columns, T = answers.ids[:, 1:], answers.T
    ids, mask = left_pad(prompts, 0)
    whole = (torch.cat([ids, columns], 1), torch.cat([mask, answers.mask[:, 1:]], 1), T)
    real = answers.answer_mask().bool()
    gradients = []
    for p, inputs in ((policy, (answers.ids, answers.mask, T)), (plain, whole)):
        log_pi, V, _ = p(*inputs)
        p.zero_grad()
        (log_pi[real].sum() + V[real].sum()).backward()
        gradients.append([w.grad.clone() for w in p.trained()])
        with torch.no_grad():
            gradients[-1] += [log_pi[real], V[real], p(*inputs, reference=True)[0][real]]
    for ours, theirs in zip(*gradients, strict=True):
        assert torch.allclose(ours, theirs, atol=2e-3), (ours - theirs).abs().max()
    again = plain.answers(tokenizer, prompts, 5, uniforms)
    assert again.texts == answers.texts


def test_an_update_on_cached_prompts_begins_at_ratio_one(tmp_path):
    policy, _ = cached_policy(tmp_path)
    uniforms = torch.rand(8, 3, generator=torch.Generator().manual_seed(0))
    answers = policy.answers(models.digits_tokenizer(), [[row] for row in range(8)], 3, uniforms)
    optimizer = torch.optim.AdamW(policy.trained(), lr=1e-2)
    log, _ = method.update(policy, optimizer, answers, torch.randn(8), 0.2, PPO(minibatch=8))
    assert log["ratio_first"] == pytest.approx(1, abs=1e-5) and log["clip_fraction_first"] == 0
    assert log["kl"] != 0 and log["kl_old_new"] > 0


def test_without_a_cost_the_reference_is_not_asked(tiny_policy, some_answers, monkeypatch):
    policy, tokenizer = tiny_policy()
    answers, asked, real = some_answers(policy, tokenizer), [], Policy.forward

    def forward(policy, ids, mask, T, reference=False):
        asked.append(reference)
        return real(policy, ids, mask, T, reference)

    monkeypatch.setattr(Policy, "forward", forward)
    optimizer = torch.optim.SGD(policy.trained(), lr=0.1)
    for beta, passes in ((0.2, 1), (0.0, 0)):
        asked.clear()
        facts, _ = method.update(policy, optimizer, answers, torch.randn(8), beta, PPO())
        assert sum(asked) == passes and ("kl" in facts) == bool(passes)
