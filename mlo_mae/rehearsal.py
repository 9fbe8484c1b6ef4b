"""Inputs of a rehearsal: made-up images in the layout of each source, read by the same loaders."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
from pathlib import Path

import torch

from shared import cifar, runs, sources

from . import folders

ITEMS = 40


def inputs() -> contextlib.AbstractContextManager[None]:
    """REPRO_DATA is the made-up folder inside the block."""
    return sources.pointed_at(REPRO_DATA=folder())


def folder() -> Path:
    """Written once below .cache/; another version of the writers writes its own."""
    code = b"".join(Path(f).read_bytes() for f in (cifar.__file__, __file__))
    root = runs.cache_root() / f"mlo_mae-rehearsal-{hashlib.sha256(code).hexdigest()[:16]}"
    root.mkdir(parents=True, exist_ok=True)
    with open(root / ".lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (root / "complete").exists():
            for name in (*cifar.CLASSES, *folders.FOLDERS):
                write_sample(root, name, ITEMS)
            (root / "complete").touch()
    return root


def write_sample(root: Path, name: str, n: int) -> None:
    """Made-up images of `name` below `root`: CIFAR's parquet files, or folders of files."""
    stream = runs.stream(0, "rehearsal", name)
    if name in cifar.CLASSES:
        cifar.write_sample(root, name, max(n, 2 * cifar.CLASSES[name]), stream)
        return
    from PIL import Image

    for part in ("train", "val"):
        for label in range(4):
            where = root / name / part / f"n{label:04d}"
            where.mkdir(parents=True, exist_ok=True)
            for k in range(max(2, n // 4)):
                size = (40, 36 + 4 * label, 3)
                pixels = torch.randint(256, size, generator=stream, dtype=torch.uint8)
                Image.fromarray(pixels.numpy()).save(where / f"{k}.JPEG")
