"""Learning rates of scale cpu: equal trials per family of arms, scored on validation items alone.

    python -m autolora.tune            a few minutes; prints the `tuning` list of protocol.yaml

Development seeds; no test item is read off. Every LoRA arm of a task shares the rate chosen for one
uniform rank there (so does the inner level of the search); AdaLoRA has its own.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import yaml

from autolora import train
from autolora.config import Config
from shared import protocol, runs

SEEDS = (0, 1, 2)
GRIDS = {
    ("planted", "uniform_20"): (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1),
    ("planted", "adalora"): (3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0),
    ("movie", "uniform_4"): (3e-4, 1e-3, 3e-3, 1e-2),
}


def trained(
    paper: protocol.Protocol, arm: str, task: str, seed: int, place: str, **settings: Any
) -> Path:
    """Directory of a run of `arm` with other settings; `place`: the folder it goes to."""
    config = paper.config("cpu", paper.node("cpu", arm, task, seed))
    root = protocol.runs_root(paper.root) / "autolora" / "tuning" / task
    out = root / arm / place / f"seed{seed}"
    with contextlib.suppress(runs.Diverged):
        train.run(Config(**config | settings | {"out": str(out)}))
    return out


def score(
    paper: protocol.Protocol, arm: str, task: str, seed: int, lr: float, search: Path | None
) -> float:
    """Validation score of one arm at one rate; `search`: the run it reads its budget from."""
    uses = {"search": str(search)} if search else {}
    settings = {"lr": lr, "score_validation": True, "uses": uses}
    record = protocol.read_record(trained(paper, arm, task, seed, f"{lr:g}", **settings))
    assert record is not None
    # a rate at which training diverges scores what predicting the mean does
    return round(record["validation"].get("score", 0.0), 4)


def main() -> None:
    paper = protocol.Protocol(Path(__file__).resolve().parent)
    families: list[dict[str, Any]] = []
    chosen: dict[str, float] = {}
    for (task, arm), grid in GRIDS.items():
        searches: dict[int, Path | None] = dict.fromkeys(SEEDS)
        if arm == "adalora":  # its budget is that of a search at the rate chosen for LoRA
            rate = chosen[task]
            for s in SEEDS:
                searches[s] = trained(paper, "search", task, s, f"{rate:g}", inner_lr=rate)
        scores = {lr: [score(paper, arm, task, s, lr, searches[s]) for s in SEEDS] for lr in grid}
        best = max(grid, key=lambda lr: sum(scores[lr]))
        chosen.setdefault(task, best)
        families.append(
            {
                "arm": arm,
                "task": task,
                "trials": len(grid) * len(SEEDS),
                "grid": {"lr": list(grid)},
                "seeds": list(SEEDS),
                "scores": {f"{lr:g}": s for lr, s in scores.items()},
                "chosen": best,
            }
        )
    print(yaml.safe_dump({"tuning": families}, sort_keys=False, default_flow_style=None, width=110))


if __name__ == "__main__":
    runs._stop_on_signals()
    main()
