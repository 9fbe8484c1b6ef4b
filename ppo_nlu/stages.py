"""The two stages that make what every arm starts from, and a problem whose answer is known.

`base`   once for all: the bandit, and at scale gpu a language model from plain text
`start`  for each seed: a policy that has heard of the format and half knows the task
"""

from __future__ import annotations

from collections.abc import Sequence
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
    """Once for all: the known answer PPO must find, and at scale gpu a language model."""
    device = runs.device(config)
    rewards: list[float] = []
    for seed in run.phase("bandit", 3, runs.Parts(rewards=rewards)):
        rewards.append(solve("ppo", seed))
    state: Sequence[Tensor] = [torch.tensor(rewards)]
    if config.model == "decoder":
        state = _language_model(config, run, device)
    detail = f"mean reward after 200 batches, seeds 0, 1, 2: {rewards}; best is 1"
    run.gate("bandit", min(rewards) > 0.9, detail)
    evaluations = config.steps if config.model == "decoder" else 0
    run.finish(state=state, gradient_evaluations=evaluations)


def _language_model(config: Config, run: runs.Run, device: torch.device) -> list[Tensor]:
    """A decoder learned from plain text, saved in the run's folder `model`; its weights."""
    from shared import bundled

    texts, L = bundled.english(), config.context
    tokenizer = models.trained_tokenizer(texts[:4000], config.vocabulary)
    tokens = [t for text in texts for t in [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]]
    ids = torch.tensor(tokens)
    rows = ids[: len(ids) // L * L].view(-1, L)
    runs.seed_global(config.seed, "model")
    width, heads = config.width, config.width // 64 or 1
    lm: Any = models.llama(len(tokenizer), width, config.layers, heads, 4 * width, 2048).to(device)
    optimizer = torch.optim.AdamW(lm.parameters(), lr=config.lr, weight_decay=0.1, fused=True)
    generator = runs.stream(config.seed, "text")
    order = data.rows_of_steps(len(rows), config.batch, config.steps, generator)
    for step in run.phase("text", config.steps, runs.Parts(model=lm, optimizer=optimizer)):
        models.set_rate(optimizer, config, step, config.steps)
        batch = rows[processes.shard(order[step])].to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = lm(input_ids=batch, labels=batch, use_cache=False).loss
        run.finite(loss, "language model", step, order[step])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        processes.mean_gradients(lm.parameters())  # before their norm is taken
        torch.nn.utils.clip_grad_norm_(lm.parameters(), 1.0)
        optimizer.step()
        if step % 50 == 0:
            run.log(step=step, loss=float(loss.detach()))
    models.save(lm.cpu(), tokenizer, run.directory / "model")
    return list(lm.parameters())


def make_start(config: Config, run: runs.Run) -> None:
    """The policy every arm starts from: it has heard of the format and half knows the task.

    A hub model is one already; the run notes its weights' hash."""
    lm, tokenizer = models.base_model(config)
    lm.to(runs.device(config))
    if config.steps:
        _half_teach(config, run, lm, tokenizer)
    if not config.from_hub:
        models.save(lm.cpu(), tokenizer, run.directory / "model")
    run.finish(state=models.weights(lm), gradient_evaluations=config.steps)


def _half_teach(config: Config, run: runs.Run, lm: nn.Module, tokenizer: Any) -> None:
    """Supervised steps on a half-knowing teacher's answers.

    Half of the steps show solved examples in front, so that few-shot prompting is not asked of a
    model that never saw it; these are well formed, right or not. Only the last answer is
    learned."""
    items = data.load(config)
    run.splits(**items.ids())
    teacher = runs.stream(config.seed, "teacher")
    answers = data.half_knowing(items.task, items.start, config.start_right, teacher)
    tasks = [data.task_of(x, items.task) for x in items.start]
    read = [prompts.parse(task, text) for task, text in zip(tasks, answers)]
    solved = [(x.fields, x.label if a is None else a) for x, a in zip(items.start, read)]
    policy = Policy(lm)  # only its forward pass is used
    policy.frozen.clear()
    optimizer = torch.optim.AdamW(lm.parameters(), lr=config.lr, fused=True)
    generator = runs.stream(config.seed, "start")
    order = data.rows_of_steps(len(answers), config.batch, config.steps, generator)
    shown = runs.stream(config.seed, "shown")

    def pair(i: int, shots: int) -> tuple[list[int], list[int]]:
        others = torch.randint(len(answers), (shots,), generator=shown).tolist()
        examples = [solved[j] for j in others if tasks[j] is tasks[i]]
        question = prompts.prompt(tasks[i], items.start[i].fields, examples)
        return models.encode(tokenizer, question, answers[i])

    work = runs.Parts(model=lm, optimizer=optimizer, shown=shown)
    for step in run.phase("start", config.steps, work):
        models.set_rate(optimizer, config, step, config.steps)
        rows = processes.shard(order[step]).tolist()
        pairs = [pair(i, config.shots if step % 2 else 0) for i in rows]
        questions, targets = map(list, zip(*pairs))
        loss = method.sft_loss(policy, questions, targets, tokenizer.pad_token_id)
        run.finite(loss, "start", step, [items.start[i].id for i in rows])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        run.log(step=step, loss=float(loss.detach()))
