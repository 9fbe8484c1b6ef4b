"""Pretrain one arm of MLO-MAE on one task with one seed, then finetune its encoder.

    python -m mlo_mae.train --tiny                                   under 20 seconds, no download
    python -m mlo_mae.train --scale cpu --arm mlo --task mnist       about 40 CPU seconds

Expect at scale cpu an accuracy of 47 to 63 % after finetuning on 100 labels, by seed (README has
means over 13). At scale paper a run takes hours to days of a GPU (protocol.yaml).

Pretraining goes in cycles of the three levels (`method.cycle`). Then, for each number of labels,
the pretrained encoder is finetuned with a fresh head and tested. Every score is that of the last
step: nothing is selected on test items.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shared import runs
from shared.runs import Parts, Run

from . import (
    analysis,
    data,
    directions,
    estimators,
    evaluate,
    finetune,
    method,
    official,
    rehearsal,
)
from .analysis import Notes
from .config import Config
from .data import Problem, chunks
from .export import expected_shapes, load_encoder, write_export
from .method import Estimator, First, Levels
from .networks import build, scored

FEATURES = 512  # images of a step of a probe
LINES = 400  # of metrics.jsonl in pretraining, about


def run(config: Config) -> Path:
    with runs.start(config, __file__) as run:
        if run.finished:
            return run.directory
        device = runs.device(config)
        rehearsed = config.scale == "rehearsal"
        with rehearsal.inputs() if rehearsed else contextlib.nullcontext():
            problem = data.load(config, device)
        inner, outer = (problem.train.ids[rows] for rows in (problem.inner, problem.outer))
        run.splits(inner=inner, outer=outer, test=problem.test.ids)
        levels, notes = begin(config, problem, device, run.finite), Notes()
        E = levels.nets.E
        if config.uses:
            load_encoder(E, *config.uses.values())
        cycles, begun = config.steps // config.k1, time.process_time()
        for t in run.phase("pretraining", cycles, Parts(**levels.parts(), **vars(notes))):
            estimate = before_cycle(levels, problem, notes, t)
            losses, last = method.cycle(levels, t, estimate)
            if facts := after_cycle(levels, problem, last, t, begun):
                run.log(phase="pretraining", **losses, **facts)
        predictions = {"id": problem.test.ids, "label": problem.test.labels.cpu().numpy()}
        validation: dict[str, float] = {}
        evaluations = analysis.evaluations(levels)
        for labels in config.finetune_labels:
            found, right, f = finetune.rounds(run, config, problem, E, labels)
            predictions, validation = predictions | found, validation | right
            evaluations += config.finetune_repeats * f.updates
        predictions |= probe(run, levels, problem)
        predictions |= last_looks(run, levels, problem, notes)
        gates(run, levels, problem, notes.facts)
        run.predictions(**predictions)
        run.finish(
            metrics=evaluate.score(predictions),
            validation=validation,
            state=[*E.parameters(), *f.C.parameters()],
            gradient_evaluations=evaluations,
            chosen_step=config.steps,
            exports=["export"] if config.export else [],
            updates=analysis.updates(levels),
            facts=notes.facts,
            directions=[[float(f"{x:.6g}") for x in row] for row in notes.directions],
            sizes=levels.nets.sizes(),
        )
    return run.directory


# --- pretraining ----------------------------------------------------------------------------------


def begin(
    config: Config, problem: Problem, device: torch.device, finite: Callable[..., None]
) -> Levels:
    """The three levels at their start; which have an optimiser depends on the arm."""
    c, nets = config, build(config, problem, device)
    named = [*nets.E.named_parameters(), *nets.D.named_parameters()]
    matrices = [p for name, p in named if p.dim() > 1 and "pos_embed" not in name]
    rest = [p for name, p in named if p.dim() == 1 or "pos_embed" in name]
    head = group(nets.C.parameters(), c.lr_head, c.outer_decay)
    groups = {"first": [group(matrices, c.lr, c.weight_decay), group(rest, c.lr, 0.0)]}
    if c.joint_weight:
        groups["first"].append(head)
    if c.hypergrad != "none":
        of_T = group(nets.T.parameters(), c.lr_mask, c.outer_decay)
        groups |= {"second": [head], "third": [of_T]}
    optimizers = {
        level: torch.optim.AdamW(of_level, betas=(0.9, c.beta2), fused=True)
        for level, of_level in groups.items()
    }
    scores = official.attached_scores if "attached_scores" in c.official else method.scores
    return Levels(c, nets, optimizers, problem.levels(c.batch, c.seed), scores, finite)


def group(parameters: Iterable[Tensor], peak: float, decay: float) -> dict[str, Any]:
    return {"params": list(parameters), "lr": peak, "peak": peak, "weight_decay": decay}


def before_cycle(levels: Levels, problem: Problem, notes: Notes, t: int) -> Estimator | None:
    """Look at the networks before cycle t. Returns how the cycle finds g_T, checked in the first
    and the last; None for arms without levels 2 and 3."""
    c, cycles = levels.config, levels.config.steps // levels.config.k1
    if c.curve_points and t in {0} | analysis.moments(cycles, 5):
        analysis.show(levels, problem, notes, t * c.k1)
    if c.hypergrad == "none":
        return None
    estimate = estimators.ESTIMATORS[c.hypergrad]
    if c.self_checks and t in (0, cycles - 1):
        estimate = analysis.compared(estimate, notes.facts, "last" if t else "first")
    if c.weight == "scores" and t in directions.trial_cycles(cycles, c.direction_trials):
        notes.directions.append(directions.trial(levels, problem, t))
    return estimate


def after_cycle(
    levels: Levels, problem: Problem, last: First, t: int, begun: float
) -> dict[str, float]:
    """What is logged after cycle t beside its losses; empty for most cycles of a long run."""
    c, done = levels.config, t + 1
    cycles = c.steps // c.k1
    on_curve = done in analysis.moments(cycles, c.curve_points)
    if t % max(1, cycles // LINES) and done < cycles and not on_curve:
        return {}
    facts = {"step": done * c.k1, **analysis.statistics(last)}
    if on_curve:
        facts["curve"] = analysis.curve_point(levels.nets, problem)
        facts["cpu_seconds"] = round(time.process_time() - begun, 2)
        facts["evaluations"] = analysis.evaluations(levels)
    return facts


# --- probe and last looks -------------------------------------------------------------------------


def probe(run: Run, levels: Levels, problem: Problem) -> dict[str, np.ndarray]:
    """Classes of the test images by linear maps that see all labels: on features of the
    frozen encoder and, for reference, on raw pixels."""
    c, train, inputs = levels.config, problem.train, {}
    rows, test_rows = problem.everything, np.arange(len(problem.test))
    if c.probe:
        features: list[Tensor] = []
        batches = [(train, part) for part in chunks(rows, FEATURES)]
        batches += [(problem.test, part) for part in chunks(test_rows, FEATURES)]
        for k in run.phase("probe", len(batches), Parts(features=features)):
            features.append(analysis.features(levels.nets, *batches[k]).cpu())
        inputs["probe"] = torch.cat(features).to(train.labels.device)
    if c.pixels:
        inputs["pixels"] = torch.cat([train.batch(rows), problem.test.batch(test_rows)]).flatten(1)
    y, n = data.labels_of(train, rows), len(rows)
    return {
        name: analysis.softmax_regression(x[:n], y, x[n:], problem.classes)
        for name, x in inputs.items()
    }


def last_looks(run: Run, levels: Levels, problem: Problem, notes: Notes) -> dict[str, np.ndarray]:
    """The mechanism's rows of the predictions; masks for the figures, and the export."""
    c = levels.config
    rows: dict[str, np.ndarray] = {}
    if problem.name == "codes" and scored(c):
        rows |= analysis.planted(levels, problem)
    if notes.directions:
        rows["_directions"] = np.array(notes.directions)
    if c.curve_points and c.steps:
        analysis.show(levels, problem, notes, c.steps)
        analysis.write_masks(run.directory / "masks.npz", levels, problem, notes)
    if c.export:
        write_export(run.directory / "export", levels.nets.E, c)
    return rows


# --- the record -----------------------------------------------------------------------------------


def gates(run: Run, levels: Levels, problem: Problem, facts: dict[str, float]) -> None:
    """The checks that claims.yaml lists."""
    c, E = levels.config, levels.nets.E
    apart = not np.intersect1d(problem.inner, problem.outer).size
    level1 = c.pretrain_on == "all" or not np.intersect1d(problem.pretrain, problem.outer).size
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
    run.gate("restored", facts["restored"] == 1.0, "every parameter, after a hypergradient")
    if c.hypergrad != "official":
        first = facts["cosine_first"]
        last = facts.get("cosine_last", first)  # a single cycle is both
        detail = f"{first:.6f} in the first cycle, {last:.6f} in the last"
        run.gate("hypergradient", min(first, last) > 0.999, f"cosine with double backward {detail}")


if __name__ == "__main__":
    runs.command_line(Config, run, __doc__, __file__)
