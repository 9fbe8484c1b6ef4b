"""What PPO is compared with: prompting, SFT, and rewards without a value function.

Zero-shot and few-shot prompting need no code beyond the prompt (`prompts.prompt`) and `examples`
below; supervised fine-tuning is equation (8) of method.py in minibatches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from ppo_nlu import method
from ppo_nlu.config import Config
from ppo_nlu.policy import Policy, Rollout, all_sum, entropy, quiet
from shared import processes
from shared.protocol import BadInput

if TYPE_CHECKING:
    from ppo_nlu.asking import Questions

# --- few-shot -------------------------------------------------------------------------------------


def examples(labels: Sequence[float], shots: int, generator: torch.Generator) -> list[int]:
    """Rows of `shots` solved examples, the labels as balanced as they divide, in random order."""
    order = torch.randperm(len(labels), generator=generator).tolist()
    by_label: dict[float, list[int]] = {}
    for i in order:
        by_label.setdefault(round(labels[i]), []).append(i)
    turns = [rows[k] for k in range(shots) for rows in by_label.values() if k < len(rows)][:shots]
    return [turns[i] for i in torch.randperm(len(turns), generator=generator).tolist()]


# --- supervised -----------------------------------------------------------------------------------


def supervised_step(
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    pairs: Sequence[tuple[list[int], list[int]]],
    pad: int,
    minibatch: int,
    check: Callable[[Tensor], None],
) -> float:
    """One step on (prompt, target) pairs -> the loss, one token mean over the batch.

    No dropout, as in PPO. check: called with the loss of each minibatch before its gradient is
    taken."""
    quiet(policy)
    optimizer.zero_grad(set_to_none=True)
    device = policy.value.weight.device
    answer_tokens = sum(len(target) for _, target in pairs)
    total = float(all_sum(torch.tensor(float(answer_tokens), device=device)))
    sum_of_losses = 0.0
    for first in range(0, len(pairs), minibatch):
        prompts, targets = map(list, zip(*pairs[first : first + minibatch]))
        share = sum(map(len, targets)) / total
        loss = method.sft_loss(policy, prompts, targets, pad) * share
        check(loss.detach())
        # before a step gradients are AVERAGED over processes, of which each holds its share of one
        # sum
        (loss * processes.world_size()).backward()
        sum_of_losses += float(loss.detach())
    optimizer.step()
    return sum_of_losses


# --- rewards without a value function -------------------------------------------------------------

Group = Literal["grpo", "rloo", "reinforce"]


def group_advantages(R: Tensor, kind: Group, group: int) -> Tensor:
    """One advantage per answer (B,) from the other answers of its group (adjacent rows).

    grpo: (R - mean) / (sd + 1e-4); rloo: R - mean of the others; reinforce: rloo with the whole
    batch as one group. A group whose answers all earn the same teaches nothing: the plateau of
    these methods."""
    R = R.view(-1, len(R) if kind == "reinforce" else group)
    mean = R.mean(1, keepdim=True)
    if kind == "grpo":
        return ((R - mean) / (R.std(1, keepdim=True) + 1e-4)).flatten()
    return ((R - mean) * R.shape[1] / (R.shape[1] - 1)).flatten()


def group_cycle(
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    ask: Callable[[], Rollout],
    pay: Callable[[Rollout], Tensor],
    kind: Group,
    group: int,
    beta: float,
) -> dict[str, float]:
    """As `method.cycle`, with one step on -A_i log pi(answer_i), the KL inside the reward."""
    answers = ask()
    R, mask, T = pay(answers), answers.answer_mask(), answers.T
    quiet(policy)
    log_pi, _, logits = policy(answers.ids, answers.mask, T)
    log_ref = log_pi.detach()
    if beta:
        with torch.no_grad():
            log_ref = policy(answers.ids, answers.mask, T, reference=True)[0]
    kl = ((log_pi.detach() - log_ref) * mask).sum(1)
    A = group_advantages(R - beta * kl, kind, group)
    tokens = all_sum(mask.sum())
    # grpo averages over tokens, the others over answers
    size = tokens if kind == "grpo" else all_sum(mask.new_tensor(float(len(answers))))
    loss = -(A[:, None] * log_pi * mask).sum() / size
    optimizer.zero_grad(set_to_none=True)
    (loss * processes.world_size()).backward()  # as in `supervised_step`
    optimizer.step()
    facts = {
        "reward": R.mean(),
        "kl": kl.mean(),
        "policy_loss": loss.detach(),
        "entropy": (entropy(logits) * mask).sum() / tokens,
        "length": mask.sum(1).mean(),
    }
    return {name: float(x) for name, x in facts.items()} | {"beta": beta}


# --- GRPO and RLOO of trl -------------------------------------------------------------------------


def trl_train(
    config: Config, lm: nn.Module, questions: Questions, folder: Path, steps: int
) -> list[dict[str, float]]:
    """Train `lm` (under its adapter) in place with trl's trainer for GRPO or RLOO; returns its log.

    Same rule as reward; labels travel as a column. Defaults of trl 1.16: 8 answers per question for
    GRPO, 2 for RLOO; `batch` questions per step, whatever the number of answers."""
    try:
        from datasets import Dataset
        from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer
    except ImportError as error:
        missing = f"trl or datasets is not installed here ({error})"
        remedy = "pip install trl==1.16.0"
        raise BadInput(f"arm {config.job} skipped: {missing}; {remedy}") from error
    trainer_class: Any
    config_class: Any
    trainer_class, config_class, group = GRPOTrainer, GRPOConfig, 8
    if config.job == "rloo":
        trainer_class, config_class, group = RLOOTrainer, RLOOConfig, 2

    def reward(completions: list[str], label: list[float], **_: Any) -> list[float | None]:
        pairs = zip(completions, label)
        item = questions.train[0]  # of the one task
        return [questions.judge(text, item, y, config.parser)[1] for text, y in pairs]

    args = config_class(
        output_dir=str(folder / "trl"),
        max_steps=steps,
        per_device_train_batch_size=config.batch * group,
        gradient_accumulation_steps=1,
        num_generations=group,
        max_completion_length=config.max_new,
        learning_rate=config.lr,
        beta=config.beta,
        seed=config.seed,
        logging_steps=1,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=next(lm.parameters()).device.type == "cpu",
        bf16=False,
        mask_truncated_completions=False,
    )
    texts, labels = [questions.text(x) for x in questions.train], [x.label for x in questions.train]
    trainer = trainer_class(
        model=lm,
        reward_funcs=reward,
        args=args,
        train_dataset=Dataset.from_dict({"prompt": texts, "label": labels}),
        processing_class=questions.tokenizer,
    )
    trainer.train()
    logged = ("reward", "kl", "entropy", "loss")
    return [
        {name: value for name, value in line.items() if name in logged}
        for line in trainer.state.log_history
        if "reward" in line
    ]
