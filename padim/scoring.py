"""From distances on the grid of patches to an anomaly map of the image's size, and to an image score."""

from __future__ import annotations

import numpy as np
import scipy.fft
import scipy.ndimage
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from padim.tiles import Tiling


class AnomalyMap(nn.Module):
    """Joining of tiles, upsampling and Gaussian smoothing of distance maps.

    All are linear and act on rows and columns apart, so together they are one small matrix per side:
    `rows @ distances @ columns^T`. The matrices hold exactly what `interpolate` (align_corners False)
    and `scipy.ndimage.gaussian_filter` (truncate 4, symmetric border) do.
    """

    rows: Tensor
    columns: Tensor

    def __init__(self, tiling: Tiling, upsampling: str, sigma: float) -> None:
        """Maps of the images that a tiling covers; `sigma` in pixels, 0 for no smoothing."""
        super().__init__()
        for name, side in (("rows", tiling.rows), ("columns", tiling.columns)):
            matrix = _smoothed(_upsampled(side.joining(), side.pixels, upsampling), sigma)
            self.register_buffer(name, torch.from_numpy(matrix).float(), persistent=False)

    def forward(self, distances: Tensor) -> Tensor:
        """Distances `[n, h, w]` of the patches of tiles side by side -> anomaly maps `[n, h, w]` of images."""
        return self.rows @ distances @ self.columns.T


def image_scores(maps: Tensor) -> Tensor:
    """The largest value of each anomaly map `[n, h, w]`: `[n]`."""
    return maps.amax(dim=(1, 2))


def _upsampled(values: np.ndarray, pixels: int, mode: str) -> np.ndarray:
    """The columns of a matrix, interpolated to so many rows."""
    columns = torch.from_numpy(values)[None, None]
    stretched = F.interpolate(columns, size=(pixels, values.shape[1]), mode=mode, align_corners=False)
    return stretched[0, 0].numpy()


def _smoothed(values: np.ndarray, sigma: float) -> np.ndarray:
    """The Gaussian filter along the columns of a matrix `[pixels, n]`, which takes no longer where it is wide.

    Reflected at both ends a column repeats after twice its length, so that its cosines are only scaled.
    """
    kernel = np.eye(1, 2 * len(values))[0]
    if sigma >= 0.125:  # else, cut off at four times its width, it reaches no other pixel
        kernel = scipy.ndimage.gaussian_filter1d(kernel, sigma, mode="wrap", truncate=4.0)
    scales = np.fft.rfft(kernel).real[:-1, None]
    smoothed: np.ndarray = scipy.fft.idct(scales * scipy.fft.dct(values, axis=0), axis=0)
    return smoothed
