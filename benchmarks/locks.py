"""One process at a time: on a scale of a paper, in the report's folder, on what is recorded.

    python -m benchmarks.locks     who trains or judges here; exit status 2 if anybody does

A lock is a file that its owner holds with flock and writes its name into. The system lets go of it
when the owner dies, however it dies, so that no lock is ever left to be deleted by hand.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks import ROOT
from shared.protocol import BadInput, runs_root

NAME = ".lock"


@contextlib.contextmanager
def alone(folder: Path, what: str, patience: float = 0.0, signed: bool = True) -> Iterator[None]:
    """`what` is done in `folder` by this process alone; BadInput, naming who does it, after
    `patience` seconds. Without `signed` the folder itself is locked, and no file is left in it."""
    folder.mkdir(parents=True, exist_ok=True)
    path, how = (folder / NAME, os.O_RDWR | os.O_CREAT) if signed else (folder, os.O_RDONLY)
    file = os.open(path, how, 0o644)
    try:
        begun = time.monotonic()
        while not _taken(file, fcntl.LOCK_EX):
            if time.monotonic() - begun >= patience:
                who = owner(path) if signed else f"another process is in {folder}"
                raise BadInput(
                    f"{what} is under way: {who}; nothing was touched here. Wait for it, or stop it"
                )
            time.sleep(0.1)
        if signed:
            since = time.strftime("%Y-%m-%d %H:%M:%S")
            os.ftruncate(file, 0)
            os.write(
                file, f"process {os.getpid()} on {socket.gethostname()} since {since}".encode()
            )
        yield
    finally:
        os.close(file)


def _taken(file: int, kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def owner(path: Path) -> str:
    return path.read_text(encoding="utf-8") or "a process that gave no name"


def busy(folder: Path) -> dict[Path, str]:
    """The folders below `folder` in which somebody works, and who."""
    owners = {}
    for path in sorted(folder.rglob(NAME)):
        with contextlib.suppress(FileNotFoundError), open(path, encoding="utf-8") as file:
            if not _taken(file.fileno(), fcntl.LOCK_SH):
                owners[path.parent] = owner(path)
    return owners


def main() -> int:
    owners = busy(runs_root(ROOT))
    for folder, name in owners.items():
        print(f"error: {folder} is in use: {name}; wait for it, or stop it", file=sys.stderr)
    return 2 if owners else 0


if __name__ == "__main__":
    sys.exit(main())
