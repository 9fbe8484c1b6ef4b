"""Pretrain one arm of MLO-MAE on one task with one seed, then finetune its encoder.

    python -m mlo_mae.train --tiny                                                  under a minute, no download
    python -m mlo_mae.train --scale cpu --arm mlo --task digits --seed 0            see README for expected scores

A run is `steps` steps of level 1 (with the other two levels in between where the arm has them), then finetuning from the
pretrained encoder with a fresh head. Every score is that of the last step: nothing is selected on test items.
"""

from __future__ import annotations

import copy
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from shared import runs
from shared.runs import BadInput

from . import analysis, data, official, rehearsal
from .config import Config
from .finetune import Finetuning
from .outcome import finish
from .pretrain import METHODS, SHOW, Pretraining

CHOICES = {
    "mask": ("learned", "random"),
    "weight": ("scores", "one"),
    "hypergrad": ("none", *METHODS),
    "head_path": ("identity", "unrolled", "none"),
    "score_noise": ("none", "gumbel"),
    "pool": ("cls", "mean"),
    "precision": ("fp32", "bf16"),
    "pretrain_on": ("inner", "all"),
    "T_arch": ("mlp", "patchwise"),
}


def check(config: Config) -> None:
    """Refuse settings that cannot be meant, before anything is loaded."""
    for name, valid in CHOICES.items():
        if getattr(config, name) not in valid:
            raise BadInput(
                f"{name} {getattr(config, name)!r} is unknown; it is one of {', '.join(valid)}"
            )
    official.check_accidents(config.official)
    if config.hypergrad != "none" and config.joint_weight:
        raise BadInput(
            "joint_weight trains the encoder on labels; it goes with hypergrad none only"
        )
    if config.hypergrad != "none" and config.mask == "random" and config.weight == "one":
        raise BadInput(
            "a masking network that neither masks nor weighs has gradient zero; set mask or weight"
        )
    if config.steps % config.k1:
        raise BadInput(
            f"steps {config.steps} is not a multiple of k1 {config.k1}: the last cycle would be cut"
        )
    for name in ("steps", "descent_trials", "curve_points", "joint_weight", "uniformity"):
        if getattr(config, name) < 0:
            raise BadInput(f"{name} {getattr(config, name)} is negative")
    if not 0 < config.val_share < 1:
        raise BadInput(f"val_share {config.val_share} must lie between 0 and 1")
    if not config.finetune_labels:
        raise BadInput(
            "finetune_labels is empty; the first entry gives the score, 0 means all labels"
        )


def run(config: Config) -> Path:
    check(config)
    with runs.start(config, __file__) as run:
        if run.finished:
            return run.directory
        device = runs.device(config)
        with rehearsal.inputs(config.scale):
            problem = data.load(config, device)
        images = problem.train
        run.splits(
            inner=images.ids[problem.inner], outer=images.ids[problem.outer], test=problem.test.ids
        )
        work = Pretraining(config, run, problem, device)
        if config.uses:
            load_encoder(work.nets.E, config)
        tunings: list[Finetuning] = []
        found: dict[str, Any] = {}  # predictions so far

        def begin_finetuning() -> Finetuning:
            E = copy.deepcopy(work.nets.E)
            return Finetuning(config, run, problem, E, config.finetune_labels[len(tunings)], device)

        saved = run.resume()
        start = saved["step"] if saved else 0
        if saved:
            work.load(saved["pretraining"])
            found = saved["found"]
            for state in saved["tunings"]:
                tunings.append(begin_finetuning())
                if state:
                    tunings[-1].load(state)

        def save() -> dict[str, Any]:
            states = [
                t.state() if t is tunings[-1] else {} for t in tunings
            ]  # only the last one goes on
            return {"pretraining": work.state(), "tunings": states, "found": found}

        lengths = plan(config, problem)
        total = config.steps + sum(lengths)
        every = max(1, config.steps // 400)
        curve = {int(k) for k in np.linspace(0, config.steps, config.curve_points + 1)[1:]}
        shown = {int(k) for k in np.linspace(0, config.steps, 6)}
        begun = time.process_time()
        for step in run.steps(start, total, save):
            if step < config.steps:
                if step in shown and config.curve_points:
                    work.show(step, problem.test.batch(np.arange(SHOW), data.SHOWN))
                facts = work.step(step)
                if step % every == 0 or step + 1 in curve or step + 1 == config.steps:
                    more = (
                        work.watch() if step % (25 * every) == 0 or step + 1 == config.steps else {}
                    )
                    if step + 1 in curve:
                        seconds = time.process_time() - begun
                        more |= {"curve": curve_point(work, problem), "cpu_seconds": round(seconds, 2),
                                 "evaluations": work.counts["evaluations"]}  # fmt: skip
                    run.log(step=step, phase="pretraining", **facts, **more)
                continue
            k, which = step - config.steps, 0
            while k >= lengths[which]:
                k, which = k - lengths[which], which + 1
            if which == len(tunings):
                tunings.append(begin_finetuning())
            tuning = tunings[which]
            loss = tuning.step(k)
            epoch_over = (k + 1) % tuning.rows.per_epoch == 0
            if epoch_over:
                run.log(step=step, phase=f"finetuning {config.finetune_labels[which]}", loss=loss)
            if "best_epoch" in config.official and which == 0 and epoch_over:
                keep_best(found, tuning, problem)
            if k + 1 == lengths[which]:
                predict(config, found, tuning, problem, which)
        finish(config, run, problem, work, tunings, found)
    return run.directory


def plan(config: Config, problem: data.Problem) -> list[int]:
    """Steps of each finetuning."""
    everything = len(problem.inner) + len(problem.outer)
    sizes = [n or everything for n in config.finetune_labels]
    return [config.finetune_epochs * (n // min(config.finetune_batch, n)) for n in sizes]


def load_encoder(E: torch.nn.Module, config: Config) -> None:
    """Start from the encoder that another run exported (transfer)."""
    from safetensors.torch import load_file

    (directory,) = config.uses.values()
    path = Path(directory) / "export" / "encoder.safetensors"
    if not path.exists():
        raise BadInput(f"{path} is missing; train that run with --export")
    E.load_state_dict(load_file(path))


def curve_point(work: Pretraining, problem: data.Problem) -> float:
    """Accuracy on (at most 2,000 images of) D_val of least squares on features of (at most 5,000 of) D_tr."""
    inner, outer, y = problem.inner[:5000], problem.outer[:2000], problem.train.labels
    E, pool = work.nets.E, work.config.pool
    rows = (analysis.features(E, problem.train, r, pool) for r in (inner, outer))
    train, held = rows
    return analysis.ridge_accuracy(train, y[inner], held, y[outer], problem.classes)


def keep_best(found: dict[str, Any], tuning: Finetuning, problem: data.Problem) -> None:
    """The official habit (row 12): the epoch that is best on the test set."""
    guess = tuning.predict(problem.test, np.arange(len(problem.test)))
    right = (guess == problem.test.labels.cpu()).float().mean().item()
    if right > found.get("best", -1.0):
        found["best"], found["prediction_best_epoch"] = right, guess


def predict(
    config: Config, found: dict[str, Any], tuning: Finetuning, problem: data.Problem, which: int
) -> None:
    n = config.finetune_labels[which]
    guess = tuning.predict(problem.test, np.arange(len(problem.test)))
    found["prediction" if which == 0 else f"prediction_{n}"] = guess
    if n:  # D_val's labels were not used here
        held = tuning.predict(problem.train, problem.outer)
        truth = problem.train.labels.cpu()[torch.as_tensor(problem.outer)]
        found.setdefault("validation", {})[f"accuracy_{n}"] = (held == truth).float().mean().item()


if __name__ == "__main__":
    runs.command_line(Config, run, __doc__, __file__)
