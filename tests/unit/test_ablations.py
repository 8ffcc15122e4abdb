"""The paper's comparisons against NumPy in float64, on the features that the model itself computes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import SMALL
from oracles import fitted
from scipy.ndimage import gaussian_filter

from padim import Padim
from padim.embedding import embedding_concat
from padim.reproduction.ablations import PcaPadim, SumOfMaps


@pytest.fixture(scope="module")
def images():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (14, 3, 64, 64), dtype=torch.uint8, generator=generator)


@pytest.fixture(scope="module")
def levels(random_weights, images):
    """The maps of all channels, finest first, float64: 12 images to fit to, 2 to score."""
    model = Padim(SMALL, weights=random_weights)
    return [level.double() for level in model.backbone(images)]


def distances(x, epsilon=SMALL.epsilon):
    """Mahalanobis distances of the last two of `[14, d, h, w]` after a fit to the others."""
    _, d, height, width = x.shape
    x = x.flatten(2).numpy()
    result = np.empty((2, height * width))
    for p in range(height * width):
        train = x[:12, :, p]
        inverse = np.linalg.inv(np.cov(train, rowvar=False) + epsilon * np.eye(d))
        centred = x[12:, :, p] - train.mean(axis=0)
        result[:, p] = np.sqrt(np.einsum("nd,de,ne->n", centred, inverse, centred))
    return result.reshape(2, height, width)


def anomaly_map(distances):
    grown = F.interpolate(torch.from_numpy(distances)[:, None], size=64, mode="bilinear", align_corners=False)[:, 0]
    return np.stack([gaussian_filter(image, SMALL.sigma) for image in grown.numpy()])


def test_the_sum_of_maps_is_that_of_one_model_a_level(random_weights, images, levels):
    expected = sum(anomaly_map(distances(level)) for level in levels)
    model = fitted(SumOfMaps(SMALL, weights=random_weights), [images[:5], images[5:12]])
    scores = model.score(images[12:])
    np.testing.assert_allclose(scores.maps.numpy(), expected, rtol=1e-3)
    np.testing.assert_allclose(scores.images.numpy(), expected.max(axis=(1, 2)), rtol=1e-3)


def test_pca_is_that_of_all_embeddings(random_weights, images, levels):
    joined = embedding_concat(levels)
    rows = joined[:12].permute(0, 2, 3, 1).flatten(0, 2).numpy()
    values, axes = np.linalg.eigh(np.cov(rows, rowvar=False))
    assert values[-5] / values[-6] > 1.01  # the fifth and the sixth axis can be told apart
    projected = torch.einsum("ndhw,dk->nkhw", joined, torch.from_numpy(axes[:, ::-1][:, :5].copy()))
    expected = anomaly_map(distances(projected))

    model = fitted(PcaPadim(replace(SMALL, channels=5), weights=random_weights), [images[:5], images[5:12]])
    np.testing.assert_allclose(model.score(images[12:]).maps.numpy(), expected, rtol=1e-3)
