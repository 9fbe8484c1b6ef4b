"""A derived network trained from scratch on real images (D_tr and D_val together), and tested once. No architecture
parameters, no generated images: what the search left behind is a cell, nothing else."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared import cifar, processes, runs

from .data import ImageNet, Images, Problem, batch


@dataclass(frozen=True)
class Recipe:
    """How a derived network is trained; DARTS' values for CIFAR unless said otherwise (specification, section 6)."""

    epochs: int = 600
    batch: int = 96
    lr: float = 0.025
    decay: float = 0.0  # factor of the rate per epoch; 0: cosine to zero
    nesterov: bool = False
    weight_decay: float = 3e-4
    clip: float = 5.0
    cutout: int = 16  # side of the square; 0: none
    auxiliary: float = 0.4  # weight of the auxiliary head's loss; 0: none
    drop_path: float = 0.2  # at the last epoch, linear from 0
    smoothing: float = 0.0  # of labels


class Retraining:
    """`step(t)` for t in range(steps): one SGD step; `predict()` afterwards. All draws are named by the step."""

    def __init__(self, network: nn.Module, recipe: Recipe, problem: Problem | None, imagenet: ImageNet | None,
                 seed: int, device: torch.device):  # fmt: skip
        self.network, self.recipe, self.seed, self.device = network.to(device), recipe, seed, device
        self.problem, self.imagenet = problem, imagenet
        if problem is not None:
            a, b = problem.train, problem.validation
            self.images = Images(
                torch.cat([a.ids, b.ids]),
                torch.cat([a.pixels, b.pixels]),
                torch.cat([a.labels, b.labels]),
            )
        self.rows = len(self.images) if problem is not None else len(imagenet.parts["train"])  # type: ignore[union-attr]
        self.per_epoch = max(1, self.rows // recipe.batch)
        self.steps = recipe.epochs * self.per_epoch
        self.W = list(network.parameters())
        self.optimiser = torch.optim.SGD(
            self.W,
            recipe.lr,
            momentum=0.9,
            weight_decay=recipe.weight_decay,
            nesterov=recipe.nesterov,
        )

    def rate(self, t: int) -> float:
        """Learning rate of step t, constant within an epoch."""
        epoch, r = t // self.per_epoch, self.recipe
        return r.lr * (
            r.decay**epoch if r.decay else 0.5 * (1 + math.cos(math.pi * epoch / r.epochs))
        )

    def _batch(self, t: int) -> tuple[Tensor, Tensor]:
        rows = processes.shard(batch(self.rows, self.recipe.batch, t, self.seed, "retrain batches"))
        stream = runs.stream(self.seed, "retrain augment", t, *processes.noise_names())
        if self.imagenet is not None:
            images, y = self.imagenet.batch("train", rows, stream)
            return images.to(self.device), y.to(self.device)
        assert self.problem is not None
        rows = rows.to(self.device)
        images = self.problem.view(self.images.pixels[rows], stream)
        if self.recipe.cutout:
            images = cifar.cutout(images, stream, self.recipe.cutout)
        return images, self.images.labels[rows]

    def step(self, t: int) -> Tensor:
        """One step; the loss, detached."""
        x, y = self._batch(t)
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate(t)
        self.network.train()
        if hasattr(self.network, "drop_path"):
            self.network.drop_path = (
                self.recipe.drop_path * (t // self.per_epoch) / self.recipe.epochs
            )
        runs.seed_global(self.seed, "drop path", t)
        out = self.network(x)
        logits, extra = out if isinstance(out, tuple) else (out, None)
        loss = F.cross_entropy(logits, y, label_smoothing=self.recipe.smoothing)
        if extra is not None:
            loss = loss + self.recipe.auxiliary * F.cross_entropy(
                extra, y, label_smoothing=self.recipe.smoothing
            )
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        processes.mean_gradients(self.W)
        torch.nn.utils.clip_grad_norm_(self.W, self.recipe.clip)
        self.optimiser.step()
        return loss.detach()

    @torch.no_grad()
    def predict(self) -> dict[str, Tensor]:
        """id, label, prediction of every test item; ImageNet: also top5, whether the label is among the best five."""
        self.network.eval()
        found: dict[str, list[Tensor]] = {"label": [], "prediction": [], "top5": []}
        count = (
            len(self.problem.test) if self.problem is not None else len(self.imagenet.parts["val"])
        )  # type: ignore[union-attr]
        for rows in torch.arange(count).split(256):
            if self.imagenet is not None:
                x, y = self.imagenet.batch("val", rows, None)
            else:
                assert self.problem is not None
                rows = rows.to(self.device)
                x, y = (
                    self.problem.normalise(self.problem.test.pixels[rows]),
                    self.problem.test.labels[rows],
                )
            logits = self.network(x.to(self.device)).cpu()
            found["label"].append(y.cpu())
            found["prediction"].append(logits.argmax(1))
            best = logits.topk(min(5, logits.shape[1]), dim=1).indices
            found["top5"].append((best == y.cpu()[:, None]).any(1))
        merged = {k: torch.cat(v) for k, v in found.items()}
        if self.imagenet is None:
            del merged["top5"]
        ids = self.problem.test.ids if self.problem is not None else torch.arange(count)
        return {"id": ids, **merged}

    def state(self) -> dict[str, Any]:
        return {"network": self.network.state_dict(), "optimiser": self.optimiser.state_dict()}

    def load(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.optimiser.load_state_dict(state["optimiser"])


def train_fully(
    make: Callable[[], nn.Module], recipe: Recipe, problem: Problem, seed: int
) -> dict[str, Tensor]:
    """A whole training in one call, for the truth table."""
    runs.seed_global(seed, "retrain network")
    training = Retraining(make(), recipe, problem, None, seed, torch.device("cpu"))
    for t in range(training.steps):
        training.step(t)
    return training.predict()
