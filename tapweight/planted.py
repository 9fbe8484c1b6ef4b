"""A2 of the specification: four objectives on handwritten digits, of which the second is planted to be the useful one.

    reconstruction   of half-masked images, times 20
    half-noise       the true labels, half of them replaced at random      <- aligned with the downstream task
    shifted          the true labels plus one
    junk             random labels

All classifications, the downstream one included, share one fixed orthonormal readout (times 2): with heads of their own the
encoder gradients of different tasks would hardly align, as our pilot found. 60 labelled, 100 validation, 700 unlabelled images."""

from __future__ import annotations

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
    """The domain: data, networks and losses of one run (see `train.Domain`)."""

    names = NAMES
    kind, outputs = "classification", 10
    metric = "accuracy"

    def __init__(self, seed: int, device: torch.device):
        images, labels = bundled.digits()
        self.x, self.y = torch.as_tensor(images).to(device), torch.as_tensor(labels).to(device)
        # test items are the same for all seeds; the rest is dealt out by the seed
        fixed = torch.randperm(len(self.y), generator=runs.stream(0, "planted", "test"))
        used = LABELLED + VALIDATION + UNLABELLED
        self.test, rest = fixed[used:].sort().values, fixed[:used]
        rest = rest[torch.randperm(used, generator=runs.stream(seed, "split"))]
        self.tr, self.val, self.u = rest.split([LABELLED, VALIDATION, UNLABELLED])
        self.items = {
            "train": self.tr.numpy(),
            "validation": self.val.numpy(),
            "unlabelled": self.u.numpy(),
        }
        self.items["test"] = self.test.numpy()
        g = runs.stream(seed, "labels")
        n = len(self.y)
        noisy = torch.where(
            torch.rand(n, generator=g) < 0.5, torch.randint(10, (n,), generator=g), self.y.cpu()
        )
        self.targets = [
            t.to(device)
            for t in (noisy, (self.y.cpu() + 1) % 10, torch.randint(10, (n,), generator=g))
        ]
        runs.seed_global(seed, "encoder")
        self.encoder = Encoder().to(device)
        self.heads = nn.ModuleDict({"decoder": nn.Linear(32, 64)}).to(device)
        basis = torch.linalg.qr(torch.randn(32, 10, generator=runs.stream(seed, "readout")))[0]
        self.readout = 2 * basis.to(device)
        self.seed, self.device = seed, device

    @property
    def sizes(self) -> tuple[int, int, int]:
        return len(self.u), len(self.tr), len(self.val)

    def losses(
        self, encoder: nn.Module, heads: nn.Module, rows: Tensor, step: int, micro: int
    ) -> list[Tensor]:
        """The four pretraining losses on these rows of the unlabelled images."""
        items = self.u[rows]
        x = self.x[items]
        kept = (
            torch.rand(x.shape, generator=runs.stream(self.seed, "pixels", step, micro, *noise_names())).to(
                x.device
            )
            < 0.5
        )
        reconstruction = 20 * F.mse_loss(heads["decoder"](encoder(x * kept)), x)
        logits = encoder(x) @ self.readout
        return [reconstruction, *(F.cross_entropy(logits, t[items]) for t in self.targets)]

    def head(self, *names: object) -> nn.Module:
        return nn.Identity()  # the readout is fixed and shared

    def task_loss(self, encoder: nn.Module, head: nn.Module, part: str, rows: Tensor) -> Tensor:
        items = {
            "train": self.tr,
            "validation": self.val,
            "labelled": torch.cat([self.tr, self.val]),
        }[part][rows]
        return F.cross_entropy(head(encoder(self.x[items])) @ self.readout, self.y[items])

    @torch.no_grad()
    def predict(self, encoder: nn.Module, head: nn.Module, part: str) -> dict[str, Tensor]:
        items = {"test": self.test, "validation": self.val}[part]
        guess = (head(encoder(self.x[items])) @ self.readout).argmax(1)
        return {"id": items, "label": self.y[items].cpu(), "prediction": guess.cpu()}
