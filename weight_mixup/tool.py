"""Finetune a classifier of one's own by weight mixup; it stays a stock model.

tool.finetune(model, examples)
model.save_pretrained("finetuned")
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from shared import examples as own
from shared import runs, vectors
from shared.examples import BatchLoss, Examples
from shared.protocol import BadInput
from weight_mixup import gates, method, schedule


def finetune(
    model: nn.Module,
    examples: Examples,
    *,
    searches: int = 5,
    epochs: int = 3,
    batch: int = 16,
    lr: float = 2e-5,
    lr_gates: float = 2e-3,
    loss: BatchLoss = own.model_loss,
    seed: int = 0,
    say: Callable[[str], None] = print,
) -> dict[str, dict[str, float]]:
    """Finetune `model` in place; returns statistics of the gates, by map.

    examples: tensors by name, a row for each example, as a tokenizer returns them, with `labels`.
    loss(model, batch) -> scalar. Phase 1: `searches` (K) of `epochs` each, every one on its own
    division of the examples into 80 % and 20 %; their weights and gates are averaged. Phase 2: the
    weights on all examples, gates fixed. Then the mixed weights are folded in, so that the model
    is what it was before: `save_pretrained` writes a stock checkpoint.

    Raises ValueError for a model in whose blocks there is nothing to gate, BadInput for examples
    that cannot be used."""
    n, device = own.count(examples, at_least=5), own.device_of(model)
    if searches < 1 or epochs < 1:
        raise BadInput(f"searches = {searches}, epochs = {epochs}: give at least 1")
    gates.attach(model.train())
    w, alpha = list(gates.w_of(model).values()), gates.alpha_of(model)
    start = vectors.clone(w)
    levels = method.levels_of(w, alpha, weight_decay=0.01, alpha_weight_decay=0.0)
    mean = [torch.zeros_like(p, dtype=torch.float64) for p in [*w, *alpha]]
    how = method.ESTIMATORS["finite_difference"]
    estimate = functools.partial(method.hypergradient, estimator=how)

    def of_rows(rows: Tensor) -> method.Loss:
        items = own.batch(examples, rows, device)
        return lambda: loss(model, items)

    for k in range(searches):
        d_tr, d_val = method.split(n, 0.8, runs.stream(seed, "split", k))
        lower = runs.Batches(d_tr, batch, seed, "lower", k)
        upper = runs.Batches(d_val, batch, seed, "upper", k)
        method.begin_search(levels, start, 0.005, runs.stream(seed, "gates", k))
        steps = epochs * lower.per_epoch
        for t in range(steps):
            xi = lr * schedule.rate("linear", t, steps, 0.1)
            method.set_rate(levels.opt_w, xi)
            method.set_rate(levels.opt_alpha, lr_gates * schedule.rate("cosine", t, steps, 0.1))
            runs.seed_global(seed, "dropout", k, t)
            pair = of_rows(upper(t)), of_rows(lower(t))
            _, value = method.search_step(levels, *pair, xi, 5.0, estimate)
            _finite(value, t)
        method.end_search(levels, mean, searches)
        say(f"search {k + 1} of {searches}: loss {float(value):.3f}")
    method.begin_finetuning(w, alpha, mean, start, average_all=True)
    optimizer, rows = method.adamw(w, 0.01), runs.Batches(torch.arange(n), batch, seed, "all")
    for factor in alpha:
        factor.requires_grad_(False)
    steps = epochs * math.ceil(n / batch)
    for t in range(steps):
        method.set_rate(optimizer, lr * schedule.rate("linear", t, steps, 0.1))
        runs.seed_global(seed, "dropout", "finetuning", t)
        _finite(value := method.w_step(optimizer, w, of_rows(rows(t)), 1.0), t)
    statistics = gates.statistics(model)
    gates.merge(model)
    say(f"finetuned on all {n} examples: loss {float(value):.3f}; {len(statistics)} maps mixed")
    return statistics


def _finite(loss: Tensor, step: int) -> None:
    if not torch.isfinite(loss):
        raise FloatingPointError(f"the loss is {float(loss)} at step {step}; lower lr")
