"""A toy of all four networks, a point of level 3, short runs: what these tests share."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mlo_mae import data, train
from mlo_mae.config import Config
from mlo_mae.estimators import ESTIMATORS
from mlo_mae.method import Levels, Point
from mlo_mae.networks import Decoder, Encoder, Head, MaskNet, Networks, initialise, rank
from shared.vectors import Vector

CPU = torch.device("cpu")
TINY = Config(
    scale="tiny", arm="mlo", task="digits", device="cpu", data="digits", patch=2, width=16,
    depth=1, heads=2, decoder_width=8, decoder_depth=1, decoder_heads=2, T_hidden=16,
    norm_pix=False, radius=1e-3, steps=12, batch=32, lr=1e-3, mask="learned", weight="scores",
    hypergrad="fd_forward", finetune_labels=(100,), finetune_epochs=2, finetune_batch=50,
    finetune_lr=1e-3,
)  # fmt: skip
MAE = {"mask": "random", "weight": "one", "hypergrad": "none"}


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def networks(
    dropout: float = 0.0,
    dtype: torch.dtype = torch.float64,
    norm_pix: bool = False,
    seed: int = 0,
    normalise: bool = False,
) -> Networks:
    """Two blocks on images of 8 x 8, patches of 2, 3 classes; the head in evaluation mode."""
    torch.manual_seed(seed)
    E = Encoder(size=8, channels=1, p=2, width=16, depth=2, heads=2)
    D = Decoder(E.N, 16, 8, 1, 2, 4)
    initialise(E, stream(1))
    initialise(D, stream(2))
    T, C = MaskNet(E.N, 16, 12), Head(16, 3, dropout)
    nets = Networks(E, D, T, C, norm_pix, normalise_scores=normalise)
    for part in nets.parts().values():
        part.to(dtype)
    C.eval()
    return nets


def point(nets: Networks, B: int = 6, seed: int = 0, head_rate: float = 1.0) -> Point:
    g = stream(seed)
    dtype = nets.E.cls_token.dtype
    x, x2, xv = (torch.randn(B, 1, 8, 8, generator=g).to(dtype) for _ in range(3))
    y2, yv = (torch.randint(3, (B,), generator=g) for _ in range(2))
    with torch.no_grad():
        e = nets.E.embed(x)
        mask = rank(nets.T(e), 4)
    return Point(x, e, mask, x2, y2, xv, yv, head_rate=head_rate)


def estimate(name: str, nets: Networks, at: Point) -> Vector:
    radius = 1e-4 if nets.E.cls_token.dtype == torch.float64 else 1e-2
    return ESTIMATORS[name](nets, at, radius)


def levels(config: Config = TINY) -> Levels:
    """The levels of a run that has not begun."""
    return train.begin(config, data.load(config, CPU), CPU, lambda *_: None)


def short(out: Path, **settings: Any) -> dict[str, Any]:
    """The record of a short run."""
    directory = train.run(replace(TINY, out=str(out), **settings))
    return json.loads((directory / "record.json").read_text())


def logged(directory: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without seconds."""
    lines = [json.loads(x) for x in (directory / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "cpu_seconds"} for line in lines]
