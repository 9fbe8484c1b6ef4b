"""AutoLoRA: learn LoRA ranks by a bilevel search, then retrain with them.

What to expect. `--scale cpu`: a planted problem whose true ranks are known, some seconds a search
and about one a retraining on one core; `--task movie`: MiniLM's upper blocks on movie sentences, a
minute. `--scale gpu`: MiniLM on GLUE and NCBI-disease. `--scale paper`: RoBERTa-base and -large on
GLUE and BioNLP 2004, GPT-2 medium on E2E and WebNLG. Commands and hours: README.md, `make help`.

    python -m autolora.train --tiny                               under 20 seconds, no download
    python -m autolora.train --scale cpu --arm autolora --seed 0  the search first, if it is missing
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from autolora import adapters, evaluate, method, official, predictions, ranks
from autolora.config import Config
from autolora.setting import Setting, prepare
from shared import processes, protocol, runs, vectors
from shared.hypergrad import FiniteDifference, FirstOrder, Method, OneStep, self_check
from shared.runs import Diverged, Run

METHODS: dict[str, Method] = {
    "finite_difference": FiniteDifference(),
    "exact": OneStep(),
    "first_order": FirstOrder(),
}
LOG_EVERY = 10  # steps between two lines of metrics.jsonl


def run(config: Config) -> Path:
    with runs.start(config, __file__) as run:
        if not run.finished:
            (search if config.job == "search" else retrain)(config, run)
    return run.directory


# --- the search ----------------------------------------------------------------------------------


def search(config: Config, run: Run) -> None:
    """Alternate the two levels, then read the ranks off -> ranks.json, all that is used of it."""
    setting = prepare(config, run)
    model, head, ids = setting.network.model, setting.network.head, setting.train.ids
    chosen = adapters.selection(config, setting.network)
    layers = method.attach(model, config.k, head, setting.draw, config.c, **chosen)
    if config.search_encoder:
        official.free_encoder(model)
    frozen_before = frozen_sha256(model)
    levels, total = levels_of(config, model), config.search_steps

    rows_outer = setting.outer if config.select_on == "validation" else setting.inner
    purpose, size = "batches" + config.draw, config.search_batch
    inner_batches = runs.Batches(setting.inner, size, config.seed, "inner " + purpose)
    outer_batches = runs.Batches(rows_outer, size, config.seed, "outer " + purpose)
    check = check_first_batch(config, setting, levels, inner_batches(0), outer_batches(0))

    spent: list[int] = []  # gradient evaluations of each step
    variables = [*levels.w, *levels.beta]
    work = runs.Parts(variables=variables, inner=levels.inner, outer=levels.outer, spent=spent)
    for step in run.phase("search", total, work):
        rows, outer_rows = map(processes.shard, (inner_batches(step), outer_batches(step)))
        # one seed for a step: all its evaluations see the same dropout masks
        runs.seed_global(config.seed, "dropout" + config.draw, step)
        with upper_level(step, ids[outer_rows]):
            done = method.search_step(levels, setting.loss(rows), setting.loss(outer_rows))
        run.finite(done.loss, level="lower", step=step, batch=ids[rows])
        spent.append(done.gradient_evaluations)
        if step % LOG_EVERY == 0 or step == total - 1:
            h = done.hypergradient
            sizes = {"direct": vectors.norm(h.direct), "implicit": vectors.norm(h.implicit)}
            run.log(
                step=step, loss=float(done.loss), **sizes, **ranks.selection(layers, config.weights)
            )

    content = ranks.of_search(config, layers)
    runs.write_json(run.directory / "ranks.json", content)
    expected = total * (2 if config.hypergradient == "first_order" else 5)
    counted = f"{sum(spent)} gradient evaluations in {total} steps; expected {expected}"
    run.gate("search-cost", sum(spent) == expected, counted)
    gate_frozen(run, model, frozen_before)
    unmoved = content["undecided"]
    run.gate("ranks-decided", not unmoved, f"maps that no outer step moved: {unmoved or 'none'}")
    values = list(content["ranks"].values())
    in_range = all(1 <= r <= config.k for r in values)
    run.gate("ranks-in-range", in_range, f"{values}, k = {config.k}")
    run.finish(
        state=variables,
        gradient_evaluations=sum(spent),
        chosen_step=total,
        ranks=values,
        self_check=check,
    )


def levels_of(config: Config, model: nn.Module) -> method.Levels:
    """Optimisers of the two levels, and the hypergradient: ours, or with the official habits."""
    w, beta = method.variables(model)
    inner = torch.optim.AdamW(
        w, lr=config.inner_lr, weight_decay=config.inner_weight_decay, fused=True
    )
    rate = config.outer_travel / config.search_steps
    outer = torch.optim.Adam(beta, lr=rate, betas=(0.5, 0.999), fused=True)
    if config.habits:
        look_ahead = inner if config.look_ahead == "adam" else None
        estimator = official.estimator(
            config.implicit_coef, config.around, config.masks, look_ahead
        )
    else:
        how = METHODS[config.hypergradient]
        estimator = functools.partial(method.hypergradient, method=how)
    return method.Levels(w, beta, inner, outer, config.inner_lr, estimator)


def check_first_batch(
    config: Config, setting: Setting, at: method.Levels, rows: np.ndarray, outer_rows: np.ndarray
) -> dict[str, Any]:
    """The hypergradient beside the exact one, for the record: cosine and error."""
    losses = setting.loss(outer_rows), setting.loss(rows)
    how, model = METHODS[config.hypergradient], setting.network.model
    model.eval()  # kernels of attention differ in how they draw dropout masks
    with upper_level(0, setting.train.ids[outer_rows]):
        check = self_check(*losses, at.w, at.beta, at.eta, how, tolerance=math.inf)
    model.train()
    return check


@contextlib.contextmanager
def upper_level(step: int, batch: np.ndarray) -> Iterator[None]:
    """A hypergradient that is not finite ends the run, naming level, step and batch."""
    try:
        yield
    except FloatingPointError as error:
        raise Diverged("upper", step, batch) from error


def frozen_sha256(model: nn.Module) -> str:
    return runs.state_sha256(p for p in model.parameters() if not p.requires_grad)


def gate_frozen(run: Run, model: nn.Module, before: str) -> None:
    n = sum(not p.requires_grad for p in model.parameters())
    run.gate("frozen-unchanged", n > 0 and frozen_sha256(model) == before, f"{n} frozen tensors")


# --- retraining ----------------------------------------------------------------------------------


def retrain(config: Config, run: Run) -> None:
    """Train plain LoRA with given ranks (or an opponent) from the pretrained weights, then test it.

    Trained on `inner` (D_tr) the run is a stage: D_val scores it, and no test item."""
    setting = prepare(config, run)
    model, task, ids = setting.network.model, setting.task, setting.train.ids
    maps = method.adapted_maps(model, setting.network.pattern)
    is_stage = config.train_on == "inner"
    rows_used = setting.inner if is_stage else np.arange(len(ids))
    batches = runs.Batches(rows_used, config.batch, config.seed, "batches")
    total = config.steps or math.ceil(config.epochs * batches.per_epoch)
    warmup = max(1, round(config.warmup * total))
    wrapped, rank_of = adapters.adapted(config, run, setting, maps, total)
    allocator = adapters.Allocator(wrapped) if config.adapter == "adalora" else None
    trained = [p for p in model.parameters() if p.requires_grad]
    frozen_before = frozen_sha256(model)
    optimizer = torch.optim.AdamW(
        trained, lr=config.lr, weight_decay=config.weight_decay, fused=True
    )
    test = None if is_stage else predictions.Items(config, setting, task.test)
    epochs: list[list[Any]] = []  # predictions after each epoch, with best_epoch

    pruning = {"allocator": allocator} if allocator else {}
    work = runs.Parts(trained=trained, optimizer=optimizer, epochs=epochs, **pruning)
    for step in run.phase("training", total, work):
        rows = processes.shard(batches(step))
        runs.seed_global(config.seed, "dropout", step)
        loss = setting.loss(rows, config.label_smoothing)()
        run.finite(loss, level="lower", step=step, batch=ids[rows])
        optimizer.param_groups[0]["lr"] = config.lr * runs.schedule("linear", step, total, warmup)
        (loss + allocator.penalty() if allocator else loss).backward()
        optimizer.step()
        if allocator:
            allocator.prune(step + 1)
        optimizer.zero_grad()
        if step % LOG_EVERY == 0 or step == total - 1:
            run.log(step=step, loss=float(loss.detach()))
        if config.best_epoch and test and (step + 1) % batches.per_epoch == 0:
            epochs.append([p for k in range(len(test)) for _, p in test.predict(k)])

    validation: dict[str, float] = {}
    part = task.train.rows(setting.outer) if is_stage else task.validation
    if part and config.score_validation:
        items = predictions.Items(config, setting, part)
        validation = evaluate.score(predictions.of_phase(run, "validation", items))
    tested = predictions.of_phase(run, "test", test) if test else None

    if config.adapter != "full":
        gate_frozen(run, model, frozen_before)
    if allocator:
        rank_of = allocator.ranks()
        adapters.gate_budget(config, run, rank_of)
    if config.export:
        adapters.export(config, run, setting, wrapped)
    if tested:
        tested |= about(config, task.true_ranks, rank_of, maps, total)
        if epochs:
            tested["best_epoch"] = np.stack([np.array(rows) for rows in epochs], axis=1)
        run.predictions(**tested)
    elif config.adapter == "lora":
        runs.write_json(run.directory / "ranks.json", ranks.of_probe(wrapped))
    run.finish(
        metrics=evaluate.score(tested) if tested else None,
        validation=validation,
        state=trained,
        gradient_evaluations=total,
        chosen_step=total,
        exports=["export"] * config.export,
        ranks=rank_of,
        trained_parameters=sum(p.numel() for p in trained),
    )


def about(
    config: Config,
    truth: tuple[int, ...],
    rank_of: ranks.Ranks,
    maps: dict[str, nn.Module],
    total: int,
) -> evaluate.Predictions:
    """What predictions.npz says of the run itself: its ranks, its size, its cost."""
    used = [protocol.read_record(Path(directory)) or {} for directory in config.uses.values()]
    cost = np.array(total + sum(record["gradient_evaluations_with_uses"] for record in used))
    facts = {"_cost": cost} | ({"_true_ranks": np.array(truth)} if truth else {})
    if rank_of:
        facts["_ranks"] = np.array([rank_of[name] for name in maps])
        facts["_rank_total"] = np.array(sum(rank_of.values()))
        facts["_parameters"] = np.array(ranks.adapter_parameters(rank_of, maps))
    return facts


if __name__ == "__main__":
    runs.command_line(Config, run, __doc__, __file__)
