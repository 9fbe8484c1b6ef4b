"""Inputs of a rehearsal: made-up images in each source's own layout, which the same loaders then read."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
from pathlib import Path

from shared import cifar, runs, sources

from . import data

ITEMS = 40


def inputs(scale: str) -> contextlib.AbstractContextManager[None]:
    """At scale `rehearsal`, REPRO_DATA is the made-up folder inside the block."""
    return (
        sources.pointed_at(REPRO_DATA=folder())
        if scale == "rehearsal"
        else contextlib.nullcontext()
    )


def folder() -> Path:
    """Written once below .cache/; another version of the writers writes its own."""
    code = (
        b"".join(Path(str(m.__file__)).read_bytes() for m in (data, cifar))
        + Path(__file__).read_bytes()
    )
    root = runs.cache_root() / f"mlo_mae-rehearsal-{hashlib.sha256(code).hexdigest()[:16]}"
    root.mkdir(parents=True, exist_ok=True)
    with open(root / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (root / "complete").exists():
            for name in (*cifar.CLASSES, *data.FOLDERS):
                data.write_sample(root, name, ITEMS)
            (root / "complete").touch()
    return root
