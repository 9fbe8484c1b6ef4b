"""What a family of tasks offers to training: data, networks and losses."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from shared import protocol
from tapweight import data, images, language, molecules, planted
from tapweight.config import Config

Part = Literal["train", "validation", "labelled", "test", "spare"]  # D_tr, D_val, both, ...
Predictions = Mapping[str, Tensor | np.ndarray]


class Domain(Protocol):
    """`planted.Planted`, `language.Language` and `images.Images`. rows: places within a part."""

    names: tuple[str, ...]  # of the K objectives
    metric: str  # one of evaluate.KINDS
    items: dict[str, np.ndarray]  # item ids of each part
    device: torch.device
    encoder: nn.Module
    heads: nn.ModuleDict  # of the objectives; job finetune has none

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Of D_u, D_tr and D_val."""

    def losses(self, rows: Tensor, step: int, micro: int) -> list[Tensor]:
        """The K pretraining losses of these rows of D_u; step and micro-batch name the masks."""

    def head(self, *names: object) -> nn.Module:
        """A fresh head of the downstream task, drawn from the stream `names` (seed first)."""

    def task_loss(self, encoder: nn.Module, head: nn.Module, part: Part, rows: Tensor) -> Tensor:
        """L_task on labelled items, a scalar."""

    def batches(self, part: Part) -> Sequence[Tensor]:
        """The part's rows, in batches for scoring."""

    def outputs(self, head: nn.Module, part: Part, rows: Tensor) -> Tensor:
        """What encoder and head say of these items, on the CPU: (B, outputs)."""

    def predictions(self, part: Part, outputs: Tensor) -> Predictions:
        """id, label and prediction of each of the part's items from all their outputs."""


def domain_of(config: Config, device: torch.device, say: Callable[[str], None]) -> Domain:
    if config.task in ("planted", "tiny"):
        return planted.Planted(config.seed, device, config.shuffle_labels)
    if config.task in molecules.SETS:
        return images.Images(config, device, say)
    if config.task in data.TASKS:
        return language.Language(config, device)
    raise protocol.unknown(config.task, (*data.TASKS, *molecules.SETS, "planted"), "task")
