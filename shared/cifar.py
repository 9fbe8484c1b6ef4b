"""CIFAR-10 and CIFAR-100: four layouts, one result; augmentation in torch on the images' device.

`load("cifar10")` reads the hub's parquet files, the python version or the binary version below
REPRO_DATA, else the hub. Images stay uint8 (N, 3, 32, 32) until `normalise`; nothing depends on
torchvision.
"""

from __future__ import annotations

import functools
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shared import pictures, runs, sources, tables
from shared.protocol import BadInput
from shared.sources import Hub, MissingInput
from shared.tables import Row

CLASSES = {"cifar10": 10, "cifar100": 100}
_LABEL = {"cifar10": "label", "cifar100": "fine_label"}
_HUB = {"cifar10": "uoft-cs/cifar10", "cifar100": "uoft-cs/cifar100"}
_ARCHIVES = {
    "cifar10": ("cifar-10-batches-py", "cifar-10-batches-bin"),
    "cifar100": ("cifar-100-python", "cifar-100-binary"),
}
_STEMS = {
    ("cifar10", "train"): [f"data_batch_{i}" for i in range(1, 6)],
    ("cifar10", "test"): ["test_batch"],
    ("cifar100", "train"): ["train"],
    ("cifar100", "test"): ["test"],
}
# per channel of the training images, which the literature rounds to these values
MEAN = {"cifar10": (0.4914, 0.4822, 0.4465), "cifar100": (0.5071, 0.4865, 0.4409)}
STD = {"cifar10": (0.2470, 0.2435, 0.2616), "cifar100": (0.2673, 0.2564, 0.2762)}


@dataclass(frozen=True)
class Images:
    """ids (n,) int64, images (n, 3, 32, 32) uint8, labels (n,) int64.

    The images are shared between callers: do not write to them.
    """

    ids: Tensor
    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, rows: Tensor | slice | list[int]) -> Images:
        return Images(self.ids[rows], self.images[rows], self.labels[rows])

    def to(self, device: torch.device | str) -> Images:
        return Images(self.ids.to(device), self.images.to(device), self.labels.to(device))


# --- loading -------------------------------------------------------------------------------------


def load(name: str = "cifar10") -> dict[str, Images]:
    """`train` and `test` of `cifar10` or `cifar100`.

    ids are row numbers, test after train, so that no two parts share one. Raises MissingInput where
    nothing is to be had, BadInput with file and row for bad data.
    """
    if name not in CLASSES:
        raise BadInput(f"unknown data set '{name}'; choose one of: {', '.join(CLASSES)}")
    source = sources.find_data(name, Hub(_HUB[name]))
    if isinstance(source, Hub):
        parts = {part: _from_hub(name, source, part) for part in ("train", "test")}
    else:
        train, test = (_files(name, part, source) for part in ("train", "test"))
        for path in [*train, *test]:
            tables.checked(path, f"{name}/{path.relative_to(source).as_posix()}")
        shas = tuple(sources.file_sha256(path) for path in [*train, *test])
        parts, sha = _decode(name, tuple(train), tuple(test), shas)
        sources.note(f"{name} as decoded", sha)
    (train_images, train_labels), (test_images, test_labels) = parts["train"], parts["test"]
    n = len(train_images)
    return {
        "train": Images(torch.arange(n), train_images, train_labels),
        "test": Images(n + torch.arange(len(test_images)), test_images, test_labels),
    }


Part = tuple[Tensor, Tensor]  # images, labels


@functools.lru_cache(maxsize=2)
def _decode(
    name: str, train: tuple[Path, ...], test: tuple[Path, ...], shas: tuple[str, ...]
) -> tuple[dict[str, Part], str]:
    """Both parts and their sha256, read once per process and content (`shas`).

    Parquet holds 60,000 compressed images: those are decoded once per machine (up to a minute) and
    stay in the cache (184 MB).
    """

    def read() -> list[list[Tensor]]:
        parts = [zip(*[_read(name, path) for path in paths]) for paths in (train, test)]
        return [[torch.cat(tensors) for tensors in part] for part in parts]

    compressed = train[0].suffix in (".parquet", ".arrow")
    parts = runs.cached(("cifar", name, shas), read, noted=False) if compressed else read()
    sha = runs.state_sha256(tensor for part in parts for tensor in part)
    return {part: (images, labels) for part, (images, labels) in zip(("train", "test"), parts)}, sha


def _files(name: str, part: str, folder: Path) -> list[Path]:
    """Files of a part in the first layout that is there; archives may lie in folders of theirs."""
    if shards := tables.shards(folder, part):
        return shards
    for root in (folder, *(folder / archive for archive in _ARCHIVES[name])):
        for suffix in ("", ".bin"):
            paths = [root / f"{stem}{suffix}" for stem in _STEMS[name, part]]
            sources.first(paths[:1])
            missing = [path.name for path in paths if not path.is_file()]
            if missing and len(missing) < len(paths):
                remedy = "remedy:  unpack the archive again"
                raise MissingInput(f"{name}: {root} lacks {', '.join(missing)}\n  {remedy}")
            if not missing:
                return paths
    entries = ", ".join(path.name for path in tables.visible(folder)) or "nothing"
    layout = sources.layout_of(name)
    assert layout, "LAYOUTS has a row for each name"
    raise MissingInput(
        f"{name}: no files of part '{part}' in {folder} (there: {entries})\n"
        f"  layout:  {layout.files}\n  fetch:   {layout.fetch}"
    )


def _read(name: str, path: Path) -> Part:
    if path.suffix == ".bin":
        images, labels = _read_binary(name, path)
    elif path.suffix in (".parquet", ".arrow"):
        images, labels = _decoded(name, tables.columnar(path))
    else:
        images, labels = _read_python(name, path)
    return _checked(name, images, labels, str(path))


def _from_hub(name: str, hub: Hub, part: str) -> Part:
    import datasets

    data, where = sources.load_hub(hub, name, part), f"{hub.id} {part}"
    for column in {"img", "image"} & set(data.column_names):
        data = data.cast_column(column, datasets.Image(decode=False))
    rows = [(f"{where} row {number}", row) for number, row in enumerate(data)]
    return _checked(name, *_decoded(name, rows), where)


def _decoded(name: str, rows: list[tuple[str, Row]]) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the hub's layout: `img` {bytes} (PNG or JPEG) and the label column."""
    images = np.empty((len(rows), 3, 32, 32), dtype=np.uint8)
    labels = np.empty(len(rows), dtype=np.int64)
    for number, (at, row) in enumerate(rows):
        image, label = row.get("img", row.get("image")), row.get(_LABEL[name])
        if image is None or _LABEL[name] not in row:
            columns = f"needs columns img and {_LABEL[name]}; columns: {', '.join(row)}"
            raise BadInput(f"{at}: {columns}. Remedy: fetch the file again")
        if type(label) is not int:
            raise BadInput(f"{at}: label {label!r} is not a whole number. Remedy: fetch it again")
        pixels = np.asarray(pictures.rgb(image, at))
        if pixels.shape != (32, 32, 3):
            size = f"image of {pixels.shape[:2]} pixels, expected 32 x 32"
            raise BadInput(f"{at}: {size}. Remedy: fetch the file again")
        images[number], labels[number] = pixels.transpose(2, 0, 1), label
    return images, labels


def _read_binary(name: str, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Rows of 3,073 bytes (CIFAR-10: label, image) or 3,074 (CIFAR-100: coarse, fine, image)."""
    head = 1 if name == "cifar10" else 2
    size = head + 3072
    raw = np.fromfile(path, dtype=np.uint8)
    if len(raw) % size:
        raise BadInput(
            f"{path}: {len(raw)} bytes are not whole rows of {size}. Remedy: fetch it again"
        )
    rows = raw.reshape(-1, size)
    return rows[:, head:].reshape(-1, 3, 32, 32), rows[:, head - 1].astype(np.int64)


class _ArraysOnly(pickle.Unpickler):
    """Reads the pickles of the python version (arrays, lists, bytes) and refuses anything else."""

    def find_class(self, module: str, name: str) -> Any:
        plain = {("_codecs", "encode"), ("numpy", "ndarray"), ("numpy", "dtype")}
        rebuilt = module.endswith("core.multiarray") and name == "_reconstruct"
        if (module, name) in plain or rebuilt:
            # old pickles name numpy.core, which moved
            return super().find_class(module.replace("numpy.core.", "numpy._core."), name)
        refusal = f"refuses to load {module}.{name}: CIFAR's files hold arrays only"
        raise pickle.UnpicklingError(refusal)


def _read_python(name: str, path: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        with open(path, "rb") as file:
            batch = _ArraysOnly(file, encoding="bytes").load()
        images, labels = (np.asarray(batch[k.encode()]) for k in ("data", f"{_LABEL[name]}s"))
        if {images.dtype.kind, labels.dtype.kind} - set(
            "iu"
        ) or not 0 <= images.min() <= images.max() < 256:
            raise ValueError(
                "its pixels are not whole numbers from 0 to 255, or its labels not whole"
            )
        images, labels = images.astype(np.uint8).reshape(-1, 3, 32, 32), labels.astype(np.int64)
    except Exception as error:  # a damaged pickle ends in errors of any class
        message = f"{path}: not a batch of {name} ({error}). Remedy: fetch it again"
        raise BadInput(message) from error
    return images, labels


def _checked(name: str, images: np.ndarray, labels: np.ndarray, where: str) -> Part:
    if len(images) == 0 or (len(images),) != labels.shape:
        counts = f"{len(images)} images and labels of shape {labels.shape}"
        raise BadInput(f"{where}: {counts}. Remedy: fetch it again")
    wrong = np.flatnonzero((labels < 0) | (labels >= CLASSES[name]))
    if len(wrong):
        value = f"label {labels[wrong[0]]}, expected 0 to {CLASSES[name] - 1}"
        raise BadInput(f"{where} row {wrong[0]}: {value}. Remedy: fetch the file again")
    return torch.from_numpy(np.ascontiguousarray(images)), torch.from_numpy(labels)


# --- augmentation --------------------------------------------------------------------------------
# Random numbers come from the generator (on its own device) and are moved: a CPU generator draws
# the same crops on every device.


def normalise(images: Tensor, name: str = "cifar10") -> Tensor:
    """uint8 (n, 3, 32, 32) -> float32, over the training images of mean 0 and variance 1."""
    mean, std = (torch.tensor(v[name], device=images.device).view(1, 3, 1, 1) for v in (MEAN, STD))
    return (images.float() / 255 - mean) / std


def random_crop(images: Tensor, generator: torch.Generator, padding: int = 4) -> Tensor:
    """Each image (n, c, h, w) shifted by up to `padding` pixels each way; what comes in is 0."""
    n, _, h, w = images.shape
    down, right = _draw(2 * padding + 1, (2, n), generator, images.device)
    padded = torch.nn.functional.pad(images, [padding] * 4)
    ys = (down[:, None] + torch.arange(h, device=images.device))[:, :, None]  # (n, h, 1)
    xs = (right[:, None] + torch.arange(w, device=images.device))[:, None, :]  # (n, 1, w)
    batch = torch.arange(n, device=images.device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[batch, ys, xs].permute(0, 3, 1, 2).contiguous()


def random_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image (n, c, h, w) mirrored left to right with probability 1/2."""
    flip = _draw(2, (len(images),), generator, images.device).bool()
    return torch.where(flip[:, None, None, None], images.flip(-1), images)


def cutout(images: Tensor, generator: torch.Generator, length: int = 16) -> Tensor:
    """A square of side `length` around a random pixel of each image (n, c, h, w) set to 0.

    It may reach over the edge (DeVries and Taylor 2017, arXiv 1708.04552).
    """
    n, _, h, w = images.shape
    y, x = _draw(h, (n, 1), generator, images.device), _draw(w, (n, 1), generator, images.device)
    rows, columns = torch.arange(h, device=images.device), torch.arange(w, device=images.device)
    half = length // 2
    hidden_y = (rows >= y - half) & (rows < y - half + length)  # (n, h)
    hidden_x = (columns >= x - half) & (columns < x - half + length)
    return images.masked_fill((hidden_y[:, :, None] & hidden_x[:, None, :])[:, None], 0)


def _draw(
    below: int, shape: tuple[int, ...], generator: torch.Generator, device: torch.device
) -> Tensor:
    return torch.randint(below, shape, generator=generator, device=generator.device).to(device)


# --- samples for rehearsals ----------------------------------------------------------------------


def sample(name: str, n: int, stream: torch.Generator) -> Images:
    """`n` made-up images, every label in turn: noise with a bright stripe per class."""
    labels = torch.arange(n) % CLASSES[name]
    images = torch.randint(128, (n, 3, 32, 32), generator=stream, dtype=torch.uint8)
    images[torch.arange(n), :, labels % 32] += 127
    return Images(torch.arange(n), images, labels)


def write_sample(root: Path, name: str, n: int, stream: torch.Generator) -> Path:
    """Write made-up train and test parts of `n` images each below `root`, a folder for REPRO_DATA.

    They are the hub's parquet files. Returns the folder of the data set.
    """
    import io

    import pyarrow
    import pyarrow.parquet
    from PIL import Image

    folder = Path(root) / name
    folder.mkdir(parents=True, exist_ok=True)
    kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    for part in ("train", "test"):
        data, images = sample(name, n, stream), []
        for image in data.images.permute(0, 2, 3, 1).numpy():
            file = io.BytesIO()
            Image.fromarray(image).save(file, format="PNG")
            images.append({"bytes": file.getvalue(), "path": None})
        columns = {"img": pyarrow.array(images, kind), _LABEL[name]: data.labels.tolist()}
        pyarrow.parquet.write_table(pyarrow.table(columns), folder / f"{part}.parquet")
    return folder
