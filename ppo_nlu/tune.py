"""A setting for several arms: equal trials, development seeds, chosen on validation items.

    python -m ppo_nlu.tune --arms sft sft_4 ppo --tasks movie --values 3e-4 1e-3 3e-3 --seeds 0 1 2
    python -m ppo_nlu.tune --scale paper --arms ppo --tasks rte --field batch --values 4 8 16

Prints the entries of `tuning:` in protocol.yaml (score_greedy, means over seeds). Each trial is a
line of `--out`, whose trials are not run again. Runs stand in temporary folders; test scores are
never looked at.
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

Trial = tuple[str, str, Any, int]  # arm, task, value, seed


def validation_score(
    paper: protocol.Protocol, scale: str, node: protocol.Node, chosen: dict[str, Any]
) -> float:
    """Greedy score on all validation items of one run; its stages are trained first."""
    train_stages(paper, scale, node)
    limits = {"samples": 1, "validation_limit": 0, "test_limit": 1, "probe_every": 0}
    with TemporaryDirectory() as folder:
        values = {**paper.config(scale, node), **limits, **chosen, "out": folder}
        record = (train.run(Config(**values)) / "record.json").read_text(encoding="utf-8")
    return json.loads(record)["validation"]["score_greedy"]


def train_stages(paper: protocol.Protocol, scale: str, node: protocol.Node) -> None:
    for key in node.uses:
        used = paper.node(scale, *key)
        train_stages(paper, scale, used)
        train.run(Config(**paper.config(scale, used)))


def entry(arm: str, task: str, field: str, scores: dict[Any, list[float]], seeds: list[int]) -> str:
    """What protocol.yaml records; scores: those of the seeds, by value."""
    means = {value: round(float(np.mean(of_seeds)), 4) for value, of_seeds in scores.items()}
    chosen = max(means, key=lambda value: means[value])
    record = {
        "arm": arm,
        "task": task,
        "trials": len(means),
        "grid": {field: list(means)},
        "seeds": seeds,
        "scores": list(means.values()),
        "chosen": {field: chosen},
    }
    return yaml.safe_dump([record], default_flow_style=None, sort_keys=False, width=200)


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
    parser.add_argument("--out", type=Path, default=Path("runs/ppo_nlu/tuning.jsonl"))
    asked = parser.parse_args()
    if max(asked.seeds) >= protocol.BLOCK:
        parser.error(f"seeds {asked.seeds}: tuning takes development seeds, below {protocol.BLOCK}")
    paper = protocol.Protocol(Path(__file__).resolve().parent)
    values = [type(getattr(Config(), asked.field))(value) for value in asked.values]
    done: dict[Trial, float] = {}
    if asked.out.exists():
        for line in asked.out.read_text(encoding="utf-8").splitlines():
            arm, task, field, value, seed, score = json.loads(line)
            if field == asked.field:
                done[arm, task, value, seed] = score
    pairs = [(arm, task) for task in asked.tasks for arm in asked.arms]
    trials = [(*pair, value, seed) for seed in asked.seeds for pair in pairs for value in values]
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    for arm, task, value, seed in (trial for trial in trials if trial not in done):
        node = paper.node(asked.scale, arm, task, seed)
        score = validation_score(paper, asked.scale, node, {asked.field: value})
        done[arm, task, value, seed] = score
        with open(asked.out, "a", encoding="utf-8") as file:
            file.write(json.dumps([arm, task, asked.field, value, seed, score]) + "\n")
    for arm, task in pairs:
        scores = {value: [done[arm, task, value, seed] for seed in asked.seeds] for value in values}
        print(entry(arm, task, asked.field, scores, asked.seeds), flush=True)


if __name__ == "__main__":
    main()
