"""Learning rates of scale cpu: equal trials per family of arms, scored on validation items alone.

    python -m autolora.tune            a few minutes; prints the `tuning` list of protocol.yaml

Development seeds; no test item is read off. Families: every LoRA arm shares the rate chosen for
uniform rank 4 (so does the inner level of the search), AdaLoRA and full fine-tuning have their own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from autolora import train
from autolora.config import Config
from shared import protocol, runs

SEEDS = (0, 1)
GRIDS = {
    "uniform_4": (1e-3, 3e-3, 1e-2, 3e-2),
    "adalora": (3e-3, 1e-2, 3e-2, 1e-1),
    "full": (3e-5, 1e-4, 3e-4, 1e-3),
}


def trained(paper: protocol.Protocol, arm: str, seed: int, place: str, **settings: Any) -> Path:
    """Directory of a run of `arm` with other settings; `place`: the folder it goes to."""
    config = paper.config("cpu", paper.node("cpu", arm, "documentation", seed))
    root = protocol.runs_root(paper.root) / "autolora" / "tuning"
    out = str(root / arm / place / f"seed{seed}")
    return train.run(Config(**config | settings | {"out": out}))


def score(paper: protocol.Protocol, arm: str, seed: int, lr: float, search: Path | None) -> float:
    """Validation score of one arm at one rate; `search`: the run it reads its budget from."""
    uses = {"search": str(search)} if search else {}
    run = trained(paper, arm, seed, f"{lr:g}", lr=lr, score_validation=True, uses=uses)
    record = protocol.read_record(run)
    assert record is not None
    return round(record["validation"]["score"], 4)


def main() -> None:
    paper = protocol.Protocol(Path(__file__).resolve().parent)
    families: list[dict[str, Any]] = []
    lora_lr = 0.0
    for arm, grid in GRIDS.items():
        searches: dict[int, Path | None] = dict.fromkeys(SEEDS)
        if arm == "adalora":  # its budget is that of a search at the rate chosen for LoRA
            place = f"{lora_lr:g}"
            for s in SEEDS:
                searches[s] = trained(paper, "search", s, place, inner_lr=lora_lr)
        scores = {lr: [score(paper, arm, s, lr, searches[s]) for s in SEEDS] for lr in grid}
        best = max(grid, key=lambda lr: sum(scores[lr]))
        lora_lr = lora_lr or best
        families.append(
            {
                "arm": arm,
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
