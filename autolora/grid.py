"""The best of several finished runs by their score on held-out items: a grid of uniform ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from autolora.config import Config
from shared import protocol
from shared.runs import BadInput


def record(directory: Path) -> dict[str, Any]:
    return protocol.read_record(directory) or {}


def best_of(config: Config) -> tuple[Path, int]:
    """Of the runs used, the one with the best held-out score, and its rank; a tie: the smallest."""
    scores = []
    for directory in map(Path, config.uses.values()):
        used = record(directory)
        if "score" not in used.get("validation", {}):
            remedy = "train it with --score-validation True"
            raise BadInput(f"{directory} has no score on held-out items; {remedy}")
        scores.append((-used["validation"]["score"], int(used["config"]["ranks"]), directory))
    _, rank, directory = min(scores)
    return directory, rank
