"""TapWeight: learn the weights of pretraining objectives from validation labels, then finetune.

What to expect. `--scale cpu`: planted digits in seconds, movie sentences in half a minute a run.
`gpu`: MiniLM on GLUE, ResNet-18 on molecules. `paper`: RoBERTa-base, DeBERTa-v3-large; README.md.

    python -m tapweight.train --tiny                                 seconds, no download
    python -m tapweight.train --scale cpu --arm tapweight --seed 0   the base first, if missing
"""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from shared import processes, runs
from shared.runs import Batches, Parts, Run
from tapweight import baselines, images, language, method, official, optimizers, outcome
from tapweight.config import Config
from tapweight.domain import Domain, Part, Predictions, domain_of
from tapweight.dropout import SharedMasks
from tapweight.outcome import Pretrained


def run(config: Config) -> Path:
    with runs.start(config, __file__) as run:
        if run.finished:
            return run.directory
        domain = domain_of(config, runs.device(config), run.say)
        run.splits(**domain.items)
        for arm in {"base", "deberta-base"} & set(config.uses):
            outcome.load_base(domain, config.uses[arm])
        pretrained = Pretrained()
        if config.job in ("base", "fixed"):
            pretrained = pretrain(config, run, domain)
        if config.job in ("tapweight", "blo"):
            pretrained = learn_weights(config, run, domain)
        if config.job == "base":
            outcome.finish_base(config, run, domain, pretrained)
            return run.directory
        head, steps = finetune(config, run, domain)
        test = predict(run, domain, head, "test")
        part = outcome.part_for_choices(config)
        choices = predict(run, domain, head, part) if part else None
        outcome.finish(config, run, domain, head, pretrained, steps, test, choices)
    return run.directory


# ------------------------------------------------------------------- pretraining: Level I alone


def pretrain(config: Config, run: Run, domain: Domain) -> Pretrained:
    """Under weights that nothing learns: the arms cp-..., random and grid, and their base."""
    theta = [*domain.encoder.parameters(), *domain.heads.parameters()]
    if config.job == "base":
        lam = torch.full((len(domain.names),), 1 / len(domain.names))
        domain.encoder.requires_grad_(config.base_trains == "all")
        steps, size = config.base_steps, config.base_batch
        trained = [p for p in theta if p.requires_grad]
        optimizer = optimizers.make("adam", trained, optimizers.BASE_LR, 0.0)
    else:
        lam = baselines.fixed_weights(config.weights, domain.names, config.seed, config.uses)
        steps, size = round(config.steps * config.steps_factor), config.batch_I
        optimizer = optimizers.make(config.optimizer, theta, config.lr_I, config.weight_decay)
    unlabelled = Batches(torch.arange(domain.sizes[0]), size, config.seed, "unlabelled")
    work = Parts(encoder=domain.encoder, heads=domain.heads, optimizer=optimizer)
    cast = autocast(config, domain)
    for t in run.phase("pretraining", steps, work):
        optimizers.set_rates([optimizer], config.schedule, t, steps, config.warmup)
        domain.encoder.train()
        domain.heads.train()
        one = objectives(config, run, domain, unlabelled, t, False)
        losses = [method.level_one_step(optimizer, batches, lam, cast) for batches in one]
        run.log(step=t, phase="pretrain", losses=torch.stack(losses).mean(0), weights=lam)
    return Pretrained(lam, steps)


# ----------------------------------------------------------------- pretraining: all three levels


def learn_weights(config: Config, run: Run, domain: Domain) -> Pretrained:
    """TapWeight (job tapweight), or its ablation with two levels (blo)."""
    w = domain.head(config.seed, "head", "level two")
    phi = domain.encoder if config.job == "blo" else copy.deepcopy(domain.encoder)
    levels, cycle = start_levels(config, domain, phi, w)
    pretrained = Pretrained(steps=config.steps, seconds=[0.0, 0.0, 0.0])
    of_u, of_train, of_validation = (torch.arange(n) for n in domain.sizes)
    unlabelled = Batches(of_u, config.batch_I, config.seed, "unlabelled")
    labelled = Batches(of_train, config.batch_II, config.seed, "labelled")
    outer = Batches(of_validation, config.batch_III, config.seed, "held")  # names the stream
    task = functools.partial(task_loss, config, run, domain, phi, w)
    modules = {"encoder": domain.encoder, "heads": domain.heads, "phi": phi, "w": w}
    moments = dict(zip(("one", "two", "three"), levels.optimizers))
    notes = {"seconds": pretrained.seconds, "agreement": pretrained.agreement}
    work = Parts(**modules, **moments, **notes, alpha=[levels.alpha])
    start_clock = optimizers.clock(levels.optimizers, pretrained.seconds)
    for t in run.phase("pretraining", config.steps, work):
        optimizers.set_rates(levels.optimizers, config.schedule, t, config.steps, config.warmup)
        for module in modules.values():
            module.train()
        one = objectives(config, run, domain, unlabelled, t, t >= outcome.warm_up(config))
        two = [task("train", labelled, t * config.steps_II + i) for i in range(config.steps_II)]
        three = task("validation", outer, t), one[-1] if config.whole_batch else one[-1][-1:]
        start_clock()
        facts = cycle(levels, one, two, three, learn=t >= outcome.warm_up(config))
        lam = method.weights(levels.alpha)
        run.finite(lam, "III", t)
        values = {name: value for name, value in vars(facts).items() if value is not None}
        if config.watch and t % config.watch == config.watch - 1 and config.job == "tapweight":
            values |= outcome.compare(levels, three, facts.h, pretrained.agreement)
        run.log(step=t, phase="pretrain", weights=lam, **values)
    pretrained.lam = method.weights(levels.alpha)
    return pretrained


def start_levels(
    config: Config, domain: Domain, phi: nn.Module, w: nn.Module
) -> tuple[method.Levels, Callable[..., method.Facts]]:
    """The levels at their start, and what one cycle of them is."""
    alpha = method.start_logits(len(domain.names))
    theta = [*domain.encoder.parameters(), *domain.heads.parameters()]
    lower = [*phi.parameters(), *w.parameters()]
    prox, decay = method.SquaredDistance(config.gamma), 0.0
    cycle: Callable[..., method.Facts] = method.cycle
    if config.job == "blo":
        theta += w.parameters()
        cycle = baselines.two_level_cycle
    if config.preset == "code":
        decay = official.DECAY_OF_ALPHA if config.optimizer_III == "adam" else 0.0
        if isinstance(domain, language.Language) and config.job != "blo":
            prox = official.AbsoluteDistance.of(config.gamma, phi)
            cycle = functools.partial(method.cycle, gradient=official.with_direct_path)
    of_levels = [
        optimizers.make(config.optimizer, theta, config.lr_I, config.weight_decay),
        optimizers.make(config.optimizer, lower, config.lr_II, config.weight_decay),
        optimizers.make(config.optimizer_III, [alpha], config.lr_III, decay),
    ]
    pair, how = method.matched(phi, domain.encoder), (config.mode, config.normalise)
    return method.Levels(*pair, alpha, of_levels, prox, *how, autocast(config, domain)), cycle


def objectives(
    config: Config, run: Run, domain: Domain, unlabelled: Batches[Tensor], t: int, again: bool
) -> list[list[method.Losses]]:
    """The K losses: for each Level I step its micro-batches. again: for the weights, too."""

    def of(step: int, micro: int) -> method.Losses:
        """Masks and dropout are the same whenever the losses are evaluated."""
        rows = processes.shard(unlabelled(step * config.micro_batches + micro))
        evaluation = itertools.count()
        masks = SharedMasks(on=again and not config.independent_masks)

        def losses() -> list[Tensor]:
            more = [next(evaluation)] if config.independent_masks else []  # README, row 21
            runs.seed_global(config.seed, "dropout I", step, micro, *more)
            with masks.evaluation():
                values = domain.losses(rows, step, micro)
            if config.preset == "code" and isinstance(domain, images.Images):
                values = official.without_mask_contrast(values)
            for name, loss in zip(domain.names, values):
                run.finite(loss, f"I ({name})", step, rows)
            return values

        return losses

    first, micro_batches = t * config.steps_I, range(config.micro_batches)
    return [[of(first + i, micro) for micro in micro_batches] for i in range(config.steps_I)]


def task_loss(
    config: Config,
    run: Run,
    domain: Domain,
    phi: nn.Module,
    w: nn.Module,
    part: Part,
    batches: Batches[Tensor],
    step: int,
) -> method.Loss:
    """L_task of Level II (part train) or III (validation), the same dropout at each evaluation."""
    rows = processes.shard(batches(step))
    of_domain: Callable[..., Tensor] = domain.task_loss
    if config.preset == "code" and isinstance(domain, language.Language):
        of_domain = functools.partial(of_domain, squared_error=official.broadcast_squared_error)

    def loss() -> Tensor:
        runs.seed_global(config.seed, "dropout", part, step)
        value = of_domain(phi, w, part, rows)
        run.finite(value, "II" if part == "train" else "III", step, rows)
        return value

    return loss


def autocast(config: Config, domain: Domain) -> method.Autocast:
    """bf16 where asked for; made anew for every block."""
    on, where = config.precision == "bf16", domain.device.type
    return functools.partial(torch.autocast, where, dtype=torch.bfloat16, enabled=on)


# ------------------------------------------------------------------------ finetuning and scoring


def finetune(config: Config, run: Run, domain: Domain) -> tuple[nn.Module, int]:
    """A fresh head on the encoder: for all arms of a seed the same head, batches and dropout."""
    part: Part = config.finetune_on
    parts = ("train",) if part == "train" else ("train", "validation")
    rows = torch.arange(sum(len(domain.items[name]) for name in parts))
    batches = Batches(rows, config.finetune_batch, config.seed, "finetune")
    steps = config.finetune_steps or max(1, round(config.finetune_epochs * batches.per_epoch))
    head = domain.head(config.seed, "head", "finetune")
    parameters = [*domain.encoder.parameters(), *head.parameters()]
    decay = config.finetune_weight_decay
    optimizer = torch.optim.AdamW(parameters, config.finetune_lr, weight_decay=decay, fused=True)
    work = Parts(encoder=domain.encoder, head=head, optimizer=optimizer)
    for t in run.phase("finetuning", steps, work):
        domain.encoder.train()
        head.train()
        optimizers.set_rates([optimizer], "linear", t, steps, config.warmup)
        chosen = processes.shard(batches(t))
        runs.seed_global(config.seed, "dropout", "finetune", t)
        optimizer.zero_grad(set_to_none=True)
        with autocast(config, domain)():
            loss = domain.task_loss(domain.encoder, head, part, chosen)
        run.finite(loss, "finetuning", t, chosen)
        loss.backward()
        optimizer.step()
        if t % 10 == 0 or t == steps - 1:
            run.log(step=t, phase="finetune", loss=loss.item())
    return head, steps


@torch.no_grad()
def predict(run: Run, domain: Domain, head: nn.Module, part: Part) -> Predictions:
    """Predictions of the finetuned model, a phase of its own."""
    domain.encoder.eval()
    head.eval()
    batches, outputs = domain.batches(part), list[Tensor]()
    for k in run.phase(part, len(batches), Parts(outputs=outputs)):
        outputs.append(domain.outputs(head, part, batches[k]))
    return domain.predictions(part, torch.cat(outputs))


if __name__ == "__main__":
    runs.command_line(Config, run, __doc__, __file__)
