"""Cost of one search step of weight mixup over one plain finetuning step of the same encoder.

    python -m benchmarks.methods.weight_mixup [--seq 32 128] [--rounds 7] [--device cpu] [--json FILE]

Encoder of 4 blocks of width 256, every linear map of a block and the pooler gated, batch 16; AdamW in both. The
plain step is that of the model without gates. Derived floors: 5.0 with finite differences (five passes, each with weight-shaped gradients), 2.0 first order; the official algorithm
was measured at 9.2 (two matrix products per gated map, two lower steps, two validation backwards).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.methods import cost
from weight_mixup import method, official, phases

TARGETS = {"finite_difference": 5.1, "first_order": 2.2}


def encoder(device: torch.device, attention: str = "sdpa") -> torch.nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    settings: dict[str, Any] = {
        "vocab_size": 1000, "hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4,
        "intermediate_size": 1024, "num_labels": 2, "attn_implementation": attention,
    }  # fmt: skip
    model: torch.nn.Module = BertForSequenceClassification(BertConfig(**settings))
    return model.to(device).train()


def steps(device: torch.device, seq: int) -> dict[str, Callable[[], None]]:
    """Name -> one step; all share the batch, none shares a model."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randint(1, 1000, (2, 16, seq), generator=generator).to(device)
    y = torch.randint(0, 2, (2, 16), generator=generator).to(device)

    def losses(model: torch.nn.Module) -> list[Callable[[], Tensor]]:
        return [lambda i=i: phases.task_loss(model(input_ids=x[i]).logits, y[i]) for i in range(2)]  # type: ignore[misc]

    found: dict[str, Callable[[], None]] = {}

    plain = encoder(device)
    w_plain = list(method.w_of(plain).values())
    opt_plain = phases.adamw(w_plain, 0.01)
    phases.set_rate(opt_plain, 2e-5)
    found["plain"] = lambda: void(method.w_step(opt_plain, w_plain, losses(plain)[0], 5.0))

    def search(name: str, step: Callable[..., list[Tensor]]) -> None:
        model = encoder(device, "eager" if name == "exact" else "sdpa")
        method.add_gates(model)
        w, alpha = list(method.w_of(model).values()), method.alpha_of(model)
        lower, upper = losses(model)
        opt_w, opt_a = (
            phases.adamw(w, 0.01),
            torch.optim.AdamW(alpha, lr=2e-3, weight_decay=0.0, fused=True),
        )
        phases.set_rate(opt_w, 2e-5)

        def once() -> None:
            method.alpha_step(opt_a, alpha, step(upper, lower, w, alpha, opt_w))
            method.w_step(opt_w, w, lower, 5.0)

        found[name] = once

    for name, estimator in phases.ESTIMATORS.items():
        search(
            name,
            lambda up, low, w, a, opt, e=estimator: (
                method.hypergradient(up, low, w, a, 2e-5, e).grads
            ),
        )
    accidents = official.ACCIDENTS
    search(
        "official",
        lambda up, low, w, a, opt: official.hypergradient(
            up, low, w, a, 2e-5, opt, 5.0, accidents, void
        )[0],
    )
    return found


def void(_: object) -> None:
    return None


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seq", type=int, nargs="+", default=[32, 128], help="tokens per text")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", default="", help="also write the figures to this file")
    asked = parser.parse_args()
    rows: dict[str, cost.Row] = {}
    for seq in asked.seq:
        todo = steps(torch.device(asked.device), seq)
        found = cost.measure(todo.pop("plain"), todo, asked.rounds, asked.device)
        rows |= {f"{name}, {seq} tokens": row for name, row in found.items()}
    cost.show(f"weight_mixup: a search step over a plain step, 16 texts (targets: {TARGETS})", rows)
    cost.write(asked.json, "weight_mixup", rows, device=asked.device, rounds=asked.rounds)


if __name__ == "__main__":
    main()
