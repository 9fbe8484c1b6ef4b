"""The rate of A that each searched arm is given, and how long the generator learns: on D_val.

    python -m dasgm.tune --out tuning.jsonl         60 searches of 4 CPU seconds; continues
    python -m dasgm.tune --generator                3 generators, a minute

For each arm, rate and development seed: a search as `protocol.yaml` has it at scale cpu, then the
cell that it derives, trained from scratch on D_tr as the truth table trains cells, and its accuracy
on D_val. No test image and no table is looked at: a tuned rate knows nothing of the ground truth.
For the generator: the accuracy on D_val of a cell trained on 900 of its images alone, the
"classification accuracy score" of generative models. Prints what stands under `tuning` in
protocol.yaml.
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

from . import data, generators, method, train, truth_table
from .config import Config

HERE = Path(__file__).resolve().parent
ARMS = ("joint", "darts", "darts_few", "aug_val", "train_as_val")
RATES = (3e-4, 1e-3, 3e-3, 1e-2)
USUAL = 1e-3  # that of scale gpu
SEEDS = (60, 61, 62)
LENGTHS = (400, 800, 1600, 3200)  # steps of the generator
CELL = "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|"


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


def on_validation(cell: str, seed: int, images: data.Images | None = None) -> float:
    """Accuracy on D_val of the cell, trained on these images, by default D_tr."""
    p = data.load("digits", seed)
    images = p.train if images is None else images
    half = len(images) // 2  # training takes both parts of a problem
    parts = images[:half], images[half:]
    inner = data.Problem(p.name, p.classes, *parts, test=p.validation)
    return float(truth_table.train_cell(cell, seed, inner).mean())


def generator_scores(seed: int) -> list[float]:
    """Of one generator after each of LENGTHS steps."""
    settings = Protocol(HERE).settings("cpu", "generator", "digits")
    config = Config(**settings, arm="generator", task="digits", seed=seed)
    p = data.load("digits", seed)
    views = data.Views(config, p)
    gan = generators.GAN(config, p.classes, p.shape, torch.device("cpu"))
    scores = []
    for step in range(1, max(LENGTHS) + 1):
        method.generator_step(gan, views)
        if step in LENGTHS:
            made, y = gan.sample(900, "tuning", step)
            images = data.Images(torch.arange(len(y)), p.pixels(made), y)
            scores.append(on_validation(CELL, seed, images))
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--out", type=Path, help="tune the rate of A; a line per trial")
    what.add_argument("--generator", action="store_true", help="tune how long it learns")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.generator:
        rows = [generator_scores(seed) for seed in SEEDS]
        means = [round(100 * statistics.mean(column), 2) for column in zip(*rows)]
        print(yaml.safe_dump({"gan_steps": dict(zip(LENGTHS, means)), "by seed": rows}))
        return
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
