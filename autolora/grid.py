"""The best of several finished runs by their score on held-out items: a grid of uniform ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from autolora import evaluate
from autolora.config import Config
from shared import protocol, runs
from shared.runs import BadInput, Run


def record(directory: Path) -> dict[str, Any]:
    return protocol.read_record(directory) or {}


def best_of(config: Config) -> tuple[Path, int]:
    """Of the runs used, the one with the best held-out score, and its rank; a tie: the smallest."""
    scores = []
    for directory in map(Path, config.uses.values()):
        used = record(directory)
        if "score" not in used.get("validation", {}):
            remedy = "train it with --score-validation True"
            raise BadInput(f"{directory} has no score on held-out items; {remedy}")
        scores.append((-used["validation"]["score"], int(used["config"]["ranks"]), directory))
    _, rank, directory = min(scores)
    return directory, rank


def keep_best(config: Config, run: Run) -> None:
    """The job `grid`: the best run's predictions are this run's. Costs what the grid cost."""
    directory, rank = best_of(config)
    used = [record(Path(d)) for d in config.uses.values()]
    predictions = runs.load_arrays(directory / "predictions.npz")
    predictions["_cost"] = np.array(sum(r["gradient_evaluations_with_uses"] for r in used))
    # every uniform rank 1..k once
    predictions["_cost_all_ranks"] = np.array(config.k * used[0]["gradient_evaluations"])
    splits = runs.load_arrays(directory / "splits.npz")
    run.splits(**splits)
    run.predictions(**predictions)
    best = record(directory)
    run.finish(
        metrics=evaluate.score(predictions),
        validation=best["validation"],
        state=[torch.tensor(rank), *map(torch.from_numpy, splits.values())],
        selection="validation",
        chosen_step=best["chosen_step"],
        chosen_rank=rank,
    )
