"""A known answer: a contextual bandit that PPO must solve, or its code is wrong.  No text model, seconds."""

from types import SimpleNamespace

import torch
from torch import Tensor, nn

from ppo_nlu import baselines
from ppo_nlu.method import Hyper, Policy, rollout, update

PROMPTS, WORDS = 4, 6  # prompt i must be answered with word i; word 5 ends an answer


class Table(nn.Module):
    """A language model without context: the next word depends on the last one only, by a table of logits."""

    def __init__(self):
        super().__init__()
        self.config = SimpleNamespace(hidden_size=16)
        self.h = nn.Embedding(PROMPTS + WORDS, 16)
        self.out = nn.Linear(16, PROMPTS + WORDS)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, logits_to_keep: int = 0, **_):
        h = self.h(input_ids)
        return SimpleNamespace(
            logits=self.out(h[:, -logits_to_keep:]), hidden_states=(h,), past_key_values=None
        )


class Ids:
    """The least a tokenizer must be: ids are their own text."""

    pad_token_id = eos_token_id = PROMPTS + WORDS - 1

    def batch_decode(self, rows, **_) -> list[str]:
        return [" ".join(str(int(i)) for i in row) for row in rows]


def solve(kind: str, seed: int, updates: int = 200, batch: int = 32) -> float:
    """Mean greedy reward over the prompts after `updates` batches of `kind` (ppo, grpo, rloo, reinforce); best is 1."""
    torch.manual_seed(seed)
    policy, tokenizer = Policy(Table()), Ids()
    optimizer = torch.optim.Adam(policy.parameters(), lr=0.02)
    generator = torch.Generator().manual_seed(seed)
    hyper, beta, group = Hyper(kl_horizon=0, minibatch=batch), 0.02, 4

    def score(answers) -> Tensor:
        asked = answers.ids[:, 0]
        return torch.where(answers.ids[:, 1] - PROMPTS == asked, 1.0, -1.0)

    for _ in range(updates):
        asked = torch.randint(0, PROMPTS, (batch // group,), generator=generator).repeat_interleave(
            group
        )
        uniforms = torch.rand(batch, 2, generator=generator)
        answers = rollout(
            policy, tokenizer, asked[:, None].tolist(), 2, uniforms, stop=None, cache=False
        )
        if kind == "ppo":
            _, beta = update(policy, optimizer, answers, score(answers), beta, hyper)
        else:
            baselines.group_update(policy, optimizer, answers, score(answers), kind, group, beta)
    greedy = rollout(policy, tokenizer, [[i] for i in range(PROMPTS)], 2, stop=None, cache=False)
    return float(score(greedy).mean())
