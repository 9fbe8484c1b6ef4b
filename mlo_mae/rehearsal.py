"""Inputs of a rehearsal: made-up images in each source's own layout, which the same loaders then read."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from shared import cifar, runs

from . import data

ITEMS = 40


@contextlib.contextmanager
def inputs(scale: str) -> Iterator[None]:
    """At scale `rehearsal`, REPRO_DATA is the made-up folder inside the block."""
    if scale != "rehearsal":
        yield
        return
    before = os.environ.get("REPRO_DATA")
    os.environ["REPRO_DATA"] = str(folder())
    try:
        yield
    finally:
        os.environ.pop("REPRO_DATA") if before is None else os.environ.update(REPRO_DATA=before)


def folder() -> Path:
    """Written once below .cache/; another version of the writers writes its own."""
    code = b"".join(Path(str(m.__file__)).read_bytes() for m in (data, cifar)) + Path(__file__).read_bytes()
    root = runs.cache_root() / f"mlo_mae-rehearsal-{hashlib.sha256(code).hexdigest()[:16]}"
    root.mkdir(parents=True, exist_ok=True)
    with open(root / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (root / "complete").exists():
            for name in (*cifar.CLASSES, *data.FOLDERS):
                data.write_sample(root, name, ITEMS)
            (root / "complete").touch()
    return root
