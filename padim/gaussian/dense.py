"""The plain form of the model: every position has a covariance of its own. It is the specification of this folder.

Notation, which the other files share. At one position of the image:

    x_1 .. x_n   the embeddings of the training images, in R^d
    m            their mean
    C            their unbiased covariance, sum_k (x_k - m)(x_k - m)^T / (n - 1), as `numpy.cov` has it
    S            C + epsilon I, the regularised covariance (Defard et al. 2020, equation 1)
    G            the lower Cholesky factor of S, so that S = G G^T
    q(x)         (x - m)^T S^-1 (x - m) = |G^-1 (x - m)|^2, the squared Mahalanobis distance of an embedding x;
                 the anomaly map is its root (equation 2)
    q_-k         the squared distance of training embedding x_k from the Gaussian of the n - 1 others

An example that can be worked by hand: three images, one position, two channels, epsilon 3.

>>> train = torch.tensor([[0.0, 1.0], [1.0, 0.0], [2.0, 5.0]])  # m = (1, 2)
>>> gaussian = fit(train[:, :, None, None], epsilon=3.0)  # C = [[1, 2], [2, 7]], S = [[4, 2], [2, 10]]
>>> gaussian.cholesky[0].tolist()
[[2.0, 0.0], [1.0, 3.0]]
>>> test = torch.tensor([[5.0, 10.0]])  # x - m = (4, 8), G^-1 (x - m) = (2, 2)
>>> float(squared_distances(gaussian, test[:, :, None, None]))
8.0

This form holds a d x d matrix for every position, so tests and benchmarks use it and no command does.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class DenseGaussian(NamedTuple):
    """Mean m `[p, d]` and Cholesky factor G `[p, d, d]` of each of p positions."""

    mean: Tensor
    cholesky: Tensor


def fit(embedding: Tensor, epsilon: float) -> DenseGaussian:
    """The Gaussian of every position of embeddings `[n, d, h, w]`."""
    x = embedding.flatten(2).permute(2, 0, 1)  # [p, n, d]
    mean = x.mean(dim=1)
    centred = x - mean[:, None]
    covariance = centred.mT @ centred / (x.shape[1] - 1)
    covariance += epsilon * torch.eye(x.shape[2], dtype=x.dtype, device=x.device)
    return DenseGaussian(mean, torch.linalg.cholesky(covariance))


def squared_distances(gaussian: DenseGaussian, embedding: Tensor) -> Tensor:
    """Squared Mahalanobis distances q `[n, h, w]` of embeddings `[n, d, h, w]`."""
    x = embedding.flatten(2).permute(2, 1, 0)  # [p, d, n]
    centred = x - gaussian.mean[:, :, None]
    whitened = torch.linalg.solve_triangular(gaussian.cholesky, centred, upper=False)
    squared: Tensor = whitened.square().sum(dim=1)
    return squared.T.reshape(-1, *embedding.shape[2:])


def leave_one_out_distances(embedding: Tensor, epsilon: float) -> Tensor:
    """Squared distances q_-k `[n, h, w]` of training embeddings `[n, d, h, w]`, by n fits to the n - 1 others."""
    distances = []
    for k in range(len(embedding)):
        others = torch.cat([embedding[:k], embedding[k + 1 :]])
        distances.append(squared_distances(fit(others, epsilon), embedding[k : k + 1]))
    return torch.cat(distances)
