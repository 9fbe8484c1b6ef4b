"""Cost of one search step of weight mixup over one plain finetuning step of the same encoder.

    python -m benchmarks.methods.weight_mixup [--seq 32 128] [--rounds 7] [--json FILE]

Encoder of 4 blocks of width 256, every linear map of a block and the pooler gated, batch 16; AdamW
in both. The plain step is that of the model without gates. Floors: 5.0 with finite differences
(five passes, each with weight-shaped gradients), 2.0 first order. The official step has two matrix
products per gated map, two lower steps and two validation backwards.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.methods import cost
from weight_mixup import data, gates, method, official

RATE, CLIP = 2e-5, 5.0  # of w


def encoder(device: torch.device, attention: str = "sdpa") -> torch.nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    blocks: Any = {"num_hidden_layers": 4, "num_attention_heads": 4, "num_labels": 2}
    size: Any = {"vocab_size": 1000, "hidden_size": 256, "intermediate_size": 1024}
    size["attn_implementation"] = attention
    config = BertConfig(**size, **blocks)
    model: torch.nn.Module = BertForSequenceClassification(config)
    return model.to(device).train()


def steps(device: torch.device, seq: int) -> dict[str, cost.Step]:
    """Name -> one step; all share the batch, none shares a model."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randint(1, 1000, (2, 16, seq), generator=generator).to(device)
    y = torch.randint(0, 2, (2, 16), generator=generator).to(device)

    def losses(model: torch.nn.Module) -> list[Callable[[], Tensor]]:
        def loss(i: int) -> Tensor:
            return data.task_loss(model(input_ids=x[i]).logits, y[i])

        return [partial(loss, i) for i in range(2)]

    plain = encoder(device)
    w_plain = list(gates.w_of(plain).values())
    opt_plain = method.adamw(w_plain, 0.01)
    method.set_rate(opt_plain, RATE)
    plain_loss = losses(plain)[0]
    todo: dict[str, cost.Step] = {}
    todo["plain"] = lambda: method.w_step(opt_plain, w_plain, plain_loss, CLIP)
    for name in (*method.ESTIMATORS, "official"):
        model = encoder(device, "eager" if name == "exact" else "sdpa")
        gates.attach(model)
        w, alpha = list(gates.w_of(model).values()), gates.alpha_of(model)
        levels = method.levels_of(w, alpha, weight_decay=0.01, alpha_weight_decay=0.0)
        method.set_rate(levels.opt_w, RATE)
        method.set_rate(levels.opt_alpha, 2e-3)
        lower, upper = losses(model)
        estimate = estimate_of(name, levels)
        todo[name] = partial(method.search_step, levels, upper, lower, RATE, CLIP, estimate)
    return todo


def estimate_of(name: str, levels: method.Levels) -> method.Estimate:
    if name != "official":
        return partial(method.hypergradient, estimator=method.ESTIMATORS[name])
    return partial(
        official.hypergradient,
        optimizer=levels.opt_w,
        clip=CLIP,
        accidents=official.ACCIDENTS,
        masks=lambda _: None,
    )


def main() -> None:
    options = cost.parser(__doc__, rounds=7)
    options.add_argument("--seq", type=int, nargs="+", default=[32, 128], help="tokens per text")
    cost.device_option(options)
    asked = options.parse_args()
    rows: dict[str, cost.Row] = {}
    for seq in asked.seq:
        todo = steps(torch.device(asked.device), seq)
        measured = cost.measure(todo.pop("plain"), todo, asked.rounds, asked.device)
        rows |= {f"{name}, {seq} tokens": row for name, row in measured.items()}
    cost.show("weight_mixup: a search step over a plain step, 16 texts", rows)
    cost.write(asked.json, "weight_mixup", rows, device=asked.device, rounds=asked.rounds)


if __name__ == "__main__":
    main()
