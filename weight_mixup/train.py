"""Train one arm of attention-guided weight mixup on one task with one seed.

    python -m weight_mixup.train --tiny                                            a minute at most, no download
    python -m weight_mixup.train --scale cpu --arm mixup --task documentation --seed 0     see README for expected scores

A run is K searches of T steps (phase 1: W on D_tr, alpha on D_val) and then finetuning on all of D with alpha
frozen (phase 2). Baselines have no search; `length` says whether they are given the method's number of updates or
of gradient evaluations instead of their own. Every score is that of the last step: nothing is selected.
"""

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from shared import runs, vectors

from . import data, evaluate, method, official
from .config import Config
from .phases import ESTIMATORS, PASSES, Training, logits_of, plan

FINETUNE = ("plain", "mixout", "r3f", "r_drop", "child_f", "child_d", "reinit", "dps")


def check(config: Config) -> None:
    """Refuse settings that cannot be meant, before anything is loaded."""
    official.check_accidents(config.official)
    choices = {"search": PASSES, "gates": ("none", "learned", "random"), "length": ("own", "updates", "passes"),
               "finetune": FINETUNE, "mix_form": method.FORMS, "data": data.DATA}  # fmt: skip
    for name, valid in choices.items():
        if getattr(config, name) not in valid:
            raise runs.BadInput(
                f"{name} {getattr(config, name)!r} is unknown; it is one of {', '.join(valid)}"
            )
    if (config.search in ESTIMATORS or config.search == "joint") != (config.gates == "learned"):
        raise runs.BadInput(
            f"search {config.search!r} with gates {config.gates!r}: a search that moves gates learns them"
        )
    if config.sigma < 0:
        raise runs.BadInput(
            f"sigma {config.sigma} is negative; it is the standard deviation of the gates' start"
        )
    if config.export and config.data == "digits":
        raise runs.BadInput(
            "export writes a transformers checkpoint, and the digits network is none; export a text task"
        )
    if config.finetune != "plain" and config.strength <= 0:
        raise runs.BadInput(f"{config.finetune} needs a positive strength, not {config.strength}")


def run(config: Config) -> Path:
    check(config)
    with runs.start(config, __file__) as run:
        if run.finished:
            return run.directory
        device = runs.device(config)
        problem = data.load(config)
        run.splits(**split_ids(problem))
        steps = plan(config, len(problem.train))
        training = Training(config, run, problem, steps, device)

        saved = run.resume()
        start = saved["step"] if saved else 0
        if saved:
            done = start - 1
            training.load(
                saved,
                "search" if done < steps.K * steps.T else "finetune",
                done // steps.T if steps.T else 0,
            )

        for step in run.steps(start, steps.total, training.state):
            if step < steps.K * steps.T:
                k, t = divmod(step, steps.T)
                if t == 0:
                    training.begin_search(k)
                facts = training.search_step(k, t)
                watched = config.gates == "learned" and (
                    t % max(1, steps.T // 4) == 0 or t == steps.T - 1
                )
                run.log(
                    step=step,
                    phase=1,
                    search=k,
                    **facts,
                    **(gate_quantiles(training) if watched else {}),
                )
                if t == steps.T - 1:
                    training.end_search()
            else:
                t = step - steps.K * steps.T
                if t == 0:
                    training.begin_finetune()
                run.log(step=step, phase=2, **training.finetune_step(t))
        finish(config, run, problem, training, device)
    return run.directory


def split_ids(problem: data.Problem) -> dict[str, np.ndarray]:
    """Item ids of the parts that there are; on full GLUE data no training example is left for validation."""
    parts = {"train": problem.train, "validation": problem.validation, "test": problem.test}
    return {name: part.ids for name, part in parts.items() if part is not None}


def gate_quantiles(training: Training) -> dict[str, list[float]]:
    """Quantiles 0, 10, 50, 90, 100 % of all entries of u and v, for the figure over time."""
    entries = torch.cat([a.detach().flatten() for a in training.alpha])
    return {
        "gates": torch.quantile(
            entries, torch.tensor([0, 0.1, 0.5, 0.9, 1.0], device=entries.device)
        ).tolist()
    }


@torch.no_grad()
def outputs(model: torch.nn.Module, items: data.Items, device: torch.device) -> Tensor:
    """Logits of all items (n, classes), evaluation mode, on the CPU."""
    model.eval()
    items = items.to(device)
    return torch.cat(
        [
            logits_of(model, items.take(c)).cpu()
            for c in torch.arange(len(items), device=device).split(100)
        ]
    )


def predictions(items: data.Items, logits: Tensor, metric: str) -> dict[str, np.ndarray]:
    """Rows of predictions.npz: id, label, prediction (a class, or a number for a regression)."""
    guess = logits[:, 0] if logits.shape[1] == 1 else logits.argmax(1)
    return {
        "id": items.ids,
        "label": items.labels.cpu().numpy(),
        "prediction": guess.numpy(),
        "_metric": np.array(metric),
    }


def finish(
    config: Config, run: runs.Run, problem: data.Problem, training: Training, device: torch.device
) -> None:
    """Predictions, the run's gates, the record, and the export if asked for."""
    model, facts = training.model, training.facts
    logits = outputs(model, problem.test, device)
    found = predictions(problem.test, logits, problem.metric)
    validation = {}
    if problem.validation is not None:
        held_out = outputs(model, problem.validation, device)
        validation = evaluate.score(predictions(problem.validation, held_out, problem.metric))
    state = vectors.clone([*training.w.values(), *training.alpha])
    details: dict = {"steps": vars(training.plan)}

    if "restored" in facts:
        run.gate(
            "restored",
            facts["restored"],
            "w bit-identical before and after the first hypergradient",
        )
        details["hypergradient"] = facts[
            "self_check"
        ]  # the estimator beside the exact one, on the first batch
    if training.alpha:
        gates = method.gates_of(model)
        untouched = [torch.equal(gate.W0, training.start_of(name)) for name, gate in gates.items()]
        run.gate(
            "pretrained-untouched",
            all(untouched),
            f"W0 bit-identical in {sum(untouched)} of {len(untouched)} maps",
        )
        low, high = facts["alpha_lowest"], facts["alpha_highest"]
        run.gate(
            "alpha-in-range",
            low >= 0 and high <= 1,
            f"gates between {low:.4f} and {high:.4f} at every step",
        )
        after = training.alpha_sha256()
        run.gate(
            "alpha-frozen",
            after == facts["alpha_sha256"],
            f"phase 2 began with gates {facts['alpha_sha256'][:12]}, ended with {after[:12]}",
        )
        details["gate_statistics"] = method.gate_statistics(model)
        factors = {
            f"{name}.{f}": getattr(gate, f).detach().cpu().numpy()
            for name, gate in gates.items()
            for f in "uv"
        }
        runs.save_arrays(run.directory / "gates.npz", factors)
        method.merge(model)
        change = float((outputs(model, problem.test, device) - logits).abs().max())
        run.gate(
            "merged",
            change < 1e-4,
            f"largest change of a logit when W~ is folded into plain weights: {change:.1e}",
        )

    run.predictions(**found)
    if config.export:
        write_export(config, problem, run.directory / "export")
    run.finish(
        metrics={
            **evaluate.score(found),
            "epochs_worth": training.evaluations / math.ceil(len(problem.train) / config.batch),
        },
        validation=validation,
        state=state,
        gradient_evaluations=training.evaluations,
        selection="last",
        chosen_step=training.plan.total,
        exports=["export"] if config.export else [],
        **details,
    )


def write_export(config: Config, problem: data.Problem, directory: Path) -> None:
    """The merged model as a plain transformers checkpoint: no gate, no W0, the lower blocks back in place."""
    problem.whole(problem.model).cpu().save_pretrained(directory)
    problem.tokenizer.save_pretrained(directory)
    (directory / "README.md").write_text(
        f"# {config.data} classifier\n\n"
        f"Made by arm `{config.arm}` of weight_mixup (arXiv 2403.12918), task `{config.task}`, scale `{config.scale}`, seed "
        f"{config.seed}, {len(problem.train)} training examples.\nBase model: {config.model}; its licence applies to these "
        "weights, and the terms of the data to their use.\nThe mixed weights are folded in: load with "
        "`AutoModelForSequenceClassification.from_pretrained`.\n"
    )


if __name__ == "__main__":
    runs.command_line(Config, run, __doc__, __file__)
