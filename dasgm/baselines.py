"""What DASGM is compared with: the controls' data for level 3.

darts            level 3 on held-out real images
train-as-val     level 3 on the weight level's own batches: single-level search
aug-val          level 3 on strongly augmented training images: is a generator needed?
shuffled         level 3 on generated images with permuted labels: is it more than noise?
random           no search: 1,000 uniformly drawn cells
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from shared import cifar


def strong(pixels: Tensor, stream: torch.Generator, photographs: bool) -> Tensor:
    """`aug-val`: pixels (n, c, h, w) in 0-255 -> the same, cropped, of other brightness, contrast
    (photographs: also saturation, mirroring), with a square of a quarter of the area cut out."""
    n, c, h, _ = pixels.shape
    images = cifar.random_crop(pixels.float(), stream, max(1, h // 8))
    if photographs:
        images = cifar.random_flip(images, stream)
    gain, offset, colour = (0.8 * torch.rand(3, n, 1, 1, 1, generator=stream) - 0.4).to(
        images.device
    )
    mean = images.mean((1, 2, 3), keepdim=True)
    images = (images - mean) * (1 + gain) + mean + 128 * offset
    if c == 3:
        grey = images.mean(1, keepdim=True)
        images = grey + (images - grey) * (1 + colour)
    return cifar.cutout(images.clamp(0, 255), stream, h // 2)


def permuted(y: Tensor, stream: torch.Generator) -> Tensor:
    """`shuffled`: the labels of a batch in random order; their counts stay."""
    return y[torch.randperm(len(y), generator=stream).to(y.device)]


def of_others(y: Tensor, classes: int, stream: torch.Generator) -> Tensor:
    """`classes`: every class has the images of another one, the next in an order that is drawn."""
    order = torch.randperm(classes, generator=stream)
    other = torch.empty_like(order)
    other[order] = order.roll(1)
    return other.to(y.device)[y]


def random_cells(allowed: Sequence[int], draws: int, stream: torch.Generator) -> list[int]:
    """`random`: numbers of `draws` cells, uniform over the allowed ones, with replacement."""
    return [allowed[i] for i in torch.randint(len(allowed), (draws,), generator=stream).tolist()]
