"""What a search step of AutoLoRA costs, in plain training steps: ours, first order, and the official sequence of passes.

    python -m benchmarks.methods.autolora [rounds]

CPU seconds, one thread, one process, interleaved rounds, medians of the ratio per round. Floor: 5 evaluations of
forward + backward; our target: 5.2; official algorithm with its library: 5.7 (measured elsewhere).
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import BertConfig, BertForSequenceClassification

from autolora import method, official
from shared import runs
from shared.hypergrad import FirstOrder

SIZE: dict[str, Any] = {
    "vocab_size": 2000,
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 1024,
}


def steps(batch: int = 16, length: int = 32) -> dict[str, Callable[[], object]]:
    """One step of each kind on the same network and batches: a BERT of 4 x 256, rank 8 on query and value."""
    runs.seed_global(0, "bench")
    config = BertConfig(**SIZE)
    config.num_labels = 4
    model = BertForSequenceClassification(config)
    method.attach(model, 8, "classifier", lambda name: runs.stream(0, name))
    model.train()
    w, beta = method.variables(model)
    inner, outer = torch.optim.AdamW(w, lr=1e-4), torch.optim.Adam(beta, lr=1e-3, betas=(0.5, 0.999))
    ids, labels = torch.randint(2000, (2, batch, length)), torch.randint(4, (2, batch))

    def train_loss() -> Tensor:
        return F.cross_entropy(model(input_ids=ids[0]).logits, labels[0])

    def held_loss() -> Tensor:
        return F.cross_entropy(model(input_ids=ids[1]).logits, labels[1])

    def first(outer_loss: Any, inner_loss: Any, theta: list[Tensor], lam: list[Tensor], lr: float) -> Any:
        return method.estimate(outer_loss, inner_loss, theta, lam, lr, FirstOrder())

    habits = official.estimator("1", "stepped", "adam", "independent", optimiser=inner)
    both = (train_loss, held_loss, w, beta, inner, outer, 1e-4)
    return {
        "plain": lambda: method.inner_step(train_loss, w, inner),
        "search step (finite difference)": lambda: method.search_step(*both),
        "search step (first order)": lambda: method.search_step(*both, first),
        "search step (official habits)": lambda: method.search_step(*both, habits),
    }


def measure(rounds: int = 7) -> dict[str, tuple[float, float]]:
    """Kind of step -> (median CPU seconds, median ratio to a plain step of the same round)."""
    torch.set_num_threads(1)
    kinds = steps()
    seconds: dict[str, list[float]] = {name: [] for name in kinds}
    for turn in range(rounds + 1):
        for name, step in kinds.items():
            repeats = 5 if name == "plain" else 1
            begun = time.process_time()
            for _ in range(repeats):
                step()
            if turn:  # the first round warms up
                seconds[name].append((time.process_time() - begun) / repeats)
    plain = seconds["plain"]
    return {
        name: (statistics.median(times), statistics.median(t / p for t, p in zip(times, plain)))
        for name, times in seconds.items()
    }


if __name__ == "__main__":
    for name, (cpu, ratio) in measure(int(sys.argv[1]) if len(sys.argv) > 1 else 7).items():
        print(f"{name:34} {1000 * cpu:8.1f} ms   {ratio:5.2f} plain steps")
