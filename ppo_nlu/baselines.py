"""What PPO is compared with: prompting, supervised fine-tuning, and rewards without a value function.

Zero-shot and few-shot prompting need no code beyond the prompt (`prompts.prompt`) and `examples` below.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ppo_nlu.method import Policy, Rollout, left_pad, quiet
from ppo_nlu.processes import all_sum
from shared import processes
from shared.runs import BadInput

# --- few-shot ---------------------------------------------------------------------------------------------------------


def examples(labels: Sequence[float], shots: int, generator: torch.Generator) -> list[int]:
    """Rows of `shots` solved examples, the labels as balanced as they divide, in random order."""
    order = torch.randperm(len(labels), generator=generator).tolist()
    by_label: dict[float, list[int]] = {}
    for i in order:
        by_label.setdefault(round(labels[i]), []).append(i)
    turns = [rows[k] for k in range(shots) for rows in by_label.values() if k < len(rows)][:shots]
    return [turns[i] for i in torch.randperm(len(turns), generator=generator).tolist()]


# --- supervised -------------------------------------------------------------------------------------------------------


def sft_loss(
    policy: Policy, prompts: Sequence[list[int]], targets: Sequence[list[int]], pad: int
) -> Tensor:
    """-log pi of the answer tokens, mean over the answer tokens of the batch; the prompt is never a target."""
    device = next(policy.parameters()).device
    ids, mask = left_pad(prompts, pad, device)
    T = max(map(len, targets))
    answer = torch.tensor([t + [pad] * (T - len(t)) for t in targets], device=device)
    real = torch.tensor([[1] * len(t) + [0] * (T - len(t)) for t in targets], device=device)
    log_pi, _, _ = policy(torch.cat([ids, answer], 1), torch.cat([mask, real], 1), T)
    return -(log_pi * real).sum() / real.sum()


# --- rewards without a value function ---------------------------------------------------------------------------------


def group_advantages(scores: Tensor, kind: str, group: int) -> Tensor:
    """One advantage per answer from the other answers to the same prompt (rows of a group are adjacent).

    grpo: (R - mean) / (sd + 1e-4); rloo: R - mean of the others; reinforce: rloo with the whole batch as one group.
    A group whose answers all earn the same teaches nothing: the plateau of these methods.
    """
    if kind not in ("grpo", "rloo", "reinforce"):
        raise ValueError(f"unknown kind '{kind}'; known: grpo, rloo, reinforce")
    R = scores.view(-1, len(scores) if kind == "reinforce" else group)
    mean = R.mean(1, keepdim=True)
    if kind == "grpo":
        return ((R - mean) / (R.std(1, keepdim=True) + 1e-4)).flatten()
    return ((R - mean) * R.shape[1] / (R.shape[1] - 1)).flatten()


def group_update(
    policy: Policy, optimizer, batch: Rollout, scores: Tensor, kind: str, group: int, beta: float
) -> dict[str, float]:
    """One on-policy step: -A_i log pi(answer_i), the KL inside the reward.   scores: (B,)."""
    quiet(policy)
    mask, T = batch.answer_mask(), batch.T
    with torch.no_grad():
        log_ref, _, _ = policy(batch.ids, batch.mask, T, reference=True)
    log_pi, _, entropy = policy(batch.ids, batch.mask, T)
    kl = ((log_pi.detach() - log_ref) * mask).sum(1)
    A = group_advantages(scores - beta * kl, kind, group)
    tokens = all_sum(mask.sum())
    per_token = kind == "grpo"  # grpo averages over tokens, the others over answers
    loss = -(A[:, None] * log_pi * mask).sum() / (
        tokens if per_token else all_sum(mask.new_tensor(float(len(batch))))
    )
    optimizer.zero_grad(set_to_none=True)
    (
        loss * processes.world_size()
    ).backward()  # gradients are averaged over processes, while each holds its share of one sum
    optimizer.step()
    return {
        "reward": float(scores.mean()), "kl": float(kl.mean()), "policy_loss": float(loss.detach()),
        "entropy": float((entropy.detach() * mask).sum() / tokens), "length": float(mask.sum(1).mean()), "beta": beta,
    }  # fmt: skip


# --- GRPO and RLOO of trl ---------------------------------------------------------------------------------------------


def trl_train(
    kind: str, lm, tokenizer, questions: list[str], labels: list[float], judge: Callable[[str, float], float], folder: str,
    steps: int, batch: int, lr: float, max_new: int, beta: float, seed: int,
) -> list[dict[str, float]]:  # fmt: skip
    """Train `lm` (under its adapter) in place with trl's GRPOTrainer or RLOOTrainer; returns its log.

    Same rule as reward; labels travel as a column.  Defaults of trl 1.16: 8 answers per question for GRPO, 2 for RLOO;
    `batch` questions per step, whatever the number of answers."""
    try:
        from datasets import Dataset
        from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer
    except ImportError as error:
        raise BadInput(
            f"arm {kind} skipped: trl or datasets is not installed here ({error}); pip install trl==1.16.0"
        ) from error

    trainer_class, config_class, group = (
        (GRPOTrainer, GRPOConfig, 8) if kind == "grpo" else (RLOOTrainer, RLOOConfig, 2)
    )
    rows = Dataset.from_dict({"prompt": questions, "label": labels})

    def reward(completions, label, **_):
        return [judge(text, y) for text, y in zip(completions, label)]

    args = config_class(
        output_dir=folder, max_steps=steps, per_device_train_batch_size=batch * group, gradient_accumulation_steps=1,
        num_generations=group, max_completion_length=max_new, learning_rate=lr, beta=beta, seed=seed, logging_steps=1,
        report_to=[], save_strategy="no", disable_tqdm=True, use_cpu=next(lm.parameters()).device.type == "cpu", bf16=False,
        mask_truncated_completions=False,
    )  # fmt: skip
    trainer = trainer_class(
        model=lm, reward_funcs=reward, args=args, train_dataset=rows, processing_class=tokenizer
    )
    trainer.train()
    keep = ("reward", "kl", "entropy", "loss")
    return [
        {k: v for k, v in line.items() if k in keep}
        for line in trainer.state.log_history
        if "reward" in line
    ]


# --- an encoder with a classification head (the BERT rows of the claims) ----------------------------------------------


def classifier_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy, or squared error where the answer is a number (one output)."""
    if logits.shape[1] == 1:
        return (logits[:, 0] - labels).square().mean()
    return torch.nn.functional.cross_entropy(logits, labels.long())
