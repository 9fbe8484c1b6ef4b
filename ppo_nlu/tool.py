"""PPO on a causal language model of one's own, with a rule of one's own.

policy = tool.train(lm, tokenizer, questions, reward)
policy.lm.save_pretrained("adapter")  # peft.PeftModel.from_pretrained(lm, "adapter") loads it
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ppo_nlu import data, method, models
from ppo_nlu.config import PPO, Network, Training
from ppo_nlu.policy import Policy, Rollout
from shared import runs
from shared.protocol import BadInput

SAYS = 10  # batches between two lines
OFFICIAL = PPO()


def train(
    lm: nn.Module,
    tokenizer: Any,
    questions: Sequence[str],
    reward: Callable[[str, str], float],
    *,
    steps: int = 100,
    lr: float = 3e-4,
    batch: int = 16,
    max_new: int = 16,
    seed: int = 0,
    ppo: PPO = OFFICIAL,
    say: Callable[[str], None] = print,
) -> Policy:
    """Train a fresh adapter on `lm`, a causal model of transformers; returns the policy.

    reward(question, answer) is what an answer earns. Questions go through the tokenizer's chat
    template where it has one. An answer ends with the end of the text, or after `max_new` tokens.
    The reference, which a nat of KL to costs `ppo.beta`, is `lm` as it came. Raises BadInput for
    fewer questions than a batch and for a tokenizer without padding or end."""
    models.check_pad(tokenizer)
    if tokenizer.eos_token_id is None:
        raise BadInput("the tokenizer has no token that ends a text; set tokenizer.eos_token")
    torch.manual_seed(seed)
    network = Network(lora_rank=16, lora_alpha=32)
    policy = Policy(models.add_lora(lm.requires_grad_(False), network)).to(lm.device)  # type: ignore
    optimizer = torch.optim.AdamW(policy.trained(), lr=lr, weight_decay=0.0, fused=True)
    asked = [_ids(tokenizer, question) for question in questions]
    order = data.rows_of_steps(len(asked), batch, steps, runs.stream(seed, "batches"))
    generator, beta = runs.stream(seed, "answers"), ppo.beta
    for step, rows in enumerate(order.tolist()):
        models.set_rate(optimizer, Training(lr=lr), step, steps)
        uniforms = torch.rand(batch, max_new, generator=generator)

        def ask(rows: list[int] = rows, uniforms: Tensor = uniforms) -> Rollout:
            return policy.answers(tokenizer, [asked[i] for i in rows], max_new, uniforms)

        def pay(answers: Rollout, rows: list[int] = rows) -> Tensor:
            earned = [reward(questions[i], a.strip()) for i, a in zip(rows, answers.texts)]
            return torch.tensor(earned, dtype=torch.float32, device=answers.ids.device)

        facts, beta = method.cycle(policy, optimizer, ask, pay, beta, ppo)
        if step % SAYS == 0 or step == steps - 1:
            say(f"batch {step}: reward {facts['reward']:.3f}, entropy {facts['entropy']:.3f}")
    return policy


def _ids(tokenizer: Any, question: str) -> list[int]:
    if tokenizer.chat_template is None:
        return models.encode(tokenizer, question)[0]
    text = models.chat(tokenizer, [{"role": "user", "content": question}])
    return models.encode(tokenizer, text, special=False)[0]
