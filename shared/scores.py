"""`python -m <paper>.evaluate DIR`: the scores of a finished run, from its predictions alone."""

from __future__ import annotations

import os
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from shared import inputs, protocol

_BROKEN = (OSError, ValueError, EOFError, LookupError, AttributeError, TypeError, MemoryError)


def show(paper: str, score: Callable[[dict[str, np.ndarray]], dict[str, float]]) -> None:
    """Print what `score` makes of the directory that the command line names; exit status 2, with
    the file and the remedy, where it holds no predictions of the paper."""
    if len(sys.argv) != 2:
        print(f"usage: python -m {paper}.evaluate DIRECTORY_OF_A_RUN", file=sys.stderr)
        sys.exit(2)
    path = Path(sys.argv[1]) / "predictions.npz"
    try:
        if not os.path.isfile(path):
            raise FileNotFoundError("no such file")
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        rows = {len(array) for name, array in arrays.items() if not name.startswith("_")}
        if len(rows) > 1 or rows == {0}:
            raise ValueError("items are missing")
        expected = (protocol.read_record(path.parent) or {}).get("predictions_sha256")
        if expected and inputs.file_sha256(path) != expected:
            raise ValueError("they changed after record.json was written")
        values = score(arrays)
        if not values:
            raise ValueError("nothing to score")
    except (*_BROKEN, zipfile.BadZipFile) as error:
        detail = f"holds no predictions of {paper} ({type(error).__name__}: {error})"
        what = f"{str(path)[:300]} {detail if os.path.exists(path) else 'does not exist'}"
        remedy = f"give a finished run that has a score (python -m {paper}.train --help)"
        print(f"error: {what}\n  remedy:  {remedy}", file=sys.stderr)
        sys.exit(2)
    for name, value in values.items():
        print(f"{name} = {value:.4f}")
