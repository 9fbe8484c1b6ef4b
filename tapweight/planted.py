"""Four objectives on handwritten digits, the second of which is planted to be the useful one.

(docs/papers/tapweight.md, section 9, A2)

    reconstruction   of half-masked images, times 20
    half-noise       the true labels, half of them replaced at random      <- aligned with the task
    shifted          the true labels plus one
    junk             random labels

All classifications, the downstream one included, share one fixed orthonormal readout (times 2):
with heads of their own the encoder gradients of different tasks would hardly align. 60 labelled,
100 validation and 700 unlabelled images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared import bundled, runs
from shared.processes import noise_names

NAMES = ("reconstruction", "half-noise", "shifted", "junk")
ALIGNED = 1
LABELLED, VALIDATION, UNLABELLED = 60, 100, 700


class Encoder(nn.Module):
    """MLP 64-128-32."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 32), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Planted:
    """Data, networks and losses of one run (see `domain.Domain`)."""

    names: tuple[str, ...] = NAMES
    metric = "accuracy"

    def __init__(self, seed: int, device: torch.device, shuffle_labels: bool = False):
        images, labels = bundled.digits()
        self.x, self.y = torch.as_tensor(images).to(device), torch.as_tensor(labels).to(device)
        self.seed, self.device = seed, device
        self.parts = deal(seed, len(self.y))
        self.level_y = self.y  # the labels that Levels II and III are shown
        if shuffle_labels:
            for part in ("train", "validation"):
                self.level_y = shuffled(self.level_y, self.parts[part], seed)
        self.items = {part: self.parts[part].numpy() for part in ("train", "validation", "test")}
        self.items["unlabelled"] = self.parts["unlabelled"].numpy()
        self.targets = [target.to(device) for target in objective_labels(seed, self.y.cpu())]
        runs.seed_global(seed, "encoder")
        self.encoder: nn.Module = Encoder().to(device)
        self.heads = nn.ModuleDict({"decoder": nn.Linear(32, 64)}).to(device)
        basis = torch.linalg.qr(torch.randn(32, 10, generator=runs.stream(seed, "readout")))[0]
        self.readout = 2 * basis.to(device)

    @property
    def sizes(self) -> tuple[int, int, int]:
        return UNLABELLED, LABELLED, VALIDATION

    def losses(self, rows: Tensor, step: int, micro: int) -> list[Tensor]:
        """The four pretraining losses on these rows of the unlabelled images."""
        items = self.parts["unlabelled"][rows]
        x = self.x[items]
        pixels = runs.stream(self.seed, "pixels", step, micro, *noise_names())
        shown = torch.rand(x.shape, generator=pixels).to(x.device) < 0.5
        reconstruction = 20 * F.mse_loss(self.heads["decoder"](self.encoder(x * shown)), x)
        logits = self.encoder(x) @ self.readout
        return [reconstruction, *(F.cross_entropy(logits, t[items]) for t in self.targets)]

    def head(self, *names: object) -> nn.Module:
        return nn.Identity()  # the readout is fixed and shared

    def task_loss(self, encoder: nn.Module, head: nn.Module, part: str, rows: Tensor) -> Tensor:
        items = self.parts[part][rows]
        y = self.y if part == "labelled" else self.level_y
        return F.cross_entropy(head(encoder(self.x[items])) @ self.readout, y[items])

    def batches(self, part: str) -> Sequence[Tensor]:
        return [torch.arange(len(self.parts[part]))]

    def outputs(self, head: nn.Module, part: str, rows: Tensor) -> Tensor:
        return (head(self.encoder(self.x[self.parts[part][rows]])) @ self.readout).cpu()

    def predictions(self, part: str, outputs: Tensor) -> dict[str, Tensor]:
        items = self.parts[part]
        return {"id": items, "label": self.y[items].cpu(), "prediction": outputs.argmax(1)}


def deal(seed: int, n: int) -> dict[str, Tensor]:
    """Image numbers of each part. Test items are the same for all seeds, the rest is dealt out."""
    fixed = torch.randperm(n, generator=runs.stream(0, "planted", "test"))
    used = LABELLED + VALIDATION + UNLABELLED
    rest = fixed[:used][torch.randperm(used, generator=runs.stream(seed, "split"))]
    train, validation, unlabelled = rest.split([LABELLED, VALIDATION, UNLABELLED])
    labelled, test = torch.cat([train, validation]), fixed[used:].sort().values
    parts = {"train": train, "validation": validation, "labelled": labelled, "test": test}
    return {**parts, "unlabelled": unlabelled}


def shuffled(y: Tensor, items: Tensor, seed: int) -> Tensor:
    """Labels of which those of `items` have changed places among themselves. y: (n,)"""
    order = torch.randperm(len(items), generator=runs.stream(seed, "shuffled labels"))
    y = y.clone()
    y[items] = y[items[order]]
    return y


def objective_labels(seed: int, y: Tensor) -> list[Tensor]:
    """Targets of half-noise, shifted and junk for all images, (n,) each. y: (n,)"""
    g, n = runs.stream(seed, "labels"), len(y)
    replaced = torch.rand(n, generator=g) < 0.5
    noisy = torch.where(replaced, torch.randint(10, (n,), generator=g), y)
    return [noisy, (y + 1) % 10, torch.randint(10, (n,), generator=g)]
