"""The two stages that make what every arm starts from, and a problem whose answer is known.

`base`   once for all: the bandit, which PPO must solve
`start`  the policy every arm starts from: of a model trained elsewhere its weights' hash; one that
         is trained in the run (`--tiny`, rehearsals) has heard of the format and half knows the
         task
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ppo_nlu import baselines, data, method, models, prompts
from ppo_nlu.config import PPO, Config
from ppo_nlu.policy import Policy, Rollout, rollout
from shared import processes, runs

# --- a known answer: a contextual bandit that PPO must solve, or its code is wrong ----------------

PROMPTS, WORDS = 4, 6  # prompt i must be answered with word i; word 5 ends an answer


class Table(nn.Module):
    """A language model without context: the next word depends on the last one only."""

    caches = False

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(hidden_size=16)
        self.h = nn.Embedding(PROMPTS + WORDS, 16)
        self.out = nn.Linear(16, PROMPTS + WORDS)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, logits_to_keep: int = 0, **_: Any
    ) -> SimpleNamespace:
        h = self.h(input_ids)
        logits = self.out(h[:, -logits_to_keep:])
        return SimpleNamespace(logits=logits, hidden_states=(h,), past_key_values=None)


class Ids:
    """The least a tokenizer must be: ids are their own text."""

    pad_token_id = eos_token_id = PROMPTS + WORDS - 1

    def batch_decode(self, sequences: Any, skip_special_tokens: bool = False) -> list[str]:
        return [" ".join(str(int(i)) for i in row) for row in sequences]


def solve(
    kind: Literal["ppo", "grpo", "rloo", "reinforce"],
    seed: int,
    updates: int = 200,
    batch: int = 32,
) -> float:
    """Mean greedy reward over the prompts after `updates` batches of `kind`; the best is 1."""
    torch.manual_seed(seed)
    policy, tokenizer = Policy(Table()), Ids()
    optimizer = torch.optim.Adam(policy.parameters(), lr=0.02, fused=True)
    generator = torch.Generator().manual_seed(seed)
    ppo, beta, group = PPO(kl_horizon=0, minibatch=batch), 0.02, 4

    def ask() -> Rollout:
        prompts = torch.randint(0, PROMPTS, (batch // group,), generator=generator)
        questions = prompts.repeat_interleave(group)[:, None].tolist()
        return rollout(
            policy, tokenizer, questions, 2, torch.rand(batch, 2, generator=generator), None
        )

    def pay(answers: Rollout) -> Tensor:
        right = answers.ids[:, 1] - PROMPTS == answers.ids[:, 0]
        return torch.where(right, 1.0, -1.0)

    for _ in range(updates):
        if kind == "ppo":
            _, beta = method.cycle(policy, optimizer, ask, pay, beta, ppo)
        else:
            baselines.group_cycle(policy, optimizer, ask, pay, kind, group, beta)
    greedy = rollout(policy, tokenizer, [[i] for i in range(PROMPTS)], 2, stop=None)
    return float(pay(greedy).mean())


# --- stages ---------------------------------------------------------------------------------------


def make_base(config: Config, run: runs.Run) -> None:
    """Once for all: the known answer that PPO must find."""
    rewards: list[float] = []
    for seed in run.phase("bandit", 3, runs.Parts(rewards=rewards)):
        rewards.append(solve("ppo", seed))
    detail = f"mean reward after 200 batches, seeds 0, 1, 2: {rewards}; best is 1"
    run.gate("bandit", min(rewards) > 0.9, detail)
    run.finish(state=[torch.tensor(rewards)], gradient_evaluations=0)


def make_start(config: Config, run: runs.Run) -> None:
    """The policy every arm starts from, in the run's folder `model` unless others have it."""
    lm, tokenizer = models.base_model(config)
    steps = 0 if config.from_hub else config.steps
    if steps:
        _half_teach(config, run, lm.to(runs.device(config)), tokenizer)
    lm = lm.to(getattr(torch, config.precision))  # what every arm loads
    if not config.from_hub:
        models.save(lm.cpu(), tokenizer, run.directory / "model")
    run.finish(state=models.weights(lm), gradient_evaluations=steps)


def _half_teach(config: Config, run: runs.Run, lm: nn.Module, tokenizer: Any) -> None:
    """Supervised steps on a half-knowing teacher's answers."""
    items = data.load(config)
    run.splits(**items.ids())
    teacher = runs.stream(config.seed, "teacher")
    answers = data.half_knowing(items.task, items.start, config.start_right, teacher)
    policy = Policy(lm)  # only its forward pass is used
    policy.frozen.clear()
    optimizer = torch.optim.AdamW(lm.parameters(), lr=config.lr, fused=True)
    generator = runs.stream(config.seed, "start")
    order = data.rows_of_steps(len(answers), config.batch, config.steps, generator)
    for step in run.phase("start", config.steps, runs.Parts(model=lm, optimizer=optimizer)):
        models.set_rate(optimizer, config, step, config.steps)
        rows = processes.shard(order[step]).tolist()
        asked = [prompts.prompt(items.task, items.start[i].fields) for i in rows]
        pairs = [models.encode(tokenizer, q, answers[i]) for q, i in zip(asked, rows)]
        questions, targets = map(list, zip(*pairs))
        loss = method.sft_loss(policy, questions, targets, tokenizer.pad_token_id)
        run.finite(loss, "start", step, [items.start[i].id for i in rows])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        run.log(step=step, loss=float(loss.detach()))
