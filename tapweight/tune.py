"""Settings of the planted digits at scale cpu: nine trials for each arm.

    python -m tapweight.tune     about five minutes; prints the `tuning` list of protocol.yaml

Development seeds, finetuning on D_tr alone, accuracy on D_val: no test item is read off. Chosen is
the trial with the highest mean over the seeds. Every arm has a rate of finetuning of its own; all
pretrain at the rate that is best for cp-uniform.
"""

from __future__ import annotations

import itertools
import statistics
from pathlib import Path
from typing import Any

import yaml

from shared import protocol, runs
from tapweight import train
from tapweight.config import Config

Grid = dict[str, tuple[float, ...]]
SEEDS = range(30, 36)
RATES: Grid = {"finetune_lr": (1e-3, 3e-3, 1e-2), "lr_I": (1e-3, 3e-3, 1e-2)}
GRIDS: dict[str, Grid] = {
    "ft": {"finetune_lr": (1e-3, 2e-3, 3e-3, 5e-3, 1e-2, 1.5e-2, 2e-2, 3e-2, 5e-2)},
    "cp-uniform": RATES,
    "oracle": RATES,
    "tapweight": {"finetune_lr": RATES["finetune_lr"], "gamma": (0.1, 1.0, 10.0)},
}


def score(paper: protocol.Protocol, arm: str, seed: int, chosen: dict[str, float]) -> float:
    """Accuracy on D_val, in points, of one run with these settings; Level II at Level I's rate."""
    node = paper.node("cpu", arm, "planted", seed)
    for key in node.uses:  # the base
        train.run(Config(**paper.config("cpu", paper.node("cpu", *key))))
    settings = paper.config("cpu", node)
    place = "_".join(f"{key}{value:g}" for key, value in chosen.items())
    root = protocol.runs_root(paper.root) / "tapweight" / "tuning"
    if "lr_I" in chosen:
        settings["lr_II"] = chosen["lr_I"]
    more = {"finetune_on": "train", "watch": 0, "out": str(root / arm / place / f"seed{seed}")}
    record = protocol.read_record(train.run(Config(**settings | chosen | more)))
    assert record is not None
    return 100 * float(record["validation"]["score"])


def main() -> None:
    paper = protocol.Protocol(Path(__file__).resolve().parent)
    tuned: list[dict[str, Any]] = []
    shared: dict[str, float] = {}
    for arm, grid in GRIDS.items():
        means: dict[tuple[float, ...], float] = {}
        for values in itertools.product(*grid.values()):
            chosen = (shared if arm == "tapweight" else {}) | dict(zip(grid, values))
            scores = [score(paper, arm, seed, chosen) for seed in SEEDS]
            means[values] = round(statistics.mean(scores), 1)
        best = max(means, key=lambda values: means[values])
        if arm == "cp-uniform":
            shared = {"lr_I": best[1]}
        words = [", ".join(f"{v:g}" for v in values) for values in means]
        fields = {"arm": arm, "trials": len(means), "grid": {", ".join(grid): words}}
        scored = {"seeds": list(SEEDS), "scores": list(means.values())}
        tuned.append(fields | scored | {"chosen": words[list(means).index(best)]})
        print(tuned[-1], flush=True)
    print(yaml.safe_dump({"tuning": tuned}, sort_keys=False, default_flow_style=None, width=100))


if __name__ == "__main__":
    runs._stop_on_signals()
    main()
