"""Rates of scale cpu on MNIST: the same grid and seeds for every arm, by validation images alone.

    python -m mlo_mae.tune           an hour on one core; prints `tuning` of protocol.yaml as YAML

Development seeds. What counts is the accuracy after finetuning on 500 images that no level, no
finetuning and no test sees; of equal means the smaller rate is chosen. A rate is that of level 1.
mlo_official takes the rate of mlo: they differ in one factor of the hypergradient.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
from pathlib import Path

import yaml

from shared import protocol
from shared.inputs import in_words

from . import train
from .config import Config

GRID = (1.5e-3, 3e-3, 6e-3, 1.2e-2)
SEEDS = (0, 1, 2)
ARMS = ("mae", "mlo")


def score(paper: protocol.Protocol, arm: str, seed: int, lr: float) -> float:
    """Validation accuracy of one run in points. A run that is there is not made again."""
    config = paper.config("cpu", paper.node("cpu", arm, "mnist", seed))
    root = protocol.runs_root(paper.root) / "mlo_mae" / "tuning"
    out = str(root / arm / f"{lr:g}" / f"seed{seed}")
    with contextlib.redirect_stdout(sys.stderr):  # stdout is for the list
        record = protocol.read_record(train.run(Config(**config | {"lr": lr, "out": out})))
    assert record is not None
    return 100 * float(record["validation"]["accuracy_0"])


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    options.parse_args()
    paper = protocol.Protocol(Path(__file__).resolve().parent)
    lines = []
    for arm in ARMS:
        means = {
            lr: round(statistics.fmean(score(paper, arm, s, lr) for s in SEEDS), 2) for lr in GRID
        }
        line = {"arm": arm, "task": "mnist", "trials": len(GRID), "grid": {"lr": list(GRID)}}
        line |= {"seeds": list(SEEDS), "scores": {f"{lr:g}": v for lr, v in means.items()}}
        lines.append(line | {"chosen": {"lr": max(GRID, key=lambda lr: (means[lr], -lr))}})
    print(yaml.safe_dump(lines, sort_keys=False, default_flow_style=None, width=120))


if __name__ == "__main__":
    try:
        main()
    except (protocol.BadInput, OSError) as error:
        print(f"error: {in_words(error)}", file=sys.stderr)
        sys.exit(2)
