"""CIFAR-10 and CIFAR-100: four layouts, one result; augmentation in torch, on the device of the images.

`load("cifar10")` reads the hub's parquet files, the python version or the binary version below REPRO_DATA, else the
hub. Images stay uint8 (N, 3, 32, 32) until `normalise`; nothing depends on torchvision.
"""

import functools
import io
import pickle
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shared import runs, sources
from shared.glue import level_split
from shared.sources import Hub, MissingInput

CLASSES = {"cifar10": 10, "cifar100": 100}
_LABEL = {"cifar10": "label", "cifar100": "fine_label"}
_HUB = {"cifar10": "uoft-cs/cifar10", "cifar100": "uoft-cs/cifar100"}
# per channel of the training images, which the literature rounds to these values
MEAN = {"cifar10": (0.4914, 0.4822, 0.4465), "cifar100": (0.5071, 0.4865, 0.4409)}
STD = {"cifar10": (0.2470, 0.2435, 0.2616), "cifar100": (0.2673, 0.2564, 0.2762)}


@dataclass(frozen=True)
class Images:
    """ids (n,) int64, images (n, 3, 32, 32) uint8, labels (n,) int64; the images are shared: do not write to them."""

    ids: Tensor
    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, rows: Any) -> "Images":
        return Images(self.ids[rows], self.images[rows], self.labels[rows])

    def to(self, device: torch.device | str) -> "Images":
        return Images(self.ids.to(device), self.images.to(device), self.labels.to(device))


# --- loading -------------------------------------------------------------------------------------------------


def load(name: str = "cifar10", folder: str = "") -> dict[str, Images]:
    """`train` and `test` of `cifar10` or `cifar100`. `folder` replaces the usual folder of REPRO_DATA.

    ids are row numbers, test after train, so that no two parts share one."""
    if name not in CLASSES:
        raise ValueError(f"unknown data set '{name}'; choose one of: {', '.join(CLASSES)}")
    found = sources.find_data(folder or name, Hub(_HUB[name]))
    if isinstance(found, Hub):
        parts = {part: _from_hub(name, found, part) for part in ("train", "test")}
    else:
        files = {part: _files(name, part, found) for part in ("train", "test")}
        shas = []
        for path in [*files["train"], *files["test"]]:
            shas.append(sources.note(f"{name}/{path.relative_to(found).as_posix()}", path))
        parts = _decode(name, tuple(files["train"]), tuple(files["test"]), tuple(shas))
    (train, train_labels), (test, test_labels) = parts["train"], parts["test"]
    return {
        "train": Images(torch.arange(len(train)), train, train_labels),
        "test": Images(len(train) + torch.arange(len(test)), test, test_labels),
    }


def levels(data: Images, fractions: Sequence[float], stream: torch.Generator) -> list[Images]:
    """Disjoint, stratified levels of a multi-level problem (see `glue.level_split`)."""
    return [
        data[torch.from_numpy(rows)] for rows in level_split(data.labels.numpy(), fractions, stream)
    ]


Part = tuple[Tensor, Tensor]


@functools.lru_cache(maxsize=2)
def _decode(
    name: str, train: tuple[Path, ...], test: tuple[Path, ...], shas: tuple[str, ...]
) -> dict[str, Part]:
    """Read once per process and content (`shas`); parquet holds 60,000 compressed images, so those are decoded once
    per machine (up to a minute) and kept as 184 MB in the cache."""

    def read(paths: tuple[Path, ...]) -> list[Tensor]:
        images, labels = zip(*[_read(name, path) for path in paths])
        return [torch.cat(images), torch.cat(labels)]

    compressed = train[0].suffix == ".parquet"
    key = ("cifar", name, shas)
    parts = (
        runs.cached(key, lambda: [read(train), read(test)])
        if compressed
        else [read(train), read(test)]
    )
    return {part: (images, labels) for part, (images, labels) in zip(("train", "test"), parts)}


def _files(name: str, part: str, folder: Path) -> list[Path]:
    """Files of a part in the first layout that is there; the folders of the archives may lie directly or inside."""
    ten = name == "cifar10"
    python = (
        [f"data_batch_{i}" for i in range(1, 6)]
        if ten and part == "train"
        else ["test_batch" if ten else part]
    )
    binary = [stem + ".bin" for stem in python]
    inside = {
        "cifar10": ("cifar-10-batches-py", "cifar-10-batches-bin"),
        "cifar100": ("cifar-100-python", "cifar-100-binary"),
    }
    for root in (folder, folder / "plain_text", folder / "cifar100"):
        if shards := sorted(
            p for p in root.glob("*.parquet") if re.fullmatch(rf"{part}(-\d+-of-\d+)?", p.stem)
        ):
            return shards
    for root in (folder, *(folder / sub for sub in inside[name])):
        for names in (python, binary):
            there = [root / n for n in names if (root / n).is_file()]
            if there and len(there) < len(names):
                missing = ", ".join(n for n in names if not (root / n).is_file())
                raise MissingInput(
                    f"{name}: {root} lacks {missing}\n  remedy:  unpack the archive again"
                )
            if there:
                return there
    there_now = ", ".join(sorted(p.name for p in folder.iterdir())) or "nothing"
    layout = sources.layout_of(name)
    raise MissingInput(
        f"{name}: no files of part '{part}' in {folder} (there: {there_now})\n"
        f"  layout:  {layout.files if layout else ''}\n  fetch:   {layout.fetch if layout else ''}"
    )


def _read(name: str, path: Path) -> Part:
    if path.suffix == ".parquet":
        import pyarrow.parquet as parquet

        return _from_rows(name, parquet.read_table(path).to_pylist(), str(path))
    return _read_binary(name, path) if path.suffix == ".bin" else _read_python(name, path)


def _from_hub(name: str, hub: Hub, part: str) -> Part:
    import datasets

    data = sources.load_hub(hub, name, part)
    column = next((c for c in ("img", "image") if c in data.column_names), "img")
    if column in data.column_names:
        data = data.cast_column(column, datasets.Image(decode=False))
    return _from_rows(name, list(data), f"{hub.id} {part}")


def _from_rows(name: str, rows: list[dict[str, Any]], where: str) -> Part:
    """Rows of the hub's layout: `img` {bytes} (PNG or JPEG) and the label column."""
    from PIL import Image

    images, labels = (
        np.empty((len(rows), 3, 32, 32), dtype=np.uint8),
        np.empty(len(rows), dtype=np.int64),
    )
    for number, row in enumerate(rows):
        image = row.get("img", row.get("image"))
        if image is None or _LABEL[name] not in row:
            raise ValueError(
                f"{where} row {number}: needs columns img and {_LABEL[name]}; columns: {', '.join(row)}"
            )
        try:
            pixels = np.asarray(Image.open(io.BytesIO(image["bytes"])).convert("RGB"))
        except (OSError, TypeError, KeyError) as error:
            raise ValueError(
                f"{where} row {number}: not a readable image ({error}). Remedy: fetch it again"
            ) from error
        if pixels.shape != (32, 32, 3):
            raise ValueError(
                f"{where} row {number}: image of {pixels.shape[:2]} pixels, expected 32 x 32"
            )
        images[number], labels[number] = pixels.transpose(2, 0, 1), row[_LABEL[name]]
    return _checked(name, images, labels, where)


def _read_binary(name: str, path: Path) -> Part:
    """Rows of 3,073 bytes (CIFAR-10: label, image) or 3,074 (CIFAR-100: coarse, fine, image)."""
    head = 1 if name == "cifar10" else 2
    raw = np.fromfile(path, dtype=np.uint8)
    if len(raw) % (head + 3072):
        raise ValueError(
            f"{path}: {len(raw)} bytes are not whole rows of {head + 3072}. Remedy: fetch it again"
        )
    rows = raw.reshape(-1, head + 3072)
    return _checked(
        name, rows[:, head:].reshape(-1, 3, 32, 32), rows[:, head - 1].astype(np.int64), str(path)
    )


class _ArraysOnly(pickle.Unpickler):
    """Reads the pickles of the python version, which hold arrays, lists, bytes; anything else is refused."""

    def find_class(self, module: str, name: str) -> Any:
        plain = {("_codecs", "encode"), ("numpy", "ndarray"), ("numpy", "dtype")}
        if (module, name) in plain or (
            module.endswith("core.multiarray") and name == "_reconstruct"
        ):
            # old pickles name numpy.core, which moved
            return super().find_class(module.replace("numpy.core.", "numpy._core."), name)
        raise pickle.UnpicklingError(
            f"refuses to load {module}.{name}: CIFAR's files hold arrays only"
        )


def _read_python(name: str, path: Path) -> Part:
    key = b"labels" if name == "cifar10" else b"fine_labels"
    try:
        with open(path, "rb") as file:
            batch = _ArraysOnly(file, encoding="bytes").load()
        images, labels = (
            np.asarray(batch[b"data"], dtype=np.uint8).reshape(-1, 3, 32, 32),
            np.asarray(batch[key]),
        )
    except (pickle.UnpicklingError, EOFError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: not a batch of {name} ({error}). Remedy: fetch it again"
        ) from error
    return _checked(name, images, labels.astype(np.int64), str(path))


def _checked(name: str, images: np.ndarray, labels: np.ndarray, where: str) -> Part:
    if len(images) == 0 or len(images) != len(labels):
        raise ValueError(
            f"{where}: {len(images)} images and {len(labels)} labels. Remedy: fetch it again"
        )
    wrong = np.flatnonzero((labels < 0) | (labels >= CLASSES[name]))
    if len(wrong):
        raise ValueError(
            f"{where} row {wrong[0]}: label {labels[wrong[0]]}, expected 0 to {CLASSES[name] - 1}"
        )
    return torch.from_numpy(np.ascontiguousarray(images)), torch.from_numpy(labels)


# --- augmentation --------------------------------------------------------------------------------------------
# Random numbers come from the generator given (on its own device) and are moved: a CPU generator draws the same
# crops on every device.


def normalise(images: Tensor, name: str = "cifar10") -> Tensor:
    """uint8 (n, 3, 32, 32) -> float32, zero mean and unit variance per channel over the training images."""
    mean, std = (torch.tensor(v[name], device=images.device).view(1, 3, 1, 1) for v in (MEAN, STD))
    return (images.float() / 255 - mean) / std


def random_crop(images: Tensor, generator: torch.Generator, padding: int = 4) -> Tensor:
    """Each image (n, 3, h, w) shifted by up to `padding` pixels each way; what comes in is 0, as in the literature."""
    n, _, h, w = images.shape
    down, right = _draw(2 * padding + 1, (2, n), generator, images.device)
    padded = torch.nn.functional.pad(images, [padding] * 4)
    ys = (down[:, None] + torch.arange(h, device=images.device))[:, :, None]  # (n, h, 1)
    xs = (right[:, None] + torch.arange(w, device=images.device))[:, None, :]  # (n, 1, w)
    batch = torch.arange(n, device=images.device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[batch, ys, xs].permute(0, 3, 1, 2).contiguous()


def random_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image mirrored left to right with probability 1/2."""
    flip = _draw(2, (len(images),), generator, images.device).bool()
    return torch.where(flip[:, None, None, None], images.flip(-1), images)


def cutout(images: Tensor, generator: torch.Generator, length: int = 16) -> Tensor:
    """A square of side `length` around a random pixel of each image set to 0; it may reach over the edge."""
    n, _, h, w = images.shape
    y, x = _draw(h, (n, 1), generator, images.device), _draw(w, (n, 1), generator, images.device)
    rows, columns = torch.arange(h, device=images.device), torch.arange(w, device=images.device)
    half = length // 2
    hidden_y = (rows >= y - half) & (rows < y - half + length)  # (n, h)
    hidden_x = (columns >= x - half) & (columns < x - half + length)
    return images.masked_fill((hidden_y[:, :, None] & hidden_x[:, None, :])[:, None], 0)


def augment(
    images: Tensor,
    generator: torch.Generator,
    name: str = "cifar10",
    padding: int = 4,
    cut: int = 0,
) -> Tensor:
    """Crop, flip, normalise and, if `cut` > 0, cutout: uint8 (n, 3, 32, 32) -> float32 of that shape."""
    images = normalise(random_flip(random_crop(images, generator, padding), generator), name)
    return cutout(images, generator, cut) if cut else images


def _draw(
    below: int, shape: tuple[int, ...], generator: torch.Generator, device: torch.device
) -> Tensor:
    return torch.randint(below, shape, generator=generator, device=generator.device).to(device)


# --- samples for rehearsals ------------------------------------------------------------------------------------


def sample(name: str, n: int, stream: torch.Generator) -> Images:
    """`n` made-up images, every label in turn, for rehearsals and tests: noise with a bright stripe per class."""
    labels = torch.arange(n) % CLASSES[name]
    images = torch.randint(128, (n, 3, 32, 32), generator=stream, dtype=torch.uint8)
    images[torch.arange(n), :, labels % 32] += 127
    return Images(torch.arange(n), images, labels)


def write_sample(
    root: Path, name: str, n: int, stream: torch.Generator, layout: str = "parquet"
) -> Path:
    """Write made-up train and test parts of `n` images each below `root`, a folder for REPRO_DATA, in a layout of
    the source (`parquet`, `python`, `binary`) -> the folder of the data set."""
    folder = Path(root) / name
    folder.mkdir(parents=True, exist_ok=True)
    write: dict[str, Callable] = {
        "parquet": _write_parquet,
        "python": _write_python,
        "binary": _write_binary,
    }
    if layout not in write:
        raise ValueError(f"unknown layout '{layout}'; choose one of: {', '.join(write)}")
    for part in ("train", "test"):
        write[layout](folder, name, part, sample(name, n, stream))
    return folder


def _write_parquet(folder: Path, name: str, part: str, data: Images) -> None:
    import pyarrow
    import pyarrow.parquet as parquet
    from PIL import Image

    images = []
    for image in data.images.permute(0, 2, 3, 1).numpy():
        file = io.BytesIO()
        Image.fromarray(image).save(file, format="PNG")
        images.append({"bytes": file.getvalue(), "path": None})
    kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    table = pyarrow.table({"img": pyarrow.array(images, kind), _LABEL[name]: data.labels.tolist()})
    parquet.write_table(table, folder / f"{part}.parquet")


def _batches(name: str, part: str, data: Images) -> list[tuple[str, Images]]:
    if name == "cifar100":
        return [(part, data)]
    if part == "test":
        return [("test_batch", data)]
    return [
        (f"data_batch_{i + 1}", data[rows])
        for i, rows in enumerate(torch.arange(len(data)).tensor_split(5))
    ]


def _write_python(folder: Path, name: str, part: str, data: Images) -> None:
    for stem, batch in _batches(name, part, data):
        key = b"labels" if name == "cifar10" else b"fine_labels"
        content = {b"data": batch.images.flatten(1).numpy(), key: batch.labels.tolist()}
        (folder / stem).write_bytes(pickle.dumps(content, protocol=2))


def _write_binary(folder: Path, name: str, part: str, data: Images) -> None:
    for stem, batch in _batches(name, part, data):
        head = batch.labels[:, None].to(torch.uint8)
        if name == "cifar100":
            head = torch.cat([head // 5, head], dim=1)  # a coarse label, which is not read
        torch.cat([head, batch.images.flatten(1)], dim=1).numpy().tofile(folder / f"{stem}.bin")
