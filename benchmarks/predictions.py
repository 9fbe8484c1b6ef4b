"""Predictions as they are committed: every run of a result in one npz, with the same bytes always.

Each distinct array (the ids and labels of a task, mostly) is stored once, in the smallest type that
keeps its values. Scores are computed from what this file holds, never from a run's memory.
"""

from __future__ import annotations

import hashlib
import io
import json
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.recorded import RunKey
from shared.protocol import BadInput

# What zipfile, zlib and numpy raise on bytes that are not what was written.
UNREADABLE = (
    *(OSError, ValueError, LookupError, TypeError, EOFError, RuntimeError),
    *(struct.error, zipfile.BadZipFile, zlib.error),
)
MOST_BYTES = 2_000_000
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
    """Writes `path`, returns its sha256; with `score`, floats of too large a file are rounded."""
    for key, arrays in predictions.items():
        for name, array in arrays.items():
            # names of settings are short and few, never a text
            constant = name == "id" or (name.startswith("_") and array.nbytes <= 4 * 1000)
            if array.dtype.kind not in "biuf" and not (array.dtype.kind == "U" and constant):
                raise BadInput(
                    f"predictions of {key}: {name} is {array.dtype}; numbers only, text stays out "
                    "of the file"
                )
    payload = encoded(predictions)
    for width in (np.float32, np.float16):
        if len(payload) > MOST_BYTES and score is not None:
            payload = encoded(
                {key: rounded(arrays, width, score) for key, arrays in predictions.items()}
            )
    if len(payload) > MOST_BYTES:
        sizes: Counter[str] = Counter()
        for arrays in predictions.values():
            sizes.update({name: smallest(array).nbytes for name, array in arrays.items()})
        largest = max(sizes, key=lambda name: sizes[name])
        raise BadInput(
            f"{path.name}: {len(payload):,} bytes of predictions, at most {MOST_BYTES:,} are "
            f"committed; the largest array is {largest!r} ({sizes[largest]:,} bytes): keep the "
            "class instead of the scores, or fewer items"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(payload)
    return hashlib.sha256(payload).hexdigest()


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


def unpack_predictions(path: Path) -> Predictions:
    """{(arm, task, seed): {name: array}} in the types that the runs had."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            index = json.loads(archive["index"].tobytes())
            arrays = {int(name[1:]): archive[name] for name in archive.files if name != "index"}
        return {
            (arm, task, int(seed)): {
                name: arrays[number].astype(dtype) for name, (number, dtype) in places.items()
            }
            for arm, task, seed, places in index
        }
    except UNREADABLE as error:
        raise BadInput(
            f"{path} cannot be read ({error}); restore it with git, or record the scale again"
        ) from error
