"""Images of a search and their split, the accuracy tables that answer for a cell, ImageNet folders for the mobile setting."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shared import bundled, cifar, runs, sources
from shared.glue import level_split

from . import nasbench

DIGITS_MEAN, DIGITS_STD = (
    0.3053,
    0.3764,
)  # of the 1,797 images, as the CIFAR constants are of its training images
DIGITS_TEST = 897
DIGITS_TABLE = Path(__file__).resolve().parent / "results" / "digits_cells.csv"
NAMES = ("digits", "cifar10", "cifar100")


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

    def to(self, device: torch.device) -> Images:
        return Images(self.ids, self.pixels.to(device), self.labels.to(device))


@dataclass(frozen=True)
class Problem:
    """D_tr (weights, generator), D_val (DARTS' architecture level), D_te, and how the classifier sees an image."""

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
    def photographs(self) -> bool:
        return self.name != "digits"

    def normalise(self, pixels: Tensor) -> Tensor:
        """0-255 -> zero mean, unit variance per channel."""
        if self.photographs:
            return cifar.normalise(pixels, self.name)
        return (pixels / 255 - DIGITS_MEAN) / DIGITS_STD

    def view(self, pixels: Tensor, stream: torch.Generator) -> Tensor:
        """What a search network sees of pixels in 0-255: for photographs a random crop and flip first."""
        if self.photographs:
            pixels = cifar.random_flip(cifar.random_crop(pixels, stream), stream)
        return self.normalise(pixels)

    def T(self, generated: Tensor, stream: torch.Generator) -> Tensor:
        """Generator output in [-1, 1] -> what the network would see of these pixels. Differentiable."""
        return self.view((generated + 1) * 127.5, stream)

    def signed(self, pixels: Tensor) -> Tensor:
        """0-255 -> [-1, 1], the range of the generator."""
        return pixels.float() / 127.5 - 1


def load(
    name: str, seed: int, split: str = "stratified", n: int = 0, device: torch.device | str = "cpu"
) -> Problem:
    """D_tr and D_val are the two halves of the training images: `stratified` by the seed, or `darts`: the first and the
    second half of the list. n > 0: only the first n of each class-balanced half (rehearsals)."""
    if name not in NAMES:
        raise runs.BadInput(f"data {name!r} is unknown; it is one of {', '.join(NAMES)}")
    if name == "digits":
        pixels, labels = bundled.digits()
        order = torch.randperm(len(labels), generator=runs.stream(0, "digits test"))
        ids = torch.arange(len(labels))
        whole = Images(
            ids, torch.from_numpy(pixels).view(-1, 1, 8, 8) * 255, torch.from_numpy(labels)
        )
        test, rest = (
            whole[order[:DIGITS_TEST].sort().values],
            whole[order[DIGITS_TEST:].sort().values],
        )
        classes = 10
    else:
        parts = cifar.load(name)
        rest, test = (Images(p.ids, p.images, p.labels) for p in (parts["train"], parts["test"]))
        classes = cifar.CLASSES[name]
    if split == "darts":
        half = len(rest) // 2
        halves = [torch.arange(half), torch.arange(half, len(rest))]
    elif split == "stratified":
        rows = level_split(rest.labels.numpy(), [0.5, 0.5], runs.stream(seed, "split"))
        halves = [torch.from_numpy(r) for r in rows]
    else:
        raise runs.BadInput(f"split {split!r} is unknown; it is stratified or darts")
    train, validation = (rest[rows] for rows in halves)
    if n:
        train, validation, test = train[:n], validation[:n], test[:n]
    device = torch.device(device)
    return Problem(name, classes, train.to(device), validation.to(device), test.to(device))


def gan_images(problem: Problem, which: str) -> Images:
    """The images that the generator learns: `train` = D_tr, or `trainval` = D_tr and D_val, which is extra information."""
    if which == "train":
        return problem.train
    if which == "trainval":
        a, b = problem.train, problem.validation
        return Images(
            torch.cat([a.ids, b.ids]),
            torch.cat([a.pixels, b.pixels]),
            torch.cat([a.labels, b.labels]),
        )
    raise runs.BadInput(
        f"gan_data {which!r}: the generator learns from train (or trainval, as extra information), never from test images"
    )


def batch(rows: int, size: int, step: int, seed: int, name: str) -> Tensor:
    """Row numbers of batch `step` of an endless, reshuffled pass; the last short batch of a pass is dropped."""
    per_pass = max(1, rows // size)
    order = torch.randperm(rows, generator=runs.stream(seed, name, step // per_pass))
    return order[(step % per_pass) * size :][:size]


# --- tables that answer for a cell ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Table:
    """Ground truth of every cell of a space. columns: name -> (cells,) accuracy in [0, 1]; the first one is the score.

    correct: (cells, test items) mean correctness over the trainings of a cell, where the table has it, else None.
    """

    cells: dict[str, int]
    columns: dict[str, np.ndarray]
    correct: np.ndarray | None = None

    @property
    def score(self) -> np.ndarray:
        return next(iter(self.columns.values()))

    def number(self, cell: str) -> int:
        if cell not in self.cells:
            nasbench.from_string(cell)  # names a malformed operation
            raise KeyError(f"cell {cell!r} is not one of the {len(self.cells)} of the table")
        return self.cells[cell]

    def percentile(self, cells: int | np.ndarray) -> float:
        """Share of all cells that score less, ties counting half; in [0, 1]."""
        value = self.score[np.atleast_1d(cells)][:, None]
        return float(((self.score < value).mean(1) + 0.5 * (self.score == value).mean(1)).mean())


NASBENCH_COLUMNS = {"cifar10": "cifar10_test_200ep", "cifar100": "cifar100_test_200ep",
                    "imagenet16": "imagenet16_120_test_200ep"}  # fmt: skip


def nasbench_table(path: Path | None = None) -> Table:
    """`REPRO_DATA/nasbench201.csv.gz`: 200-epoch test accuracy, mean over the benchmark's trials, of 15,625 cells."""
    found = path or sources.find_data("nasbench201.csv.gz")
    assert isinstance(found, Path)  # no hub has this file
    sources.note("nasbench201.csv.gz", found)
    with gzip.open(found, "rt") as file:
        rows = list(csv.DictReader(file))
    cells: dict[str, int] = {}
    for number, row in enumerate(rows):
        try:
            nasbench.from_string(row["arch"])
            if row["arch"] in cells:
                raise ValueError("the cell was there before")
        except (KeyError, ValueError) as error:
            raise ValueError(
                f"{found} row {number + 1}: {error}. Remedy: make the table again"
            ) from error
        cells[row["arch"]] = number
    return Table(
        cells, {k: np.array([float(r[c]) for r in rows]) / 100 for k, c in NASBENCH_COLUMNS.items()}
    )


def digits_rows(path: Path = DIGITS_TABLE) -> dict[tuple[str, int], np.ndarray]:
    """(cell, training seed) -> which of the 897 test images the trained cell classifies correctly (bool)."""
    if not path.exists():
        return {}
    found = {}
    with open(path, newline="") as file:
        for row in csv.DictReader(line for line in file if not line.startswith("#")):
            bits = np.unpackbits(np.frombuffer(bytes.fromhex(row["correct"]), np.uint8))[
                :DIGITS_TEST
            ].astype(bool)
            if abs(bits.mean() - float(row["accuracy"])) > 1e-6:
                raise ValueError(
                    f"{path}: {row['cell']} seed {row['seed']}: accuracy and bits disagree; make the table again"
                )
            found[row["cell"], int(row["seed"])] = bits
    return found


def digits_table(path: Path = DIGITS_TABLE) -> Table:
    """The 125 cells; every cell needs the same training seeds."""
    rows = digits_rows(path)
    cells = nasbench.all_cells(3)
    seeds = sorted({seed for _, seed in rows})
    missing = [(c, s) for c in cells for s in seeds or [0] if (c, s) not in rows]
    if missing:
        raise runs.BadInput(
            f"{path}: {len(missing)} of {len(cells) * max(1, len(seeds))} trainings are missing, first {missing[0]}; "
            "remedy: python -m dasgm.truth_table"
        )
    sources.note("dasgm/results/digits_cells.csv", path)
    correct = np.stack([np.mean([rows[c, s] for s in seeds], axis=0) for c in cells])
    return Table({c: i for i, c in enumerate(cells)}, {"accuracy": correct.mean(1)}, correct)


def table(name: str) -> Table:
    return digits_table() if name == "digits" else nasbench_table()


# --- ImageNet ----------------------------------------------------------------------------------------------------------


class ImageNet:
    """`REPRO_DATA/imagenet/{train,val}/<wnid>/*.JPEG`; classes are the sorted folder names."""

    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

    def __init__(self, folder: Path | None = None, size: int = 224):
        found = folder or sources.find_data("imagenet")
        if (
            not isinstance(found, Path)
            or not (found / "train").is_dir()
            or not (found / "val").is_dir()
        ):
            raise sources.MissingInput(
                f"imagenet: {found} has no folders train/ and val/ with a folder per class in each; "
                "remedy: unpack the images there (the hub's parquet files are not read here)"
            )
        self.size = size
        names = sorted(p.name for p in (found / "train").iterdir() if p.is_dir())
        self.classes = len(names)
        self.parts = {part: [(p, k) for k, name in enumerate(names) for p in sorted((found / part / name).iterdir())]
                      for part in ("train", "val")}  # fmt: skip
        for part, files in self.parts.items():
            if not files:
                raise sources.MissingInput(
                    f"imagenet: {found / part} holds no images of the {self.classes} classes"
                )
        listing = "\n".join(
            f"{p.relative_to(found)}\t{p.stat().st_size}" for f in self.parts.values() for p, _ in f
        )
        sources.note("imagenet listing", hashlib.sha256(listing.encode()).hexdigest())
        self.pool = ThreadPoolExecutor(max_workers=min(16, os.cpu_count() or 1))

    def batch(
        self, part: str, rows: Tensor, stream: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:
        """(n, 3, size, size) normalised and labels; with a stream: random resized crop, flip, colour; else the centre."""
        draws = (
            torch.rand(len(rows), 8, generator=stream).tolist() if stream else [None] * len(rows)
        )
        files = [self.parts[part][r] for r in rows.tolist()]
        images = torch.stack(list(self.pool.map(self._read, [f for f, _ in files], draws)))
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (self.mean, self.std))
        return (images / 255 - mean) / std, torch.tensor([k for _, k in files])

    def _read(self, path: Path, draw: list[float] | None) -> Tensor:
        from PIL import Image, ImageEnhance

        try:
            image = Image.open(path).convert("RGB")
        except OSError as error:
            raise ValueError(
                f"{path}: not a readable image ({error}). Remedy: fetch it again"
            ) from error
        w, h = image.size
        if draw is None:
            scale = self.size / 0.875 / min(w, h)
            side = self.size / scale
            box = ((w - side) / 2, (h - side) / 2, (w + side) / 2, (h + side) / 2)
            image = image.resize((self.size, self.size), Image.Resampling.BILINEAR, box)
        else:
            area, aspect, left, top, flip, *colours = draw
            ratio = float(np.exp(np.log(3 / 4) + aspect * (np.log(4 / 3) - np.log(3 / 4))))
            target = (0.08 + 0.92 * area) * w * h
            cw, ch = min(w, round((target * ratio) ** 0.5)), min(h, round((target / ratio) ** 0.5))
            x, y = left * (w - cw), top * (h - ch)
            image = image.resize(
                (self.size, self.size),
                Image.Resampling.BILINEAR,
                (x, y, x + max(cw, 1), y + max(ch, 1)),
            )
            for kind, c, width in zip((ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color), colours, (0.4, 0.4, 0.4)):  # fmt: skip
                image = kind(image).enhance(1 + width * (2 * c - 1))
            if flip < 0.5:
                image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return torch.from_numpy(np.asarray(image, dtype=np.float32).transpose(2, 0, 1).copy())


# --- made-up data for rehearsals -----------------------------------------------------------------------------------------


@contextmanager
def made_up(wanted: bool, n: int) -> Iterator[None]:
    """Within the block the loaders find made-up CIFAR, ImageNet and cell-table files, in the sources' own layouts."""
    if not wanted:
        yield
        return
    with tempfile.TemporaryDirectory() as folder:
        for name in ("cifar10", "cifar100"):
            cifar.write_sample(
                Path(folder),
                name,
                max(2 * n, cifar.CLASSES[name] * 2),
                runs.stream(0, "rehearsal", name),
            )
        write_imagenet(Path(folder) / "imagenet", runs.stream(0, "rehearsal", "imagenet"))
        with sources.pointed_at(REPRO_DATA=folder):
            yield


def write_imagenet(
    folder: Path, stream: torch.Generator, classes: int = 3, per_class: int = 2
) -> Path:
    """Noise as JPEG files in the layout of the source."""
    from PIL import Image

    for part in ("train", "val"):
        for k in range(classes):
            place = folder / part / f"n{k:08d}"
            place.mkdir(parents=True, exist_ok=True)
            for i in range(per_class):
                pixels = torch.randint(
                    256, (40, 48, 3), generator=stream, dtype=torch.uint8
                ).numpy()
                buffer = io.BytesIO()
                Image.fromarray(pixels).save(buffer, format="JPEG")
                (place / f"{part}_{k}_{i}.JPEG").write_bytes(buffer.getvalue())
    return folder
