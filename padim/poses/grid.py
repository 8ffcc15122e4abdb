"""The small grey pictures of images in which poses are looked for."""

from __future__ import annotations

import math

import numpy as np
import scipy.ndimage
from numpy.typing import NDArray
from PIL import Image

# A picture `[rows, columns]`, about 0 in the background and beyond the border.
Grey = NDArray[np.float32]

# The side of a square picture, in cells.
_SIDE = 128

# Cells over which pictures are smoothed: else they would fit best where no interpolation smooths them.
_SMOOTH = 0.8

# Rows and columns are multiples of it, so that pictures can be halved twice.
MULTIPLE = 4


def cells_per_pixel(height: int, width: int) -> float:
    """The scale of the picture of an image of that size, at most 1; the same down and across, or angles would bend."""
    return min(1.0, _SIDE / math.sqrt(height * width))


def grid_of(height: int, width: int) -> tuple[int, int]:
    """Rows and columns of the picture of an image of that size."""
    scale = cells_per_pixel(height, width)
    rows, columns = (max(1, int(side * scale / MULTIPLE + 1e-6)) * MULTIPLE for side in (height, width))
    return rows, columns


def grey(pixels: NDArray[np.uint8]) -> Grey:
    """The picture of an RGB image `[h, w, 3]`: its brightness less the median along its border."""
    height, width = pixels.shape[:2]
    scale, (rows, columns) = cells_per_pixel(height, width), grid_of(height, width)
    x, y = max(0, (width - columns / scale) / 2), max(0, (height - rows / scale) / 2)  # both have one centre
    brightness = Image.fromarray(pixels).convert("L").convert("F")
    small = brightness.resize((columns, rows), Image.Resampling.BOX, box=(x, y, width - x, height - y))
    values: Grey = scipy.ndimage.gaussian_filter(np.asarray(small), _SMOOTH, truncate=3)
    values -= np.median(np.concatenate([values[0], values[-1], values[:, 0], values[:, -1]]))
    return values


def shrunk(picture: Grey, size: int) -> Grey:
    """The means over blocks of `size` x `size` cells."""
    rows, columns = picture.shape
    means: Grey = picture.reshape(rows // size, size, columns // size, size).mean(axis=(1, 3))
    return means


def unit(picture: Grey) -> Grey:
    """The picture with a norm of 1; one of a single grey stays 0."""
    return picture / max(float(np.linalg.norm(picture)), 1e-6)
