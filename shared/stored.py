"""What is written: files by one rename, values in the cache, the folders of runs."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import json
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from shared import inputs, machine, portable, processes, protocol
from shared.protocol import PLACE, BadInput

# what this module writes into a run's folder; what a paper adds is listed in files.json
WRITTEN = re.compile(
    r"\.lock|(config|record|files)\.json|metrics\.jsonl|log\.txt|(splits|predictions)\.npz|"
    r"checkpoint/(step|end)-\d+\.pt|(checkpoint/)?\.[\w.-]+\.\d+\.tmp"
)
# what of it a kill leaves before config.json, the first file of a run, has its name
BEFORE_CONFIG = re.compile(r"\.lock|\.config\.json\.\d+\.tmp")
# files by which the others are recognised go last, or a kill would leave the rest looking foreign
DELETED_LAST = {"files.json": 1, "config.json": 2}


class Damaged(BadInput):
    """A file of ours whose bytes are not those that were written."""


# --- files ------------------------------------------------------------------------------------


def write_bytes(path: Path, payload: bytes) -> None:
    """Write by one rename: a kill or a full disk leaves the old file as it was."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        what = f"could not write {len(payload):,} bytes to {path} ({error.strerror})"
        remedy = "what was there is untouched: free disk space and give the same command again"
        raise OSError(error.errno, f"{what}; {remedy}") from error


def write_json(path: Path, value: Any) -> None:
    write_bytes(path, (json.dumps(value, indent=1, default=plain) + "\n").encode())


def plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor | np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")


def pack(value: Any) -> bytes:
    """Tensors, arrays, numbers, text, lists and dicts as bytes, the sha256 of the rest in front."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    body = buffer.getvalue()
    return hashlib.sha256(body).hexdigest().encode() + b"\n" + body


def unpack(payload: bytes, name: str) -> Any:
    """The value that `pack` packed; BadInput if a bit moved. Never runs code from the file."""
    head, body = payload[:64], payload[65:]
    if payload[64:65] != b"\n" or hashlib.sha256(body).hexdigest().encode() != head:
        damage = "the sha256 does not match its content (truncated or damaged)"
        raise Damaged(f"{name}: {damage}; delete it and repeat")
    return torch.load(io.BytesIO(body), weights_only=True, map_location="cpu")


def save_arrays(path: Path, arrays: dict[str, Any]) -> str:
    """Write an npz with the same bytes for the same content; returns its sha256."""
    buffer = io.BytesIO()
    plain: dict[str, Any] = {k: np.asarray(v) for k, v in sorted(arrays.items())}
    np.savez_compressed(buffer, **plain)
    write_bytes(path, buffer.getvalue())
    return hashlib.sha256(buffer.getvalue()).hexdigest()


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as archive:
        return {k: archive[k] for k in archive.files}


def cached(key: tuple[Any, ...], make: Callable[[], Any], noted: bool = True) -> Any:
    """`make()`, or what it returned before under this key: a label and all the values it depends on
    (weights and other tensors by `state_sha256`).

    The code of `make` and of all that its file imports, packages and data that it reads are looked
    at here. What it read, and the sha256 of what is stored, stand in the record of each run that
    uses it, but for callers (`noted=False`) that note the value's content themselves.
    Made once even if several processes ask; a damaged entry is made again; safe to delete."""
    code = protocol.imported_code(Path(make.__code__.co_filename))
    here = {"packages": machine.packages(), "portable": portable()}
    digest = protocol.sha256_json([repr(key), code, here])[:32]
    path = inputs.cache_root() / "values" / f"{digest}.pt"
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_suffix(".lock"), "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        entry = _cache_entry(path)
        if entry is None:
            with processes.single(), inputs.recording() as read:  # the others wait, and read it
                value = make()
            packed = pack(value)
            write_bytes(path, json.dumps(read.parts()).encode() + b"\n" + packed)
        else:
            read, packed, value = entry
            inputs.replay(read)
    if noted:
        named = f"{key[0]} {protocol.sha256_json(repr(key))[:8]}"
        inputs.note_cache(named, packed[:64].decode())
    return value


def _cache_entry(path: Path) -> tuple[inputs.ReadLog, bytes, Any] | None:
    """What a value was made of, its packed form, itself; None where it has to be made."""
    with contextlib.suppress(OSError, ValueError, TypeError, Damaged):
        head, packed = path.read_bytes().split(b"\n", 1)
        read = inputs.ReadLog(**json.loads(head))
        value = unpack(packed, str(path))
        if inputs.changed(read) is None:
            return read, packed, value
    return None


def state_sha256(tensors: Iterable[torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        plain = tensor.detach().cpu().contiguous()
        digest.update(f"{plain.dtype}{tuple(plain.shape)}".encode())
        digest.update(plain.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


# --- whose folder it is -----------------------------------------------------------------------


def begun_in(directory: Path) -> dict[str, Any]:
    """config.json of a run; {} where there is none, or one that is somebody else's."""
    with contextlib.suppress(OSError, ValueError):
        begun = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        keys = {"config", "code", "uses"}
        if isinstance(begun, dict) and keys <= begun.keys() <= {*keys, "machine"}:
            return begun if all(isinstance(begun[key], dict) for key in keys) else {}
    return {}


def same_run(before: dict[str, Any], now: dict[str, Any]) -> bool:
    """Whether two config.json begin the same run, wherever its folder and those it uses are."""

    def decisive(begun: dict[str, Any]) -> dict[str, Any]:
        return {**begun, "config": {k: v for k, v in begun["config"].items() if k not in PLACE}}

    return bool(before) and decisive(before) == decisive(now)


def files_in(directory: Path) -> list[str]:
    """All files below a folder, links among them, by name; links are not followed."""
    names = []
    for place, folders, files in os.walk(directory):
        links = [name for name in folders if os.path.islink(os.path.join(place, name))]
        names += [Path(place, name).relative_to(directory).as_posix() for name in links + files]
    return sorted(names)


def changed_at(path: Path) -> int:
    return path.lstat().st_mtime_ns if os.path.lexists(path) else 0


def foreign_in(directory: Path) -> list[str]:
    """Files in a run's folder, and in `older` where that is a run, that no run wrote there."""
    listed = {"": _listed(directory)}
    if begun_in(directory / "older"):
        listed["older/"] = _listed(directory / "older")
        if not begun_in(directory):  # killed while files moved from one to the other
            listed = dict.fromkeys(listed, listed[""] | listed["older/"])
    names = []
    for name in files_in(directory):
        place = "older/" if name.startswith("older/") and "older/" in listed else ""
        inside = name.removeprefix(place)
        if not WRITTEN.fullmatch(inside) and inside not in listed[place]:
            names.append(name)
    return names


def _listed(directory: Path) -> set[str]:
    """What a paper wrote in its run, by files.json."""
    with contextlib.suppress(OSError, ValueError, TypeError):
        return set(json.loads((directory / "files.json").read_text(encoding="utf-8")))
    return set()


def refuse_foreign(directory: Path) -> None:
    """BadInput if a folder holds a file that no run of ours wrote there."""
    what = f"{directory} holds files that are no run of this project"
    if begun_in(directory) or begun_in(directory / "older"):
        foreign = foreign_in(directory)
        what = f"{directory} holds what no run wrote there: {', '.join(foreign[:3])}"
    else:
        # no walk through what may be / or HOME
        entries = os.listdir(directory) if directory.is_dir() else []
        foreign = [name for name in entries if not BEFORE_CONFIG.fullmatch(name)]
    if foreign:
        raise BadInput(f"{what}; move them away, or give another --out")


def put_aside(directory: Path) -> None:
    """Move a run, or what a kill left of it, to `older`, config.json first: it says whose they are.

    Until all are there the folder holds no run that could be taken for begun."""
    (older := directory / "older").mkdir(exist_ok=True)
    items = [item for item in directory.iterdir() if item.name not in (".lock", "older")]
    for item in sorted(items, key=lambda item: item.name != "config.json"):
        item.rename(older / item.name)


def put_back(directory: Path) -> None:
    """The run in `older` takes its place again, config.json last."""
    older = directory / "older"
    for item in sorted(older.iterdir(), key=lambda item: item.name == "config.json"):
        item.rename(directory / item.name)
    older.rmdir()


def delete_run(directory: Path, but: tuple[str, ...] = ()) -> None:
    """Delete the files of a run, in an order that a kill may interrupt anywhere."""
    refuse_foreign(directory)
    names = [name for name in files_in(directory) if Path(name).parts[0] not in (".lock", *but)]
    for name in sorted(names, key=lambda name: DELETED_LAST.get(name, 0)):
        (directory / name).unlink()
    for place, _, _ in os.walk(directory, topdown=False):
        with contextlib.suppress(OSError):  # not empty
            os.rmdir(place)
