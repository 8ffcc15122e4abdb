"""The variants that the paper compares PaDiM with: maps of single levels added up, and PCA for the random channels.

Both fit and score as `Padim` does, in one pass over the images, and have no model file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from padim.backbones import Backbone, StateDict
from padim.config import Config
from padim.detectors.contract import Estimate, Scores
from padim.errors import PadimError
from padim.gaussian.shared import Gaussian, Moments, gather
from padim.model import Padim
from padim.scoring import AnomalyMap, image_scores
from padim.system.device import full_float32
from padim.tiles import Tiling


class SumOfMaps:
    """One PaDiM a level, with all channels of it; their anomaly maps are added (Defard et al. 2020, table I)."""

    def __init__(self, config: Config, *, weights: Path | str | StateDict | None = None, device: str = "cpu") -> None:
        """As `Padim`; the configuration's channels are not drawn from."""
        self.config = config
        self.base = Padim(dataclasses.replace(config, channels=0), weights=weights, device=device)
        self.device = self.base.device
        self.anomaly_maps = [
            AnomalyMap(tiling, config.upsampling, config.sigma).to(self.device)
            for tiling in (Tiling.of(config.image_size, config.image_size, grid) for grid in self.base.pyramid.grids)
        ]
        self.gaussians: list[Gaussian] = []

    @classmethod
    def is_seeded(cls, config: Config) -> bool:  # noqa: ARG003 (as detectors have it)
        """Nothing is drawn."""
        return False

    @classmethod
    def estimate(cls, config: Config, images: int) -> Estimate:
        """As `padim.detectors.contract.Detector.estimate`, at most."""
        return Padim.estimate(dataclasses.replace(config, channels=0), images)

    @torch.no_grad()
    def fit(self, batches: Iterable[Tensor]) -> Self:
        """As `Padim.fit`."""
        with full_float32(self.device):
            moments: list[Moments] = []
            for features in gather(map(self.base.features, batches)):
                moments = moments or [Moments.about([level]) for level in features]
                for part, level in zip(moments, features, strict=True):
                    part.update([level])
            if not moments:
                raise PadimError("a Gaussian needs at least two training images, there is none")
            self.gaussians = [Gaussian.fit(part, self.config.epsilon) for part in moments]
        return self

    @torch.no_grad()
    def score(self, images: Tensor) -> Scores:
        """As `Padim.score`."""
        if not self.gaussians:
            raise PadimError("the model isn't fitted: call fit")
        with full_float32(self.device):
            maps = torch.zeros(len(images), *self.config.image_size, device=self.device)
            for level, features in enumerate(self.base.features(images)):
                distances = self.gaussians[level].squared_distances([features]).sqrt()
                maps += self.anomaly_maps[level](self.base.pyramid.to_map(distances, level))
        return Scores(image_scores(maps), maps)


class PcaPadim:
    """PaDiM on the first principal axes of all embeddings instead of random channels (Defard et al. 2020, table II).

    The axes mix the levels, so nothing is shared between positions any more: `channels` squared
    floats for each of them, and while fitting the moments of all channels.
    """

    def __init__(self, config: Config, *, weights: Path | str | StateDict | None = None, device: str = "cpu") -> None:
        """As `Padim`; the configuration's channels are the number of axes."""
        self.config = config
        self.base = Padim(dataclasses.replace(config, channels=0), weights=weights, device=device)
        self.device = self.base.device
        self.axes: list[Tensor] = []
        self.gaussian: Gaussian | None = None

    @classmethod
    def is_seeded(cls, config: Config) -> bool:  # noqa: ARG003 (as detectors have it)
        """Nothing is drawn."""
        return False

    @classmethod
    def estimate(cls, config: Config, images: int) -> Estimate:
        """As `padim.detectors.contract.Detector.estimate`."""
        _, height, width = Backbone(config.backbone, config.layers[:1], config.image_size).shapes[0]
        whole = Padim.estimate(dataclasses.replace(config, channels=0), images)
        projected = 2 * 4 * 2 * height * width * config.channels**2
        return whole._replace(memory=whole.memory + projected)

    @torch.no_grad()
    def fit(self, batches: Iterable[Tensor]) -> Self:
        """As `Padim.fit`."""
        with full_float32(self.device):
            moments = Moments.of(gather(map(self.base.features, batches)))
            self.axes = principal_axes(moments, self.config.channels)
            self.gaussian = Gaussian.fit(_projected_moments(moments, self.axes), self.config.epsilon)
        return self

    @torch.no_grad()
    def score(self, images: Tensor) -> Scores:
        """As `Padim.score`."""
        if self.gaussian is None:
            raise PadimError("the model isn't fitted: call fit")
        with full_float32(self.device):
            squared = self.gaussian.squared_distances([project(self.base.features(images), self.axes)])
            maps = self.base.anomaly_map(self.base.pyramid.to_map(squared.sqrt()))
        return Scores(image_scores(maps), maps)


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
