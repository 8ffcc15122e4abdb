"""The variants that the paper compares PaDiM with: maps of single levels added up, and PCA for the random channels.

Both fit and score as `Padim` does, in one pass over the images, and have neither calibration nor model file.
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from padim.config import Config
from padim.detectors.batches import Batches
from padim.detectors.options import FitOptions, FitResult
from padim.detectors.scores import Scores
from padim.errors import PadimError
from padim.gaussian.moments import Moments
from padim.gaussian.shared import Gaussian
from padim.model import Padim
from padim.scoring import AnomalyMap, image_scores
from padim.system.device import full_float32
from padim.system.progress import OnProgress, silent
from padim.tiles import Tiling
from padim.weights import Weights


class _AllChannels(Padim):
    """What both variants have in common: they fit to the moments of all channels, whatever the configuration draws."""

    def __init__(self, config: Config, *, weights: Weights | None = None, device: str = "cpu") -> None:
        super().__init__(dataclasses.replace(config, channels=0), weights=weights, device=device)
        self.config = config

    @torch.no_grad()
    def fit(
        self,
        batches: Batches,
        options: FitOptions = FitOptions(),
        *,
        tests: Iterable[tuple[Tensor, Tensor]] = (),  # noqa: ARG002 (nothing is chosen by them)
        progress: OnProgress = silent,  # noqa: ARG002 (there are no steps beyond the batches)
    ) -> FitResult:
        """As `Padim.fit`, without calibration."""
        with full_float32(self.device):
            images = self._fit(self._features_of(batches))
        self.note_fit(images, options)
        return FitResult(images)

    @abstractmethod
    def _fit(self, groups: Iterable[list[Tensor]]) -> int:
        """Fit to batches of features `[cells_i, d_i, n]`; gives the number of images."""


class SumOfMaps(_AllChannels):
    """One PaDiM per level, with all channels of it; their anomaly maps are added (Defard et al. 2020, table I)."""

    def __init__(self, config: Config, *, weights: Weights | None = None, device: str = "cpu") -> None:
        super().__init__(config, weights=weights, device=device)
        tilings = [Tiling.of(config.image_size, config.image_size, grid) for grid in self.pyramid.grids]
        self.anomaly_maps = [AnomalyMap(tiling, config.upsampling, config.sigma).to(self.device) for tiling in tilings]
        self.gaussians: list[Gaussian] = []

    def _fit(self, groups: Iterable[list[Tensor]]) -> int:
        moments: list[Moments] = []
        for features in groups:
            moments = moments or [_moments_about([level]) for level in features]
            for part, level in zip(moments, features, strict=True):
                part.add([level])
        if not moments:
            raise PadimError("a Gaussian needs at least two training images, there is none")
        self.gaussians = [Gaussian.fit(part, self.config.epsilon) for part in moments]
        return moments[0].count

    def forward(self, images: Tensor) -> Scores[Tensor]:
        """As `Padim.forward`."""
        if not self.gaussians:
            raise PadimError("the model isn't fitted: call fit")
        maps = torch.zeros(len(images), *self.config.image_size, device=self.device)
        for i, features in enumerate(self.embed(images)):
            distances = self.gaussians[i].squared_distances([features]).sqrt()
            maps += self.anomaly_maps[i](self.pyramid.to_map(distances, i))
        return Scores(image_scores(maps), maps)


class PcaPadim(_AllChannels):
    """PaDiM on the first principal axes of all embeddings instead of random channels (Defard et al. 2020, table II).

    The axes mix the levels, so nothing is shared between positions any more: the Gaussian takes `channels` squared
    floats per position, and the fit takes the moments of all channels. The configuration's channels are the number
    of axes.
    """

    def _fit(self, groups: Iterable[list[Tensor]]) -> int:
        moments: Moments | None = None
        for features in groups:
            moments = moments or _moments_about(features)
            moments.add(features)
        if moments is None:
            raise PadimError("a Gaussian needs at least two training images, there is none")
        self.axes = principal_axes(moments, self.config.channels)
        self.gaussian = Gaussian.fit(_projected_moments(moments, self.axes), self.config.epsilon)
        return moments.count

    def forward(self, images: Tensor) -> Scores[Tensor]:
        """As `Padim.forward`."""
        maps = self._maps(self._fitted().squared_distances([project(self.embed(images), self.axes)]))
        return Scores(image_scores(maps), maps)


def _moments_about(features: Sequence[Tensor]) -> Moments:
    """Empty moments about the mean of some features, `[cells_i, d_i, n]` per level."""
    return Moments.about([level.mean(dim=2, keepdim=True) for level in features])


def principal_axes(moments: Moments, count: int) -> list[Tensor]:
    """The first principal axes of the embeddings at all positions of all images: `[d_i, count]` a level, float32.

    They need no pass over the images of their own: the covariance of all embeddings is the mean over
    the positions of the moments about each position's mean, plus the covariance of these means.
    """
    n = moments.count
    drift = [total[:, :, 0].cpu().double() / n for total in moments.total]  # [cells_i, d_i]
    means = [shift[:, :, 0].cpu().double() + d for shift, d in zip(moments.shift, drift, strict=True)]
    centred = [mean - mean.mean(dim=0) for mean in means]  # every cell of a level holds equally many positions
    widths = [mean.shape[1] for mean in means]
    covariance = torch.zeros(sum(widths), sum(widths), dtype=torch.float64)
    starts = [sum(widths[:i]) for i in range(len(widths))]
    for i, row in enumerate(moments.second):
        for j, block in enumerate(row):
            inside = len(means[i]) // len(means[j])
            between = centred[i].T @ _spread(centred[j], inside) - drift[i].T @ _spread(drift[j], inside)
            within = block.mean(dim=0, dtype=torch.float64).cpu() / n
            place = covariance[starts[i] : starts[i] + widths[i], starts[j] : starts[j] + widths[j]]
            place += within + between / len(means[i])
    _, axes = torch.linalg.eigh(covariance)  # reads the lower triangle alone; smallest eigenvalue first
    device = moments.shift[0].device
    return [part.to(device) for part in axes.flip(1)[:, :count].float().split(widths)]


def project(features: Sequence[Tensor], axes: Sequence[Tensor]) -> Tensor:
    """Embeddings on axes `[d_i, k]`: levels of `[cells_i, d_i, n]`, coarse to fine -> `[cells, k, n]`, the finest."""
    total: Tensor | None = None
    for level, part in zip(features, axes, strict=True):
        own = part.mT @ level
        total = own if total is None else own + _spread(total, len(own) // len(total))
    assert total is not None
    return total


def _projected_moments(moments: Moments, axes: Sequence[Tensor]) -> Moments:
    """The moments that the projected features would have had."""
    second: Tensor | None = None
    for i, (*left, own_block) in enumerate(moments.second):
        own = axes[i].mT @ own_block @ axes[i]
        if left:
            cross = axes[i].mT @ sum(
                (block @ axes[j] for j, block in enumerate(left)), torch.zeros((), device=own.device)
            )
            own.add_(cross).add_(cross.mT)
        if second is not None:
            own.unflatten(0, (len(second), -1)).add_(second[:, None])
        second = own
    assert second is not None
    return Moments(moments.count, [project(moments.shift, axes)], [project(moments.total, axes)], [[second]])


def _spread(coarse: Tensor, inside: int) -> Tensor:
    """A level on a finer grid, each cell repeated for the `inside` cells in it."""
    return coarse.repeat_interleave(inside, dim=0)
