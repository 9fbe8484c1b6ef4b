"""Weights for pretraining objectives of one's own, learned from one's own task.

weights = tool.learn_weights(encoder, objectives, unlabelled, task, labelled, head=head)
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from shared import examples as own
from shared import runs
from shared.examples import BatchLoss, Examples
from shared.protocol import BadInput
from tapweight import method

SAYS = 10  # cycles between two lines


def learn_weights(
    encoder: nn.Module,
    objectives: Mapping[str, BatchLoss],
    unlabelled: Examples,
    task: BatchLoss,
    labelled: Examples,
    *,
    heads: Sequence[nn.Module] = (),
    head: nn.Module | None = None,
    steps: int = 100,
    batch: int = 16,
    lr: float = 2e-5,
    lr_weights: float = 2e-2,
    gamma: float = 1e-2,
    seed: int = 0,
    say: Callable[[str], None] = print,
) -> dict[str, float]:
    """The weight of each objective, by name; they sum to one. `encoder` is pretrained under them.

    objectives: name -> f(encoder, batch of unlabelled) -> scalar; task(encoder, batch of labelled)
    -> scalar. unlabelled, labelled: tensors by name, a row for each example. heads: what only the
    objectives use, trained with `encoder` (Level I); head: what only the task uses, trained with a
    second copy of the encoder near the first (Level II, gamma). Eight ninths of the labelled
    examples train that copy, the rest is Level III's.

    Draws of dropout and masks come from torch's global generators, which are set at every step:
    all evaluations of a step see the same ones. Afterwards `encoder` holds theta; finetune it as
    usual, with a new head. Raises BadInput for objectives that are no functions, and for examples
    that cannot be used."""
    if not isinstance(objectives, Mapping) or not objectives:
        raise BadInput("objectives: give a mapping {name: f(encoder, batch) -> scalar}")
    for name, function in {**objectives, "task": task}.items():
        own.checked_call(name, function)
    device = own.device_of(encoder)
    n_unlabelled, n = own.count(unlabelled), own.count(labelled)
    phi = copy.deepcopy(encoder)
    optimizers = [
        _adamw([encoder, *heads], lr),
        _adamw([phi, *([head] if head else [])], lr),
        torch.optim.Adam([alpha := method.start_logits(len(objectives))], lr_weights, fused=True),
    ]
    prox = method.SquaredDistance(gamma)
    levels = method.Levels(*method.matched(phi, encoder), alpha, optimizers, prox)
    order = torch.randperm(n, generator=runs.stream(seed, "levels"))
    cut = min(n - 1, round(n * 8 / 9))
    rows_I = runs.Batches(torch.arange(n_unlabelled), batch, seed, "I")
    rows_II = runs.Batches(order[:cut], batch, seed, "II")
    rows_III = runs.Batches(order[cut:], batch, seed, "III")

    def losses(step: int) -> method.Losses:
        rows = own.batch(unlabelled, rows_I(step), device)

        def of_batch() -> list[Tensor]:
            runs.seed_global(seed, "dropout I", step)
            return [_scalar(name, f(encoder, rows)) for name, f in objectives.items()]

        return of_batch

    def of_task(level: str, rows: Tensor, step: int) -> method.Loss:
        items = own.batch(labelled, rows, device)

        def of_batch() -> Tensor:
            runs.seed_global(seed, "dropout", level, step)
            return _scalar("task", task(phi, items))

        return of_batch

    for module in (encoder, phi, *heads, *([head] if head else [])):
        module.train()
    for step in range(steps):
        one, two = losses(step), of_task("II", rows_II(step), step)
        three = of_task("III", rows_III(step), step), [one]
        facts = method.cycle(levels, [[one]], [two], three)
        lam = method.weights(alpha)
        if not torch.isfinite(lam).all():
            raise FloatingPointError(f"the weights are {lam.tolist()} at step {step}; lower lr")
        if step % SAYS == 0 or step == steps - 1:
            said = ", ".join(f"{name} {value:.2f}" for name, value in zip(objectives, lam))
            say(f"step {step}: {said}; task {facts.train:.3f}, held out {facts.validation:.3f}")
    return dict(zip(objectives, method.weights(alpha).tolist()))


def _adamw(modules: Sequence[nn.Module], lr: float) -> torch.optim.Optimizer:
    parameters = {id(p): p for m in modules for p in m.parameters() if p.requires_grad}
    return torch.optim.AdamW(list(parameters.values()), lr, weight_decay=1e-3, fused=True)


def _scalar(name: str, loss: object) -> Tensor:
    if not isinstance(loss, Tensor) or loss.ndim:
        what = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
        raise BadInput(f"{name} returns {what}; give a scalar tensor, the mean over the batch")
    return loss
