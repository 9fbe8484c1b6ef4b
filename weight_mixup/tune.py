"""Learning rates of scale cpu, for every trained arm on the same grid, by validation items alone.

    python -m weight_mixup.tune digits30        five minutes on one core; prints `tuning` as YAML

Development seeds; no test item is read off. A rate is chosen by the mean validation score over the
seeds, the smaller of equal ones. The method, `long` and `kavg` differ in what the claims are about
and share a rate: the one whose mean over the three is highest, a rule written down before the runs;
so do the variants of the method. All other arms have their own. On film reviews, an exhibit, the
shared rate is that of `long`, the one of the three that needs neither searches nor gates.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
from pathlib import Path

import yaml

from shared import protocol, runs
from weight_mixup import train
from weight_mixup.config import Config

GRIDS = {
    "digits30": (2e-3, 4e-3, 8e-3, 16e-3, 32e-3, 64e-3, 128e-3),
    "movie": (2.5e-4, 5e-4, 1e-3, 2e-3),
}
SEEDS = {"digits30": range(60, 80), "movie": range(60, 63)}
SHARED = {"digits30": ("mixup", "long", "kavg"), "movie": ("long",)}
OWN = {"digits30": ("plain", "joint", "random_45", "ema", "more_labels"), "movie": ("plain",)}


def score(paper: protocol.Protocol, task: str, arm: str, seed: int, lr: float) -> float:
    """Validation score of one run, in points. A run of equal settings is not made again."""
    config = paper.config("cpu", paper.node("cpu", arm, task, seed))
    root = protocol.runs_root(paper.root) / "weight_mixup" / "tuning" / task
    out = str(root / arm / f"{lr:g}" / f"seed{seed}")
    with contextlib.redirect_stdout(sys.stderr):  # stdout is for the list
        record = protocol.read_record(train.run(Config(**config | {"lr": lr, "out": out})))
    assert record is not None
    return 100 * float(record["validation"]["score"])


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    options.add_argument("task", choices=sorted(GRIDS))
    task = options.parse_args().task
    paper = protocol.Protocol(Path(__file__).resolve().parent)
    grid, seeds = GRIDS[task], list(SEEDS[task])
    arms = (*SHARED[task], *OWN[task])
    means = {
        arm: [
            round(statistics.fmean(score(paper, task, arm, s, lr) for s in seeds), 2) for lr in grid
        ]
        for arm in arms
    }
    together = [statistics.fmean(means[arm][i] for arm in SHARED[task]) for i in range(len(grid))]
    lines = []
    for arm in arms:
        of_rate = together if arm in SHARED[task] else means[arm]
        chosen = grid[of_rate.index(max(of_rate))]
        line = {"arm": arm, "task": task, "trials": len(grid), "grid": {"lr": list(grid)}}
        lines.append(line | {"seeds": seeds, "scores": means[arm], "chosen": {"lr": chosen}})
    print(yaml.safe_dump(lines, sort_keys=False, default_flow_style=None, width=200))


if __name__ == "__main__":
    runs._stop_on_signals()
    main()
