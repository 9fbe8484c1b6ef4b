"""LoRA ranks for a model of one's own: the search, then peft's `LoraConfig`.

config = tool.learn_ranks(model, examples, head="classifier")
adapter = peft.get_peft_model(model, config)  # train it as any adapter
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from autolora import method, ranks
from shared import examples as own
from shared import runs
from shared.examples import BatchLoss, Examples
from shared.protocol import BadInput

if TYPE_CHECKING:
    from peft import LoraConfig

SAYS = 20  # steps between two lines


def learn_ranks(
    model: nn.Module,
    examples: Examples,
    *,
    head: str = "",
    pattern: str = "",
    k: int = 8,
    steps: int = 200,
    batch: int = 16,
    lr: float = 3e-4,
    travel: float = 3.8,
    total: int = 0,
    loss: BatchLoss = own.model_loss,
    seed: int = 0,
    say: Callable[[str], None] = print,
) -> LoraConfig:
    """A rank for each query and value map of `model`, as peft's `LoraConfig`.

    examples: tensors by name, a row for each example, as a tokenizer returns them, with `labels`.
    loss(model, batch) -> scalar. head: module that is trained whole; pattern: other maps, by a
    regular expression over module names. k: rank of every map in the search, the largest that can
    be learned. travel: how far a selection logit may move, in all (the paper: 3.8). total: sum to
    which the ranks are scaled; 0 leaves them. One half of the examples trains the factors, the
    other the ranks (equation (2) of `method.py`).

    The search works on a copy: `model` is as it came, and so the one to adapt. Raises ValueError
    for a model without such maps, BadInput for examples that cannot be used and for a `head` that
    the model does not have."""
    n = own.count(examples)
    if steps < 1:
        raise BadInput(f"steps = {steps}: give at least 1")
    if head:
        own.checked_module("head", model, head)
    searched, device = copy.deepcopy(model).train(), own.device_of(model)
    layers = method.attach(searched, k, head, lambda name: runs.stream(seed, "A", name), 2.0 * k,
                           pattern=pattern)  # fmt: skip
    w, beta = method.variables(searched)
    inner = torch.optim.AdamW(w, lr=lr, fused=True)
    outer = torch.optim.Adam(beta, lr=travel / steps, betas=(0.5, 0.999), fused=True)
    levels = method.Levels(w, beta, inner, outer, lr)
    halves = torch.randperm(n, generator=runs.stream(seed, "levels")).split((n + 1) // 2)
    batches = [runs.Batches(rows, batch, seed, "batches", i) for i, rows in enumerate(halves)]

    def value(rows: Tensor) -> Tensor:
        return loss(searched, own.batch(examples, rows, device))

    for step in range(steps):
        runs.seed_global(seed, "dropout", step)
        train, validation = (functools.partial(value, rows(step)) for rows in batches)
        done = method.search_step(levels, train, validation)
        if not torch.isfinite(done.loss):
            raise FloatingPointError(f"the loss is {float(done.loss)} at step {step}; lower lr")
        if step % SAYS == 0 or step == steps - 1:
            say(f"step {step}: loss {float(done.loss):.3f}, ranks {sum(_counts(layers).values())}")
    learned = _counts(layers)
    if total:
        learned = ranks.scaled(learned, total)
    say(", ".join(f"{name} {r}" for name, r in learned.items()))
    return method.lora_config(learned, k, head, 2.0 * k)


def _counts(layers: dict[str, method.SelectionLoRA]) -> dict[str, int]:
    return {name: method.count(layer.alpha.detach()) for name, layer in layers.items()}
