"""The trained networks that the authors publish, as watermarks.

`ckpt/<model>/init_<gamma>_<delta>.pth` of the official repository: pickles of two state dicts, read
with `weights_only`, so that nothing in them runs.
"""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shared import pretrained, sources
from shared.protocol import BadInput
from ts_watermark import models
from ts_watermark.config import Config
from ts_watermark.method import Generators
from ts_watermark.models import Base
from ts_watermark.watermark import Watermark, tabulate

NAME = re.compile(r"init_(?:delta_|(?P<gamma>[\d.]+)_)(?P<delta>[\d.]+?)(?:_default)?\.pth")


def watermarks(config: Config, base: Base, vocab_size: int, key: int) -> dict[str, Watermark]:
    """Strength -> watermark of each published checkpoint in `config.checkpoints`."""
    stand_ins, tiny = Path(config.uses["base"]), config.checkpoints.startswith("tiny:")
    folder = models.named(config.checkpoints, stand_ins) if tiny else found(config.checkpoints)
    embedding = steering_table(config, base, stand_ins)
    pairs = {name: read(path, embedding.shape[1]) for name, path in published(Path(folder)).items()}
    settings: dict[str, Any] = {"vocab_size": vocab_size, "size_rounding": config.size_rounding}
    return {n: tabulate(pair, embedding, key=key, **settings) for n, pair in pairs.items()}


def found(folder: str) -> Path:
    """A folder of REPRO_DATA, or MissingInput with the command that fetches it."""
    try:
        place = sources.find_data(folder)
    except sources.MissingInput as error:
        repository = "https://github.com/mignonjia/TS_watermark"
        fetch = f"git clone {repository} $REPRO_DATA/official/TS_watermark"
        raise sources.MissingInput(
            f"published checkpoints are not here\n  fetch:   {fetch}"
        ) from error
    assert isinstance(place, Path)  # no hub has them
    return place


def published(folder: Path) -> dict[str, Path]:
    """Strength (`0.25_1.75`) -> file; MissingInput if the folder has none."""
    files = {}
    for path in sorted(folder.glob("*.pth")):
        if match := NAME.fullmatch(path.name):
            files[f"{match['gamma'] or 0.25}_{match['delta']}"] = path
    if not files:
        raise sources.MissingInput(
            f"{folder} has no init_<gamma>_<delta>.pth. Remedy: clone it again"
        )
    return files


def read(path: Path, d: int) -> Generators:
    """The two networks of one file, for embeddings of width d."""
    sources.note(f"checkpoints/{path.parent.name}/{path.name}", path)
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
        state: dict[str, Tensor] = stored["gamma_state_dict"] | stored["delta_state_dict"]
        layers = sorted(k for k in state if k.startswith("gamma.") and k.endswith(".weight"))
        hidden = [len(state[name]) for name in layers[:-1]]
        pair = Generators(state[layers[0]].shape[1], hidden)
        pair.load_state_dict(state)
    except (pickle.UnpicklingError, RuntimeError, KeyError, TypeError, IndexError) as error:
        what = f"{path}: no published checkpoint ({str(error)[:100]})"
        raise BadInput(f"{what}. Remedy: fetch it again") from error
    if pair.gamma[0].in_features != d:
        what = f"{path} reads embeddings of width {pair.gamma[0].in_features}, the model has {d}"
        raise BadInput(f"{what}. Remedy: give the model that it was trained on")
    return pair.requires_grad_(False)


def steering_table(config: Config, base: Base, stand_ins: Path) -> Tensor:
    """Embeddings (P, d) of the model whose ids choose the lists."""
    model: Any = base.model
    if config.steering:
        from transformers import AutoModelForCausalLM

        name = models.named(config.steering, stand_ins)
        model = pretrained.load_model(name, AutoModelForCausalLM, models.DECODER)
    (table,) = model.get_input_embeddings().parameters()
    return table.detach().float().cpu()
