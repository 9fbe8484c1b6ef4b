"""Search a cell with one arm on one task with one seed, and say how good the cell is.

    python -m dasgm.train --tiny                                            under a minute, no download
    python -m dasgm.train --scale cpu --arm joint --task digits --seed 0    a cell of 125, about 15 CPU seconds; README

No number of the DASGM paper could be read, so there is none to reach: on digits a uniformly drawn connected cell scores
about 96 % and the best 99 %; on NAS-Bench-201 / CIFAR-10 (one GPU, minutes) a collapsed DARTS 54.3, the median cell 90.8,
the best 94.4 %. Comments on fields name their source: [abstract] of the paper, [DARTS], [P-DARTS], [PC-DARTS], [NB201] the
public code of these methods, [decided] by this project because nothing was read.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from shared import runs

from . import baselines, data, evaluate, export, generators, judge, nasbench, warmstart
from .config import Config
from .retrain import Retraining
from .search import GENERATED, VARIANTS, Search

NOTICE = "note: no number of the DASGM paper (arXiv 2112.00171) could be read; only its abstract is followed"


CHOICES = {
    "data": data.NAMES, "variant": VARIANTS, "labels": ("own", "permuted"), "omega_from": ("validation", "train"),
    "gan_data": ("train", "trainval"), "split": ("stratified", "darts"), "space": ("nasbench", "darts"),
    "base": ("darts", "pdarts", "pcdarts"), "order": (1, 2), "estimator": ("finite_difference", "exact"),
    "gan": generators.KINDS, "judge": ("table", "retrain"), "retrain_on": ("own", "imagenet"),
}  # fmt: skip


def check(config: Config) -> None:
    """Refuse settings that cannot be meant, before anything is loaded."""
    for name, valid in CHOICES.items():
        if getattr(config, name) not in valid:
            raise runs.BadInput(
                f"{name} {getattr(config, name)!r} is unknown; it is one of {', '.join(map(str, valid))}"
            )
    if not 0 <= config.lam <= 1:
        raise runs.BadInput(
            f"lam {config.lam} is outside [0, 1]: it is the share of the generated loss in level 3"
        )
    if not 0 <= config.eta <= 0.1:
        raise runs.BadInput(
            f"eta {config.eta} is outside [0, 0.1]; above, generated images leave their class"
        )
    if config.variant == "adversarial" and config.labels == "permuted":
        raise runs.BadInput(
            "adversarial with permuted labels: the generator would hunt for noise; use another variant"
        )
    if (config.base == "pcdarts") != (config.partial > 1):
        raise runs.BadInput(
            f"base {config.base!r} with partial {config.partial}: partial channels are what makes pcdarts"
        )
    if config.space == "nasbench" and config.base != "darts":
        raise runs.BadInput(f"base {config.base!r} needs space darts")
    if config.judge == "table" and config.space != "nasbench":
        raise runs.BadInput("there is no table of the darts space; use --judge retrain")
    if config.variant in GENERATED and config.lam > 0 and not config.uses:
        raise runs.BadInput(
            f"variant {config.variant!r} needs a generator: give --uses.generator DIR, or an arm that uses it"
        )
    if config.gan == "mlp" and config.data != "digits":
        raise runs.BadInput(f"generator mlp is for digits; {config.data} needs residual or dcgan")


def run(config: Config) -> Path:
    check(config)
    with runs.start(config, __file__) as run:
        if run.finished:
            return run.directory
        run.say(NOTICE)
        device = runs.device(config)
        with data.made_up(config.scale == "rehearsal", config.n):
            problem = data.load(config.data, config.seed, config.split, config.n, device)
            run.splits(
                train=problem.train.ids, validation=problem.validation.ids, test=problem.test.ids
            )
            if config.variant == "generator":
                warmstart.train_generator(config, run, problem, device)
            else:
                find_cell(config, run, problem, device)
    return run.directory


# --- a search, and what its cell is worth ---------------------------------------------------------------------------------


def find_cell(config: Config, run: runs.Run, problem: data.Problem, device: torch.device) -> None:
    gan, reference = None, None
    if config.variant in GENERATED and config.lam > 0:
        (used,) = config.uses.values()
        found = runs.unpack((Path(used) / "generator.pt").read_bytes(), f"{used}/generator.pt")
        gan = warmstart.new_gan(config, problem, device)
        gan.load(found["gan"])
        reference = generators.reference_classifier(problem.shape[0], problem.classes).to(device)
        reference.load_state_dict(found["reference"])
    search = Search(config, problem, device, gan) if config.variant != "random" else None
    searching = search.steps if search else 0
    table = data.table(config.data) if config.judge == "table" else None

    saved = run.resume()
    start = saved["step"] if saved else 0
    retraining = judge.begin_retraining(config, problem, device, saved and saved["cell"])
    if saved:
        if search:
            search.load(saved["search"])
        if retraining:
            retraining.load(saved["retraining"])

    def state() -> dict[str, Any]:
        return {
            "search": search.state() if search else None,
            "cell": judge.described(cell) if retraining else None,
            "retraining": retraining.state() if retraining else None,
        }

    cell: Any = judge.parse(saved["cell"]) if saved and saved["cell"] else None
    total = searching + (
        judge.retraining_steps(config, problem) if config.judge == "retrain" else 0
    )
    quarter = max(1, search.per_epoch * (config.epochs // 4)) if search else 1
    for step in run.steps(start, total, state):
        if search and step < searching:
            facts = search.step(step)
            if search.history and search.history[-1]["step"] == step:
                facts |= search.history[-1]
            if reference is not None and (step + 1) % quarter == 0 and config.variant != "static":
                facts["fidelity"] = keep_fidelity(config, run, problem, gan, reference, step)
            run.log(**{"step": step, **facts})
        else:
            if retraining is None:
                cell = judge.chosen(config, search)
                retraining = judge.begin_retraining(config, problem, device, judge.described(cell))
            loss = retraining.step(step - searching)
            run.finite(loss, level="retraining", step=step)
            if (step - searching) % 100 == 0:
                run.log(step=step, retraining_loss=float(loss))
    cell = cell or judge.chosen(config, search)
    conclude(config, run, problem, search, retraining, table, cell)


def keep_fidelity(
    config: Config, run: runs.Run, problem: data.Problem, gan: Any, reference: Any, step: int
) -> float:
    """The gate stays active while theta moves (section 8)."""
    value = warmstart.label_fidelity(config, problem, gan, reference, ("search", step), 500)
    if config.fidelity_gate and (warning := generators.fidelity_gate(value, problem.classes)):
        run.say(f"warning: step {step}: {warning}")
    return value


def conclude(config: Config, run: runs.Run, problem: data.Problem, search: Search | None, retraining: Retraining | None,
             table: data.Table | None, cell: Any) -> None:  # fmt: skip
    """Gates, predictions, export, record. What the table or the test images say of the cell is looked at here, after every choice."""
    classes = retraining.network.head.out_features if retraining else problem.classes
    draws: list[int] = []
    state: list[torch.Tensor] = []
    validation: dict[str, float] = {}
    counts: dict[str, int] = {}
    if search is not None:
        counts = search.counts
        state = [*search.A, *search.W]
        validation = {"held_out_accuracy": search.held_out_accuracy()}
        run.gate(
            "levels-apart",
            search.facts.get("levels_apart") == 1.0,
            "each of the first updates moved its own variables alone",
        )
        expected = (
            sum(s.epochs for s in search.stages),
            sum(s.epochs - s.warmup for s in search.stages),
        )
        made = search.counts["weight_steps"], search.counts["architecture_steps"]
        run.gate(
            "budget",
            made == tuple(e * search.per_epoch for e in expected),
            f"{made[0]} weight and {made[1]} architecture steps",
        )
        (run.directory / "cells.json").write_text(
            json.dumps({"final": judge.described(cell), "early": search.early()}, indent=1) + "\n"
        )
    elif table is not None:
        allowed = [table.number(c) for c in nasbench.all_cells(config.nodes, config.exclude_none)]
        draws = baselines.random_cells(allowed, 1000, runs.stream(config.seed, "random cells"))
        state = [torch.tensor(draws)]
    else:
        state = [torch.frombuffer(bytearray(judge.described(cell).encode()), dtype=torch.uint8)]

    names = list(table.cells) if table else []
    skips = np.mean([nasbench.skips(names[d]) for d in draws]) if draws else judge.skips_of(cell)
    if table is not None:
        early = table.number(search.early()) if search is not None else None
        found = judge.looked_up(config, problem, table, draws or [table.number(cell)], early)
    else:
        assert retraining is not None
        found = {k: v.numpy() for k, v in retraining.predict().items()}
        found["_parameters"] = np.array(
            sum(p.numel() for n, p in retraining.network.named_parameters() if "auxiliary" not in n)
        )
        state += list(retraining.network.parameters())
    found["_skips"] = np.array(float(skips))
    run.predictions(**found)
    export.write(
        run.directory / "export",
        judge.derived(config, problem, cell, classes),
        retraining and retraining.network,
        about(config),
    )
    run.finish(
        metrics=evaluate.score(found),
        validation=validation,
        state=state,
        gradient_evaluations=counts.get("gradient_evaluations", 0)
        + (retraining.steps if retraining else 0),
        selection="last",
        chosen_step=search.steps if search else 0,
        exports=["export"],
        cell=judge.described(cell),
        counts=counts,
    )


def about(config: Config) -> str:
    return (
        f"Found by arm `{config.arm}` (variant {config.variant}) of dasgm (after arXiv 2112.00171), task `{config.task}`, scale "
        f"`{config.scale}`, seed {config.seed}. Licence: that of the repository; the terms of the data apply to trained weights."
    )


if __name__ == "__main__":
    runs.command_line(Config, run, __doc__, __file__)
