"""A found cell as JSON and as a plain nn.Module.

network = export.load("runs/.../export")       # with trained weights where the run trained them, else freshly drawn
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from . import darts_space, nasbench


def build(description: dict[str, Any]) -> nn.Module:
    """genotype.json's content -> the derived network, weights drawn from torch's global state."""
    if description.get("space") == "nasbench":
        return nasbench.Network(description["cell"], **description["network"])
    if description.get("space") == "darts":
        return darts_space.DerivedNetwork(
            darts_space.Genotype.from_json(json.dumps(description)), **description["network"]
        )
    raise ValueError(
        f"genotype.json: space is {description.get('space')!r}, expected nasbench or darts"
    )


def load(directory: str | Path) -> nn.Module:
    network = build(json.loads((Path(directory) / "genotype.json").read_text()))
    weights = Path(directory) / "weights.pt"
    if weights.exists():
        network.load_state_dict(torch.load(weights, weights_only=True, map_location="cpu"))
    return network


def write(
    directory: Path, description: dict[str, Any], trained: nn.Module | None, about: str
) -> None:
    directory.mkdir(exist_ok=True)
    (directory / "genotype.json").write_text(json.dumps(description, indent=1) + "\n")
    if trained is not None:
        torch.save(trained.state_dict(), directory / "weights.pt")
    kind = (
        "trained weights in weights.pt"
        if trained is not None
        else "no weights: the cell was looked up in a table"
    )
    (directory / "README.md").write_text(
        f"# A derived cell\n\n{about}\n\n`genotype.json`: the cell and the network around it; {kind}.\n"
        "`from dasgm import export; network = export.load(DIR)` gives a plain `nn.Module`.\n"
    )
