"""What a run says of itself: its mechanical checks, predictions, record and export."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from shared import runs, vectors
from shared.hypergrad import Hypergradient, self_check
from shared.runs import Parts, Run

from . import data, evaluate, gates, method
from .config import Config
from .data import Items, Problem
from .gates import Network
from .method import Levels, Loss


def rows(items: Items, logits: Tensor, metric: str) -> dict[str, np.ndarray]:
    """predictions.npz: id, label, prediction (a class, or a number for a regression)."""
    guess = logits[:, 0] if logits.shape[1] == 1 else logits.argmax(1)
    labels = items.labels.cpu().numpy()
    return {
        "id": items.ids,
        "label": labels,
        "prediction": guess.numpy(),
        "_metric": np.array(metric),
    }


@torch.no_grad()
def predict(run: Run, model: nn.Module, device: torch.device, name: str, items: Items) -> Tensor:
    """Logits of all items, (n, classes), on the CPU: a phase of its own."""
    model.eval()
    parts, logits = torch.arange(len(items)).split(100), list[Tensor]()
    for i in run.phase(name, len(parts), Parts(logits=logits)):
        logits.append(data.logits_of(model, items.take(parts[i]).to(device)).cpu())
    return torch.cat(logits)


def check_estimator(
    levels: Levels, upper: Loss, lower: Loss, xi: float, estimator: str
) -> dict[str, Any]:
    """The first hypergradient: is w restored bit for bit, and how near is the exact one?"""
    w, alpha, chosen = levels.w, levels.alpha, method.ESTIMATORS[estimator]
    before = vectors.clone(w)
    method.hypergradient(upper, lower, w, alpha, xi, chosen)
    restored = all(torch.equal(a, b) for a, b in zip(before, w))
    exact = self_check(upper, lower, w, alpha, xi, chosen, tolerance=math.inf)
    return {"restored": restored, "self_check": exact}


def parts_of(g: Hypergradient) -> dict[str, float]:
    """Norms of the two terms of Eq. 5 and the cosine of the angle between them."""
    return {
        "direct": vectors.norm(g.direct),
        "implicit": vectors.norm(g.implicit),
        "cosine": vectors.cosine(g.direct, g.implicit),
    }


def check_gates(run: Run, network: Network, frozen_sha256: str) -> dict[str, Any]:
    """The run's mechanical checks of its gates, before these are folded away.

    frozen_sha256: of alpha as phase 2 began. Returns details for the record."""
    maps, check = gates.gates_of(network.model), network.check
    details: dict[str, Any] = {"gate_statistics": gates.statistics(network.model)}
    if check:
        what = "w bit-identical before and after the first hypergradient"
        run.gate("restored", check["restored"], what)
        details["hypergradient"] = check["self_check"]
    start = dict(zip(network.w, network.start))
    same = [torch.equal(gate.W0, start[f"{name}.weight"]) for name, gate in maps.items()]
    what = f"W0 bit-identical in {sum(same)} of {len(same)} maps"
    run.gate("pretrained-untouched", all(same), what)
    low, high = network.counts["alpha_lowest"], network.counts["alpha_highest"]
    what = f"gates between {low:.4f} and {high:.4f} at every step"
    run.gate("alpha-in-range", low >= 0 and high <= 1, what)
    after = runs.state_sha256(network.alpha)
    what = f"phase 2 began with gates {frozen_sha256[:12]}, ended with {after[:12]}"
    run.gate("alpha-frozen", after == frozen_sha256, what)
    factors = {f"{name}.{f}": getattr(gate, f) for name, gate in maps.items() for f in "uv"}
    arrays = {name: factor.detach().cpu().numpy() for name, factor in factors.items()}
    runs.save_arrays(run.directory / "gates.npz", arrays)
    return details


def check_merged(run: Run, before: Tensor, after: Tensor) -> None:
    change = float((after - before).abs().max())
    what = f"largest change of a logit when W~ is folded into plain weights: {change:.1e}"
    run.gate("merged", change < 1e-4, what)


def finish(
    config: Config,
    run: Run,
    problem: Problem,
    network: Network,
    logits: Tensor,
    held_out: Tensor | None,
    state: list[Tensor],
    steps: dict[str, int],
    details: dict[str, Any],
) -> None:
    """Predictions, the export if asked for, and the record."""
    predictions = rows(problem.test, logits, problem.metric)
    run.predictions(**predictions)
    validation = {}
    if problem.validation is not None and held_out is not None:
        validation = evaluate.score(rows(problem.validation, held_out, problem.metric))
    if config.export:
        export(config, run, problem)
    evaluations = network.counts["evaluations"]
    per_epoch = math.ceil(len(problem.train) / config.batch)
    run.finish(
        metrics=evaluate.score(predictions) | {"epochs_worth": evaluations / per_epoch},
        validation=validation,
        state=state,
        gradient_evaluations=int(evaluations),
        chosen_step=steps["K"] * steps["T"] + steps["finetune"],
        exports=["export"] if config.export else [],
        steps=steps,
        **details,
    )


def export(config: Config, run: Run, problem: Problem) -> None:
    """The merged model as a plain transformers checkpoint: no gate, no W0, all blocks in place."""
    assert problem.tokenizer is not None, "Config refuses the export of digits"
    directory = run.directory / "export"
    problem.whole(problem.model).cpu().save_pretrained(directory)  # type: ignore[operator]
    problem.tokenizer.save_pretrained(directory)
    made_by = f"task `{config.task}`, scale `{config.scale}`, seed {config.seed}"
    (directory / "README.md").write_text(
        f"# {config.data} classifier\n\n"
        f"Made by arm `{config.arm}` of weight_mixup (arXiv 2403.12918), {made_by}, "
        f"{len(problem.train)} training examples.\n"
        f"Base model: {config.model}; its licence applies to these weights, and the terms of the "
        "data to their use.\nThe mixed weights are folded in: load with "
        "`AutoModelForSequenceClassification.from_pretrained`.\n",
        encoding="utf-8",
    )
