"""The search: alternate outer and inner steps, then read the ranks off the selection weights -> ranks.json."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from autolora import evaluate, method, official, planted
from autolora.setting import Batches, draws, prepare, task_loss
from shared import runs, vectors
from shared.hypergrad import FiniteDifference, FirstOrder, OneStep, self_check

METHODS = {"finite_difference": FiniteDifference(), "exact": OneStep(), "first_order": FirstOrder()}


def search(config: Any, run: Any) -> None:
    """`config`: train.Config, `run`: runs.Run. Nothing of the search but ranks.json is used afterwards."""
    if config.select_on not in ("validation", "train"):
        raise runs.BadInput(f"select_on = '{config.select_on}' must be validation or train")
    at = prepare(config, run)
    model = at.network.model
    layers = method.attach(
        model, config.k, at.network.head, draws(config.seed, "adapter"), config.c,
        dropout=config.search_dropout, beta_init=config.beta_init,
    )  # fmt: skip
    if config.search_encoder:
        official.free_encoder(model)
    w, beta = method.variables(model)
    frozen = [p for p in model.parameters() if not p.requires_grad]
    frozen_before = runs.state_sha256(frozen)
    batches = Batches(at.inner, config.search_batch, config.seed, "inner batches" + config.draw)
    outer_rows = at.held if config.select_on == "validation" else at.inner
    held_batches = Batches(
        outer_rows, config.search_batch, config.seed, "outer batches" + config.draw
    )
    total = config.search_steps or math.ceil(config.search_epochs * batches.per_epoch)
    outer_lr = config.outer_lr or config.outer_travel / max(1, total - config.warmup_inner)
    inner = torch.optim.AdamW(w, lr=config.inner_lr, weight_decay=config.inner_weight_decay)
    outer = torch.optim.Adam(
        beta, lr=outer_lr, betas=(0.5, 0.999), weight_decay=config.outer_weight_decay
    )
    estimate = estimator(config, inner)
    evaluations, check = 0, {}
    saved = run.resume()
    if saved:
        for p, value in zip([*w, *beta], saved["variables"], strict=True):
            p.data.copy_(value)
        inner.load_state_dict(saved["inner"])
        outer.load_state_dict(saved["outer"])
        evaluations, check = saved["evaluations"], saved["check"]

    def save() -> dict[str, Any]:
        variables = [p.detach().cpu() for p in [*w, *beta]]
        return {"variables": variables, "inner": inner.state_dict(), "outer": outer.state_dict(),
                "evaluations": evaluations, "check": check}  # fmt: skip

    def loss_on(rows: np.ndarray) -> Callable[[], Tensor]:
        inputs, labels = at.train.batch(rows, at.device)
        return lambda: task_loss(at.task.kind, model(**inputs).logits, labels)

    for step in run.steps(saved["step"] if saved else 0, total, save, "search"):
        rows, held_rows = batches(step), held_batches(step)
        train_loss, held_loss = loss_on(rows), loss_on(held_rows)
        runs.seed_global(config.seed, "dropout" + config.draw, step)
        with diverging(step, at.train.ids[held_rows]):
            if step == 0 and config.self_check:
                model.eval()  # attention kernels differ in how they draw dropout masks, not in what they compute
                found = METHODS[config.hypergradient]
                check = self_check(
                    held_loss, train_loss, w, beta, config.inner_lr, found, tolerance=math.inf
                )
                model.train()
            sizes = {}
            if step < config.warmup_inner:
                loss = method.inner_step(train_loss, w, inner)
                evaluations += 1
            else:
                done = method.search_step(
                    train_loss, held_loss, w, beta, inner, outer, config.inner_lr, estimate
                )
                loss, evaluations = done.loss, evaluations + done.gradient_evaluations
                h = done.hypergradient
                sizes = {"direct": vectors.norm(h.direct), "implicit": vectors.norm(h.implicit)}
        run.finite(loss, level="lower", step=step, batch=at.train.ids[rows])
        if step % config.record_every == 0 or step == total - 1:
            run.log(step=step, loss=float(loss), **sizes, **selection(layers))

    found = ranks_found(config, layers)
    runs.write_json(run.directory / "ranks.json", found)
    warm = min(config.warmup_inner, total)
    expected = warm + (total - warm) * (2 if config.hypergradient == "first_order" else 5)
    run.gate(
        "search-cost",
        evaluations == expected,
        f"{evaluations} gradient evaluations in {total} steps; expected {expected}",
    )
    run.gate(
        "frozen-unchanged",
        bool(frozen) and frozen_before == runs.state_sha256(frozen),
        f"{len(frozen)} frozen tensors",
    )
    run.gate(
        "ranks-decided",
        not found["undecided"],
        f"maps that no outer step moved: {found['undecided'] or 'none'}",
    )
    values = list(found["ranks"].values())
    run.gate("ranks-in-range", all(1 <= r <= config.k for r in values), f"{values}, k = {config.k}")
    run.finish(
        state=[*w, *beta],
        gradient_evaluations=evaluations,
        chosen_step=total,
        ranks=values,
        self_check=check,
    )


def estimator(config: Any, inner: torch.optim.Optimizer) -> Callable[..., Any]:
    """The hypergradient of `method.search_step`: a method of shared/hypergrad.py, or the official code's habits."""
    if config.hypergradient not in METHODS:
        raise runs.BadInput(
            f"hypergradient = '{config.hypergradient}' must be one of {', '.join(METHODS)}"
        )
    habits = (config.implicit_coef, config.around, config.look_ahead, config.masks)
    if habits == ("eta", "theta", "sgd", "same"):
        chosen = METHODS[config.hypergradient]
        return lambda outer, train, w, beta, eta: method.estimate(
            outer, train, w, beta, eta, chosen
        )
    if config.hypergradient != "finite_difference":
        raise runs.BadInput(
            "implicit_coef, around, look_ahead and masks are habits of hypergradient = finite_difference"
        )
    return official.estimator(*habits, optimiser=inner)


@contextlib.contextmanager
def diverging(step: int, batch: np.ndarray) -> Iterator[None]:
    """A hypergradient that is not finite ends the run, naming level, step and batch."""
    try:
        yield
    except FloatingPointError as error:
        raise runs.Diverged("upper", step, batch) from error


def selection(layers: dict[str, method.SelectionLoRA]) -> dict[str, Any]:
    """One line of metrics.jsonl: alpha and its count per map, mean entropy, largest distance of a logit from its map's mean."""
    beta = torch.stack([layer.beta.detach().cpu() for layer in layers.values()])
    alpha = torch.softmax(beta, 1)
    return {
        "alpha": [[round(x, 5) for x in row] for row in alpha.tolist()],
        "ranks": [method.count(row) for row in alpha],
        "entropy": float(-(alpha * alpha.log()).sum(1).mean()),
        "travel": float((beta - beta.mean(1, keepdim=True)).abs().max()),
    }


def ranks_found(config: Any, layers: dict[str, method.SelectionLoRA]) -> dict[str, Any]:
    """Content of ranks.json: the ranks by the chosen rule, by the two others, what they were read from, peft's patterns."""
    lam = config.threshold or None
    ranks = {
        name: official.threshold(config.threshold_rule, layer.beta, lam)
        for name, layer in layers.items()
    }
    return {
        "k": config.k, "lambda": lam or 1 / config.k, "c": config.c, "model": config.model, "task": config.task,
        "seed": config.seed, "ranks": ranks, "budget": sum(ranks.values()), "undecided": method.undecided(layers),
        "rules": {rule: {name: read(layer) for name, layer in layers.items()} for rule, read in method.RANK_RULES.items()},
        "alpha": {name: layer.alpha.tolist() for name, layer in layers.items()},
        "beta": {name: layer.beta.tolist() for name, layer in layers.items()},
        "peft": method.patterns({n: r for n, r in ranks.items() if r}, config.k, config.c, config.scale_rule),
    }  # fmt: skip


def plant(config: Any, run: Any) -> None:
    """The planted-rank table (`planted.py`): 20 cells, truth as label, reported rank as prediction."""
    run.splits(test=np.arange(len(evaluate.ROWS) * len(evaluate.TRUTHS)))
    runs.device(config)
    cells = planted.table(config.search_steps, runs.stream(config.seed, "planted"))
    label, prediction = np.array(cells["label"]), np.array(cells["prediction"])
    arrays = {"id": np.arange(len(label)), "label": label, "prediction": prediction,
              "_kind": "planted", "_headline": "count_1.2_error"}  # fmt: skip
    run.predictions(**arrays)
    metrics = evaluate.score({k: np.asarray(v) for k, v in arrays.items()})
    run.finish(
        metrics=metrics,
        state=[torch.tensor(prediction)],
        gradient_evaluations=5 * config.search_steps,
    )
