"""Images of a search: their split, and what each level sees of them in a step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from shared import bundled, cifar
from shared.glue import level_split
from shared.processes import noise_names, shard
from shared.protocol import BadInput
from shared.runs import Batches, stream

from . import baselines
from .config import Config

if TYPE_CHECKING:
    from .generators import GAN

# of the 1,797 images, as the CIFAR constants are of its training images
DIGITS_MEAN, DIGITS_STD = 0.3053, 0.3764
DIGITS_TEST = 897


@dataclass(frozen=True)
class Images:
    """ids (n,), pixels (n, c, h, w) in 0-255 (uint8, or float32 for digits), labels (n,)."""

    ids: Tensor
    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, rows: Any) -> Images:
        return Images(self.ids[rows], self.pixels[rows], self.labels[rows])

    def __add__(self, other: Images) -> Images:
        return Images(
            torch.cat([self.ids, other.ids]),
            torch.cat([self.pixels, other.pixels]),
            torch.cat([self.labels, other.labels]),
        )

    def to(self, device: torch.device) -> Images:
        return Images(self.ids, self.pixels.to(device), self.labels.to(device))


@dataclass(frozen=True)
class Problem:
    """D_tr (weights, generator), D_val (DARTS' level 3), D_te, and how a network sees them."""

    name: str
    classes: int
    train: Images
    validation: Images
    test: Images

    @property
    def shape(self) -> tuple[int, int, int]:
        c, h, w = self.train.pixels.shape[1:]
        return c, h, w

    @property
    def ids(self) -> dict[str, Tensor]:
        return {name: getattr(self, name).ids for name in ("train", "validation", "test")}

    @property
    def photographs(self) -> bool:
        return self.name != "digits"

    def few(self, n: int, seed: int) -> Images:
        """n images of D_val, stratified as far as n allows, the fewer among the more; 0: all."""
        if n > len(self.validation):
            raise BadInput(
                f"held_out {n}: {self.name} has {len(self.validation)} images for level 3;"
                " take at most so many, or 0 for all"
            )
        if not n:
            return self.validation
        order = torch.randperm(len(self.validation), generator=stream(seed, "held out"))
        labels = self.validation.labels.cpu()[order]
        # the first of each class, then the second of each, and so on
        turn = torch.stack([(labels[:k] == labels[k]).sum() for k in range(len(labels))])
        return self.validation[order[turn.argsort(stable=True)[:n]]]

    def normalise(self, pixels: Tensor) -> Tensor:
        """0-255 -> zero mean, unit variance per channel."""
        if self.photographs:
            return cifar.normalise(pixels, self.name)
        return (pixels / 255 - DIGITS_MEAN) / DIGITS_STD

    def view(self, pixels: Tensor, stream: torch.Generator) -> Tensor:
        """What a search network sees of 0-255 pixels: of photographs a random crop, flipped."""
        if self.photographs:
            pixels = cifar.random_flip(cifar.random_crop(pixels, stream), stream)
        return self.normalise(pixels)

    def T(self, generated: Tensor, stream: torch.Generator) -> Tensor:
        """Images in [-1, 1] -> what a search network sees of these pixels. Differentiable."""
        return self.view(self.pixels(generated), stream)

    def signed(self, pixels: Tensor) -> Tensor:
        """0-255 -> [-1, 1], the range of the generator."""
        return pixels.float() / 127.5 - 1

    def pixels(self, signed: Tensor) -> Tensor:
        """[-1, 1] -> 0-255."""
        return (signed + 1) * 127.5


def load(
    name: str, seed: int, split: str = "stratified", n: int = 0, device: torch.device | str = "cpu"
) -> Problem:
    """D_tr and D_val are halves of the training images: by the seed, or, `darts`, first and second.

    n > 0: only the first n of each half and of the test set (rehearsals)."""
    rest, test, classes = _digits() if name == "digits" else _photographs(name)
    if split == "darts":
        half = len(rest) // 2
        halves = [torch.arange(half), torch.arange(half, len(rest))]
    else:
        rows = level_split(rest.labels.numpy(), [0.5, 0.5], stream(seed, "split"))
        halves = [torch.from_numpy(r) for r in rows]
    train, validation = (rest[rows] for rows in halves)
    if n:
        train, validation, test = train[:n], validation[:n], test[:n]
    device = torch.device(device)
    return Problem(name, classes, train.to(device), validation.to(device), test.to(device))


def _digits() -> tuple[Images, Images, int]:
    """900 images to train on, 897 to test on (the same for all seeds), 10 classes."""
    pixels, labels = bundled.digits()
    whole = Images(
        torch.arange(len(labels)),
        torch.from_numpy(pixels).view(-1, 1, 8, 8) * 255,
        torch.from_numpy(labels),
    )
    order = torch.randperm(len(labels), generator=stream(0, "digits test"))
    test, rest = order[:DIGITS_TEST].sort().values, order[DIGITS_TEST:].sort().values
    return whole[rest], whole[test], 10


def _photographs(name: str) -> tuple[Images, Images, int]:
    parts = cifar.load(name)
    rest, test = (Images(p.ids, p.images, p.labels) for p in (parts["train"], parts["test"]))
    return rest, test, cifar.CLASSES[name]


class Views:
    """What each level sees in step t: images (n, c, h, w) as the network sees them, labels (n,).

    Every draw is from a stream named by its purpose and t, without the arm: arms of a seed share
    them, and both sides of a difference quotient see the same ones."""

    def __init__(self, config: Config, problem: Problem):
        self.config, self.problem = config, problem
        self.of_generator = self.of_weights = problem.train
        if config.full_data_weights:
            self.of_weights = problem.train + problem.validation
        self.of_architecture = problem.few(config.held_out, config.seed)
        self.size = len(shard(range(config.batch)))  # of a generated batch, on this process
        self.batches: dict[str, Batches[Tensor]] = {}

    def noise(self, *names: Any) -> torch.Generator:
        return stream(self.config.seed, *names, *noise_names())

    def batch(self, images: Images, name: str, t: int, size: int = 0) -> Images:
        """This process's share of batch t of the pass over the images that is called `name`."""
        if name not in self.batches:
            rows = torch.arange(len(images))
            self.batches[name] = Batches(rows, size or self.config.batch, self.config.seed, name)
        return images[shard(self.batches[name](t))]

    def real(self, images: Images, name: str, t: int) -> tuple[Tensor, Tensor]:
        part = self.batch(images, name, t)
        return self.problem.view(part.pixels, self.noise("view", name, t)), part.labels

    def training(self, t: int) -> tuple[Tensor, Tensor]:
        """Level 1: D_tr; with `full_data_weights` D_val too, in the same number of steps."""
        return self.real(self.of_weights, "batches", t)

    def photographs(self, step: int) -> Images:
        """Level 2: images of D_tr, at a step of the generator."""
        return self.batch(self.of_generator, "gan batches", step, self.config.gan_batch)

    def held_out(self, t: int) -> tuple[Tensor, Tensor]:
        """Level 3, real images: D_val; for the controls level 1's batch, or D_tr augmented."""
        if self.config.job == "train_as_val":
            return self.training(t)
        if self.config.job == "aug_val":
            part = self.batch(self.problem.train, "augmented batches", t)
            noise = self.noise("strong", t)
            pixels = baselines.strong(part.pixels, noise, self.problem.photographs)
            return self.problem.normalise(pixels), part.labels
        return self.real(self.of_architecture, "validation batches", t)

    def generated(self, gan: GAN, t: int) -> tuple[Tensor, Tensor]:
        """Level 3, T(G(z, y)) and y, from the averaged generator; no gradient reaches theta."""
        images, y = gan.sample(self.size, "architecture", t)
        if self.config.labels == "permuted":
            y = baselines.permuted(y, stream(self.config.seed, "permuted labels", t))
        if self.config.labels == "classes":
            y = baselines.of_others(y, self.problem.classes, stream(self.config.seed, "classes"))
        return self.T(images, "crops", t), y

    def T(self, images: Tensor, *names: Any) -> Tensor:
        return self.problem.T(images, self.noise(*names))
