"""Train one arm of attention-guided weight mixup on one task with one seed.

What to expect. `--scale cpu`: 30 handwritten digits to learn five new classes from, accuracy about
87 % (chance 20 %; the table in README.md has each arm's mean). Twenty seeds train as one block: its
first run takes 5 to 10 s on one core, the others read their row of it.
`--scale gpu`: MiniLM on 300 and 1,000 examples of GLUE tasks. `--scale paper`: BERT-large, whose
mean over four small tasks is published as 80.42. Expected hours: README.md, `make help`.

    python -m weight_mixup.train --tiny                                     seconds, no download
    python -m weight_mixup.train --scale cpu --arm mixup --task digits30 --seed 0

Every score is that of the last step: nothing is selected. Whatever is random comes from a stream
named by seed and purpose, never by arm: arms of a seed share subset, head, batches, dropout masks.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
from torch import nn

from shared import runs, vectors
from shared.processes import shard
from shared.runs import Batches, Parts, Run

from . import baselines, data, gates, method, official, outcome, stacked
from .config import SEARCHES, Config
from .data import Items
from .gates import Network
from .method import Levels
from .schedule import Plan, batches_of_search, examples, own, plan_of, rate


def run(config: Config) -> Path:
    with runs.start(config, __file__) as run:
        if run.finished:
            return run.directory
        device = runs.device(config)
        problem = data.load(config)
        run.splits(**problem.ids())
        train = examples(config, problem).to(device)
        plan = plan_of(config, own(config, train))
        network = prepare(config, problem.model.to(device))
        history = []  # of a block, to be logged: step, quantiles of the gates
        if config.stack > 1:
            row = stacked.trained(config)
            alpha_sha256, history = put_row(run, network, row), row["history"]
        else:
            if config.job in SEARCHES:
                search(config, run, network, train, plan)
            alpha_sha256 = runs.state_sha256(network.alpha)
            finetune(config, run, network, train, plan)

        scored = functools.partial(outcome.predict, run, network.model, device)
        logits = scored("test", problem.test)
        held_out = None
        if problem.validation is not None:
            held_out = scored("validation", problem.validation)
        state = vectors.clone([*network.w.values(), *network.alpha])
        details = {}
        for step, quantiles in history:
            run.log(step=step, phase=1, search=0, gates=quantiles)
        if network.alpha:
            details = outcome.check_gates(run, network, alpha_sha256)
            gates.merge(network.model)
            outcome.check_merged(run, logits, scored("merged", problem.test))
        outcome.finish(config, run, problem, network, logits, held_out, state, vars(plan), details)
    return run.directory


# --------------------------------------------------------------------------------------- network


def prepare(config: Config, model: nn.Module) -> Network:
    """The model with gates, or with what a baseline puts in."""
    if config.finetune == "mixout":
        baselines.add_mixout(model, config.strength)
    if config.finetune == "reinit":
        stream = runs.stream(config.seed, "reinit")
        baselines.reinitialise(model, int(config.strength), stream)
    if config.job in ("random_gates", "joint", "bilevel"):
        gates.attach(model, config.rank, method.FORMS[config.mix_form])
    network = gates.network_of(model.train())
    if config.job == "random_gates":
        method.draw_gates(network.alpha, config.sigma, runs.stream(config.seed, "gates"))
    return network


def loss_of(model: nn.Module, batch: Items) -> method.Loss:
    return lambda: data.task_loss(data.logits_of(model, batch), batch.labels)


def put_row(run: Run, network: Network, row: dict[str, Any]) -> str:
    """The network as both phases left it, trained in a block of seeds; sha256 of its gates."""
    vectors.copy_([*network.w.values(), *network.alpha], [*row["w"].values(), *row["alpha"]])
    run.finite(vectors.norm([*row["w"].values()]), "finetuning", 0)
    network.counts |= {key: row[key] for key in network.counts}
    return runs.state_sha256(network.alpha)


# -------------------------------------------------------------------------- phase 1: K searches


def search(config: Config, run: Run, network: Network, train: Items, plan: Plan) -> None:
    """Leaves the mean over the searches in w and alpha."""
    w, alpha, counts = list(network.w.values()), network.alpha, network.counts
    levels = method.levels_of(w, alpha, config.weight_decay, config.alpha_weight_decay)
    mean = [torch.zeros_like(p, dtype=torch.float64) for p in [*w, *alpha]]
    batches = [batches_of_search(config, train, k) for k in range(plan.K)]
    work = Parts(
        w=w, alpha=alpha, opt_w=levels.opt_w, opt_alpha=levels.opt_alpha, mean=mean,
        counts=counts, check=network.check,
    )  # fmt: skip
    for step in run.phase("search", plan.K * plan.T, work):
        k, t = divmod(step, plan.T)
        if t == 0:
            stream = runs.stream(config.seed, "gates", k)
            method.begin_search(levels, network.start, config.sigma, stream)
        xi = config.lr * rate("linear", t, plan.T, config.warmup)
        method.set_rate(levels.opt_w, xi)
        alpha_rate = config.alpha_lr * rate("cosine", t, plan.T, config.warmup)
        method.set_rate(levels.opt_alpha, alpha_rate)
        b_tr, b_val = (train.take(shard(rows(t))) for rows in batches[k])
        lower, upper = loss_of(network.model, b_tr), loss_of(network.model, b_val)
        runs.seed_global(config.seed, "dropout", "search", k, t)
        facts: dict[str, Any] = {}
        if config.job == "averaging":
            loss = method.w_step(levels.opt_w, w, lower, config.search_clip)
        elif config.job == "joint":
            loss = baselines.joint_step(levels, lower, config.search_clip)
        else:
            estimate = estimate_of(config, levels, k, t)
            try:
                if xi > 0 and not network.check and not config.official:  # the rate rises from 0
                    first = outcome.check_estimator(levels, upper, lower, xi, config.estimator)
                    network.check.update(first)
                g, loss = method.search_step(levels, upper, lower, xi, config.search_clip, estimate)
            except FloatingPointError as error:
                raise runs.Diverged("upper", t, b_val.ids) from error
            counts["evaluations"] += g.gradient_evaluations
            facts = outcome.parts_of(g)
        counts["evaluations"] += 1
        run.finite(loss, "lower", t, b_tr.ids)
        if alpha:
            network.note_gates()
            if t % max(1, plan.T // 4) == 0 or t == plan.T - 1:
                facts["gates"] = gates.quantiles(alpha)
        run.log(step=step, phase=1, search=k, loss=float(loss), xi=xi, **facts)
        if t == plan.T - 1:
            method.end_search(levels, mean, plan.K)
    method.begin_finetuning(w, alpha, mean, network.start, config.average_all)
    gates.check(alpha)


def estimate_of(config: Config, levels: Levels, k: int, t: int) -> method.Estimate:
    """How step t of search k estimates the hypergradient: as the paper, or by accident."""
    if not config.official:
        estimator = method.ESTIMATORS[config.estimator]
        return functools.partial(method.hypergradient, estimator=estimator)
    return functools.partial(
        official.hypergradient, optimizer=levels.opt_w, clip=config.search_clip,
        accidents=config.official,
        masks=lambda i: runs.seed_global(config.seed, "dropout", "search", k, t, i),
    )  # fmt: skip


# ---------------------------------------------------------------- phase 2: finetuning on all of D


def finetune(config: Config, run: Run, network: Network, train: Items, plan: Plan) -> None:
    """w on all of D, alpha frozen."""
    w, counts = network.w, network.counts
    for factor in network.alpha:
        factor.requires_grad_(False)
    sums = baselines.squares(config, network.model, w)
    if config.finetune == "child_d":
        baselines.fisher_pass(config, run, network, train, sums)
    mask = baselines.gradient_mask(config, w, sums, plan.finetune)
    optimizer = method.adamw(list(w.values()), config.weight_decay)
    every = torch.arange(own(config, train))
    average = vectors.clone([*w.values()]) if config.ema else []
    batches = Batches(every, config.batch, config.seed, "finetune", keep_last=True)
    work = Parts(
        w=list(w.values()), optimizer=optimizer, sums=list(sums.values()), counts=counts,
        average=average,
    )  # fmt: skip
    for t in run.phase("finetuning", plan.finetune, work):
        xi = config.lr * rate("linear", t, plan.finetune, config.warmup)
        method.set_rate(optimizer, xi)
        b = train.take(shard(batches(t)))
        runs.seed_global(config.seed, "dropout", "finetune", t)
        loss_of_b = baselines.finetuning_loss(config, network.model, b)
        of_step = functools.partial(mask, t) if mask else None
        loss = method.w_step(optimizer, list(w.values()), loss_of_b, config.clip, of_step)
        counts["evaluations"] += 2 if config.finetune in ("r3f", "r_drop") else 1
        run.finite(loss, "finetuning", t, b.ids)
        run.log(step=plan.K * plan.T + t, phase=2, loss=float(loss), xi=xi)
        if config.ema:
            torch._foreach_lerp_(average, [p.detach() for p in w.values()], 1 - config.ema)
    if config.ema:
        vectors.copy_([*w.values()], average)


if __name__ == "__main__":
    runs.command_line(Config, run, __doc__, __file__)
