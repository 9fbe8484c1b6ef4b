"""A search on 64 + 64 digits with a cell of three nodes, in pieces and as a run."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from dasgm import data, generators, method, networks, train
from dasgm.config import Config

CPU = torch.device("cpu")
SMALL: dict[str, Any] = {
    "job": "joint",
    "n": 64,
    "seed": 3,
    "nodes": 3,
    "channels": 4,
    "epochs": 1,
    "batch": 32,
    "arch_lr": 2e-2,
    "gan": "mlp",
    "gan_steps": 4,
    "gan_batch": 32,
    "reference_steps": 2,
    "fidelity_gate": False,
}
RETRAIN: dict[str, Any] = {
    "judge": "retrain",
    "retrain_epochs": 1,
    "retrain_batch": 32,
    "retrain_lr": 0.1,
    "cutout": 0,
    "auxiliary": 0.0,
    "drop_path": 0.0,
}


def config(**changes: Any) -> Config:
    return Config(**{**SMALL, **changes})


def problem(c: Config) -> data.Problem:
    return data.load(c.data, c.seed, c.split, c.n)


@dataclass
class Search:
    """What train.search holds, with steps to take by hand."""

    config: Config
    problem: data.Problem = field(init=False)
    f: networks.Supernet = field(init=False)
    gan: generators.GAN | None = field(init=False)
    views: data.Views = field(init=False)
    per_epoch: int = field(init=False)

    def __post_init__(self) -> None:
        c, p = self.config, problem(self.config)
        self.problem, self.views = p, data.Views(c, p)
        self.gan = generators.GAN(c, p.classes, p.shape, CPU) if c.generated else None
        self.f = networks.new_supernet(c, p, networks.stages(c)[0], None, CPU)
        self.per_epoch = len(p.train) // c.batch

    def begin(self, t: int) -> None:
        networks.begin_step(self.config, self.f, t, t // self.per_epoch)

    def step(self, t: int) -> dict[str, float]:
        self.begin(t)
        return method.cycle(self.f, self.gan, self.views, t)

    def real(self, t: int) -> method.Loss:
        """L_tr of step t."""
        return method.real_loss(self.f, *self.views.training(t))


def search(**changes: Any) -> Search:
    return Search(config(**changes))


def make(tmp_path: Path, name: str, **changes: Any) -> Path:
    """A whole run."""
    return train.run(config(arm=name, task="digits", out=str(tmp_path / name), **changes))


def record(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "record.json").read_text())
