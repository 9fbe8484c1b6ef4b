"""What a finished run leaves: probe, predictions, gates, masks for the figures, the export, the record."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from shared import runs

from . import analysis, data, evaluate
from .export import expected_shapes, write_export
from .finetune import Finetuning
from .pretrain import SHOW, Pretraining

if TYPE_CHECKING:
    from .train import Config


def finish(config: Config, run: runs.Run, problem: data.Problem, work: Pretraining, tunings: list[Finetuning],
           found: dict[str, Any]) -> None:  # fmt: skip
    """Probe, predictions, gates, figures' data, export, record."""
    nets, test = work.nets, np.arange(len(problem.test))
    everything = np.sort(np.concatenate([problem.inner, problem.outer]))
    y = problem.train.labels[torch.as_tensor(everything, device=problem.train.labels.device)]
    rows: dict[str, Any] = {"id": problem.test.ids, "label": problem.test.labels.cpu().numpy()}
    rows |= {k: v.numpy() for k, v in found.items() if k.startswith("prediction")}
    if config.probe:
        f = [
            analysis.features(nets.E, part, r, config.pool)
            for part, r in ((problem.train, everything), (problem.test, test))
        ]
        rows["probe"] = (
            analysis.softmax_regression(f[0], y, [f[1]], problem.classes)[0].cpu().numpy()
        )
    if config.pixels:
        flat = [
            part.batch(r, data.SHOWN).flatten(1)
            for part, r in ((problem.train, everything), (problem.test, test))
        ]
        rows["pixels"] = (
            analysis.softmax_regression(flat[0], y, [flat[1]], problem.classes)[0].cpu().numpy()
        )
    if problem.quadrant is not None and nets.T is not None:
        rows |= analysis.planted(work, problem)
    if work.descent:
        rows["_descent"] = np.array(work.descent)
    if config.curve_points and config.steps:
        write_masks(run, problem, work)
    record_gates(config, run, problem, work)
    if config.export:
        write_export(run.directory / "export", nets.E, config)
    run.predictions(**rows)
    evaluations = work.counts["evaluations"] + sum(t.steps for t in tunings)
    run.finish(
        metrics=evaluate.score(rows),
        validation=found.get("validation"),
        state=[p.detach() for p in [*nets.E.parameters(), *tunings[-1].C.parameters()]],
        gradient_evaluations=evaluations,
        selection="last",
        chosen_step=config.steps,
        exports=["export"] if config.export else [],
        counts=work.counts,
        facts=work.facts,
        sizes={k: sum(p.numel() for p in n.parameters()) for k, n in work.parts.items()},
    )


def write_masks(run: runs.Run, problem: data.Problem, work: Pretraining) -> None:
    """masks.npz for the figures: a few images with their masks over training; masking frequency by position at the end."""
    first = problem.test.batch(np.arange(SHOW), data.SHOWN)
    work.show(work.config.steps, first)
    many = problem.test.batch(np.arange(min(512, len(problem.test))), data.SHOWN)
    scores, masks = work.masks_of(many)
    runs.save_arrays(
        run.directory / "masks.npz",
        {
            "images": first.cpu().numpy(),
            "steps": np.array([s["step"] for s in work.masks_shown]),
            "scores": np.stack([s["scores"].numpy() for s in work.masks_shown]),
            "masks": np.stack([s["masks"].numpy() for s in work.masks_shown]),
            "frequency": masks.mean(0).cpu().numpy(),
            "mean_score": scores.mean(0).cpu().numpy(),
        },
    )


def record_gates(config: Config, run: runs.Run, problem: data.Problem, work: Pretraining) -> None:
    overlap = np.intersect1d(problem.inner, problem.outer).size
    level1 = (
        set(problem.pretrain.tolist()) <= set(problem.inner.tolist()) or config.pretrain_on == "all"
    )
    run.gate("roles", overlap == 0 and level1,
             f"D_tr {len(problem.inner)}, D_val {len(problem.outer)}, test {len(problem.test)}: disjoint; "
             f"level 1 sees {config.pretrain_on}")  # fmt: skip
    expected, found = (
        expected_shapes(work.nets.E),
        {k: tuple(v.shape) for k, v in work.nets.E.state_dict().items()},
    )
    run.gate("timm-layout", expected == found, f"{len(found)} tensors with timm's names and shapes")
    if config.hypergrad == "none":
        return
    cycles = config.steps // config.k1
    counts = {k: work.counts[k] for k in ("level1", "level2", "level3")}
    expected_counts = {"level1": config.steps, "level2": cycles * config.k2, "level3": cycles}
    run.gate("cycle", counts == expected_counts, f"optimiser steps {counts}")
    if config.self_checks:
        facts = work.facts
        run.gate(
            "restored",
            facts["restored"] == 1.0,
            "every parameter bit-identical before and after a hypergradient",
        )
        if config.hypergrad != "official":
            cosines = [facts["cosine_first"], facts["cosine_last"]]
            run.gate("hypergradient", min(cosines) > 0.999,
                     f"cosine with double backward {cosines[0]:.6f} in the first cycle, {cosines[1]:.6f} in the last")  # fmt: skip
