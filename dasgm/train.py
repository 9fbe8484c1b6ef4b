"""Search a cell with one arm on one task with one seed, and say how good the cell is.

    python -m dasgm.train --tiny                                            a minute, no download
    python -m dasgm.train --scale cpu --arm joint --task digits --seed 0    15 CPU seconds; README

No number of the DASGM paper could be read, so there is none to reach. On digits a uniformly drawn
connected cell scores about 96 % and the best 99 %; on NAS-Bench-201 / CIFAR-10 (one GPU, minutes)
a collapsed DARTS 54.3, the median cell 90.8, the best 94.4 %.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from shared import runs
from shared.runs import Parts, Run

from . import (
    baselines,
    darts_space,
    data,
    evaluate,
    generators,
    method,
    nasbench,
    networks,
    rehearsal,
    tables,
)
from .config import Config
from .imagenet import ImageNet

NOTICE = (
    "note: no number of the DASGM paper (arXiv 2112.00171) could be read;"
    " only its abstract is followed"
)


def run(config: Config) -> Path:
    """Train one run; returns its directory."""
    if config.generated and not config.uses:
        remedy = "give --uses.generator DIR, or an arm that uses one"
        raise runs.BadInput(f"job {config.job} needs a generator: {remedy}")
    made_up = rehearsal.made_up(config.n) if config.scale == "rehearsal" else None
    with runs.start(config, __file__) as run, made_up or contextlib.nullcontext():
        if run.finished:
            return run.directory
        run.say(NOTICE)
        device = runs.device(config)
        problem = data.load(config.data, config.seed, config.split, config.n, device)
        parts = {"train": problem.train, "validation": problem.validation, "test": problem.test}
        run.splits(**{name: images.ids for name, images in parts.items()})
        if config.job == "generator":
            warm_start(config, run, problem, device)
            return run.directory
        if config.job == "random":
            result = Result(networks.random_cell(config))
        else:
            result = search(config, run, problem, device)
        if config.judge == "table":
            look_up(config, run, problem, result)
        else:
            retrain(config, run, problem, device, result)
    return run.directory


# --- the stage: a generator, and how well its images carry their labels -------------------------------


def warm_start(config: Config, run: Run, problem: data.Problem, device: torch.device) -> None:
    """Phases: the generator, the classifier that reads its labels, what that one reads."""
    views = data.Views(config, problem, device)
    gan = generators.GAN(config, problem.classes, problem.shape, device)
    for step in run.phase("generator", config.gan_steps, Parts(gan=gan)):
        losses = method.generator_step(gan, *views.photographs(step))
        rows = views.rows(problem.train, config.gan_batch, "gan batches", step).cpu()
        run.finite(losses["loss_G"], level="generator", step=step, batch=rows)
        if step % 50 == 0:
            run.log(step=step, **losses)

    runs.seed_global(config.seed, "reference")
    reference = generators.reference_classifier(problem.shape[0], problem.classes).to(device)
    optimizer = torch.optim.Adam(reference.parameters(), 2e-3)
    every = torch.arange(len(problem.train))
    batches = runs.Batches(every, config.batch, config.seed, "reference batches")
    work = Parts(reference=reference, optimizer=optimizer)
    for step in run.phase("reference", config.reference_steps, work):
        rows = batches(step).to(device)
        stream = runs.stream(config.seed, "reference view", step)
        x = problem.view(problem.train.pixels[rows], stream)
        optimizer.zero_grad(set_to_none=True)
        cross_entropy(reference(x), problem.train.labels[rows]).backward()
        optimizer.step()
    reference.eval()

    right: list[int] = []
    for k in run.phase("fidelity", 4, Parts(right=right)):
        right.append(labels_read(problem, gan, reference, "fidelity", k))
    fidelity = sum(right) / 2000
    accuracy = held_out_accuracy(run, problem, reference)
    check_fidelity(config, run, problem, fidelity)
    passed = not config.fidelity_gate or fidelity >= 3 / problem.classes
    run.gate("label-fidelity", passed, f"{fidelity:.3f} of 2,000 images")
    apart = set(problem.train.ids.tolist()).isdisjoint(problem.validation.ids.tolist())
    run.gate("generator-data", apart, f"{len(problem.train)} images of D_tr")
    packed = runs.pack({"gan": gan.state_dict(), "reference": reference.state_dict()})
    runs.write_bytes(run.directory / "generator.pt", packed)
    runs.save_arrays(run.directory / "samples.npz", samples(problem, gan))
    run.finish(
        state=gan.G.parameters(),
        gradient_evaluations=config.gan_steps * (gan.critic_steps + 1),
        validation={"fidelity": fidelity, "reference_accuracy": accuracy},
    )


def labels_read(
    problem: data.Problem, gan: generators.GAN, reference: nn.Module, *name: Any
) -> int:
    """Of 500 generated images: how many the reference classifier gives their label."""
    images, y = gan.sample(500, *name)
    return correct(reference, problem.normalise(problem.pixels(images)), y)


def check_fidelity(config: Config, run: Run, problem: data.Problem, fidelity: float) -> None:
    """The gate stays active while theta moves (docs/papers/dasgm.md, section 3.5)."""
    off = not config.fidelity_gate
    warning = "" if off else generators.fidelity_gate(fidelity, problem.classes)
    if warning or off:
        run.say(f"warning: {warning or 'fidelity gate switched off'}")


@torch.no_grad()
def correct(network: nn.Module | networks.Supernet, x: Tensor, y: Tensor) -> int:
    return int((network(x).argmax(1) == y).sum())


def held_out_accuracy(
    run: Run, problem: data.Problem, network: nn.Module | networks.Supernet
) -> float:
    """On D_val: a search-time quantity, the only one that settings were chosen by."""
    right: list[int] = []
    parts = torch.arange(len(problem.validation)).split(256)
    for k in run.phase("held-out accuracy", len(parts), Parts(right=right)):
        part = problem.validation[parts[k]]
        right.append(correct(network, problem.normalise(part.pixels), part.labels))
    return sum(right) / len(problem.validation)


def samples(problem: data.Problem, gan: generators.GAN, each: int = 8) -> dict[str, Any]:
    """`each` generated images of at most ten classes, for the figure."""
    y = torch.arange(min(10, problem.classes), device=gan.device).repeat_interleave(each)
    with torch.no_grad():
        images = gan.ema(gan.draw(len(y), "samples")[0], y)
    pixels = problem.pixels(images).round().clamp(0, 255).byte()
    return {"pixels": pixels.cpu().numpy(), "label": y.cpu().numpy()}


# --- the search --------------------------------------------------------------------------------------


@dataclass
class Result:
    """What a search comes to. state: tensors whose hash identifies it."""

    cell: str
    early: str | None = None
    steps: int = 0
    state: list[Tensor] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    validation: dict[str, float] = field(default_factory=dict)


def search(config: Config, run: Run, problem: data.Problem, device: torch.device) -> Result:
    """One phase for each stage of the base, then the relaxed network's accuracy on D_val."""
    views = data.Views(config, problem, device)
    gan, reference = load_generator(config, problem, device) if config.generated else (None, None)
    level_2 = {"gan": gan} if gan is not None else {}
    counts = {"weight_steps": 0, "architecture_steps": 0, "gan_steps": 0, "gradient_evaluations": 0}
    history: list[dict[str, Any]] = []
    per_epoch = max(1, len(problem.train) // config.batch)
    per_stage, quarter = config.epochs * per_epoch, max(1, config.epochs // 4 * per_epoch)
    f, choices, stages = None, None, networks.stages(config)
    for stage in stages:
        if f is not None:
            choices = darts_space.shrink(f.A, stage.operations, choices)
        f = networks.new_supernet(config, problem, stage, choices, device)
        work = Parts(**f.parts(), **level_2, counts=counts, history=history)
        for step in run.phase(stage.name, per_stage, work):
            t, epoch = stage.number * per_stage + step, step // per_epoch
            cosine = runs.schedule("cosine", epoch, config.epochs)
            f.opt_W.param_groups[0]["lr"] = config.lr_min + (config.lr - config.lr_min) * cosine
            runs.seed_global(config.seed, "dropout", t)
            with networks.levels_apart(run, f, gan) if t == 0 else contextlib.nullcontext():
                facts = method.cycle(f, gan, views, t, learn_A=epoch >= config.warmup)
            count(run, counts, facts, t)
            line: dict[str, Any] = {"step": t, **facts}
            if (step + 1) % per_epoch == 0:
                history.append(networks.epoch_line(config, f, choices))
                line |= history[-1]
            if gan is not None and config.job != "static" and (t + 1) % quarter == 0:
                line["fidelity"] = labels_read(problem, gan, reference, ("search", t), 0) / 500
                check_fidelity(config, run, problem, line["fidelity"])
            run.log(**line)

    assert f is not None
    f.net.eval()
    accuracy = held_out_accuracy(run, problem, f)
    made, n = (counts["weight_steps"], counts["architecture_steps"]), len(stages)
    planned = n * per_stage, n * (config.epochs - config.warmup) * per_epoch
    run.gate("budget", made == planned, f"{made[0]} weight and {made[1]} architecture steps")
    cells = {
        "final": networks.derive(config, f.A, choices),
        "early": networks.early(config, history),
    }
    (run.directory / "cells.json").write_text(json.dumps(cells, indent=1) + "\n")
    return Result(
        cells["final"],
        cells["early"],
        steps=planned[0],
        state=[*f.A, *f.W],
        counts=counts,
        validation={"held_out_accuracy": accuracy},
    )


def load_generator(
    config: Config, problem: data.Problem, device: torch.device
) -> tuple[generators.GAN, nn.Module]:
    """The warm-started generator, and the classifier that reads its labels."""
    (directory,) = config.uses.values()
    path = Path(directory) / "generator.pt"
    saved = runs.unpack(path.read_bytes(), str(path))
    gan = generators.GAN(config, problem.classes, problem.shape, device)
    gan.load_state_dict(saved["gan"])
    reference = generators.reference_classifier(problem.shape[0], problem.classes).to(device)
    reference.load_state_dict(saved["reference"])
    return gan, reference.eval()


def count(run: Run, counts: dict[str, int], facts: dict[str, float], t: int) -> None:
    """Refuse a loss that is not finite; count steps and gradients."""
    losses = {"loss_G": "generator", "loss_A": "architecture", "loss_W": "weight"}
    for name, level in losses.items():
        if name in facts:
            run.finite(facts[name], level=level, step=t)
    counts["weight_steps"] += 1
    counts["architecture_steps"] += "loss_A" in facts
    counts["gan_steps"] += "loss_G" in facts
    counts["gradient_evaluations"] += int(facts.pop("gradient_evaluations"))


# --- what the cell is worth --------------------------------------------------------------------------


def look_up(config: Config, run: Run, problem: data.Problem, result: Result) -> None:
    """In a table of all cells; for `random` the mean over 1,000 draws."""
    table = tables.table(config.data)
    numbers = [table.number(result.cell)]
    if config.job == "random":
        allowed = [table.number(c) for c in nasbench.all_cells(config.nodes, config.exclude_none)]
        stream = runs.stream(config.seed, "random cells")
        numbers = baselines.random_cells(allowed, 1000, stream)
        result.state = [torch.tensor(numbers)]
    early = None if result.early is None else table.number(result.early)
    predictions = tables.look_up(table, problem.test.ids, numbers, early)
    names = list(table.cells)
    predictions["_skips"] = np.mean([float(networks.skips(names[n])) for n in numbers])
    description = networks.describe(config, problem, result.cell, problem.classes)
    finish(config, run, result, predictions, description)


def retrain(
    config: Config, run: Run, problem: data.Problem, device: torch.device, result: Result
) -> None:
    """From scratch on real images; phases: retraining, test. The test images are seen once, here."""
    own = config.retrain_on == "own"
    images = (
        networks.Photographs(problem, config.cutout) if own else ImageNet(size=config.image_size)
    )
    description = networks.describe(config, problem, result.cell, images.classes)
    runs.seed_global(config.seed, "retrain network")
    student = networks.Student(networks.build(description), images, config, config.seed, device)
    work = Parts(network=student.network, optimizer=student.optimizer)
    for step in run.phase("retraining", student.steps, work):
        loss = networks.retrain_step(student, step)
        run.finite(loss, level="retraining", step=step)
        if step % 100 == 0:
            run.log(step=step, retraining_loss=float(loss))
    rows: list[Tensor] = []
    for k in run.phase("test", len(student.test_batches), Parts(rows=rows)):
        rows.append(networks.answers(student, k))
    label, prediction, top5 = torch.cat(rows).T
    named = student.network.named_parameters()
    predictions = {
        "id": images.ids,
        "label": label,
        "prediction": prediction,
        "_parameters": sum(p.numel() for name, p in named if "auxiliary" not in name),
        "_skips": float(networks.skips(result.cell)),
    }
    if not own:
        predictions["top5"] = top5.bool()
    if config.job == "random":
        text = bytearray(result.cell.encode())
        result.state = [torch.frombuffer(text, dtype=torch.uint8)]
    result.state += student.W
    finish(config, run, result, predictions, description, student)


def finish(
    config: Config,
    run: Run,
    result: Result,
    predictions: dict[str, Any],
    description: dict[str, Any],
    student: networks.Student | None = None,
) -> None:
    """Predictions, export, record."""
    run.predictions(**predictions)
    about = (
        f"Found by arm `{config.arm}` (job {config.job}) of dasgm (after arXiv 2112.00171), task"
        f" `{config.task}`, scale `{config.scale}`, seed {config.seed}. Licence: that of the"
        " repository; the terms of the data apply to trained weights."
    )
    networks.export(run.directory / "export", description, student and student.network, about)
    retraining = student.steps if student else 0
    run.finish(
        metrics=evaluate.score({k: np.asarray(v) for k, v in predictions.items()}),
        validation=result.validation,
        state=result.state,
        gradient_evaluations=result.counts.get("gradient_evaluations", 0) + retraining,
        chosen_step=result.steps,
        exports=["export"],
        cell=result.cell,
        counts=result.counts,
    )


if __name__ == "__main__":
    runs.command_line(Config, run, __doc__, __file__)
