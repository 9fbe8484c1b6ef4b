"""Predictions as they are committed: every run of a result in one npz of at most 2 MB with the same bytes every time.

Each distinct array (the ids and labels of a task, mostly) is stored once, in the smallest type that keeps its
values. Scores are computed from what this file holds, never from what a run had in memory.
"""

from __future__ import annotations

import hashlib
import io
import json
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.scores import NodeKey
from shared.protocol import BadInput

# What zipfile, zlib and numpy raise on bytes that are not what was written.
UNREADABLE = (OSError, ValueError, LookupError, TypeError, EOFError, RuntimeError, struct.error, zipfile.BadZipFile, zlib.error)  # fmt: skip
MOST_BYTES = 2_000_000
Predictions = dict[NodeKey, dict[str, np.ndarray]]


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
            if array.itemsize > smaller.itemsize and np.array_equal(
                smaller.astype(array.dtype), array, True
            ):
                return smaller
    return array


def rounded(
    arrays: Mapping[str, np.ndarray],
    width: type,
    score: Callable[[dict[str, np.ndarray]], dict[str, float]],
) -> dict[str, np.ndarray]:
    """Floats at this width where not one score of the run moves for it; else the arrays as they are."""
    with np.errstate(over="ignore"):
        coarse = {
            k: v.astype(width).astype(v.dtype) if v.dtype.kind == "f" else v
            for k, v in arrays.items()
        }
    return coarse if score(coarse) == score(dict(arrays)) else dict(arrays)


def pack_predictions(
    path: Path,
    predictions: Mapping[NodeKey, Mapping[str, np.ndarray]],
    score: Callable[[dict[str, np.ndarray]], dict[str, float]] | None = None,
) -> str:
    """Writes `path` and returns its sha256. With `score`, floats are rounded where the file would be too large."""
    for key, arrays in predictions.items():
        for name, array in arrays.items():
            constant = (
                name.startswith("_") and array.nbytes <= 4 * 1000
            )  # names of settings, never a text
            if array.dtype.kind not in "biuf" and not (
                array.dtype.kind == "U" and (name == "id" or constant)
            ):
                raise BadInput(
                    f"predictions of {key}: {name} is {array.dtype}; numbers only, text stays out of the file"
                )
    payload = encoded(predictions)
    for width in (np.float32, np.float16):
        if len(payload) > MOST_BYTES and score is not None:
            payload = encoded(
                {key: rounded(arrays, width, score) for key, arrays in predictions.items()}
            )
    if len(payload) > MOST_BYTES:
        sizes = {name: 0 for arrays in predictions.values() for name in arrays}
        for arrays in predictions.values():
            for name, array in arrays.items():
                sizes[name] += smallest(array).nbytes
        largest = max(sizes, key=lambda name: sizes[name])
        raise BadInput(
            f"{path.name}: {len(payload):,} bytes of predictions, at most {MOST_BYTES:,} are committed; the largest "
            f"array is {largest!r} ({sizes[largest]:,} bytes): keep the class instead of the scores, or fewer items"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(payload)
    return hashlib.sha256(payload).hexdigest()


def encoded(predictions: Mapping[NodeKey, Mapping[str, np.ndarray]]) -> bytes:
    """The npz: arrays a0, a1, ... and an index that says which run has which of them under which name."""
    stored: dict[bytes, int] = {}
    contents: list[bytes] = []
    index: list[Any] = []
    for key in sorted(predictions):
        places = {}
        for name, array in sorted(predictions[key].items()):
            buffer = io.BytesIO()
            np.lib.format.write_array(
                buffer, np.asarray(smallest(array), order="C"), version=(1, 0), allow_pickle=False
            )
            number = stored.setdefault(buffer.getvalue(), len(stored))
            if number == len(contents):
                contents.append(buffer.getvalue())
            places[name] = [number, array.dtype.str]
        index.append([*key, places])
    buffer = io.BytesIO()
    text = np.frombuffer(json.dumps(index, separators=(",", ":")).encode(), dtype=np.uint8)
    np.lib.format.write_array(buffer, text, version=(1, 0), allow_pickle=False)
    archive_bytes = io.BytesIO()
    with zipfile.ZipFile(archive_bytes, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        names = ["index", *(f"a{number}" for number in range(len(contents)))]
        for name, content in zip(names, [buffer.getvalue(), *contents]):
            entry = zipfile.ZipInfo(
                f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0)
            )  # no clock in the bytes
            entry.compress_type, entry.external_attr, entry.create_system = (
                zipfile.ZIP_DEFLATED,
                0o644 << 16,
                3,
            )
            archive.writestr(entry, content)
    return archive_bytes.getvalue()


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
