"""Images of every task, cut into levels; batches of them.

digits    scikit-learn's 1,797 images of 8 x 8; 400 test items, the same for every seed
planted   the same digits, each in one quadrant of a 16 x 16 canvas, drawn per image; the other
          three hold pixels shuffled from other digits: same histogram, nothing to recognise
cifar10, cifar100     shared/cifar.py
imagenet, cub, cars, inat2019     folders.py
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from shared import bundled, cifar, glue, runs
from shared.processes import shard

from . import folders
from .config import Config
from .folders import PLAIN, Files, Recipe, Rows

BUNDLED = ("digits", "planted")
TEST_DIGITS = 400
DIGIT_MEAN, DIGIT_STD = 0.3053, 0.3760  # of all pixels, rounded


class Images:
    """Images in memory, on the run's device: `pixels` uint8 (CIFAR), or float and normalised."""

    def __init__(self, name: str, ids: Tensor, pixels: Tensor, labels: Tensor):
        self.name, self.ids, self.pixels, self.labels = name, ids.numpy(), pixels, labels

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device) -> Images:
        self.pixels, self.labels = self.pixels.to(device), self.labels.to(device)
        return self

    def batch(
        self, rows: Rows, recipe: Recipe = PLAIN, generator: torch.Generator | None = None
    ) -> Tensor:
        """(B, C, H, W) float32. `generator` (CPU) draws crop and flip; whole images without it."""
        x = self.pixels[torch.as_tensor(rows, device=self.pixels.device)]
        if self.name in BUNDLED:
            return x
        if generator is not None:
            x = cifar.random_flip(cifar.random_crop(x, generator), generator)
        x = cifar.normalise(x, self.name)
        if recipe.std:
            usual, other = (
                torch.tensor(v, device=x.device).view(1, 3, 1, 1)
                for v in (cifar.STD[self.name], recipe.std)
            )
            x = x * (usual / other)
        if generator is not None and recipe.cutout:
            x = cifar.cutout(x, generator, recipe.cutout)
        return x


class Batch(NamedTuple):
    """x (B, C, H, W), y (B,): this process's share. ids: all items of the batch."""

    x: Tensor
    y: Tensor
    ids: np.ndarray


@dataclass
class Loader:
    """Batch k of a level or of a finetuning; crops come from the stream (seed, *names, k)."""

    images: Images | Files
    order: runs.Batches
    seed: int
    names: tuple[str, ...]
    recipe: Recipe = PLAIN

    def __call__(self, k: int) -> Batch:
        rows = self.order(k)
        x = self.images.batch(rows, self.recipe, runs.stream(self.seed, *self.names, k))
        return Batch(shard(x), shard(labels_of(self.images, rows)), self.images.ids[rows])


def chunks(rows: np.ndarray, size: int) -> list[np.ndarray]:
    """The rows in their order, `size` at a time."""
    return [rows[k : k + size] for k in range(0, len(rows), size)]


def labels_of(images: Images | Files, rows: np.ndarray) -> Tensor:
    return images.labels[torch.as_tensor(rows, device=images.labels.device)]


@dataclass
class Problem:
    """One task of one seed. Rows index `train`.

    inner: D_tr (levels 1 and 2). outer: D_val (level 3). pretrain: images of level 1.
    quadrant: (n,) that of the digit of each test item, on the planted task."""

    name: str
    classes: int
    channels: int
    size: int
    train: Images | Files
    test: Images | Files
    inner: np.ndarray
    outer: np.ndarray
    pretrain: np.ndarray
    quadrant: np.ndarray | None = None

    @property
    def everything(self) -> np.ndarray:
        """Rows of D_tr and D_val."""
        return np.sort(np.concatenate([self.inner, self.outer]))

    def levels(self, size: int, seed: int) -> dict[str, Loader]:
        """Batches of `size` images for the three levels."""
        rows = {"first": self.pretrain, "second": self.inner, "third": self.outer}
        return {
            level: Loader(self.train, runs.Batches(r, size, seed, name), seed, (name, "crop"))
            for (level, r), name in zip(rows.items(), ("level1", "level2", "level3"))
        }


def load(config: Config, device: torch.device) -> Problem:
    """The task `config.data`, its training part cut in two by the seed."""
    name, quadrant = config.data, None
    train: Images | Files
    test: Images | Files
    if name in BUNDLED:
        train, test, quadrant = digits(planted=name == "planted")
        classes, channels, size = 10, 1, train.pixels.shape[-1]
    elif name in cifar.CLASSES:
        parts = cifar.load(name)
        train, test = (
            Images(name, part.ids, part.images, part.labels)
            for part in (parts["train"], parts["test"])
        )
        classes, channels, size = cifar.CLASSES[name], 3, 32
    else:
        train, test, classes = folders.load(name, config.image_size)
        channels, size = 3, config.image_size
    n = len(train)
    if "index_split" in config.official:
        inner, outer = np.split(np.arange(n), [n - round(config.val_share * n)])
    else:
        labels, draw = train.labels.cpu().numpy(), runs.stream(config.seed, "split")
        inner, outer = glue.level_split(labels, [1 - config.val_share, config.val_share], draw)
    pretrain = inner if config.pretrain_on == "inner" else np.arange(n)
    train, test = train.to(device), test.to(device)
    return Problem(name, classes, channels, size, train, test, inner, outer, pretrain, quadrant)


# --- bundled --------------------------------------------------------------------------------------


def digits(planted: bool) -> tuple[Images, Images, np.ndarray | None]:
    """Training part, test part (the same items for every seed), and the quadrant of test items."""
    flat, labels = bundled.digits()
    pixels = torch.from_numpy((flat.reshape(-1, 1, 8, 8) - DIGIT_MEAN) / DIGIT_STD).float()
    quadrant = None
    if planted:
        pixels, quadrant = plant(pixels, runs.stream(0, "planted"))
    share = TEST_DIGITS / len(labels)
    test, train = glue.level_split(labels, [share, 1 - share], runs.stream(0, "test digits"))
    name = "planted" if planted else "digits"
    parts = [
        Images(name, torch.from_numpy(r), pixels[r], torch.from_numpy(labels[r]))
        for r in (train, test)
    ]
    return parts[0], parts[1], None if quadrant is None else quadrant[test]


def plant(pixels: Tensor, generator: torch.Generator) -> tuple[Tensor, np.ndarray]:
    """(n, 1, 8, 8) -> (n, 1, 16, 16) and quadrant (n,) of the digit: 0, 1 above, 2, 3 below.

    A distractor quadrant holds the 64 pixels of another image in random order."""
    n = len(pixels)
    flat = pixels.flatten(1)
    quadrant = torch.randint(4, (n,), generator=generator)
    quarters = []
    for place in range(4):
        other = (torch.arange(n) + torch.randint(1, n, (n,), generator=generator)) % n
        order = torch.rand(n, 64, generator=generator).argsort(1)
        quarters.append(
            torch.where((quadrant == place)[:, None], flat, flat[other].gather(1, order))
        )
    four = torch.stack(quarters, 1).reshape(n, 2, 2, 8, 8)  # (n, row, column, 8, 8)
    return four.permute(0, 1, 3, 2, 4).reshape(n, 1, 16, 16).contiguous(), quadrant.numpy()


def digit_patches(quadrant: np.ndarray, side: int) -> np.ndarray:
    """(n, side^2) bool: which patches lie in the digit's quadrant; `side` patches a row."""
    rows, columns = np.divmod(np.arange(side * side), side)
    place = 2 * (rows >= side // 2) + (columns >= side // 2)
    return place[None] == quadrant[:, None]
