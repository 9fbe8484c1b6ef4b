"""Pretrain one arm of MLO-MAE on one task with one seed, then finetune its encoder.

    python -m mlo_mae.train --tiny                                        under a minute, no download
    python -m mlo_mae.train --scale cpu --arm mlo --task digits --seed 0  about 15 CPU seconds

Expect at scale cpu an accuracy of 50 to 80 % after finetuning on 200 labels, depending on the seed
(README has the mean of eight). At scale paper a run takes hours to days of a GPU (protocol.yaml).

Phases: pretraining in cycles (`method.cycle`), then for each entry of `finetune_labels` a finetuning
from the pretrained encoder with a fresh head and its test, then a linear probe. Every score is that of
the last step: nothing is selected on test items.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shared import runs
from shared.runs import BadInput, Parts, Run

from . import analysis, data, estimators, evaluate, finetune, method, official, rehearsal
from .analysis import Notes
from .config import Config
from .data import Images, Problem, chunks
from .export import expected_shapes, write_export
from .finetune import Classifier
from .folders import Files
from .method import Estimator, First, Levels
from .networks import Encoder, build, scored

PREDICTED = 256  # images of a step of a test
FEATURES = 512  # images of a step of a probe
LINES = 400  # of metrics.jsonl in pretraining, about


def run(config: Config) -> Path:
    with runs.start(config, __file__) as run:
        if run.finished:
            return run.directory
        device = runs.device(config)
        with rehearsal.inputs(config.scale):
            problem = data.load(config, device)
        ids, test = problem.train.ids, problem.test
        run.splits(inner=ids[problem.inner], outer=ids[problem.outer], test=test.ids)
        levels, notes = begin(config, problem, device, run.finite), Notes()
        E = levels.nets.E
        if config.uses:
            load_encoder(E, config)
        begun, cycles = time.process_time(), config.steps // config.k1
        for t in run.phase("pretraining", cycles, Parts(**analysis.parts(levels), **vars(notes))):
            losses, last = method.cycle(levels, t, observed(levels, problem, notes, t))
            if facts := look(levels, problem, last, t, begun):
                run.log(**facts, **losses)
        evaluations = estimators.evaluations(config, analysis.updates(levels))
        rows: dict[str, Any] = {"id": test.ids, "label": test.labels.cpu().numpy()}
        validation: dict[str, float] = {}
        for labels in config.finetune_labels:
            first = labels == config.finetune_labels[0]
            every = np.arange(len(test))
            looks = chunks(every, PREDICTED) if first and "best_epoch" in config.official else []
            tuned = finetune.begin(config, problem, copy.deepcopy(E), labels, run.finite)
            best = train_classifier(run, tuned, labels, test, looks)
            name = "prediction" if first else f"prediction_{labels}"
            rows[name] = predict(run, f"test {labels}", tuned, test, every)
            if best:
                rows["prediction_best_epoch"] = np.array(best["prediction"])
            if labels:  # D_val's labels were not used
                guess = predict(run, f"validation {labels}", tuned, problem.train, problem.outer)
                truth = data.labels_of(problem.train, problem.outer).cpu()
                right = (torch.from_numpy(guess) == truth).float()
                validation[f"accuracy_{labels}"] = right.mean().item()
            evaluations += tuned.steps
        if config.probe:
            rows["probe"] = probe(run, levels, problem)
        if config.pixels:
            rows["pixels"] = pixels(problem)
        finish(run, levels, problem, notes, tuned, rows, validation, evaluations)
    return run.directory


# --- pretraining ----------------------------------------------------------------------------------


def begin(
    config: Config, problem: Problem, device: torch.device, finite: Callable[..., None]
) -> Levels:
    """The three levels at their start; which have an optimiser depends on the arm."""
    c, nets = config, build(config, problem, device)
    matrices, rest = [], []
    for name, p in [*nets.E.named_parameters(), *nets.D.named_parameters()]:
        (matrices if p.dim() > 1 and "pos_embed" not in name else rest).append(p)
    head = group(nets.C.parameters(), c.lr_head, c.outer_decay)
    groups = {1: [group(matrices, c.lr, c.weight_decay), group(rest, c.lr, 0.0)]}
    if c.joint_weight:
        groups[1].append(head)
    if c.hypergrad != "none":
        groups |= {2: [head], 3: [group(nets.T.parameters(), c.lr_mask, c.outer_decay)]}
    optimizers = {
        level: torch.optim.AdamW(of_level, betas=(0.9, c.beta2), fused=True)
        for level, of_level in groups.items()
    }
    batches = {level: problem.level(level, c.batch, c.seed) for level in (1, 2, 3)}
    attached = "attached_scores" in c.official
    scores = official.attached_scores if attached else method.scores
    return Levels(config, nets, optimizers, batches, scores, finite)


def group(parameters: Iterable[Tensor], peak: float, decay: float) -> dict[str, Any]:
    return {"params": list(parameters), "lr": peak, "peak": peak, "weight_decay": decay}


def load_encoder(E: Encoder, config: Config) -> None:
    """Start from the encoder that another run exported (transfer)."""
    from safetensors.torch import load_file

    (directory,) = config.uses.values()
    path = Path(directory) / "export" / "encoder.safetensors"
    if not path.exists():
        raise BadInput(f"{path} is missing; train that run with --export")
    E.load_state_dict(load_file(path))


def observed(levels: Levels, problem: Problem, notes: Notes, t: int) -> Estimator | None:
    """Look at the networks before cycle t. Returns how the cycle finds g_T, checked in the first and
    the last cycle; None for arms without levels 2 and 3."""
    c = levels.config
    cycles = c.steps // c.k1
    if c.curve_points and t in {0} | analysis.moments(cycles, 5):
        analysis.show(levels, problem, notes, t * c.k1)
    if c.hypergrad == "none":
        return None
    estimate = estimators.ESTIMATORS[c.hypergrad]
    if c.self_checks and t in (0, cycles - 1):
        estimate = analysis.compared(estimate, notes.facts, "last" if t else "first")
    if t in analysis.trial_cycles(cycles, c.descent_trials):
        notes.descent.append(analysis.descent_trial(levels, t, estimate))
    return estimate


def look(levels: Levels, problem: Problem, last: First, t: int, begun: float) -> dict[str, Any]:
    """What is logged after cycle t beside its losses, about 400 times in all; empty in between."""
    c = levels.config
    cycles, done = c.steps // c.k1, t + 1
    on_curve = done in analysis.moments(cycles, c.curve_points)
    if t % max(1, cycles // LINES) and not on_curve and done < cycles:
        return {}
    facts: dict[str, Any] = {"step": done * c.k1, "phase": "pretraining"}
    if t % (25 * max(1, cycles // LINES)) == 0 or done == cycles:
        facts |= analysis.statistics(last)
    if on_curve:
        facts["curve"] = analysis.curve_point(levels.nets, problem)
        facts["cpu_seconds"] = round(time.process_time() - begun, 2)
        facts["evaluations"] = estimators.evaluations(c, analysis.updates(levels))
    return facts


# --- finetuning, test, probe ----------------------------------------------------------------------


def train_classifier(
    run: Run, f: Classifier, labels: int, test: Images | Files, looks: list[np.ndarray]
) -> dict[str, Any]:
    """Finetune on so many labels. `looks`: batches of test rows that are predicted after each epoch, of
    which `official.look` finds the best epoch, the value that is returned."""
    best: dict[str, Any] = {}
    name, length = f"finetuning {labels}", f.epoch + len(looks)
    work = Parts(E=f.E, C=f.C, optimizer=f.optimizer, best=best)
    for k in run.phase(name, f.config.finetune_epochs * length, work):
        epoch, place = divmod(k, length)
        if place < f.epoch:
            loss = finetune.step(f, epoch * f.epoch + place)
            if place + 1 == f.epoch:
                run.log(step=(epoch + 1) * f.epoch, phase=name, loss=loss)
        else:
            classes = finetune.classes(f, test, looks[place - f.epoch])
            official.look(best, classes, test.labels, last=place + 1 == length)
    return best


def predict(
    run: Run, name: str, f: Classifier, images: Images | Files, rows: np.ndarray
) -> np.ndarray:
    """Predicted classes (n,) of whole images."""
    classes: list[int] = []
    batches = chunks(rows, PREDICTED)
    for k in run.phase(name, len(batches), Parts(classes=classes)):
        classes += finetune.classes(f, images, batches[k]).tolist()
    return np.array(classes)


def probe(run: Run, levels: Levels, problem: Problem) -> np.ndarray:
    """Classes of the test images by a linear map on the frozen encoder, with all training labels."""
    rows, features = problem.everything, list[Tensor]()
    batches = [(problem.train, part) for part in chunks(rows, FEATURES)]
    batches += [(problem.test, part) for part in chunks(np.arange(len(problem.test)), FEATURES)]
    for k in run.phase("probe", len(batches), Parts(features=features)):
        features.append(analysis.features(levels.nets, *batches[k]).cpu())
    y = data.labels_of(problem.train, rows)
    z = torch.cat(features).to(y.device)
    guess = analysis.softmax_regression(z[: len(rows)], y, z[len(rows) :], problem.classes)
    return guess.cpu().numpy()


def pixels(problem: Problem) -> np.ndarray:
    """The same on raw pixels, for reference."""
    rows = problem.everything
    x, x_test = (
        images.batch(part).flatten(1)
        for images, part in ((problem.train, rows), (problem.test, range(len(problem.test))))
    )
    y = data.labels_of(problem.train, rows)
    return analysis.softmax_regression(x, y, x_test, problem.classes).cpu().numpy()


# --- the record -----------------------------------------------------------------------------------


def gates(run: Run, levels: Levels, problem: Problem, facts: dict[str, float]) -> None:
    """The checks that claims.yaml lists."""
    c, E = levels.config, levels.nets.E
    apart = not np.intersect1d(problem.inner, problem.outer).size
    level1 = c.pretrain_on == "all" or not np.setdiff1d(problem.pretrain, problem.inner).size
    sizes = f"D_tr {len(problem.inner)}, D_val {len(problem.outer)}, test {len(problem.test)}"
    run.gate("roles", apart and level1, f"{sizes}: disjoint; level 1 sees {c.pretrain_on}")
    shapes = {k: tuple(v.shape) for k, v in E.state_dict().items()}
    detail = f"{len(shapes)} tensors with timm's names and shapes"
    run.gate("timm-layout", shapes == expected_shapes(E), detail)
    if c.hypergrad == "none":
        return
    cycles, taken = c.steps // c.k1, analysis.updates(levels)
    expected = {"E": c.steps, "C": cycles * c.k2, "T": cycles}
    run.gate("cycle", taken == expected, f"optimiser steps {taken}")
    if not c.self_checks:
        return
    detail = "every parameter bit-identical before and after a hypergradient"
    run.gate("restored", facts["restored"] == 1.0, detail)
    if c.hypergrad != "official":
        first, last = facts["cosine_first"], facts["cosine_last"]
        detail = f"{first:.6f} in the first cycle, {last:.6f} in the last"
        run.gate("hypergradient", min(first, last) > 0.999, f"cosine with double backward {detail}")


def finish(
    run: Run,
    levels: Levels,
    problem: Problem,
    notes: Notes,
    tuned: Classifier,
    rows: dict[str, Any],
    validation: dict[str, float],
    evaluations: int,
) -> None:
    c, nets, quadrant = levels.config, levels.nets, problem.quadrant
    if quadrant is not None and scored(c):
        rows |= analysis.planted(levels, problem, quadrant)
    if notes.descent:
        rows["_descent"] = np.array(notes.descent)
    if c.curve_points and c.steps:
        analysis.show(levels, problem, notes, c.steps)
        analysis.write_masks(run.directory / "masks.npz", levels, problem, notes)
    if c.export:
        write_export(run.directory / "export", nets.E, c)
    gates(run, levels, problem, notes.facts)
    run.predictions(**rows)
    run.finish(
        metrics=evaluate.score(rows),
        validation=validation,
        state=[*nets.E.parameters(), *tuned.C.parameters()],
        gradient_evaluations=evaluations,
        chosen_step=c.steps,
        exports=["export"] if c.export else [],
        updates=analysis.updates(levels),
        facts=notes.facts,
        sizes={
            name: sum(p.numel() for p in part.parameters()) for name, part in nets.parts().items()
        },
    )


if __name__ == "__main__":
    runs.command_line(Config, run, __doc__, __file__)
