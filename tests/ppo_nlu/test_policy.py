"""What the policy writes, and where its answers are judged."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ppo_nlu import method, models, prefix, prompts, stages
from ppo_nlu.config import PPO
from ppo_nlu.policy import Policy, left_pad, rollout


def test_an_answer_token_is_judged_at_the_column_before_it(tiny_policy, some_answers):
    """Against one full pass over prompts and answers: nothing shifts."""
    policy, tokenizer = tiny_policy()
    answers = some_answers(policy, tokenizer)
    log_pi, V, entropy = policy(answers.ids, answers.mask, answers.T)
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
    assert torch.allclose(entropy[real], words.entropy()[real], atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "qwen2", "mpt"])
def test_cache_and_padding_give_the_same_answers_for_every_family(family, some_answers):
    torch.manual_seed(0)
    tokenizer = models.digits_tokenizer()
    policy = Policy(models.add_lora(models.tiny(family, len(tokenizer)), 4, 8))
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


def encoder():
    """The least a prefix model needs of an encoder."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    small = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2}
    return BertModel(BertConfig(**small, num_attention_heads=2)).eval()


def test_prefix_model_sees_the_prompt_whole_and_the_answer_causally():
    lm = prefix.PrefixLM(encoder(), open_id=2)
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
