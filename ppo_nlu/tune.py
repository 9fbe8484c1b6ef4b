"""A setting for several arms: equal trials, development seeds, chosen on validation items.

    python -m ppo_nlu.tune --arms sft sft_4 ppo --tasks movie --values 3e-4 1e-3 3e-3 --seeds 0 1 2
    python -m ppo_nlu.tune --arms few_shot --field shots --values 1 2 3 --seeds 0

Prints the entries of `tuning:` in protocol.yaml (score_greedy, means over seeds) and appends them
to `--out`. Runs stand in a temporary folder; test scores are never looked at.
"""

import argparse
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import yaml

from ppo_nlu import train
from ppo_nlu.config import Config
from shared import protocol


def validation_score(
    paper: protocol.Protocol,
    scale: str,
    key: tuple[str, str, int],
    chosen: dict[str, Any],
    out: str,
) -> float:
    """Greedy score on all validation items of one run; its stages are trained first."""
    node = paper.node(scale, *key)
    for used in node.uses:
        train_stage(paper, scale, used)
    limits = {"samples": 1, "validation_limit": 0, "test_limit": 1, "probe_every": 0}
    directory = train.run(Config(**{**paper.config(scale, node), **limits, **chosen, "out": out}))
    record = json.loads((directory / "record.json").read_text(encoding="utf-8"))
    return record["validation"]["score_greedy"]


def train_stage(paper: protocol.Protocol, scale: str, key: tuple[str, str, int]) -> None:
    node = paper.node(scale, *key)
    for used in node.uses:
        train_stage(paper, scale, used)
    train.run(Config(**paper.config(scale, node)))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scale", default="cpu")
    parser.add_argument("--arms", nargs="+", required=True)
    parser.add_argument("--tasks", nargs="+", default=["movie"])
    parser.add_argument("--field", default="lr")
    parser.add_argument("--values", nargs="+", type=float, default=[3e-4, 1e-3, 3e-3])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--out", default="")
    asked = parser.parse_args()
    if max(asked.seeds) >= protocol.BLOCK:
        parser.error(f"seeds {asked.seeds}: tuning takes development seeds, below {protocol.BLOCK}")
    paper = protocol.Protocol(Path(__file__).resolve().parent)
    kind = type(getattr(Config(), asked.field))
    values = [kind(value) for value in asked.values]
    for task, arm in [(task, arm) for task in asked.tasks for arm in asked.arms]:
        scores = []
        for value in values:
            of_seeds = []
            for seed in asked.seeds:
                with TemporaryDirectory() as folder:
                    chosen = {asked.field: value}
                    key = (arm, task, seed)
                    of_seeds.append(validation_score(paper, asked.scale, key, chosen, folder))
            print(f"{arm} {task} {asked.field} {value}: {of_seeds}", flush=True)
            scores.append(round(float(np.mean(of_seeds)), 4))
        entry = {
            "arm": arm,
            "task": task,
            "trials": len(values),
            "grid": {asked.field: values},
            "seeds": asked.seeds,
            "scores": scores,
            "chosen": {asked.field: values[int(np.argmax(scores))]},
        }
        text = yaml.safe_dump([entry], default_flow_style=None, sort_keys=False)
        print(text, flush=True)
        if asked.out:
            with open(asked.out, "a", encoding="utf-8") as file:
                file.write(text)


if __name__ == "__main__":
    main()
