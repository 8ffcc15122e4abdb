"""PaDiM: backbone, channel selection, Gaussians and anomaly map in one module (Defard et al. 2020)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Self, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from padim.calibration import Calibration, Tally
from padim.config import BaseConfig, Config
from padim.detectors.batches import Batches, images_of
from padim.detectors.contract import Detector
from padim.detectors.frame import CommonFrame
from padim.detectors.options import FitOptions, FitResult
from padim.detectors.scores import Scores
from padim.embedding import ChannelSelection, draw_channels
from padim.errors import PadimError
from padim.extractor import Backbone
from padim.fitting import TrainingFeatures, highest, trimmed_count
from padim.gaussian.moments import Moments, rebatch
from padim.gaussian.shared import Gaussian
from padim.pyramid import Pyramid
from padim.scoring import AnomalyMap, image_scores
from padim.storage.gaussians import gaussian_tensors, moments_tensors, read_gaussian, read_moments
from padim.storage.provenance import Provenance
from padim.storage.tensorfile import STORAGES, take
from padim.system import distributed
from padim.system.device import full_float32
from padim.system.progress import OnProgress, silent
from padim.tiles import Tiling
from padim.weights import StateDict, Weights, digest, weights_from

# What the keys of the backbone's weights begin with in a model file.
_BACKBONE = "backbone."

# What features lose relative to the norm of a position's: that of bf16 is 2^-8 per layer, which adds up over the
# layers as their root, and twice that to be safe.
_ROUNDOFF = 2.0**-5


class Padim(Detector):
    """Patch distribution modelling.

    Attributes:
        backbone: images to feature maps.
        selection: the channels that are kept of them.
        pyramid: the order of their cells.
        tiling: the tiles that images are cut into; a single one by default.
        gaussian: what was fitted, or None.
        moments: what an update takes, where it was kept.
    """

    configuration = Config
    has_maps = True
    config: Config

    def __init__(self, config: Config | None = None, *, weights: Weights | None = None, device: str = "cpu") -> None:
        """As `Detector`."""
        super().__init__(config, device=device)
        config = self.config
        self.backbone = Backbone(config.backbone, config.layers, config.tile_size, config.precision)
        widths, grids = [shape[0] for shape in self.backbone.shapes], [shape[1:] for shape in self.backbone.shapes]
        self.pyramid = Pyramid.of_images(config.tile_size, grids)
        self.tiling = Tiling.of_config(config, grids[0])
        self.anomaly_map = AnomalyMap(self.tiling, config.upsampling, config.sigma)
        self.selection = ChannelSelection(draw_channels(sum(widths), config.channels, config.seed), widths)
        self.gaussian: Gaussian | None = None
        self.moments: Moments | None = None
        self.backbone.load_weights(weights_from(weights, config.backbone), self.device)
        self.to(self.device)
        self.provenance = dataclasses.replace(self.provenance, weights_sha256=digest(self.backbone.weights()))

    @property
    def dimensions(self) -> int:
        """How many channels are kept."""
        return len(self.selection.channels)

    @torch.no_grad()
    def fit(
        self,
        batches: Batches,
        options: FitOptions = FitOptions(),
        *,
        tests: Iterable[tuple[Tensor, Tensor]] = (),  # noqa: ARG002 (nothing is chosen by them)
        progress: OnProgress = silent,  # noqa: ARG002 (there are no steps beyond the batches)
    ) -> FitResult:
        """Fit the Gaussians in one pass, in memory that does not grow with the number of images; as `Detector.fit`.

        The calibration scores the same images as if each had been left out: from their features if they are few
        enough to keep, else in a second pass. There is no calibration for an iterator that can't be gone through
        twice, once its images are too many to keep, nor for two images. In an update the scores of the new images
        join those of the earlier ones, whose images are gone.

        With `trim`, the images of the highest of these scores are taken out of the moments, and all is fitted and
        calibrated again to the others.
        """
        self.check(options)
        if options.update and self.moments is None:
            raise PadimError("the model can't take in more images: it was trained without --keep-moments")
        earlier = self.moments.to(self.device) if options.update and self.moments else None
        trim, examples = self.config.trim, self.tiling.examples
        frame = CommonFrame(self.config, self.alignment if options.update else None)
        features = TrainingFeatures(
            lambda: self._features_of(frame.images(batches)),
            examples,
            keep=options.calibrate or trim > 0,
            repeatable=not isinstance(batches, Iterator),
            announced=getattr(batches, "images", 0),
        )
        with full_float32(self.device):
            nothing = [torch.zeros(*size, 0, device=self.device) for size in self._sizes()]
            moments = features.moments(nothing, earlier.shift if earlier else None)
            alignment, added = frame.finish(), moments.count // examples
            if earlier:
                moments.merge(earlier)
            images = moments.count // examples
            if images < 2:
                raise PadimError(f"a Gaussian needs at least two training images, there is {images}")
            excess = trimmed_count(trim, added) if trim else 0
            carried = moments.copy() if options.keep_moments or options.update or trim else None
            gaussian = Gaussian.fit(moments, self.config.epsilon)  # which uses the moments up
            tally, trimmed = Tally(), np.empty(0, dtype=np.int64)
            if images > 2 and (options.calibrate or trim):
                tally = self._left_out(gaussian, features, images, frame)
            scores = distributed.gathered(tally.scores())
            if trim and carried:
                trimmed = highest(scores, excess, added)
                stays = distributed.own_part(~np.isin(np.arange(added), trimmed), len(tally.scores()))
                carried.remove(features.moments_of(~stays, carried.shift))
                images = carried.count // examples
                gaussian = Gaussian.fit(carried.copy(), self.config.epsilon)
                tally = self._left_out(gaussian, features, images, frame, stays)
            everyone = distributed.gathered(tally.scores())
            tally = Tally([everyone], distributed.summed(tally.counts))
            calibration = tally.calibration(self._rounding(gaussian)) if options.calibrate else None
        # Only now that all has gone well does the model change.
        self.gaussian, self.alignment = gaussian, alignment
        self.moments = carried if options.keep_moments or options.update else None
        self.calibration = self._joined(calibration) if options.update else calibration
        self.note_fit(images, options)
        return FitResult(images, scores if len(scores) else None, trimmed.tolist())

    def _rounding(self, gaussian: Gaussian) -> float:
        """The largest distance that rounding errors of the network give, in any precision; see `docs/numerics.md`."""
        return _ROUNDOFF * gaussian.largest_mean() / math.sqrt(self.config.epsilon) if self.config.epsilon else 0.0

    def _joined(self, calibration: Calibration | None) -> Calibration | None:
        """The calibration so far together with that of further images, where there are both."""
        if self.calibration and calibration:
            return self.calibration.joined(calibration)
        return calibration or self.calibration

    def _left_out(
        self,
        gaussian: Gaussian,
        groups: Iterable[Sequence[Tensor]],
        images: int,
        frame: CommonFrame,
        stays: NDArray[np.bool_] | None = None,
    ) -> Tally:
        """What groups of training images score, had each been left out of the fit to so many; of those that stay.

        Of tiles that share a model, only the one that is scored is left out, not the others of its image.
        """
        examples, tally, start = self.tiling.examples, Tally(), 0
        size = max(1, self.config.batch_size // examples) * examples
        for features in groups:
            for part in zip(*(level.split(size, dim=2) for level in features), strict=True):
                distances = gaussian.leave_one_out_distances(part, images * examples, self.config.epsilon)
                maps = self.filled(self._maps(distances), torch.nan).cpu().numpy()
                counted = frame.masked(maps, start)
                tally.add(counted if stays is None else counted[stays[start : start + len(maps)]])
                start += len(maps)
        return tally

    def forward(self, images: Tensor) -> Scores[Tensor]:
        """As `Detector.forward`."""
        return self.scores_of(self.embed(images))

    @torch.no_grad()
    def features(self, images: Tensor) -> list[Tensor]:
        """The selected channels of every level, coarse to fine: `[cells_i, d_i, n]`, float32.

        Of images in tiles, the tiles that share a model are further images, those that don't are further cells.

        Raises:
            PadimError: the images have another size, or are floats outside 0..1.
        """
        with full_float32(self.device):
            return self.embed(self.on_device(images))

    def _features_of(self, batches: Batches) -> Iterator[list[Tensor]]:
        return rebatch(self.features(images_of(batch)) for batch in batches)

    def embed(self, images: Tensor) -> list[Tensor]:
        """As `features`, of images on the device: the first half of `forward`."""
        tiles = [self._cells(self.selection(self.backbone(tile))) for tile in self.tiling.cut(self.painted(images))]
        if len(tiles) == 1:
            return tiles[0]
        if self.tiling.models > 1:
            return [torch.cat(level) for level in zip(*tiles, strict=True)]
        return [torch.stack(level, dim=3).flatten(2) for level in zip(*tiles, strict=True)]

    def scores_of(self, features: Sequence[Tensor]) -> Scores[Tensor]:
        """The scores of features, arranged as in `features`: the second half of `forward`."""
        maps = self.filled(self._maps(self._fitted().squared_distances(features)), 0.0)
        return Scores(image_scores(maps), maps)

    def _cells(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """Maps `[n, d_l, h_l, w_l]`, finest first -> `[cells_i, d_i, n]`, coarse to fine."""
        return [self.pyramid.to_cells(i, level) for i, level in enumerate(reversed(levels))]

    def _maps(self, squared: Tensor) -> Tensor:
        """Anomaly maps `[n, h, w]` of squared distances `[cells, n]`, whose tiles are arranged as in `features`."""
        tiles = squared.sqrt().unflatten(0, (self.tiling.models, -1)).permute(1, 2, 0).flatten(1)
        maps: Tensor = self.anomaly_map(self.tiling.side_by_side(self.pyramid.to_map(tiles)))
        return maps

    def _sizes(self) -> list[tuple[int, int]]:
        """Cells and kept channels of every level, coarse to fine."""
        cells = [self.tiling.models * height * width for height, width in self.pyramid.grids]
        return [*zip(cells, reversed(self.selection.counts), strict=True)]

    def _fitted(self) -> Gaussian:
        if self.gaussian is None:
            raise PadimError("the model isn't fitted: call fit, or load one")
        return self.gaussian

    def tensors(self, options: FitOptions) -> dict[str, Tensor]:
        """As `Detector.tensors`."""
        tensors = {"channels": torch.tensor(self.selection.channels, dtype=torch.int64)}
        tensors |= gaussian_tensors(self._fitted(), STORAGES[options.storage])
        if self.moments:
            tensors |= moments_tensors(self.moments)
        if options.embed_backbone:
            tensors |= {f"{_BACKBONE}{key}": value for key, value in self.backbone.weights().items()}
        return tensors

    @classmethod
    def unfitted(cls, config: BaseConfig, tensors: StateDict, weights: Weights | None, device: str) -> Self:
        """As `Detector.unfitted`, with the weights of the file unless others are given or it has none."""
        own = {key.removeprefix(_BACKBONE): tensors[key] for key in tensors if key.startswith(_BACKBONE)}
        return cls(cast(Config, config), weights=weights or own or None, device=device)

    def restore(self, tensors: StateDict, provenance: Provenance) -> None:
        """As `Detector.restore`."""
        expected, found = provenance.weights_sha256, self.provenance.weights_sha256
        if found != expected:
            raise PadimError(
                f"fitted with other weights (SHA-256 {expected[:12]}.., these have {found[:12]}..):"
                " pass the right ones with --weights"
            )
        channels = take(tensors, "channels", self.dimensions, dtypes=(torch.int64,)).tolist()
        self.selection = ChannelSelection(channels, [shape[0] for shape in self.backbone.shapes])
        self.gaussian = read_gaussian(tensors, self._sizes())
        self.moments = read_moments(tensors, self._sizes(), provenance.images * self.tiling.examples)
        self.to(self.device)
