"""Image files (`shared/pictures.py`): ImageNet, and the sets to which an encoder is transferred."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shared import pictures, vectors
from shared.pictures import Pictures

FOLDERS = ("imagenet", "cub", "cars", "inat2019")
FILE_MEAN, FILE_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # the literature's constants


Rows = np.ndarray | Sequence[int]


@dataclass(frozen=True)
class Recipe:
    """How images are shown. Cutout, erasing and RandAugment are drawn, like crops, in training.

    std: of CIFAR, in place of the usual ones."""

    cutout: int = 0
    erasing: float = 0.0
    randaug: bool = False
    std: tuple[float, ...] = ()


PLAIN = Recipe()


class Files:
    """Image files, read when a batch asks for them, by as many threads as the machine has cores."""

    def __init__(self, name: str, size: int, files: Pictures, first_id: int = 0):
        self.name, self.size, self.files = name, size, files
        self.labels = torch.from_numpy(files.labels)
        self.ids = np.arange(first_id, first_id + len(files))
        self.device = torch.device("cpu")
        self._threads: ThreadPoolExecutor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> Files:
        self.device, self.labels = device, self.labels.to(device)
        return self

    def batch(
        self, rows: Rows, recipe: Recipe = PLAIN, generator: torch.Generator | None = None
    ) -> Tensor:
        """(B, 3, size, size) float32. `generator` (CPU) draws crop and flip; else the centre."""
        rows = np.asarray(rows)
        self._threads = self._threads or ThreadPoolExecutor()
        draws: list[Tensor | None] = [None] * len(rows)
        if generator is not None:
            draws = list(torch.rand(len(rows), 5, generator=generator))
        arrays = list(self._threads.map(self._read, rows.tolist(), draws, [recipe] * len(rows)))
        x = torch.from_numpy(np.stack(arrays)).to(self.device).permute(0, 3, 1, 2).float() / 255
        mean, std = (
            torch.tensor(v, device=self.device).view(1, 3, 1, 1) for v in (FILE_MEAN, FILE_STD)
        )
        x = (x - mean) / std
        return erase(x, recipe.erasing, generator) if generator and recipe.erasing else x

    def _read(self, row: int, draw: Tensor | None, recipe: Recipe) -> np.ndarray:
        from PIL import Image

        image = self.files[row]
        out, bicubic = (self.size, self.size), Image.Resampling.BICUBIC
        if draw is None:
            return np.asarray(image.resize(out, bicubic, centre_crop(image.size, self.size)))
        image = image.resize(out, bicubic, resized_crop(image.size, draw))
        if draw[4] < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return np.asarray(_randaug(self.size)(image) if recipe.randaug else image)


def resized_crop(size: tuple[int, int], draw: Tensor) -> tuple[float, float, float, float]:
    """A box of 20 to 100 % of the area and aspect 3/4 to 4/3, shrunk to fit, from 4 numbers."""
    width, height = size
    area = width * height * (0.2 + 0.8 * float(draw[0]))
    ratio = math.exp((2 * float(draw[1]) - 1) * math.log(4 / 3))
    w, h = min(width, math.sqrt(area * ratio)), min(height, math.sqrt(area / ratio))
    left, top = float(draw[2]) * (width - w), float(draw[3]) * (height - h)
    return left, top, left + w, top + h


def centre_crop(size: tuple[int, int], out: int) -> tuple[float, float, float, float]:
    """The central square that remains of an image whose short side becomes out / 0.875."""
    side = 0.875 * min(size)
    left, top = (size[0] - side) / 2, (size[1] - side) / 2
    return left, top, left + side, top + side


def _randaug(size: int) -> Callable[[Any], Any]:
    """RandAugment of magnitude 9 as timm has it.

    It draws from Python's and numpy's generators, in threads: such runs do not repeat exactly."""
    from timm.data.auto_augment import rand_augment_transform

    return rand_augment_transform("rand-m9-mstd0.5-inc1", {"translate_const": int(size * 0.45)})


def erase(x: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    """A rectangle of 2 to 33 % of the area of some images replaced by noise (random erasing)."""
    B, _, H, W = x.shape
    u = torch.rand(B, 5, generator=generator)
    area = H * W * (0.02 + 0.31 * u[:, 1])
    ratio = ((2 * u[:, 2] - 1) * math.log(1 / 0.3)).exp()
    h, w = vectors.root(area * ratio).clamp(1, H), vectors.root(area / ratio).clamp(1, W)
    top, left = u[:, 3] * (H - h), u[:, 4] * (W - w)
    ys, xs = torch.arange(H)[None], torch.arange(W)[None]
    rows = (ys >= top[:, None]) & (ys < (top + h)[:, None])
    columns = (xs >= left[:, None]) & (xs < (left + w)[:, None])
    inside = rows[:, :, None] & columns[:, None] & (u[:, 0] < probability)[:, None, None]
    noise = torch.randn(x.shape, generator=generator).to(x.device)
    return torch.where(inside[:, None].to(x.device), noise, x)


def load(name: str, size: int) -> tuple[Files, Files, int]:
    """Training part, test part, number of classes. ImageNet is tested on its validation images."""
    train, test, classes = pictures.load(name)
    return Files(name, size, train), Files(name, size, test, len(train)), classes
