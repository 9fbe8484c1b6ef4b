"""KGW's gamma on SmolLM2, on development seeds: cosine at equal evidence, above that of its first.

    python -m ts_watermark.tune --seeds 90 91 92 93 94      # two minutes a seed on one core

Prints the entry of `tuning:` in protocol.yaml. Keys and samplers are those of no verdict, the
prompts are the test prompts: what is chosen on them can only favour KGW, the opponent.
"""

import argparse
from pathlib import Path

import numpy as np
import yaml

from shared import protocol
from shared.stored import load_arrays
from ts_watermark import evaluate, train
from ts_watermark.config import Config

ARM, TASK = "kgw_gammas_smollm2", "smollm2"


def gaps(predictions: evaluate.Predictions) -> dict[str, float]:
    """gamma -> cosine at equal evidence, minus that of the first gamma, of one run's strengths."""
    of_gamma: dict[str, list[int]] = {}
    for column, strength in enumerate(map(str, predictions["_strengths"])):
        of_gamma.setdefault(strength.partition("_")[0], []).append(column)

    def arm(columns: list[int]) -> evaluate.Predictions:
        by_strength = {k for k, v in predictions.items() if v.ndim == 2 or k == "_strengths"}
        return {k: v[..., columns] if k in by_strength else v for k, v in predictions.items()}

    arms = {gamma: arm(columns) for gamma, columns in of_gamma.items()}
    first = next(iter(arms.values()))
    return {g: evaluate.frontier_gap({"this": own, "first": first}) for g, own in arms.items()}


def trained(paper: protocol.Protocol, key: protocol.Key) -> Path:
    """The folder of a run, after the runs that it uses."""
    node = paper.node("cpu", *key)
    for used in node.uses:
        trained(paper, used)
    return train.run(Config(**paper.config("cpu", node)))


def main() -> None:
    kind = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=kind)
    parser.add_argument("--seeds", nargs="+", type=int, default=[90, 91, 92, 93, 94])
    seeds = parser.parse_args().seeds
    if max(seeds) >= protocol.BLOCK:
        parser.error(f"seeds {seeds}: tuning takes development seeds, below {protocol.BLOCK}")
    paper = protocol.Protocol(Path(__file__).resolve().parent)
    folders = [trained(paper, (ARM, TASK, seed)) for seed in seeds]
    rows = [gaps(load_arrays(folder / "predictions.npz")) for folder in folders]
    scores = {gamma: round(float(np.mean([row[gamma] for row in rows])), 4) for gamma in rows[0]}
    grid = {"gamma": [float(gamma) for gamma in scores]}
    entry = {"arm": "kgw_smollm2", "trials": len(scores), "grid": grid, "seeds": seeds}
    entry |= {"scores": scores, "chosen": max(scores, key=lambda gamma: scores[gamma])}
    print(yaml.safe_dump([entry], default_flow_style=None, sort_keys=False, width=200))


if __name__ == "__main__":
    main()
