"""What a search step of AutoLoRA costs, in plain training steps: ours, first order, official.

    python -m benchmarks.methods.autolora [--rounds 7] [--json FILE]

BERT of 4 blocks of width 256, rank 8 on query and value, 16 texts of 32 tokens. Floor: 5
evaluations of forward + backward; our target: 5.2; official algorithm with its library: 5.7
(measured elsewhere).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import BertConfig, BertForSequenceClassification

from autolora import method, official
from benchmarks.methods import cost
from shared import runs
from shared.hypergrad import FirstOrder

SIZE: dict[str, Any] = {"vocab_size": 2000, "hidden_size": 256, "intermediate_size": 1024}
BLOCKS: dict[str, Any] = {"num_hidden_layers": 4, "num_attention_heads": 4}


def steps(batch: int = 16, length: int = 32) -> dict[str, Callable[[], object]]:
    """One step of each kind on the same network and batches."""
    runs.seed_global(0, "bench")
    config = BertConfig(**SIZE, **BLOCKS)
    config.num_labels = 4
    model = BertForSequenceClassification(config)
    method.attach(model, 8, "classifier", lambda name: runs.stream(0, name))
    model.train()
    w, beta = method.variables(model)
    inner = torch.optim.AdamW(w, lr=1e-4)
    outer = torch.optim.Adam(beta, lr=1e-3, betas=(0.5, 0.999))
    ids, labels = torch.randint(2000, (2, batch, length)), torch.randint(4, (2, batch))

    def train_loss() -> Tensor:
        return F.cross_entropy(model(input_ids=ids[0]).logits, labels[0])

    def validation_loss() -> Tensor:
        return F.cross_entropy(model(input_ids=ids[1]).logits, labels[1])

    first_order = functools.partial(method.hypergradient, method=FirstOrder())
    habits = official.estimator("1", "stepped", "independent", inner)
    steps: dict[str, Callable[[], object]] = {
        "plain": lambda: method.inner_step(train_loss, w, inner)
    }
    for name, estimator in (
        ("search step (finite difference)", method.hypergradient),
        ("search step (first order)", first_order),
        ("search step (official habits)", habits),
    ):
        levels = method.Levels(w, beta, inner, outer, 1e-4, estimator)
        steps[name] = functools.partial(method.search_step, levels, train_loss, validation_loss)
    return steps


def main() -> None:
    cost.main("autolora", "a search step over a plain step", __doc__, steps)


if __name__ == "__main__":
    main()
