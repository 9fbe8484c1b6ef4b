"""Made-up images in the sources' own layouts, read by the same loaders: scale `rehearsal`."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from shared import cifar, runs, sources


@contextmanager
def made_up(n: int) -> Iterator[None]:
    """Within the block the loaders find made-up CIFAR and ImageNet files."""
    with tempfile.TemporaryDirectory() as folder:
        for name in ("cifar10", "cifar100"):
            cifar.write_sample(
                Path(folder),
                name,
                max(2 * n, cifar.CLASSES[name] * 2),
                runs.stream(0, "rehearsal", name),
            )
        write_imagenet(Path(folder) / "imagenet", runs.stream(0, "rehearsal", "imagenet"))
        with sources.pointed_at(REPRO_DATA=folder):
            yield


def write_imagenet(
    folder: Path, stream: torch.Generator, classes: int = 3, per_class: int = 2
) -> Path:
    """Noise as JPEG files in the layout of the source."""
    from PIL import Image

    for part in ("train", "val"):
        for k in range(classes):
            place = folder / part / f"n{k:08d}"
            place.mkdir(parents=True, exist_ok=True)
            for i in range(per_class):
                pixels = torch.randint(
                    256, (40, 48, 3), generator=stream, dtype=torch.uint8
                ).numpy()
                buffer = io.BytesIO()
                Image.fromarray(pixels).save(buffer, format="JPEG")
                (place / f"{part}_{k}_{i}.JPEG").write_bytes(buffer.getvalue())
    return folder
