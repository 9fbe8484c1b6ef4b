"""Learning rates for the arms of scale cpu: equal trials, chosen on validation items.

    python -m ppo_nlu.tune --arms sft sft_4 ppo --rates 3e-4 1e-3 3e-3 --seeds 0 1

Prints the entries of `tuning:` in protocol.yaml. Test scores are never looked at here.
"""

import argparse
import json
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import yaml

from ppo_nlu import train
from ppo_nlu.config import Config
from shared import protocol


def validation_accuracy(
    paper: protocol.Protocol, arm: str, task: str, seed: int, lr: float, folder: str
) -> float:
    """Greedy accuracy on validation items of one run; its stages are trained first."""
    node = paper.node("cpu", arm, task, seed)

    def stage(key: tuple[str, str, int]) -> None:
        used = paper.node("cpu", *key)
        for other in used.uses:
            stage(other)
        train.run(Config(**paper.config("cpu", used)))

    for key in node.uses:
        stage(key)
    chosen = {
        "lr": lr,
        "samples": 1,
        "test_limit": 0,
        "probe_every": 0,
        "out": f"{folder}/{arm}-{task}-{seed}-{lr}",
    }
    directory = train.run(Config(**{**paper.config("cpu", node), **chosen}))
    return json.loads((directory / "record.json").read_text(encoding="utf-8"))["validation"][
        "accuracy_greedy"
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arms", nargs="+", required=True)
    parser.add_argument("--tasks", nargs="+", default=["digits", "digits_noisy"])
    parser.add_argument("--rates", nargs="+", type=float, default=[3e-4, 1e-3, 3e-3])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    asked = parser.parse_args()
    if max(asked.seeds) >= protocol.BLOCK:
        parser.error(f"seeds {asked.seeds}: tuning takes development seeds, below {protocol.BLOCK}")
    paper = protocol.Protocol(Path(__file__).resolve().parent)
    for arm in asked.arms:
        for task in asked.tasks:
            scores = []
            for lr in asked.rates:
                with TemporaryDirectory() as folder:
                    of_seeds = [
                        validation_accuracy(paper, arm, task, seed, lr, folder)
                        for seed in asked.seeds
                    ]
                scores.append(round(float(np.mean(of_seeds)), 4))
            entry = {
                "arm": arm,
                "task": task,
                "trials": len(asked.rates),
                "grid": {"lr": asked.rates},
                "seeds": asked.seeds,
                "scores": scores,
                "chosen": {"lr": asked.rates[int(np.argmax(scores))]},
            }
            print(yaml.safe_dump([entry], default_flow_style=None, sort_keys=False), flush=True)


if __name__ == "__main__":
    main()
