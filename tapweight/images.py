"""The molecule domain: a ResNet on drawings, and the five objectives of the official code."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared import runs
from shared.processes import noise_names
from tapweight import encoders, molecules, objectives, rehearsal
from tapweight.config import Config

MEAN, SD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as in the official code
JIGSAWS = 100
SCORED_AT_ONCE = 100  # drawings; changes no score


class Block(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut."""

    def __init__(self, i: int, o: int, stride: int):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(i, o, 3, stride, 1, bias=False), nn.BatchNorm2d(o)
        self.conv2, self.bn2 = nn.Conv2d(o, o, 3, 1, 1, bias=False), nn.BatchNorm2d(o)
        self.shortcut: nn.Module = nn.Identity()
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
        widths = [
            width,
            width,
            width,
            2 * width,
            2 * width,
            4 * width,
            4 * width,
            8 * width,
            8 * width,
        ]
        strides = [1, 1, 2, 1, 2, 1, 2, 1]
        self.blocks = nn.Sequential(*map(Block, widths, widths[1:], strides))
        self.width = widths[-1]

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(F.max_pool2d(F.relu(self.bn(self.conv(x))), 3, 2, 1)).mean((2, 3))


class Images:
    """Data, networks and losses of one run (see `domain.Domain`)."""

    def __init__(self, config: Config, device: torch.device, say: Callable[[str], None]):
        self.seed, self.device, self.size = config.seed, device, config.image
        self.clustered = tuple(f"MG3C-{k}" for k in config.clusters)
        self.names: tuple[str, ...] = (*self.clustered, "JPP", "MCL")
        with rehearsal.inputs(config.scale):
            self.chemistry = rehearsal.chemistry(config.scale, say)
            self.set = molecules.read(config.task, self.chemistry, say)
            others = config.union if config.job != "finetune" else ()
            pool = [molecules.read(name, self.chemistry, lambda _: None) for name in others]
        self.kind = self.set.kind
        self.metric = "auc" if self.kind == "classification" else "rmse"
        self.parts = self._split()
        self.items = {
            part: self.set.ids[self.parts[part]] for part in ("train", "validation", "test")
        }
        self.pictures = self._drawn(self.set.smiles)
        labels = torch.as_tensor(self.set.labels)
        of_levels = labels[self.parts["labelled"]]
        self.mean, self.sd = torch.tensor(0.0), torch.tensor(1.0)
        if self.kind == "regression":
            self.mean, self.sd = of_levels.mean(0), of_levels.std(0)
        self.labels = ((labels - self.mean) / self.sd).to(device)
        runs.seed_global(0, "resnet", config.width)
        network = ResNet18(config.width)
        self.encoder: nn.Module = network.to(device)
        self.d = network.width
        if config.job != "finetune":
            self._prepare_unlabelled(pool, config.clusters)

    def _split(self) -> dict[str, np.ndarray]:
        scaffolds = [self.chemistry.scaffold(s) for s in self.set.smiles]
        parts = dict(zip(("train", "validation", "test"), molecules.scaffold_split(scaffolds)))
        if empty := [name for name, rows in parts.items() if len(rows) == 0]:
            few = f"{len(self.set.smiles)} rows are too few"
            raise runs.BadInput(f"{self.set.name}: the scaffold split leaves {empty} empty; {few}")
        return parts | {"labelled": np.concatenate([parts["train"], parts["validation"]])}

    def _drawn(self, smiles: Sequence[str]) -> Tensor:
        return molecules.drawings(smiles, self.size, self.chemistry).to(self.device)

    def _prepare_unlabelled(
        self, others: Sequence[molecules.Molecules], granularities: Sequence[int]
    ) -> None:
        """D_u: drawings and clusters of all sets' molecules but the task's test molecules."""
        held_out = {self.set.smiles[i] for i in self.parts["test"]}
        pool = sorted({s for part in [self.set, *others] for s in part.smiles} - held_out)
        self.u = self._drawn(pool)
        self.clusters = molecules.clusters(pool, granularities, self.chemistry).to(self.device)
        self.permutations = objectives.permutations(JIGSAWS)
        heads: dict[str, nn.Module] = {}
        for k, name in enumerate(self.clustered):
            heads[name] = nn.Linear(self.d, int(self.clusters[:, k].max()) + 1)
        heads["JPP"] = nn.Linear(self.d, JIGSAWS + 1)
        self.heads = encoders.draw_each(heads).to(self.device)

    @property
    def sizes(self) -> tuple[int, int, int]:
        return len(self.u), len(self.parts["train"]), len(self.parts["validation"])

    def normalised(self, pictures: Tensor) -> Tensor:
        """uint8 (B, 3, H, H) -> float, ImageNet's mean and standard deviation."""
        mean, sd = (torch.tensor(v, device=self.device)[:, None, None] for v in (MEAN, SD))
        return (pictures.to(self.device).float() / 255 - mean) / sd

    def losses(self, rows: Tensor, step: int, micro: int) -> list[Tensor]:
        """[MG3C x 3, JPP, MCL] on these drawings of D_u."""
        encoder, rows, place = self.encoder, rows.to(self.device), (step, micro, *noise_names())
        x = self.normalised(self.u[rows])
        features = encoder(x)
        losses = [
            F.cross_entropy(self.heads[name](features).float(), self.clusters[rows, k])
            for k, name in enumerate(self.clustered)
        ]
        g = runs.stream(self.seed, "jigsaw", *place)
        classes = objectives.jigsaw_labels(len(rows), JIGSAWS + 1, g)
        size = self.size - self.size % 3
        square = F.interpolate(x, size=size, mode="bilinear", align_corners=False)
        puzzle = objectives.shuffle_tiles(square, self.permutations[classes])
        logits = self.heads["JPP"](encoder(puzzle)).float()
        losses.append(F.cross_entropy(logits, classes.to(self.device)))
        hole = max(1, round(16 * self.size / 224))
        with_hole = objectives.erase(x, hole, runs.stream(self.seed, "hole", *place))
        return [*losses, objectives.mask_contrast(features, encoder(with_hole))]

    def head(self, *names: object) -> nn.Module:
        outputs = self.set.labels.shape[1]
        return encoders.draw(nn.Linear(self.d, outputs), *names).to(self.device)

    def task_loss(self, encoder: nn.Module, head: nn.Module, part: str, rows: Tensor) -> Tensor:
        rows = torch.as_tensor(self.parts[part])[rows].to(self.device)
        pictures = self.pictures[rows]
        if part != "validation":
            pictures = augmented(pictures)
        out = head(encoder(self.normalised(pictures))).float()
        loss = objectives.masked_bce if self.kind == "classification" else objectives.squared_error
        return loss(out, self.labels[rows])

    def batches(self, part: str) -> Sequence[Tensor]:
        n = len(self.parts[part])
        return torch.arange(n).tensor_split(max(1, n // SCORED_AT_ONCE))

    def outputs(self, head: nn.Module, part: str, rows: Tensor) -> Tensor:
        pictures = self.pictures[torch.as_tensor(self.parts[part])[rows].to(self.device)]
        return head(self.encoder(self.normalised(pictures))).float().cpu()

    def predictions(self, part: str, outputs: Tensor) -> dict[str, Tensor | np.ndarray]:
        rows = self.parts[part]
        label, guess = self.set.labels[rows], outputs.sigmoid()
        if self.kind == "regression":
            label, guess = label[:, 0], (outputs * self.sd + self.mean).squeeze(1)
        return {"id": self.set.ids[rows], "label": label, "prediction": guess}

    def export(self, head: nn.Module, directory: Path) -> None:
        """The ResNet's and the head's weights as safetensors."""
        from safetensors.torch import save_file

        directory.mkdir(parents=True, exist_ok=True)
        for name, module in (("encoder", self.encoder), ("head", head)):
            state = {k: v.contiguous().cpu() for k, v in module.state_dict().items()}
            save_file(state, directory / f"{name}.safetensors")


def augmented(pictures: Tensor) -> Tensor:
    """Flip and rotation by any angle, white where nothing was; drawn from torch's global random
    state, as dropout is. (B, 3, H, H)"""
    x = pictures.float() - 255
    angle = 2 * torch.pi * torch.rand(len(x))
    flip = torch.where(torch.rand(len(x)) < 0.5, -1.0, 1.0)
    c, s, zero = angle.cos(), angle.sin(), torch.zeros(len(x))
    first, second = torch.stack([c * flip, -s, zero], 1), torch.stack([s * flip, c, zero], 1)
    turn = torch.stack([first, second], 1)
    grid = F.affine_grid(turn.to(x.device), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, align_corners=False) + 255
