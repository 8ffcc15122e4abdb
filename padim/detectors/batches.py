"""Batches of images, as detectors take them: RGB tensors `[n, 3, h, w]`, uint8 or floats in 0..1."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from padim.errors import PadimError

# Of a pair like those that a `DataLoader` gives, the first entry is taken.
Batches = Iterable[Tensor | Sequence[Tensor]]


def images_of(batch: Tensor | Sequence[Tensor]) -> Tensor:
    """The images of a batch that may be a pair."""
    return batch if isinstance(batch, Tensor) else batch[0]


def check_images(images: Tensor, height: int, width: int) -> None:
    """Raise a PadimError unless the images have this size and are uint8, or floats that lie in 0..1."""
    if tuple(images.shape[1:]) != (3, height, width):
        raise PadimError(f"images have shape {list(images.shape)}, expected [n, 3, {height}, {width}]")
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise PadimError(f"images are {images.dtype}: pass torch.uint8, or floats in 0..1")
    if images.is_floating_point() and bool(((images < 0) | (images > 1)).any()):
        raise PadimError("floating point images have values in 0..1: divide by 255, or pass uint8")


def as_pixels(images: Tensor) -> NDArray[np.uint8]:
    """Images as an array `[n, h, w, 3]` of uint8."""
    pixels = images if images.dtype == torch.uint8 else (images * 255).round().to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).cpu().numpy()


def as_images(pixels: NDArray[np.uint8]) -> Tensor:
    """An array `[n, h, w, 3]` as images."""
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2)
