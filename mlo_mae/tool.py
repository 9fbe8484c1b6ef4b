"""Pretrain a vision transformer on a folder of images of one's own; timm loads the encoder.

encoder = tool.pretrain("images", "export")  # images/<class>/<name>.jpg
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from shared import glue, pictures, runs, tables
from shared.protocol import BadInput
from shared.sources import MissingInput

from . import data, folders, method, train
from .config import Config
from .estimators import ESTIMATORS
from .export import write_export
from .networks import Encoder

SAYS = 50  # cycles between two lines


def pretrain(
    folder: str | Path,
    out: str | Path,
    *,
    size: int = 224,
    patch: int = 16,
    width: int = 384,
    depth: int = 12,
    heads: int = 6,
    steps: int = 20000,
    batch: int = 64,
    lr: float = 1e-4,
    lr_mask: float = 1e-3,
    mask_ratio: float = 0.75,
    seed: int = 0,
    device: str = "auto",
    say: Callable[[str], None] = print,
) -> Encoder:
    """The encoder, pretrained on images whose masking follows their labels; also as files in `out`.

    folder: <class>/<name>.jpg (or .jpeg, .png), any sizes; shown as random crops of `size` pixels
    a side, normalised by ImageNet's constants, which timm's transforms have too. patch, width,
    depth, heads: of the ViT; the decoder has half the width and a quarter of the blocks. 80 % of
    the images are D_tr (levels 1 and 2), 20 % D_val (level 3). steps: of level 1, two for each of
    the other levels.

    `out` gets encoder.safetensors, a state dict of `timm.models.VisionTransformer`, and a README
    with the three lines that load it. Raises MissingInput for a folder that is not there, BadInput
    for one that does not hold classes of images."""
    if size % patch or width % heads:
        what = f"size {size} by patch {patch}, or width {width} by heads {heads}, leaves a rest"
        raise BadInput(f"{what}; choose numbers that divide")
    config = Config(
        scale="own", arm="tool", task="own", seed=seed, device=device, data="imagenet",
        image_size=size, patch=patch, width=width, depth=depth, heads=heads,
        decoder_width=max(2 * heads, width // 2 // (2 * heads) * 2 * heads), decoder_heads=heads,
        decoder_depth=max(1, depth // 4), steps=steps + -steps % Config.k1, batch=batch, lr=lr,
        lr_mask=lr_mask, mask_ratio=mask_ratio, mask="learned", weight="scores",
        hypergrad="fd_forward",
    )  # fmt: skip
    problem = problem_of(config, Path(folder), runs.device(config))
    levels = train.begin(config, problem, problem.train.labels.device, _finite)
    estimate, cycles = ESTIMATORS[config.hypergrad], config.steps // config.k1
    for t in range(cycles):
        losses, _ = method.cycle(levels, t, estimate)
        if t % SAYS == 0 or t == cycles - 1:
            said = ", ".join(f"{name} {value:.3g}" for name, value in losses.items())
            say(f"step {t + 1} of {cycles}: {said}")
    images, classes = len(problem.train.labels), problem.classes
    made_from = f"from {images:,} images of {classes} classes of the folder `{Path(folder).name}`"
    normalised = "normalised by ImageNet's mean and sd"
    write_export(Path(out), levels.nets.E, config, f"{made_from}, {normalised}")
    return levels.nets.E.eval()


def problem_of(config: Config, folder: Path, device: torch.device) -> data.Problem:
    """The images of `folder`, cut in two by the seed, stratified."""
    if not folder.is_dir():
        raise MissingInput(f"{folder} is no folder\n  remedy:  put images in <class>/<name>.jpg")
    classes = [path for path in tables.visible(folder) if path.is_dir()]
    files = [
        (path, label)
        for label, inside in enumerate(classes)
        for path in tables.visible(inside)
        if path.suffix.lower() in pictures.SUFFIXES
    ]
    labels = np.array([label for _, label in files], dtype=np.int64)
    few = np.flatnonzero(np.bincount(labels, minlength=len(classes)) < 5)
    if len(classes) < 2 or len(few):
        what = f"class {classes[few[0]].name} has fewer than 5 images" if len(few) else "one class"
        raise BadInput(f"{folder}: {what}; give two folders or more, 5 images or more in each")
    named = pictures.Pictures(str(folder), [path for path, _ in files], labels)
    images = folders.Files("own", config.image_size, named).to(device)
    shares = [1 - config.val_share, config.val_share]
    inner, outer = glue.level_split(labels, shares, runs.stream(config.seed, "split"))
    size = config.image_size
    return data.Problem("own", len(classes), 3, size, images, images, inner, outer, inner)


def _finite(loss: torch.Tensor | float, level: str, step: int, ids: object) -> None:
    value = float(loss.detach() if isinstance(loss, torch.Tensor) else loss)
    if not abs(value) < float("inf"):
        raise FloatingPointError(f"level {level}: the loss is {value} at step {step}; lower lr")
