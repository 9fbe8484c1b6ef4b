"""Predictions as they are committed: the runs of a result in npz files, with the same bytes always.

Each distinct array (the ids and labels of a task, mostly) is stored once, in the smallest type that
keeps its values. What is more than MOST_BYTES stands in several files: `cpu.predictions.npz`,
`cpu.predictions.1.npz`, ... Scores are computed from what these hold, never from a run's memory.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.recorded import RunKey, run_name, write_bytes
from shared.protocol import BadInput

# What zipfile, zlib and numpy raise on bytes that are not what was written.
UNREADABLE = (
    *(OSError, ValueError, LookupError, TypeError, EOFError, RuntimeError, MemoryError),
    *(struct.error, zipfile.BadZipFile, zlib.error),
)
MOST_BYTES = 2_000_000  # of one file
MOST_UNPACKED = 4_000_000_000  # bytes in memory: a small file may unpack to anything
Arrays = Mapping[str, np.ndarray]
Predictions = dict[RunKey, dict[str, np.ndarray]]
Score = Callable[[dict[str, np.ndarray]], dict[str, float]]


def smallest(array: np.ndarray) -> np.ndarray:
    """The same values in the smallest type that holds them."""
    if array.dtype.kind in "iu" and array.size:
        low, high = int(array.min()), int(array.max())
        for kind in (np.uint8, np.int8, np.uint16, np.int16, np.uint32, np.int32):
            if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max:
                return array.astype(kind)
    if array.dtype.kind == "f":
        for width in (np.float16, np.float32):
            with np.errstate(over="ignore"):
                smaller = array.astype(width)
            same = np.array_equal(smaller.astype(array.dtype), array, equal_nan=True)
            if array.itemsize > smaller.itemsize and same:
                return smaller
    return array


def rounded(arrays: Arrays, width: type, score: Score) -> Arrays:
    """Floats at this width where not one score of the run moves for it; else all as it was."""
    with np.errstate(over="ignore"):
        coarse = {
            name: array.astype(width).astype(array.dtype) if array.dtype.kind == "f" else array
            for name, array in arrays.items()
        }
    return coarse if score(coarse) == score(dict(arrays)) else dict(arrays)


def pack_predictions(
    path: Path, predictions: Mapping[RunKey, Arrays], score: Score | None = None
) -> str:
    """Writes `path` and the files after it, returns their sha256.

    With `score`, floats that take too much room are rounded where not one score moves for it.
    """
    for key, arrays in predictions.items():
        for name, array in arrays.items():
            # names of settings are short and few, never a text
            constant = name == "id" or (name.startswith("_") and array.nbytes <= 4 * 1000)
            if array.dtype.kind not in "biuf" and not (array.dtype.kind == "U" and constant):
                raise BadInput(
                    f"predictions of {key}: {name} is {array.dtype}; numbers only, text stays out "
                    "of the file"
                )
    payloads = divided(predictions)
    for width in (np.float32, np.float16):
        if len(payloads) > 1 and score is not None:
            payloads = divided(
                {key: rounded(arrays, width, score) for key, arrays in predictions.items()}
            )
    write_files(path, payloads)
    return hashlib.sha256(b"".join(payloads)).hexdigest()


def divided(predictions: Mapping[RunKey, Arrays]) -> list[bytes]:
    """The files' contents: halves of the runs, and halves of these, until each fits or is a run."""
    payload, keys = encoded(predictions), sorted(predictions)
    if len(payload) <= MOST_BYTES or len(keys) == 1:
        return [payload]
    halves = keys[: len(keys) // 2], keys[len(keys) // 2 :]
    return [part for half in halves for part in divided({key: predictions[key] for key in half})]


def write_files(path: Path, payloads: Sequence[bytes]) -> None:
    """`path` and the files after it; those of an older, longer row are deleted."""
    for number, payload in enumerate(payloads):
        write_bytes(numbered(path, number), payload)
    current = {numbered(path, number) for number in range(len(payloads))}
    for file in {*path.parent.glob(f"{path.stem}.*[0-9].npz")} - current:
        file.unlink()


def numbered(path: Path, number: int) -> Path:
    return path.with_suffix(f".{number}.npz") if number else path


def prediction_files(path: Path) -> list[Path]:
    """`path` and the files after it, as far as they are there."""
    files = (numbered(path, number) for number in itertools.count())
    return list(itertools.takewhile(Path.exists, files))


def predictions_sha256(path: Path) -> str:
    """sha256 of all files of `path`, one after the other."""
    return hashlib.sha256(b"".join(f.read_bytes() for f in prediction_files(path))).hexdigest()


def require_small(path: Path) -> None:
    """BadInput where one run alone fills more than a committed file may have."""
    for file in prediction_files(path):
        if (size := file.stat().st_size) > MOST_BYTES:
            (key, arrays), *_ = unpack_predictions(path, [file]).items()
            largest = max(arrays, key=lambda name: smallest(arrays[name]).nbytes)
            raise BadInput(
                f"{file}: {size:,} bytes of predictions of {run_name(key)}, at most "
                f"{MOST_BYTES:,} are committed in a file; the largest array is {largest!r} "
                f"({smallest(arrays[largest]).nbytes:,} bytes): keep the class instead of the "
                "scores, or fewer items"
            )


def encoded(predictions: Mapping[RunKey, Arrays]) -> bytes:
    """The npz: arrays a0, a1, ... and an index of which run has which of them under which name."""
    numbers: dict[bytes, int] = {}  # an array's bytes -> its number
    index: list[list[Any]] = []
    for key in sorted(predictions):
        places = {}
        for name, array in sorted(predictions[key].items()):
            content = npy(np.asarray(smallest(array), order="C"))
            places[name] = [numbers.setdefault(content, len(numbers)), array.dtype.str]
        index.append([*key, places])
    text = json.dumps(index, separators=(",", ":")).encode()
    contents = {"index": npy(np.frombuffer(text, dtype=np.uint8))}
    contents |= {f"a{number}": content for content, number in numbers.items()}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, content in contents.items():
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))  # no clock
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            entry.create_system = 3
            archive.writestr(entry, content)
    return buffer.getvalue()


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


def unpack_predictions(path: Path, files: Sequence[Path] | None = None) -> Predictions:
    """{(arm, task, seed): {name: array}} in the types that the runs had, of all files of `path`."""
    predictions: Predictions = {}
    for file in files or prediction_files(path) or [path]:
        try:
            for key, arrays in _unpacked(file):
                if key in predictions:
                    raise ValueError(f"{run_name(key)} is in it twice")
                predictions[key] = arrays
        except UNREADABLE as error:
            raise BadInput(
                f"{file} cannot be read ({error}); restore it with git, or record the scale again"
            ) from error
    return predictions


def _unpacked(file: Path) -> Iterator[tuple[RunKey, dict[str, np.ndarray]]]:
    with zipfile.ZipFile(file) as archive:
        left = MOST_UNPACKED - sum(entry.file_size for entry in archive.infolist())
    if left < 0:
        raise ValueError(f"it unpacks to more than {MOST_UNPACKED:,} bytes")
    with np.load(file, allow_pickle=False) as archive:
        index = json.loads(archive["index"].tobytes())
        stored = {int(name[1:]): archive[name] for name in archive.files if name != "index"}
    for arm, task, seed, places in index:
        arrays = {}
        for name, (number, kind) in places.items():
            left -= stored[number].size * np.dtype(kind).itemsize
            if left < 0:
                raise ValueError(f"its runs unpack to more than {MOST_UNPACKED:,} bytes")
            arrays[name] = stored[number].astype(kind)
        yield (arm, task, int(seed)), arrays
