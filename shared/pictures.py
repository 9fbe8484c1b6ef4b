"""Images in folders of classes, or in the hub's parquet files: one reader for ImageNet and its kin.

<root>/train/<class>/*.JPEG, <root>/val/<class>/*.JPEG (or test/)      or <part>-*-of-*.parquet
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from shared import sources, tables
from shared.protocol import BadInput
from shared.sources import Hub, MissingInput

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = {".jpg", ".jpeg", ".png"}
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")  # whatever the name says; no programs (EPS)
SMALL = 1024  # bytes: no photograph is smaller, but a pointer is


@dataclass(frozen=True)
class Pictures:
    """Images of one part, read when asked for. labels (n,) int64.

    rows: n paths, or rows {image: {bytes}} of the hub's table.
    """

    where: str
    rows: Sequence[Any]
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> Image:
        """(H, W) RGB. Raises BadInput with the file, or the row of the table."""
        source = self.rows[row]
        if isinstance(source, Path):
            return rgb(source, str(source))
        return rgb(source["image"], f"{self.where} row {row}")


def load(name: str, root: Path | None = None) -> tuple[Pictures, Pictures, int]:
    """Training part, test part (`val`, `validation` or `test`), number of classes.

    From `root`, or as `sources.find_data` finds `name`. Raises MissingInput where a part is not
    there, BadInput for an empty class, a class or a label that training does not have, an
    incomplete family of files, and images that are none.
    """
    hub = Hub("ILSVRC/imagenet-1k") if name == "imagenet" else None
    source = root or sources.find_data(name, hub)
    if isinstance(source, Path) and not tables.shards(source, "train"):
        return _folders(name, source)
    train, test = (_table(name, source, part) for part in ("train", "validation"))
    classes = int(train.labels.max(initial=-1)) + 1
    for part in (train, test):
        wrong = np.flatnonzero((part.labels < 0) | (part.labels >= classes))
        if len(wrong):
            value = f"label {part.labels[wrong[0]]}, expected 0 to {classes - 1}"
            raise BadInput(f"{part.where} row {wrong[0]}: {value}. Remedy: fetch the data again")
    empty = np.setdiff1d(np.arange(classes), train.labels)
    if len(empty) or not len(test):
        lacking = f"no image of class {empty[0]}" if len(empty) else "no rows"
        where = train.where if len(empty) else test.where
        raise BadInput(f"{where}: {lacking}. Remedy: fetch the data again")
    return train, test, classes


def rgb(source: Path | Any, at: str) -> Image:
    """The image of a file, or of {bytes}, as 8-bit RGB; 16-bit grey is scaled, not cut off.

    at: what an error names. Raises BadInput if it cannot be read.
    """
    from PIL import Image

    try:
        file = source if isinstance(source, Path) else io.BytesIO(source["bytes"])
        image = Image.open(file, formats=FORMATS)
        if (
            getattr(image, "n_frames", 1) > 1 and image.format != "MPO"
        ):  # cameras' JPEG with a preview
            raise OSError("several pictures in one file")
        if image.mode.startswith(("I", "F")):
            return _from_16_bits(np.asarray(image), at)
        return image.convert("RGB")
    except (BadInput, MemoryError):
        raise
    except Exception as error:  # a damaged image ends in errors of any class
        raise BadInput(f"{at}: not a readable image ({error}). Remedy: fetch it again") from error


def _from_16_bits(pixels: np.ndarray, at: str) -> Image:
    from PIL import Image

    if pixels.dtype.kind == "f" or pixels.min() < 0 or pixels.max() > 65_535:
        what = f"grey levels {pixels.min()} to {pixels.max()} are not 0 to 65535"
        raise BadInput(f"{at}: {what}. Remedy: save it with 8 or 16 bits")
    return Image.fromarray(np.round(pixels / 257).astype(np.uint8)).convert("RGB")


def _folders(name: str, root: Path) -> tuple[Pictures, Pictures, int]:
    test = sources.first(root / part for part in ("val", "test"))
    if not (root / "train").is_dir() or test is None:
        raise MissingInput(
            f"{name}: {root} needs train/ and val/ (or test/), with a folder for each class, or "
            "the hub's parquet files\n"
            "  remedy:  unpack the archives so; for CUB, Cars, iNaturalist by the official split"
        )
    classes = [path.name for path in tables.visible(root / "train") if path.is_dir()]
    parts = [_folder(name, where, classes) for where in (root / "train", test)]
    return parts[0], parts[1], len(classes)


def _folder(name: str, where: Path, classes: list[str]) -> Pictures:
    """`<where>/<class>/<image>`; an empty class and what cannot be an image are refused."""
    entries = {path.name: path for path in tables.visible(where) if path.is_dir()}
    if foreign := sorted(set(entries) - set(classes)):
        remedy = "Remedy: move them away"
        raise BadInput(f"{where}: classes {foreign[:3]} are not in train/. {remedy}")
    files: list[Path] = []
    labels: list[int] = []
    others = Counter(path.suffix for path in tables.visible(where) if not path.is_dir())
    for number, label in enumerate(classes):
        inside = tables.visible(entries[label]) if label in entries else []
        images = [path for path in inside if path.suffix.lower() in SUFFIXES]
        if nested := [path for path in inside if path.is_dir()]:
            what = f"{nested[0]}: a folder inside a class, whose images would be left out"
            raise BadInput(f"{what}. Remedy: move them to <class>/<name>.JPEG")
        others.update(path.suffix for path in inside if path.suffix.lower() not in SUFFIXES)
        if not images:
            what = f"class {label} has no images; it needs <class>/<name>.JPEG"
            raise BadInput(f"{where}: {what}. Remedy: fetch them, or remove the class from train/")
        files += images
        labels += [number] * len(images)
    if not files:
        raise BadInput(f"{where} has no images; it needs <class>/<name>.JPEG")
    if others:
        kinds = ", ".join(sorted(filter(None, others)))
        what = f"are no images of a class ({kinds})"
        tables.say_once(f"note: {others.total()} files of {where} {what}: skipped")
    for path in files:
        # what is no file, empty or a pointer is refused now, not in mid-run
        if not path.is_file() or path.stat().st_size < SMALL:
            tables.intact(path)
    sources.note(f"{name}/{where.name}", where)
    return Pictures(str(where), files, np.array(labels, dtype=np.int64))


def _table(name: str, source: Path | Hub, part: str) -> Pictures:
    """Rows {image, label} of the hub's layout, decoded one at a time."""
    import datasets

    if isinstance(source, Hub):
        where, rows = f"{source.id} {part}", sources.load_hub(source, name, part)
    else:
        where, files = f"{source} {part}", tables.shards(source, part)
        if not files:
            what = f"{name}: {source} has no {part}*.parquet"
            raise MissingInput(f"{what}\n  remedy:  fetch the data set again")
        for path in files:
            tables.checked(path, f"{name}/{path.relative_to(source).as_posix()}")
        try:
            rows = datasets.Dataset.from_parquet([str(path) for path in files])
        except Exception as error:  # of any class: pyarrow's in datasets'
            cause = error.__cause__ or error
            raise BadInput(f"{where}: {cause}. Remedy: fetch the files again") from error
    if lacking := {"image", "label"} - set(rows.column_names):
        raise tables.no_column(where, sorted(lacking)[0], rows.column_names)
    labels = np.array(rows["label"])
    if labels.dtype.kind not in "iu":
        raise BadInput(f"{where}: labels are not whole numbers. Remedy: fetch the data again")
    return Pictures(where, rows.cast_column("image", datasets.Image(decode=False)), labels)
