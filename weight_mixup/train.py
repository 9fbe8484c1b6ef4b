"""Train one arm of attention-guided weight mixup on one task with one seed.

What to expect. `--scale cpu`: documentation task with 100 texts, accuracy between 50 and 60 %
(chance 10 %; the table in README.md has each arm's mean); 10 s a run on one core.
`--scale gpu`: MiniLM on 300 and 1,000 examples of GLUE tasks. `--scale paper`: BERT-large, whose
mean over four small tasks is published as 80.42. Expected hours: README.md, `make help`.

    python -m weight_mixup.train --tiny                                     seconds, no download
    python -m weight_mixup.train --scale cpu --arm mixup --task documentation --seed 0

Every score is that of the last step: nothing is selected. Whatever is random comes from a stream
named by seed and purpose, never by arm: arms of a seed share subset, head, batches, dropout masks.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from shared import runs, vectors
from shared.processes import shard
from shared.runs import Batches, Parts, Run

from . import baselines, data, gates, method, official, outcome
from .config import SEARCHES, Config
from .data import Items
from .gates import Network
from .method import Levels

PASSES = 5  # gradient evaluations of a search step with finite differences


def run(config: Config) -> Path:
    with runs.start(config, __file__) as run:
        if run.finished:
            return run.directory
        device = runs.device(config)
        problem = data.load(config)
        run.splits(**problem.ids())
        plan = plan_of(config, len(problem.train))
        train = problem.train.to(device)
        network = prepare(config, problem.model.to(device))
        if config.job in SEARCHES:
            search(config, run, network, train, plan)
        alpha_sha256 = runs.state_sha256(network.alpha)
        finetune(config, run, network, train, plan)

        scored = functools.partial(predict, run, network.model, device)
        logits = scored("test", problem.test)
        held_out = None
        if problem.validation is not None:
            held_out = scored("validation", problem.validation)
        state = vectors.clone([*network.w.values(), *network.alpha])
        details = {}
        if network.alpha:
            details = outcome.check_gates(run, network, alpha_sha256)
            gates.merge(network.model)
            outcome.check_merged(run, logits, scored("merged", problem.test))
        outcome.finish(config, run, problem, network, logits, held_out, state, vars(plan), details)
    return run.directory


# ------------------------------------------------------------------------- steps, rates, network


@dataclass(frozen=True)
class Plan:
    """Numbers of steps: K searches of T, then `finetune`."""

    K: int
    T: int
    finetune: int


def plan_of(config: Config, n: int) -> Plan:
    """Steps for n examples: T = E_search (floor(|D_tr| / B) + 1) as official, ceil(n / B) an epoch
    of phase 2."""
    n_tr = int(config.train_share * n + 1e-9)
    T = config.search_epochs * (n_tr // config.batch + 1)
    finetune = config.epochs * math.ceil(n / config.batch)
    if config.job in SEARCHES:
        return Plan(config.K, T, finetune)
    extra = {"own": 0, "updates": config.K * T, "passes": PASSES * config.K * T}
    return Plan(0, 0, finetune + extra[config.length])


def rate(kind: Literal["linear", "cosine"], t: int, steps: int, warmup: float) -> float:
    """Share of the peak rate at step t. The warm-up begins at 0, as in the official code."""
    ramp = int(warmup * steps)
    return t / ramp if t < ramp else runs.schedule(kind, t, steps, ramp)


def prepare(config: Config, model: nn.Module) -> Network:
    """The model with gates, or with what a baseline puts in."""
    if config.finetune == "mixout":
        baselines.add_mixout(model, config.strength)
    if config.finetune == "reinit":
        stream = runs.stream(config.seed, "reinit")
        baselines.reinitialise(model, int(config.strength), stream)
    if config.job in ("random_gates", "joint", "bilevel"):
        gates.add_gates(model, config.rank, method.FORMS[config.mix_form])
    network = gates.network_of(model.train())
    if config.job == "random_gates":
        method.draw_gates(network.alpha, config.sigma, runs.stream(config.seed, "gates"))
    return network


def loss_of(model: nn.Module, batch: Items) -> method.Loss:
    return lambda: data.task_loss(data.logits_of(model, batch), batch.labels)


# -------------------------------------------------------------------------- phase 1: K searches


def search(config: Config, run: Run, network: Network, train: Items, plan: Plan) -> None:
    """Leaves the mean over the searches in w and alpha."""
    w, alpha, counts = list(network.w.values()), network.alpha, network.counts
    levels = method.levels_of(w, alpha, config.weight_decay, config.alpha_weight_decay)
    mean = [torch.zeros_like(p, dtype=torch.float64) for p in [*w, *alpha]]
    batches = [batches_of_search(config, len(train), k) for k in range(plan.K)]
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


def batches_of_search(config: Config, n: int, k: int) -> tuple[Batches[Tensor], Batches[Tensor]]:
    """Of the lower and of the upper level of search k; joint training has one level, all of D."""
    d_tr, d_val = method.split(n, config.train_share, runs.stream(config.seed, "split", k))
    lower = torch.arange(n) if config.job == "joint" else d_tr
    return (
        Batches(lower, config.batch, config.seed, "lower", k, keep_last=True),
        Batches(d_val, config.batch, config.seed, "upper", k, keep_last=True),
    )


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


# ------------------------------------------------------------------------ phase 2, and predictions


def finetune(config: Config, run: Run, network: Network, train: Items, plan: Plan) -> None:
    """w on all of D, alpha frozen."""
    w, counts = network.w, network.counts
    for factor in network.alpha:
        factor.requires_grad_(False)
    sums = baselines.squares(config, network.model, w)
    if config.finetune == "child_d":
        add_fisher(config, run, network, train, sums)
    mask = baselines.gradient_mask(config, w, sums, plan.finetune)
    optimizer = method.adamw(list(w.values()), config.weight_decay)
    every = torch.arange(len(train))
    batches = Batches(every, config.batch, config.seed, "finetune", keep_last=True)
    work = Parts(w=list(w.values()), optimizer=optimizer, sums=list(sums.values()), counts=counts)
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


def add_fisher(
    config: Config, run: Run, network: Network, train: Items, sums: dict[str, Tensor]
) -> None:
    """CHILD-TUNING_D: one pass over D at the pretrained weights."""
    every = torch.arange(len(train))
    batches = Batches(every, config.batch, config.seed, "fisher", keep_last=True)
    runs.seed_global(config.seed, "dropout", "fisher")
    noise, counts = baselines.dropout_noise(train.labels.device), network.counts
    work = Parts(sums=list(sums.values()), noise=noise, counts=counts)
    for i in run.phase("fisher", batches.per_epoch, work):
        loss = loss_of(network.model, train.take(batches(i)))
        baselines.add_fisher_(sums, network.w, loss())
        counts["evaluations"] += 1


@torch.no_grad()
def predict(run: Run, model: nn.Module, device: torch.device, name: str, items: Items) -> Tensor:
    """Logits of all items, (n, classes), on the CPU: a phase of its own."""
    model.eval()
    parts, logits = torch.arange(len(items)).split(100), list[Tensor]()
    for i in run.phase(name, len(parts), Parts(logits=logits)):
        logits.append(data.logits_of(model, items.take(parts[i]).to(device)).cpu())
    return torch.cat(logits)


if __name__ == "__main__":
    runs.command_line(Config, run, __doc__, __file__)
