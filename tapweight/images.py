"""The molecule domain: a ResNet on drawings, and the five objectives that the official molecule code weighs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared import runs
from shared.processes import noise_names

from . import molecules, objectives, rehearsal
from .language import draw
from .method import masked_bce, squared_error

MEAN, SD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as in the official code
JIGSAWS = 100


class Block(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut."""

    def __init__(self, i: int, o: int, stride: int):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(i, o, 3, stride, 1, bias=False), nn.BatchNorm2d(o)
        self.conv2, self.bn2 = nn.Conv2d(o, o, 3, 1, 1, bias=False), nn.BatchNorm2d(o)
        self.shortcut = nn.Identity()
        if stride != 1 or i != o:
            self.shortcut = nn.Sequential(nn.Conv2d(i, o, 1, stride, bias=False), nn.BatchNorm2d(o))

    def forward(self, x: Tensor) -> Tensor:
        h = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(h + self.shortcut(x))


class ResNet18(nn.Module):
    """ResNet-18 without its classifier: (B, 3, H, H) -> (B, 8 * width); width 64 in the paper."""

    def __init__(self, width: int = 64):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width)
        widths = [width, width, 2 * width, 4 * width, 8 * width]
        self.blocks = nn.Sequential(
            *(Block(widths[k] if j == 0 else widths[k + 1], widths[k + 1], 2 if j == 0 and k else 1)
              for k in range(4) for j in range(2))
        )  # fmt: skip
        self.width = widths[-1]

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(F.max_pool2d(F.relu(self.bn(self.conv(x))), 3, 2, 1)).mean((2, 3))


class Images:
    """Data, networks and losses of one run (see `train.Domain`)."""

    def __init__(self, config: Any, device: torch.device, full: bool, say: Any):
        self.seed, self.device, self.eval_batch = config.seed, device, config.eval_batch
        self.size, self.granularities = config.image, tuple(config.clusters)
        self.names = (*(f"MG3C-{k}" for k in self.granularities), "JPP", "MCL")
        with rehearsal.inputs(config.scale):
            self.chemistry = rehearsal.chemistry(config.scale, say)
            self.set = molecules.read(config.task, self.chemistry, say)
            others = (
                [molecules.read(n, self.chemistry, lambda _: None) for n in config.union]
                if full
                else []
            )
        found = self.set
        self.kind, self.outputs = found.kind, found.labels.shape[1]
        self.metric = "auc" if found.kind == "classification" else "rmse"
        self.inner, self.validation, self.test = molecules.scaffold_split(
            [self.chemistry.scaffold(s) for s in found.smiles]
        )
        parts = {"train": self.inner, "validation": self.validation, "test": self.test}
        if empty := [name for name, rows in parts.items() if len(rows) == 0]:
            raise runs.BadInput(
                f"{found.name}: the scaffold split leaves {empty} empty; {len(found.smiles)} rows are too few"
            )
        self.items = {name: found.ids[rows] for name, rows in parts.items()}
        self.pictures = molecules.drawings(found.smiles, self.size, self.chemistry).to(device)
        labels = torch.as_tensor(found.labels)
        known = labels[np.concatenate([self.inner, self.validation])]
        self.mean, self.sd = (
            (known.mean(0), known.std(0)) if self.kind == "regression" else (0.0, 1.0)
        )
        self.labels = ((labels - self.mean) / self.sd).to(device)
        runs.seed_global(0, "resnet", config.width)
        self.encoder: nn.Module = ResNet18(config.width).to(device)
        self.d = self.encoder.width
        if full:
            held_out = {found.smiles[i] for i in self.test}
            pool = sorted({s for m in [found, *others] for s in m.smiles} - held_out)
            self.u = molecules.drawings(pool, self.size, self.chemistry).to(device)
            self.clusters = molecules.clusters(pool, self.granularities, self.chemistry).to(device)
            self.permutations = objectives.permutations(JIGSAWS)
            heads = {
                name: nn.Linear(self.d, int(self.clusters[:, k].max()) + 1)
                for k, name in enumerate(self.names[: len(self.granularities)])
            }
            self.heads = nn.ModuleDict({**heads, "JPP": nn.Linear(self.d, JIGSAWS + 1)})
            for name, head in self.heads.items():
                draw(head, 0, "objective head", name)
            self.heads.to(device)

    @property
    def sizes(self) -> tuple[int, int, int]:
        return len(self.u), len(self.inner), len(self.validation)

    def normalise(self, pictures: Tensor) -> Tensor:
        """uint8 (B, 3, H, H) -> float, ImageNet's mean and standard deviation."""
        mean, sd = (torch.tensor(v, device=self.device)[:, None, None] for v in (MEAN, SD))
        return (pictures.to(self.device).float() / 255 - mean) / sd

    def losses(
        self, encoder: nn.Module, heads: nn.ModuleDict, rows: Tensor, step: int, micro: int
    ) -> list[Tensor]:
        """[MG3C x 3, JPP, MCL] on these drawings of D_u."""
        rows = rows.to(self.device)
        x = self.normalise(self.u[rows])
        features = encoder(x)
        losses = [
            F.cross_entropy(heads[name](features).float(), self.clusters[rows, k])
            for k, name in enumerate(self.names[: len(self.granularities)])
        ]
        classes = objectives.jigsaw_labels(
            len(rows), JIGSAWS + 1, runs.stream(self.seed, "jigsaw", step, micro, *noise_names())
        )
        square = F.interpolate(
            x, size=self.size - self.size % 3, mode="bilinear", align_corners=False
        )
        puzzle = objectives.shuffle_tiles(square, self.permutations[classes])
        losses.append(
            F.cross_entropy(heads["JPP"](encoder(puzzle)).float(), classes.to(self.device))
        )
        hole = max(1, round(16 * self.size / 224))
        holed = objectives.erase(x, hole, runs.stream(self.seed, "hole", step, micro, *noise_names()))
        losses.append(objectives.mask_contrast(features, encoder(holed)))
        return losses

    def head(self, *names: object) -> nn.Module:
        return draw(nn.Linear(self.d, self.outputs), *names).to(self.device)

    def task_loss(self, encoder: nn.Module, head: nn.Module, part: str, rows: Tensor) -> Tensor:
        which = {"train": self.inner, "validation": self.validation}.get(part)
        rows = torch.as_tensor(self._labelled if which is None else which)[rows].to(self.device)
        pictures = self.pictures[rows]
        if part != "validation":
            pictures = self._augmented(pictures)
        out = head(encoder(self.normalise(pictures))).float()
        return (masked_bce if self.kind == "classification" else squared_error)(
            out, self.labels[rows]
        )

    @property
    def _labelled(self) -> np.ndarray:
        return np.concatenate([self.inner, self.validation])

    def _augmented(self, pictures: Tensor) -> Tensor:
        """Flip and rotation by any angle, white where nothing was; from torch's global random state, as dropout is."""
        x = pictures.float() - 255
        angle = 2 * torch.pi * torch.rand(len(x))
        flip = torch.where(torch.rand(len(x)) < 0.5, -1.0, 1.0)
        c, s, zero = angle.cos(), angle.sin(), torch.zeros(len(x))
        turn = torch.stack(
            [torch.stack([c * flip, -s, zero], 1), torch.stack([s * flip, c, zero], 1)], 1
        )
        grid = F.affine_grid(turn.to(x.device), list(x.shape), align_corners=False)
        return F.grid_sample(x, grid, align_corners=False) + 255

    @torch.no_grad()
    def predict(self, encoder: nn.Module, head: nn.Module, part: str) -> dict[str, Any]:
        which = self.test if part == "test" else self.validation
        out = torch.cat(
            [head(encoder(self.normalise(self.pictures[torch.as_tensor(r).to(self.device)]))).float().cpu()
             for r in np.array_split(which, max(1, len(which) // self.eval_batch))]
        )  # fmt: skip
        if self.kind == "regression":
            guess, label = (out * self.sd + self.mean).squeeze(1), self.set.labels[which][:, 0]
        else:
            guess, label = out.sigmoid(), self.set.labels[which]
        return {"id": self.set.ids[which], "label": label, "prediction": guess}

    def export(self, encoder: nn.Module, head: nn.Module, directory: Path) -> None:
        """The ResNet's and the head's weights as safetensors."""
        from safetensors.torch import save_file

        directory.mkdir(parents=True, exist_ok=True)
        for name, module in (("encoder", encoder), ("head", head)):
            save_file(
                {k: v.contiguous().cpu() for k, v in module.state_dict().items()},
                directory / f"{name}.safetensors",
            )
