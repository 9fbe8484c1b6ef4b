"""Search a cell with one arm on one task with one seed, and say how good the cell is.

    python -m dasgm.train --tiny                                            under 20 s, no download
    python -m dasgm.train --scale cpu --arm joint --task digits --seed 0    20 CPU seconds; README

No number of the DASGM paper could be read, so there is none to reach. On digits the mean cell
scores 97.1 % and the best 98.9 %; on NAS-Bench-201 a collapsed DARTS 54.3, the best cell 94.4 %.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from shared import processes, runs
from shared.runs import Parts, Run

from . import darts_space, data, evaluate, generators, method, networks, rehearsal, tables
from .config import Config

NOTICE = (
    "note: no number of the DASGM paper (arXiv 2112.00171) could be read;"
    " only its abstract is followed"
)


def run(config: Config) -> Path:
    """Train one run; returns its directory."""
    if config.generated and not config.uses:
        remedy = "give --uses.generator DIR, or an arm that uses one"
        raise runs.BadInput(f"job {config.job} needs a generator: {remedy}")
    made_up = rehearsal.made_up(config.n) if config.scale == "rehearsal" else nullcontext()
    with runs.start(config, __file__) as run, made_up:
        if run.finished:
            return run.directory
        run.say(NOTICE)
        device = runs.device(config)
        problem = data.load(config.data, config.seed, config.split, config.n, device)
        run.splits(**problem.ids)
        if config.job == "generator":
            warm_start(config, run, problem, device)
            return run.directory
        result = Result(networks.random_cell(config))
        if config.job != "random":
            result = search(config, run, problem, device)
        if config.judge == "table":
            cells = result.cell, result.early, result.alpha
            numbers, result.predictions = tables.look_up(config, problem, *cells)
            result.state = result.state or [torch.tensor(numbers)]
        else:
            retrain(config, run, problem, device, result)
        finish(config, run, problem, result)
    return run.directory


# --- the stage: a generator, and how well its images carry their labels ---------------------------


def warm_start(config: Config, run: Run, problem: data.Problem, device: torch.device) -> None:
    """Phases: the generator, the classifier that reads its labels, what that one reads."""
    views = data.Views(config, problem)
    gan = generators.GAN(config, problem.classes, problem.shape, device)
    for step in run.phase("generator", config.gan_steps, Parts(gan=gan)):
        losses = method.generator_step(gan, views)
        batch = views.photographs(step).ids
        run.finite(losses["loss_G"], level="generator", step=step, batch=batch)
        if step % 50 == 0:
            run.log(step=step, **losses)

    optimizer = torch.optim.Adam(gan.reference.parameters(), 2e-3, fused=True)
    work = Parts(reference=gan.reference, optimizer=optimizer)
    for step in run.phase("reference", config.reference_steps, work):
        with processes.single():  # all processes learn from whole batches
            images = views.batch(problem.train, "reference batches", step)
        x = problem.view(images.pixels, runs.stream(config.seed, "reference view", step))
        optimizer.zero_grad(set_to_none=True)
        cross_entropy(gan.reference(x), images.labels).backward()
        optimizer.step()
    gan.reference.eval()

    right: list[int] = []
    for k in run.phase("fidelity", 4, Parts(right=right)):
        right.append(gan.labels_read(problem, "fidelity", k))
    fidelity = sum(right) / 2000
    accuracy = held_out_accuracy(run, problem, gan.reference)
    check_fidelity(config, run, problem, fidelity)
    passed = not config.fidelity_gate or fidelity >= 3 / problem.classes
    run.gate("label-fidelity", passed, f"{fidelity:.3f} of 2,000 images")
    inside = set(views.of_generator.ids.tolist()) <= set(problem.train.ids.tolist())
    run.gate("generator-data", inside, f"{len(views.of_generator)} images of D_tr")
    runs.write_bytes(run.directory / "generator.pt", runs.pack(gan.state_dict()))
    runs.save_arrays(run.directory / "samples.npz", gan.samples(problem))
    run.finish(
        state=gan.G.parameters(),
        gradient_evaluations=config.gan_steps * (gan.critic_steps + 1),
        validation={"fidelity": fidelity, "reference_accuracy": accuracy},
    )


def check_fidelity(config: Config, run: Run, problem: data.Problem, fidelity: float) -> None:
    """The gate stays active while theta moves (docs/papers/dasgm.md, section 8)."""
    warning = config.fidelity_gate and generators.fidelity_gate(fidelity, problem.classes)
    if warning:
        run.say(f"warning: {warning}")


def held_out_accuracy(
    run: Run, problem: data.Problem, network: Callable[[Tensor], Tensor]
) -> float:
    """On D_val: a search-time quantity, the only one that settings were chosen by."""
    right: list[int] = []
    parts = torch.arange(len(problem.validation)).split(networks.TEST_BATCH)
    for k in run.phase("held-out accuracy", len(parts), Parts(right=right)):
        part = problem.validation[parts[k]]
        with torch.no_grad():
            guess = network(problem.normalise(part.pixels)).argmax(1)
        right.append(int((guess == part.labels).sum()))
    return sum(right) / len(problem.validation)


# --- the search -----------------------------------------------------------------------------------


@dataclass
class Result:
    """What a search comes to. state: tensors whose hash identifies it."""

    cell: str
    early: str | None = None
    alpha: Tensor | None = None  # of a nasbench cell
    planned: tuple[int, int] = (0, 0)  # steps of W and of A
    gradient_evaluations: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    validation: dict[str, float] = field(default_factory=dict)
    state: list[Tensor] = field(default_factory=list)
    predictions: dict[str, Any] = field(default_factory=dict)
    network: networks.Derived | None = None  # the derived one, where it was trained


def search(config: Config, run: Run, problem: data.Problem, device: torch.device) -> Result:
    """One phase for each stage of the base, then the relaxed network's accuracy on D_val."""
    views, gan = data.Views(config, problem), None
    if config.generated:
        gan = generators.GAN(config, problem.classes, problem.shape, device)
        (path,) = (Path(used) / "generator.pt" for used in config.uses.values())
        gan.load_state_dict(runs.unpack(path.read_bytes(), str(path)))
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
            networks.begin_step(config, f, t, epoch)
            first = t == config.warmup * per_epoch  # the first step in which every level moves
            with networks.levels_apart(run, f, gan) if first else nullcontext():
                facts = method.cycle(f, gan, views, t, learn_A=epoch >= config.warmup)
            count(run, counts, facts, t)
            line: dict[str, Any] = {"step": t, **facts}
            if (step + 1) % per_epoch == 0:
                history.append(networks.epoch_line(config, f, choices))
                line |= history[-1]
            if gan is not None and config.job != "static" and (t + 1) % quarter == 0:
                line["fidelity"] = gan.labels_read(problem, ("search", t), 0) / 500
                check_fidelity(config, run, problem, line["fidelity"])
            run.log(**line)

    assert f is not None
    f.net.eval()
    accuracy = held_out_accuracy(run, problem, f)
    final, early = networks.derive(config, f.A, choices), networks.early(config, history)
    runs.write_json(run.directory / "cells.json", {"final": final, "early": early})
    planned = len(stages) * per_stage, len(stages) * (config.epochs - config.warmup) * per_epoch
    result = Result(final, early, f.A[0].detach(), planned)
    result.counts, result.gradient_evaluations = counts, counts["gradient_evaluations"]
    result.state, result.validation = [*f.A, *f.W], {"held_out_accuracy": accuracy}
    return result


def count(run: Run, counts: dict[str, int], facts: dict[str, float], t: int) -> None:
    """Refuse a loss that is not finite; count steps and gradients."""
    levels = {"loss_G": "generator", "loss_A": "architecture", "loss_W": "weight"}
    for loss, level in levels.items():
        if loss in facts:
            run.finite(facts[loss], level=level, step=t)
    counts["weight_steps"] += 1
    counts["architecture_steps"] += "loss_A" in facts
    counts["gan_steps"] += "loss_G" in facts
    counts["gradient_evaluations"] += int(facts.pop("gradient_evaluations"))


# --- what the cell is worth -----------------------------------------------------------------------


def retrain(
    config: Config, run: Run, problem: data.Problem, device: torch.device, result: Result
) -> None:
    """From scratch on real images. The test images are looked at once, after every choice."""
    student = networks.new_student(config, problem, result.cell, device)
    work = Parts(network=student.network, optimizer=student.optimizer)
    for step in run.phase("retraining", student.steps, work):
        loss = networks.retrain_step(student, step)
        run.finite(loss, level="retraining", step=step)
        if step % 100 == 0:
            run.log(step=step, retraining_loss=float(loss))
    rows: list[Tensor] = []
    for k in run.phase("test", len(student.test_batches), Parts(rows=rows)):
        rows.append(networks.answers(student, k))
    result.predictions = networks.predictions(student, result.cell, rows)
    result.network = student.network
    result.gradient_evaluations += student.steps
    cell = torch.frombuffer(bytearray(result.cell.encode()), dtype=torch.uint8)
    result.state = [*(result.state or [cell]), *student.W]


def finish(config: Config, run: Run, problem: data.Problem, result: Result) -> None:
    """Predictions, the gate that stands after every phase, export, record."""
    if counts := result.counts:
        made = counts["weight_steps"], counts["architecture_steps"]
        text = f"{made[0]} weight and {made[1]} architecture steps"
        run.gate("budget", made == result.planned, text)
    run.predictions(**result.predictions)
    networks.export(run.directory / "export", config, problem, result.cell, result.network)
    run.finish(
        metrics=evaluate.score(result.predictions),
        validation=result.validation,
        state=result.state,
        gradient_evaluations=result.gradient_evaluations,
        chosen_step=result.planned[0],
        exports=["export"],
        cell=result.cell,
        counts=result.counts,
    )


if __name__ == "__main__":
    runs.command_line(Config, run, __doc__, __file__)
