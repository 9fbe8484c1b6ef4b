"""Images of every task, cut into levels: digits and the planted task (bundled), CIFAR, and folders of image files.

digits    scikit-learn's 1,797 images of 8 x 8; 400 test items, the same for every seed
planted   the same digits, each in one quadrant of a 16 x 16 canvas; the other three hold pixels shuffled from other
          digits: same histogram, nothing to recognise. The quadrant is drawn per image.
cifar10, cifar100     shared/cifar.py
imagenet, cub, cars, inat2019     $REPRO_DATA/<name>/{train,val or test}/<class>/*, or the hub's copy of ImageNet
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shared import bundled, cifar, glue, protocol, runs, sources
from shared.runs import BadInput
from shared.sources import Hub, MissingInput

from . import official

BUNDLED = ("digits", "planted")
FOLDERS = ("imagenet", "cub", "cars", "inat2019")
NAMES = (*BUNDLED, *cifar.CLASSES, *FOLDERS)
TEST_DIGITS = 400
DIGIT_MEAN, DIGIT_STD = 0.3053, 0.3760  # of all pixels, rounded
FILE_MEAN, FILE_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # the literature's constants
SUFFIXES = {".jpg", ".jpeg", ".png", ".JPEG", ".JPG", ".PNG"}


@dataclass(frozen=True)
class Recipe:
    """How an image is shown. train: random crop and flip; the rest is regularisation of finetuning."""

    train: bool = True
    cutout: int = 0
    erasing: float = 0.0
    randaug: bool = False
    std: tuple[float, ...] = ()


SHOWN = Recipe(train=False)


class Images:
    """Images in memory, on the run's device: `pixels` uint8 (CIFAR) or float, already normalised (digits)."""

    def __init__(self, name: str, ids: Tensor, pixels: Tensor, labels: Tensor):
        self.name, self.ids, self.pixels, self.labels = name, ids.numpy(), pixels, labels

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device) -> Images:
        self.pixels, self.labels = self.pixels.to(device), self.labels.to(device)
        return self

    def batch(self, rows: Any, recipe: Recipe, generator: torch.Generator | None = None) -> Tensor:
        """(B, C, H, W) float32. `generator` (CPU) draws the crops; none are drawn where `recipe.train` is off."""
        at = torch.as_tensor(rows, device=self.pixels.device)
        x = self.pixels[at]
        if self.name in BUNDLED:
            return x
        if recipe.train:
            x = cifar.random_flip(cifar.random_crop(x, generator), generator)
        x = cifar.normalise(x, self.name)
        if recipe.std:
            was, now = (
                torch.tensor(v, device=x.device).view(1, 3, 1, 1)
                for v in (cifar.STD[self.name], recipe.std)
            )
            x = x * (was / now)
        return cifar.cutout(x, generator, recipe.cutout) if recipe.cutout else x


class Files:
    """Image files, read when a batch asks for them, by as many threads as the machine has cores."""

    def __init__(
        self, name: str, size: int, files: Sequence[Any], labels: Tensor, first_id: int = 0
    ):
        self.name, self.size, self.files, self.labels = name, size, files, labels
        self.ids = np.arange(first_id, first_id + len(labels))
        self.device = torch.device("cpu")
        self._threads: ThreadPoolExecutor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> Files:
        self.device, self.labels = device, self.labels.to(device)
        return self

    def batch(self, rows: Any, recipe: Recipe, generator: torch.Generator | None = None) -> Tensor:
        rows = np.asarray(rows)
        self._threads = self._threads or ThreadPoolExecutor()
        draws: list[Tensor | None] = [None] * len(rows)
        if recipe.train:
            draws = list(torch.rand(len(rows), 5, generator=generator))
        arrays = list(
            self._threads.map(lambda job: self._read(*job, recipe), zip(rows.tolist(), draws))
        )
        x = torch.from_numpy(np.stack(arrays)).to(self.device).permute(0, 3, 1, 2).float() / 255
        mean, std = (
            torch.tensor(v, device=self.device).view(1, 3, 1, 1) for v in (FILE_MEAN, FILE_STD)
        )
        x = (x - mean) / std
        return erase(x, recipe.erasing, generator) if recipe.erasing else x

    def _read(self, row: int, draw: Tensor | None, recipe: Recipe) -> np.ndarray:
        from PIL import Image

        source = self.files[row]
        try:
            image = (Image.open(source) if isinstance(source, Path) else source["image"]).convert(
                "RGB"
            )
        except OSError as error:
            raise BadInput(
                f"{self.name} row {row} ({source}): not a readable image; fetch it again"
            ) from error
        box = (
            resized_crop(image.size, draw)
            if draw is not None
            else centre_crop(image.size, self.size)
        )
        image = image.resize((self.size, self.size), Image.Resampling.BICUBIC, box=box)
        if draw is not None and draw[4] < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if recipe.randaug and draw is not None:
            image = _randaug(self.size)(image)
        return np.asarray(image)


def resized_crop(size: tuple[int, int], draw: Tensor) -> tuple[float, float, float, float]:
    """A box of 20 to 100 % of the area and aspect 3/4 to 4/3, shrunk to fit; four uniform numbers decide."""
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


def _randaug(size: int) -> Any:
    """RandAugment of magnitude 9 as timm has it. It draws from Python's generators: seeded per step by the run."""
    from timm.data.auto_augment import rand_augment_transform

    return rand_augment_transform("rand-m9-mstd0.5-inc1", {"translate_const": int(size * 0.45)})


def erase(x: Tensor, probability: float, generator: torch.Generator | None) -> Tensor:
    """A rectangle of 2 to 33 % of the area of some images replaced by noise (random erasing)."""
    B, _, H, W = x.shape
    u = torch.rand(B, 5, generator=generator)
    area = H * W * (0.02 + 0.31 * u[:, 1])
    ratio = ((2 * u[:, 2] - 1) * math.log(1 / 0.3)).exp()
    h, w = (area * ratio).sqrt().clamp(1, H), (area / ratio).sqrt().clamp(1, W)
    top, left = u[:, 3] * (H - h), u[:, 4] * (W - w)
    ys, xs = torch.arange(H)[None], torch.arange(W)[None]
    rows = (ys >= top[:, None]) & (ys < (top + h)[:, None])
    columns = (xs >= left[:, None]) & (xs < (left + w)[:, None])
    inside = rows[:, :, None] & columns[:, None] & (u[:, 0] < probability)[:, None, None]
    noise = torch.randn(x.shape, generator=generator).to(x.device)
    return torch.where(inside[:, None].to(x.device), noise, x)


@dataclass
class Problem:
    """One task of one seed. Rows index `train`: inner = D_tr (levels 1 and 2), outer = D_val (level 3), pretrain = D_u.

    planted: (n,) quadrant of the digit per item of `test`, else None."""

    name: str
    classes: int
    channels: int
    size: int
    train: Any
    test: Any
    inner: np.ndarray
    outer: np.ndarray
    pretrain: np.ndarray
    quadrant: np.ndarray | None = None


def load(config: Any, device: torch.device) -> Problem:
    """The task `config.data`, its training part cut in two by the seed; `config`: train.Config."""
    name = config.data
    if name not in NAMES:
        raise BadInput(f"data {name!r} is unknown; it is one of {', '.join(NAMES)}")
    quadrant = None
    if name in BUNDLED:
        train, test, quadrant = digits(planted=name == "planted")
        classes, channels, size = 10, 1, test.pixels.shape[-1]
    elif name in cifar.CLASSES:
        parts = cifar.load(name)
        train, test = (
            Images(name, part.ids, part.images, part.labels)
            for part in (parts["train"], parts["test"])
        )
        classes, channels, size = cifar.CLASSES[name], 3, 32
    else:
        train, test, classes = folder(name, config.image_size)
        channels, size = 3, config.image_size
    labels = train.labels.cpu().numpy()
    if "index_split" in config.official:
        inner, outer = official.split_by_index(len(train), config.val_share)
    else:
        cut = runs.stream(config.seed, "split")
        inner, outer = glue.level_split(labels, [1 - config.val_share, config.val_share], cut)
    if config.pretrain_on not in ("inner", "all"):
        raise BadInput(
            f"pretrain_on {config.pretrain_on!r} is unknown; it is inner (D_tr) or all (also D_val's images)"
        )
    pretrain = inner if config.pretrain_on == "inner" else np.arange(len(train))
    return Problem(
        name,
        classes,
        channels,
        size,
        train.to(device),
        test.to(device),
        inner,
        outer,
        pretrain,
        quadrant,
    )


# --- bundled -----------------------------------------------------------------------------------------------------


def digits(planted: bool) -> tuple[Images, Images, np.ndarray | None]:
    """Training and test part; test items are the same for every seed."""
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
    """(n, 1, 8, 8) -> (n, 1, 16, 16) and the quadrant (n,) that holds the digit: 0, 1 above, 2, 3 below.

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


# --- folders of files ----------------------------------------------------------------------------------------------


def folder(name: str, size: int) -> tuple[Files, Files, int]:
    """Training part, test part and number of classes. ImageNet's official validation images are its test part."""
    found = sources.find_data(name, Hub("ILSVRC/imagenet-1k") if name == "imagenet" else None)
    if isinstance(found, Path) and not list(found.glob("**/train*.parquet"))[:1]:
        parts = _folder_parts(name, found)
        classes = len(parts["names"])
        train, test = parts["train"], parts["test"]
        return Files(name, size, *train), Files(name, size, *test, first_id=len(train[0])), classes
    tables = [_table(name, found, part) for part in ("train", "validation")]
    labels = [torch.tensor(t["label"]) for t in tables]
    train, test = (
        Files(name, size, t, y, k) for t, y, k in zip(tables, labels, (0, len(labels[0])))
    )
    return train, test, int(labels[0].max()) + 1


def _folder_parts(name: str, root: Path) -> dict[str, Any]:
    test = next((root / part for part in ("val", "test") if (root / part).is_dir()), None)
    if not (root / "train").is_dir() or test is None:
        raise MissingInput(
            f"{name}: {root} needs folders train/ and val/ (or test/), each with one folder per class\n"
            "  remedy:  unpack the archives so; for CUB, Cars and iNaturalist use the official split files"
        )
    names = sorted(p.name for p in (root / "train").iterdir() if p.is_dir())
    number = {n: i for i, n in enumerate(names)}
    parts: dict[str, Any] = {"names": names}
    for part, where in (("train", root / "train"), ("test", test)):
        files = sorted(p for p in where.glob("*/*") if p.suffix in SUFFIXES)
        unknown = sorted({p.parent.name for p in files} - set(names))
        if not files or unknown:
            raise BadInput(
                f"{where}: {len(files)} images"
                + (
                    f", classes {unknown[:3]} are not in train/"
                    if unknown
                    else "; it needs <class>/<name>.JPEG"
                )
            )
        # names and sizes stand for the content: hashing 140 GB would take longer than many a run
        listing = "\n".join(f"{p.parent.name}/{p.name} {p.stat().st_size}" for p in files)
        sources.note(
            f"{name}/{part} (names and sizes)", protocol.sha256_json(listing), f"REPRO_DATA/{name}"
        )
        parts[part] = (files, torch.tensor([number[p.parent.name] for p in files]))
    return parts


def _table(name: str, found: Path | Hub, part: str) -> Any:
    """Rows {image, label} of the hub's layout, decoded one at a time."""
    if isinstance(found, Hub):
        return sources.load_hub(found, name, part)
    import datasets

    shards = sorted(found.glob(f"**/{part}*.parquet"))
    if not shards:
        raise MissingInput(
            f"{name}: {found} has no {part}*.parquet\n  remedy:  fetch the data set again"
        )
    for shard in shards:
        sources.note(f"{name}/{shard.name}", shard)
    return datasets.Dataset.from_parquet([str(s) for s in shards]).cast_column(
        "image", datasets.Image()
    )


# --- rehearsal ------------------------------------------------------------------------------------------------------


def write_sample(root: Path, name: str, n: int) -> None:
    """Made-up images of `name` below `root`, in the layout of the source: CIFAR's parquet files, or folders of files."""
    stream = runs.stream(0, "rehearsal", name)
    if name in cifar.CLASSES:
        cifar.write_sample(root, name, max(n, 2 * cifar.CLASSES[name]), stream)
        return
    from PIL import Image

    for part in ("train", "val"):
        for label in range(4):
            (root / name / part / f"n{label:04d}").mkdir(parents=True, exist_ok=True)
            for k in range(max(2, n // 4)):
                pixels = torch.randint(
                    256, (40, 36 + 4 * label, 3), generator=stream, dtype=torch.uint8
                )
                Image.fromarray(pixels.numpy()).save(
                    root / name / part / f"n{label:04d}" / f"{k}.JPEG"
                )
