from __future__ import annotations

import numpy as np
import pytest
import scipy.ndimage
import torch
import torch.nn.functional as F

from padim.scoring import AnomalyMap, image_scores
from padim.tiles import Tiling


@pytest.mark.parametrize("upsampling", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    ("grid", "size", "sigma"),
    [((56, 56), (224, 224), 4.0), ((5, 9), (40, 72), 4.0), ((2, 2), (8, 8), 4.0), ((7, 5), (28, 20), 0.0)]
    + [((7, 5), (28, 20), sigma) for sigma in (1e-300, 1e-160, 0.124, 0.126)],
    ids=["as published", "not square", "smaller than the filter", "no smoothing", *["hardly any"] * 4],
)
def test_maps_are_those_of_interpolate_and_gaussian_filter(grid, size, sigma, upsampling):
    distances = torch.rand(3, *grid) * 20
    upsampled = F.interpolate(distances.double()[:, None], size=size, mode=upsampling, align_corners=False)[:, 0]
    expected = np.stack(
        [scipy.ndimage.gaussian_filter(image, sigma) if sigma else image for image in upsampled.numpy()]
    )
    found = AnomalyMap(Tiling.of(size, size, grid), upsampling, sigma)(distances)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_the_image_score_is_the_largest_value_of_its_map():
    maps = torch.zeros(2, 3, 4)
    maps[0, 2, 1], maps[1, 0, 3] = 5, 7
    assert image_scores(maps).tolist() == [5, 7]
