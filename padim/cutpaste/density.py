"""How embeddings of normal images are distributed, and the score that says how far out another one lies."""

from __future__ import annotations

import math
from typing import Self

import torch
from torch import Tensor, nn

# Of embeddings of length 1: what float32 can tell apart. Without it, embeddings that are all the same have no density.
_SMALLEST_VARIANCE = 1e-12


class GaussianDensity(nn.Module):
    """Mean and covariance, shrunk as Ledoit and Wolf (2004) have it; the score is the Mahalanobis distance.

    Attributes:
        mean: `[d]`.
        whitening: W with W W^T the inverse covariance, `[d, d]`.
    """

    mean: Tensor
    whitening: Tensor

    def __init__(self, mean: Tensor, whitening: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("whitening", whitening)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Distances `[n]` of embeddings `[n, d]`."""
        return ((embeddings - self.mean) @ self.whitening).square().sum(dim=1).sqrt()

    @classmethod
    def fit(cls, embeddings: Tensor) -> tuple[Self, Tensor]:
        """The Gaussian of embeddings `[n, d]`, and what each scores if it is left out of the fit, `[n]`.

        Left out, the covariance is a (S - c v v^T) + s I with v = x - mean, which the
        Sherman-Morrison formula inverts; the amount of shrinkage is taken to stay what it is.
        """
        from sklearn.covariance import ledoit_wolf

        points = embeddings.double().cpu()
        n, d = points.shape
        mean = points.mean(dim=0)
        centred = points - mean
        _, shrinkage = ledoit_wolf(centred.numpy(), assume_centered=True)
        empirical = centred.T @ centred / n
        ridge = max(shrinkage * empirical.trace().item() / d, _SMALLEST_VARIANCE) * torch.eye(d)
        kept = (1 - shrinkage) * empirical
        whitening = _whitening(kept + ridge)
        q = (centred @ _whitening(kept * n / (n - 1) + ridge)).square().sum(dim=1)
        left_out = (n / (n - 1)) ** 2 * q / (1 - (1 - shrinkage) * n / (n - 1) ** 2 * q)
        return cls(mean.float(), whitening.float()), left_out.sqrt().float()


class KernelDensity(nn.Module):
    """A Gaussian kernel around every training image; the score is the negative logarithm of the density.

    Attributes:
        points: the embeddings, `[m, d]`.
        bandwidth: standard deviation of the kernels, `[]`.
    """

    points: Tensor
    bandwidth: Tensor

    def __init__(self, points: Tensor, bandwidth: Tensor) -> None:
        super().__init__()
        self.register_buffer("points", points)
        self.register_buffer("bandwidth", bandwidth)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Scores `[n]` of embeddings `[n, d]`."""
        return self._normalised(self._exponents(embeddings).logsumexp(dim=1), len(self.points))

    @classmethod
    def fit(cls, embeddings: Tensor, bandwidth: float) -> tuple[Self, Tensor]:
        """The density of embeddings `[n, d]`, and what each scores if it is left out, `[n]`."""
        density = cls(embeddings.float().clone(), torch.tensor(bandwidth))
        exponents = density._exponents(density.points)
        exponents.fill_diagonal_(-math.inf)
        return density, density._normalised(exponents.logsumexp(dim=1), len(embeddings) - 1)

    def _exponents(self, embeddings: Tensor) -> Tensor:
        # As a product, since the differences of all pairs would fill the memory.
        norms = embeddings.square().sum(dim=1)[:, None] + self.points.square().sum(dim=1)
        squared = (norms - 2 * embeddings @ self.points.T).clamp(min=0)
        return -squared / (2 * self.bandwidth.square())

    def _normalised(self, logarithms: Tensor, count: int) -> Tensor:
        volume = self.points.shape[1] * (math.log(2 * math.pi) / 2 + self.bandwidth.log())
        scores: Tensor = math.log(count) + volume - logarithms
        return scores


def _whitening(covariance: Tensor) -> Tensor:
    """W with W W^T the inverse of a covariance, `[d, d]`, float64."""
    lower = torch.linalg.cholesky(covariance)
    identity = torch.eye(len(lower), dtype=lower.dtype)
    inverse: Tensor = torch.linalg.solve_triangular(lower, identity, upper=False)
    return inverse.T
