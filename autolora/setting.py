"""What search and retraining of one seed share: task, network with its head, the two levels, batches, the loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from autolora import data, models, rehearsal
from shared import processes, runs


@dataclass
class Setting:
    device: torch.device
    task: data.Task
    network: models.Network
    train: data.Encoded
    inner: np.ndarray  # rows of D_tr
    held: np.ndarray  # rows of D_val


def prepare(config: Any, run: Any) -> Setting:
    """Read, split, build and encode; equal for all arms of a seed. `config`: train.Config, `run`: runs.Run."""
    device = runs.device(config)
    searching = config.kind == "search"
    with rehearsal.inputs(config.scale):
        task = data.read(
            config.task, runs.stream(config.seed, "items"), config.per_class, config.train_items
        )
    inner, held = data.levels(task, config.level_split, runs.stream(config.seed, "levels"))
    ids = task.train.ids
    more = {} if task.validation is None else {"validation": task.validation.ids}
    run.splits(train_inner=ids[inner], train_outer=ids[held], test=task.test.ids, **more)
    # an exact hypergradient differentiates attention twice, which the fused kernels do not offer
    attention = "eager" if searching and config.hypergradient == "exact" else "sdpa"
    head = runs.stream(config.seed, "head")
    with rehearsal.inputs(config.scale):
        network = models.build(
            config.model, task.kind, task.outputs, head, config.upper_blocks, attention
        )
    pad_to = config.pad_to if searching else 0
    train = data.encode(task, task.train, network, config.max_length, config.upper_blocks, pad_to)
    network.model.to(device).train()
    return Setting(device, task, network, train, inner, held)


class Batches:
    """Rows of step t: the part is reshuffled every epoch from a stream of its own; incomplete batches are left out."""

    def __init__(self, rows: np.ndarray, size: int, seed: int, name: str):
        self.rows, self.size, self.seed, self.name = rows, min(size, len(rows)), seed, name
        self.per_epoch = len(rows) // self.size
        self.epoch, self.order = -1, rows

    def __call__(self, step: int) -> np.ndarray:
        epoch, place = divmod(step, self.per_epoch)
        if epoch != self.epoch:
            generator = runs.stream(self.seed, self.name, epoch)
            self.epoch, self.order = (
                epoch,
                self.rows[torch.randperm(len(self.rows), generator=generator).numpy()],
            )
        return processes.shard(self.order[place * self.size : (place + 1) * self.size])


def task_loss(kind: str, logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy (per item, per first word piece, or of the next token); mean squared error for regression."""
    if kind == "regression":
        return F.mse_loss(logits.squeeze(-1).float(), labels)
    if kind == "generation":
        logits, labels = logits[:, :-1], labels[:, 1:]
    if kind in ("tagging", "generation"):
        logits, labels = logits.flatten(0, 1), labels.flatten()
    return F.cross_entropy(logits.float(), labels, ignore_index=-100, label_smoothing=smoothing)


def draws(seed: int, purpose: str) -> Callable[[str], torch.Generator]:
    """One random stream per map, by its name: a map's A starts alike in every arm."""
    return lambda name: runs.stream(seed, purpose, name)
