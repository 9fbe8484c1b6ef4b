"""ImageNet (`shared/pictures.py`) for the mobile setting of DARTS."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shared import pictures


class ImageNet:
    """Training and validation images of `REPRO_DATA/imagenet`, or of `folder`."""

    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

    def __init__(self, folder: Path | None = None, size: int = 224):
        train, val, self.classes = pictures.load("imagenet", folder)
        self.parts = {"train": train, "val": val}
        self.rows, self.ids, self.size = len(train), torch.arange(len(val)), size
        self.pool = ThreadPoolExecutor(max_workers=min(16, os.cpu_count() or 1))

    def training(self, rows: Tensor, stream: torch.Generator) -> tuple[Tensor, Tensor]:
        """(n, 3, size, size) normalised and labels: random resized crop, flip, colour."""
        return self._batch("train", rows, torch.rand(len(rows), 8, generator=stream).tolist())

    def testing(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """(n, 3, size, size) normalised and labels: the centre."""
        return self._batch("val", rows, [None] * len(rows))

    def _batch(self, part: str, rows: Tensor, draws: list[Any]) -> tuple[Tensor, Tensor]:
        files, chosen = self.parts[part], rows.tolist()
        images = torch.stack(list(self.pool.map(self._seen, [files] * len(chosen), chosen, draws)))
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (self.mean, self.std))
        return (images / 255 - mean) / std, torch.from_numpy(files.labels[chosen])

    def _seen(self, files: pictures.Pictures, row: int, draw: list[float] | None) -> Tensor:
        from PIL import Image, ImageEnhance

        image = files[row]
        w, h = image.size
        if draw is None:
            scale = self.size / 0.875 / min(w, h)
            side = self.size / scale
            box = ((w - side) / 2, (h - side) / 2, (w + side) / 2, (h + side) / 2)
            image = image.resize((self.size, self.size), Image.Resampling.BILINEAR, box)
        else:
            area, aspect, left, top, flip, *colours = draw
            ratio = float(np.exp(np.log(3 / 4) + aspect * (np.log(4 / 3) - np.log(3 / 4))))
            target = (0.08 + 0.92 * area) * w * h
            cw, ch = min(w, round((target * ratio) ** 0.5)), min(h, round((target / ratio) ** 0.5))
            x, y = left * (w - cw), top * (h - ch)
            box = (x, y, x + max(cw, 1), y + max(ch, 1))
            image = image.resize((self.size, self.size), Image.Resampling.BILINEAR, box)
            kinds = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
            for kind, colour in zip(kinds, colours):
                image = kind(image).enhance(1 + 0.4 * (2 * colour - 1))
            if flip < 0.5:
                image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return torch.from_numpy(np.asarray(image, dtype=np.float32).transpose(2, 0, 1).copy())
