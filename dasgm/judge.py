"""What a found cell is worth: looked up in a table of ground truth, or trained from scratch on real images."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch

from shared import runs

from . import baselines, darts_space, data, export, nasbench
from .retrain import Recipe, Retraining
from .search import Search, network_settings


def chosen(config: Any, search: Search | None) -> Any:
    """The final cell; for `random` one uniform draw (the table answers for 1,000 of them)."""
    if search is not None:
        return search.cell()
    stream = runs.stream(config.seed, "random cell")
    if config.space == "darts":
        return darts_space.random_genotype(stream)
    cells = nasbench.all_cells(config.nodes, config.exclude_none)
    return cells[baselines.random_cells(range(len(cells)), 1, stream)[0]]


def described(cell: Any) -> str:
    return cell if isinstance(cell, str) else cell.to_json()


def parse(text: str) -> Any:
    return text if text.startswith("|") else darts_space.Genotype.from_json(text)


def skips_of(cell: Any) -> int:
    return nasbench.skips(cell) if isinstance(cell, str) else cell.skips()


def recipe(config: Any) -> Recipe:
    c = config
    return Recipe(c.retrain_epochs, c.retrain_batch, c.retrain_lr, c.retrain_decay, c.retrain_nesterov, c.retrain_weight_decay,
                  c.clip, c.cutout, c.auxiliary, c.drop_path, c.smoothing)  # fmt: skip


def derived(config: Any, problem: data.Problem, cell: Any, classes: int) -> dict[str, Any]:
    """What `export.build` needs to make the derived network: JSON values alone."""
    if config.space == "nasbench":
        return {"space": "nasbench", "cell": cell, "network": network_settings(config, problem)}
    shape = {"channels": config.retrain_channels, "layers": config.retrain_layers, "classes": classes,
             "auxiliary": config.auxiliary > 0, "imagenet": config.retrain_on == "imagenet"}  # fmt: skip
    return {**json.loads(cell.to_json()), "network": shape}


def begin_retraining(
    config: Any, problem: data.Problem, device: torch.device, cell: str | None
) -> Retraining | None:
    if config.judge != "retrain" or not cell:
        return None
    imagenet = data.ImageNet(size=config.image_size) if config.retrain_on == "imagenet" else None
    runs.seed_global(config.seed, "retrain network")
    network = export.build(
        derived(config, problem, parse(cell), imagenet.classes if imagenet else problem.classes)
    )
    return Retraining(
        network, recipe(config), None if imagenet else problem, imagenet, config.seed, device
    )


def retraining_steps(config: Any, problem: data.Problem) -> int:
    if config.retrain_on == "imagenet":
        rows = len(data.ImageNet(size=config.image_size).parts["train"])
    else:
        rows = len(problem.train) + len(problem.validation)
    return config.retrain_epochs * max(1, rows // config.retrain_batch)


def looked_up(
    config: Any, problem: data.Problem, table: data.Table, cells: list[int], early: int | None
) -> dict[str, Any]:
    """Predictions of one cell, or of several that are averaged (`random`).

    digits: one row per test image, `correct` of `_trials` trainings. NAS-Bench-201: the table has no images, one row."""
    numbers = np.array(cells)
    found: dict[str, Any] = {
        "_percentile": np.array(table.percentile(numbers)),
        "_regret": np.array(table.score.max() - table.score[numbers].mean()),
        "_early": np.array(table.score[numbers if early is None else early].mean()),
    }
    if table.correct is None:
        names = {f"_accuracy_{k}": np.array(v[numbers].mean()) for k, v in table.columns.items()}
        return {"id": np.array([0]), **names, **found}
    # thirds of three trainings, summed over the draws, are whole numbers: stored as such
    trials = len({seed for _, seed in data.digits_rows()}) * len(cells)
    correct = np.rint(table.correct[numbers].sum(0) * trials / len(cells)).astype(np.int64)
    return {
        "id": problem.test.ids.numpy(),
        "correct": correct,
        "_trials": np.array(trials),
        **found,
    }
