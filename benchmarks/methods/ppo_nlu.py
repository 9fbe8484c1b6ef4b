"""Cost of one PPO batch over one supervised batch of the same texts, and throughput of rollout and update.

    python -m benchmarks.methods.ppo_nlu [--rounds 5] [--device cpu]

Llama-like decoder of 4 blocks of width 256, vocabulary 2,000, LoRA r 16 on query and value; 16 texts of 72 prompt and
22 answer tokens. The plain step is a supervised LoRA step on those texts with the logits of every column, as trainers
take it. Variants take turns in every round and each is compared with the plain step of its own round, so that a busy
machine slows both; medians over rounds are printed. Measured for the official trainer: 6.5 (4 groups of 4 answers, a
separate pass for the old policy, 4 x 2 minibatches); derived floor 4.5 with the head on answer columns only.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch

from ppo_nlu import bandit, method, models
from ppo_nlu.method import Hyper, Policy, Rollout

TARGET = 4.6
B, P, T, VOCABULARY = 16, 72, 22, 2000


class Ids(bandit.Ids):
    """Ids as text; a padding id and an end-of-text id that random answers practically never meet."""

    pad_token_id, eos_token_id = 0, VOCABULARY - 1


def policy(device: torch.device) -> Policy:
    torch.manual_seed(0)
    lm = models.llama(VOCABULARY, 256, 4, 4, 1024, 512)
    return Policy(models.add_lora(lm, 16, 32, True, "none", "default")).to(device)


def clock(device: torch.device) -> float:
    """CPU seconds on a CPU (a busy machine distorts them less), wall seconds on a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def steps(device: torch.device) -> dict[str, Callable[[], None]]:
    """Name -> one step; all on one policy and the same prompts."""
    p = policy(device)
    trained = [x for x in p.parameters() if x.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-6)
    g = torch.Generator().manual_seed(1)
    prompts = torch.randint(1, VOCABULARY - 1, (B, P), generator=g).tolist()
    uniforms, scores = torch.rand(B, T, generator=g), torch.randn(B, generator=g).to(device)
    ragged = [
        q[: P // 4 if i % 4 else P] for i, q in enumerate(prompts)
    ]  # three short prompts for each long one

    def sample(asked: list[list[int]] = prompts, cache: bool = True) -> Rollout:
        return method.rollout(p, Ids(), asked, T, uniforms, None, cache=cache)

    fixed, uneven = sample(), sample(ragged)

    def plain() -> None:
        optimizer.zero_grad(set_to_none=True)
        labels = fixed.ids.masked_fill(fixed.mask == 0, -100)
        labels[:, : fixed.ids.shape[1] - fixed.T] = -100
        p.lm(input_ids=fixed.ids, attention_mask=fixed.mask, labels=labels, use_cache=False).loss.backward()
        optimizer.step()

    def learn(answers: Rollout, size: int) -> None:
        method.update(p, optimizer, answers, scores, 0.2, Hyper(minibatch=size))

    def whole(size: int = B) -> None:
        learn(sample(), size)

    return {
        "plain": plain,
        "ppo batch": whole,
        "ppo batch, minibatches of 8": lambda: whole(8),
        "rollout, cache": lambda: void(sample()),
        "rollout, no cache": lambda: void(sample(cache=False)),
        "update": lambda: learn(fixed, B),
        "update, ragged, padded": lambda: learn(uneven, B),
        "update, ragged, bucketed by 4": lambda: learn(uneven, 4),
    }


def void(_: object) -> None:
    return None


def measure(device: torch.device, rounds: int) -> dict[str, dict[str, float]]:
    """Name -> {seconds, ratio to plain, tokens_per_second}; medians over rounds."""
    work = steps(device)
    work["plain"]()
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(rounds):
        for name, step in work.items():
            begun = clock(device)
            step()
            seconds[name].append(clock(device) - begun)
    found = {}
    for name, own in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(own, seconds["plain"]))
        tokens = B * T if "rollout" in name else B * (P + T)
        if "ragged" in name:
            tokens = sum((P // 4 if i % 4 else P) + T for i in range(B))
        found[name] = {
            "seconds": round(statistics.median(own), 4), "ratio": round(ratio, 2),
            "tokens_per_second": round(tokens / statistics.median(own)),
        }  # fmt: skip
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", default="", help="also write the figures to this file")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    found = measure(torch.device(asked.device), asked.rounds)
    for name, row in found.items():
        print(
            f"{name:32s} {row['seconds']:8.4f} s   {row['ratio']:5.2f} x plain   {row['tokens_per_second']:8.0f} tokens/s"
        )
    ratio = found["ppo batch"]["ratio"]
    print(
        f"one PPO batch: {ratio:.2f} supervised batches of the same texts (target at most {TARGET}, official 6.5)"
    )
    if asked.json:
        with open(asked.json, "w") as file:
            json.dump(
                {"paper": "ppo_nlu", "device": asked.device, "rounds": asked.rounds, "rows": found},
                file,
                indent=1,
            )


if __name__ == "__main__":
    main()
