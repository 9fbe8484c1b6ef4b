"""Cost of one PPO batch over one supervised batch of the same texts; speed of rollout and update.

    python -m benchmarks.methods.ppo_nlu [--rounds 5] [--device cpu] [--json FILE]

Llama-like decoder of 4 blocks of width 256, vocabulary 2,000, LoRA r 16 on query and value; 16
texts of 72 prompt and 22 answer tokens. The plain step is a supervised LoRA step on those texts
with the logits of every column, as trainers take it. The official trainer takes 4 groups of 4
answers, a separate pass for the old policy and 4 x 2 minibatches. Tokens per second count real
tokens: the answers of a rollout, prompts and answers of an update. "ragged" prompts are one of 72
tokens for three of 18.

The rows "language model" are of 32 questions on a model of SmolLM2-135M's shape with random weights
and prompts that were computed once (benchmarks/methods/alora.py), answers of two tokens. Their
plain step is the supervised step on the same prompts.
"""

from __future__ import annotations

import tempfile

import torch

from benchmarks.methods import alora, cost
from ppo_nlu import method, models, stages
from ppo_nlu.cached import CachedPolicy
from ppo_nlu.config import PPO, Network
from ppo_nlu.policy import Policy, Rollout, rollout
from shared import sources

B, P, T, VOCABULARY = 16, 72, 22, 2000


class Ids(stages.Ids):
    """Ids as text; a padding id and an end-of-text id that random answers hardly ever meet."""

    pad_token_id, eos_token_id = 0, VOCABULARY - 1


def policy(device: torch.device) -> Policy:
    torch.manual_seed(0)
    lm = models.llama(VOCABULARY, 256, 4, 4, 1024, 512)
    return Policy(models.add_lora(lm, Network())).to(device)


def steps(device: torch.device) -> tuple[dict[str, cost.Step], dict[str, int]]:
    """(name -> one step, name -> its real tokens); all on one policy and the same prompts."""
    p = policy(device)
    optimizer = torch.optim.AdamW(p.trained(), lr=1e-6)
    g = torch.Generator().manual_seed(1)
    prompts = torch.randint(1, VOCABULARY - 1, (B, P), generator=g).tolist()
    uniforms, scores = torch.rand(B, T, generator=g), torch.randn(B, generator=g).to(device)
    ragged = [q[: P // 4 if i % 4 else P] for i, q in enumerate(prompts)]

    def sample(asked: list[list[int]] = prompts, cache: bool = True) -> Rollout:
        p.caches = cache
        return rollout(p, Ids(), asked, T, uniforms, None)

    fixed, uneven = sample(), sample(ragged)

    def plain() -> None:
        optimizer.zero_grad(set_to_none=True)
        labels = fixed.ids.masked_fill(fixed.mask == 0, -100)
        labels[:, : fixed.ids.shape[1] - fixed.T] = -100
        inputs = {"input_ids": fixed.ids, "attention_mask": fixed.mask, "labels": labels}
        p.lm(**inputs, use_cache=False).loss.backward()
        optimizer.step()

    def learn(answers: Rollout, size: int) -> None:
        method.update(p, optimizer, answers, scores, 0.2, PPO(minibatch=size))

    todo: dict[str, cost.Step] = {
        "plain": plain,
        "ppo batch": lambda: learn(sample(), B),
        "ppo batch, minibatches of 8": lambda: learn(sample(), 8),
        "rollout, cache": sample,
        "rollout, no cache": lambda: sample(cache=False),
        "update": lambda: learn(fixed, B),
        "update, ragged, padded": lambda: learn(uneven, B),
        "update, ragged, bucketed by 4": lambda: learn(uneven, 4),
    }
    everything, answers = int(fixed.mask.sum()), int(fixed.lengths.sum())
    tokens = {name: answers if "rollout" in name else everything for name in todo}
    return todo, tokens | {name: int(uneven.mask.sum()) for name in todo if "ragged" in name}


def language_model() -> dict[str, cost.Step]:
    """Steps on 32 questions whose prompts are cached; an answer is two tokens, which the untrained
    model draws anew each time."""
    generator = torch.Generator().manual_seed(1)
    texts = [
        torch.randint(10, alora.VOCABULARY, (56 + i % 16,), generator=generator) for i in range(32)
    ]
    p = CachedPolicy(alora.model(), [[*text.tolist(), *alora.OPENING] for text in texts])
    optimizer = torch.optim.AdamW(p.trained(), lr=1e-6)
    asked, ids = [[row] for row in range(32)], Ids()
    targets = torch.randint(10, alora.VOCABULARY, (32, 2), generator=generator).tolist()

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        method.sft_loss(p, asked, targets, ids.pad_token_id).backward()
        optimizer.step()

    def plain() -> None:
        p.prompts.last.clear()  # a batch is of other prompts than the one before
        step()

    def ppo() -> None:
        p.prompts.last.clear()
        answers = p.answers(ids, asked, 2, torch.rand(32, 2, generator=generator))
        method.update(p, optimizer, answers, torch.randn(32), 0.2, PPO(minibatch=32))

    def four() -> None:
        p.prompts.last.clear()
        for _ in range(4):
            step()

    return {
        "plain": plain,
        "ppo batch, language model": ppo,
        "four supervised steps, language model": four,
    }


def main() -> None:
    options = cost.parser(__doc__, rounds=5)
    options.add_argument("--device", default="cpu")
    asked = options.parse_args()
    torch.set_num_threads(1)
    todo, tokens = steps(torch.device(asked.device))
    rows = cost.measure(todo.pop("plain"), todo, asked.rounds, asked.device)
    with tempfile.TemporaryDirectory() as folder, sources.pointed_at(REPRO_CACHE=folder):
        lm = language_model()
        lm_rows = cost.measure(lm.pop("plain"), lm, asked.rounds)
    for name, row in rows.items():
        row["tokens_per_second"] = round(tokens[name] / row["seconds"])
    cost.show("ppo_nlu: 16 texts of 72 + 22 tokens; plain: one supervised LoRA step on them", rows)
    speeds = (f"{name} {row['tokens_per_second']}" for name, row in rows.items())
    print(f"  tokens/s: {'; '.join(speeds)}")
    cost.show("language model: 32 cached prompts; plain: one supervised step on them", lm_rows)
    rows |= {name: row for name, row in lm_rows.items() if name != "plain"}
    cost.write(asked.json, "ppo_nlu", rows, device=asked.device, rounds=asked.rounds)


if __name__ == "__main__":
    main()
