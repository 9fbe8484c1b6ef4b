"""The rate of A that each searched arm is given: the same grid, the same seeds, on D_val.

    python -m dasgm.tune --out tuning.jsonl         60 searches of 4 CPU seconds; continues

For each arm, rate and development seed: a search as `protocol.yaml` has it at scale cpu, then the
cell that it derives, trained from scratch on D_tr as the truth table trains cells, and its accuracy
on D_val. No test image and no table is looked at: a tuned rate knows nothing of the ground truth.
Prints what stands under `tuning` in protocol.yaml.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import torch
import yaml

from shared.protocol import Protocol

from . import data, train, truth_table
from .config import Config

HERE = Path(__file__).resolve().parent
ARMS = ("joint", "darts", "darts_few", "aug_val", "train_as_val")
RATES = (3e-4, 1e-3, 3e-3, 1e-2)
USUAL = 1e-3  # that of scale gpu
SEEDS = (60, 61, 62)


def searched(arm: str, rate: float, seed: int, folder: Path) -> str:
    """The cell of one search, made below `folder`."""
    protocol = Protocol(HERE)
    uses = {}
    for used in protocol.arm(arm).uses:
        settings = protocol.settings("cpu", used, "digits")
        place = folder / f"{used}-{seed}"
        train.run(Config(**settings, arm=used, task="digits", seed=seed, out=str(place)))
        uses[used] = str(place)
    settings = protocol.settings("cpu", arm, "digits") | {"arch_lr": rate}
    out = str(folder / f"{arm}-{rate:g}-{seed}")
    place = train.run(Config(**settings, arm=arm, task="digits", seed=seed, out=out, uses=uses))
    return json.loads((place / "cells.json").read_text(encoding="utf-8"))["final"]


def on_validation(cell: str, seed: int) -> float:
    """Accuracy on D_val of the cell, trained on D_tr."""
    p = data.load("digits", seed)
    half = len(p.train) // 2  # of D_tr; training takes both parts of a problem
    parts = p.train[:half], p.train[half:]
    inner = data.Problem(p.name, p.classes, *parts, test=p.validation)
    return float(truth_table.train_cell(cell, seed, inner).mean())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="a line per trial")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    lines = options.out.read_text(encoding="utf-8").splitlines() if options.out.exists() else []
    scores = {(arm, rate, seed): score for arm, rate, seed, score in map(json.loads, lines)}
    for seed in SEEDS:
        for arm in ARMS:
            for rate in RATES:
                if (arm, rate, seed) not in scores:
                    cell = searched(arm, rate, seed, options.out.parent / "searches")
                    scores[arm, rate, seed] = on_validation(cell, seed)
                    with open(options.out, "a", encoding="utf-8") as file:
                        file.write(json.dumps([arm, rate, seed, scores[arm, rate, seed]]) + "\n")
    print(yaml.safe_dump({"tuning": [entry(arm, scores) for arm in ARMS]}, sort_keys=False))


def entry(arm: str, scores: dict[tuple[str, float, int], float]) -> dict[str, Any]:
    """What protocol.yaml has under `tuning`. scores: (arm, rate, seed) -> accuracy on D_val. Of
    equal means the one of USUAL wins, else the smaller rate."""
    means = {r: round(100 * statistics.mean(scores[arm, r, s] for s in SEEDS), 2) for r in RATES}
    best = [rate for rate in RATES if means[rate] == max(means.values())]
    rates = [f"{rate:g}" for rate in RATES]
    return {
        "arm": arm,
        "trials": len(RATES),
        "grid": {"arch_lr": rates},
        "seeds": list(SEEDS),
        "scores": dict(zip(rates, means.values())),
        "chosen": f"{USUAL if USUAL in best else best[0]:g}",
    }


if __name__ == "__main__":
    main()
