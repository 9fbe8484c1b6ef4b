"""Learning rates of scale cpu: equal trials per family of arms, development seeds, validation items; no test item is read off.

    python -m autolora.tune            a few minutes; prints the `tuning` list of protocol.yaml

Families: every LoRA arm shares the rate chosen for uniform rank 4 (so does the inner level of the search), AdaLoRA and full
fine-tuning have their own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from autolora import train
from shared import protocol, runs

SEEDS = (0, 1)
GRIDS = {
    "uniform_4": (1e-3, 3e-3, 1e-2, 3e-2),
    "adalora": (3e-3, 1e-2, 3e-2, 1e-1),
    "full": (3e-5, 1e-4, 3e-4, 1e-3),
}


def trial(paper: protocol.Protocol, arm: str, seed: int, lr: float, search: Path | None) -> float:
    """Validation score of one arm at one rate."""
    node = paper.node("cpu", arm, "documentation", seed)
    chosen = paper.config("cpu", node) | {"lr": lr, "score_validation": True}
    chosen["out"] = str(
        protocol.runs_root(paper.root) / "autolora" / "tuning" / arm / f"{lr:g}" / f"seed{seed}"
    )
    chosen["uses"] = {name: str(search) for name in chosen["uses"]}
    return protocol.read_record(train.run(train.Config(**chosen)))["validation"]["score"]  # type: ignore[index]


def search(paper: protocol.Protocol, seed: int, lr: float) -> Path:
    """The search whose budget AdaLoRA gets, at the rate chosen for LoRA."""
    chosen = paper.config("cpu", paper.node("cpu", "search", "documentation", seed)) | {
        "inner_lr": lr
    }
    chosen["out"] = str(
        protocol.runs_root(paper.root)
        / "autolora"
        / "tuning"
        / "search"
        / f"{lr:g}"
        / f"seed{seed}"
    )
    return train.run(train.Config(**chosen))


def main() -> None:
    paper = protocol.Protocol(Path(__file__).resolve().parent)
    found: list[dict[str, Any]] = []
    for arm, grid in GRIDS.items():
        needed = {
            seed: search(paper, seed, found[0]["chosen"]) if arm == "adalora" else None
            for seed in SEEDS
        }
        scores = {
            lr: [round(trial(paper, arm, seed, lr, needed[seed]), 4) for seed in SEEDS]
            for lr in grid
        }
        best = max(grid, key=lambda lr: sum(scores[lr]))
        found.append({"arm": arm, "trials": len(grid) * len(SEEDS), "grid": {"lr": list(grid)}, "seeds": list(SEEDS),
                      "scores": {f"{lr:g}": s for lr, s in scores.items()}, "chosen": best})  # fmt: skip
    print(yaml.safe_dump({"tuning": found}, sort_keys=False, default_flow_style=None, width=110))


if __name__ == "__main__":
    runs._stop_on_signals()
    main()
