"""The plain form of the model: every position has its own covariance and its own distance.

The readable specification of `padim.gaussian.shared`. It holds a d x d matrix for every position, so tests
and benchmarks use it and no command does.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class DenseGaussian(NamedTuple):
    """Mean `[p, d]` and lower Cholesky factor `[p, d, d]` of the covariance of each of p positions."""

    mean: Tensor
    cholesky: Tensor


def fit(embedding: Tensor, epsilon: float) -> DenseGaussian:
    """Gaussian of every position of embeddings `[n, d, h, w]` (Defard et al. 2020, equation 1)."""
    x = embedding.flatten(2).permute(2, 0, 1)  # [p, n, d]
    mean = x.mean(dim=1)
    centred = x - mean[:, None]
    covariance = centred.mT @ centred / (x.shape[1] - 1)
    covariance += epsilon * torch.eye(x.shape[2], dtype=x.dtype, device=x.device)
    return DenseGaussian(mean, torch.linalg.cholesky(covariance))


def distances(gaussian: DenseGaussian, embedding: Tensor) -> Tensor:
    """Mahalanobis distances `[n, h, w]` of embeddings `[n, d, h, w]` (equation 2)."""
    x = embedding.flatten(2).permute(2, 1, 0)  # [p, d, n]
    centred = x - gaussian.mean[:, :, None]
    whitened = torch.linalg.solve_triangular(gaussian.cholesky, centred, upper=False)
    squared: Tensor = whitened.square().sum(dim=1)
    return squared.sqrt().T.reshape(-1, *embedding.shape[2:])
