"""Learning rates for the arms of scale cpu: equal trials on development seeds, chosen on validation items.

    python -m ppo_nlu.tune --arms sft sft_4 ppo --tasks digits digits_noisy --rates 3e-4 1e-3 3e-3 --seeds 0 1

Prints the entries of `tuning:` in protocol.yaml.  Test scores are never looked at here.
"""

import argparse
import json
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from ppo_nlu import train
from shared import protocol


def validation_accuracy(
    paper: protocol.Protocol, arm: str, task: str, seed: int, lr: float, folder: str
) -> float:
    """Greedy accuracy on validation items of one run; the stages it uses are trained first, at the protocol's rates."""
    node = paper.node("cpu", arm, task, seed)

    def stage(key: tuple[str, str, int]) -> None:
        used = paper.node("cpu", *key)
        for other in used.uses:
            stage(other)
        train.run(train.Config(**paper.config("cpu", used)))

    for key in node.uses:
        stage(key)
    chosen = {
        "lr": lr,
        "samples": 1,
        "test_limit": 0,
        "probe_every": 0,
        "out": f"{folder}/{arm}-{task}-{seed}-{lr}",
    }
    directory = train.run(train.Config(**{**paper.config("cpu", node), **chosen}))
    return json.loads((directory / "record.json").read_text())["validation"]["accuracy_greedy"]


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
            with TemporaryDirectory() as folder:
                found = [
                    [validation_accuracy(paper, arm, task, s, lr, folder) for s in asked.seeds]
                    for lr in asked.rates
                ]
            scores = [round(float(np.mean(row)), 4) for row in found]
            best = asked.rates[int(np.argmax(scores))]
            print(f"  - {{arm: {arm}, task: {task}, trials: {len(asked.rates)}, grid: {{lr: {asked.rates}}}, "
                  f"seeds: {asked.seeds}, scores: {scores}, chosen: {{lr: {best}}}}}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
