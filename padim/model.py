"""The PaDiM model: backbone, channel selection, Gaussians and anomaly map in one object."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from padim.backbones import Backbone, digest
from padim.calibration import Tally
from padim.config import Config
from padim.detectors.contract import (
    LIBRARIES,
    STORAGES,
    Batches,
    Detector,
    Estimate,
    Plan,
    Scores,
    TrainingOptions,
    Weights,
    images_of,
    take,
    weights_from,
)
from padim.embedding import Pyramid, draw_channels, split_by_level
from padim.errors import PadimError
from padim.gaussian.shared import IMAGES_AN_UPDATE, Blocks, Gaussian, Moments, gather
from padim.scoring import AnomalyMap, image_scores
from padim.storage.provenance import About
from padim.system import distributed
from padim.system.device import full_float32
from padim.tiles import Tiling

# The features of so many training images are kept for the calibration, if they take no more than so many bytes:
# each has 0.3 MB for ResNet18 and 100 channels, 1.7 MB for WideResNet50-2 and 550. Every category of MVTec AD fits.
KEPT_IMAGES, KEPT_BYTES = 400, 700_000_000

# Bytes that the first layers take for a pixel of an image: some two and a half maps of 64 channels at half its size.
_ACTIVATIONS = 2.5 * 64

# Bytes for a pixel of images that are cut into tiles: of some 26 that are read ahead or being read, and of each
# of a batch, which wait in two batches, as images and as one tensor, and while they are put together.
_READ_AHEAD, _BATCHED = 26 * 3, 6 * 3


class Padim(Detector):
    """Patch distribution modelling (Defard et al. 2020)."""

    configuration = Config
    has_maps = True
    config: Config

    def __init__(self, config: Config | None = None, *, weights: Weights | None = None, device: str = "cpu") -> None:
        """As `Detector`; the image size has to suit the layers, too."""
        super().__init__(config, device=device)
        tile = self.config.tile_size
        self.backbone = Backbone(self.config.backbone, self.config.layers, tile, self.config.precision)
        grids = [shape[1:] for shape in self.backbone.shapes]
        _check_nesting(tile, grids)
        self.pyramid = Pyramid(tuple(reversed(grids)))
        self.tiling, self._tile_models, self._examples = _tiling(self.config, grids[0])
        self.anomaly_map = AnomalyMap(self.tiling, self.config.upsampling, self.config.sigma).to(self.device)
        self._draw(draw_channels(sum(self._widths()), self.config.channels, self.config.seed))
        self.gaussian: Gaussian | None = None
        self.moments: Moments | None = None

        self.backbone.load_weights(weights_from(weights, self.config.backbone))
        self.backbone.to(self.device)
        self.about = dataclasses.replace(self.about, weights_sha256=digest(self.backbone.weights()))

    @property
    def dimensions(self) -> int:
        """How many channels are drawn."""
        return len(self.channels)

    @classmethod
    def is_seeded(cls, config: Config) -> bool:
        """As `Detector.is_seeded`."""
        return config.channels > 0

    @classmethod
    def check(cls, plan: Plan) -> None:
        """As `Detector.check`."""
        if plan.resume:
            raise PadimError("padim fits in one pass: there is nothing to resume")

    @classmethod
    def estimate(cls, config: Config, images: int, plan: Plan | None = None) -> Estimate:
        """As `Detector.estimate`: while features come in, while they are summed up, and while the file is written."""
        plan = plan or Plan()
        backbone = Backbone(config.backbone, config.layers, config.tile_size)
        _check_nesting(config.tile_size, [shape[1:] for shape in backbone.shapes])
        widths = [channels for channels, _, _ in backbone.shapes]
        chosen = draw_channels(sum(widths), config.channels, config.seed)
        drawn = [len(level) for level in split_by_level(chosen, widths)]
        tiling, tile_models, tiles = _tiling(config, backbone.shapes[0][1:])
        factors, features, coarser = 0, 0, 0
        for count, (_, height, width) in reversed([*zip(drawn, backbone.shapes, strict=True)]):
            coarser += count
            factors += 4 * tile_models * height * width * count * coarser
            features += 4 * tile_models * height * width * count
        weights = sum(4 * value.numel() for value in backbone.network.state_dict().values())
        height, width = config.tile_size
        batch = min(images, config.batch_size)
        activations = int(_ACTIVATIONS * height * width * batch)
        examples = images * tiles
        kept = min(examples * features, KEPT_IMAGES * features, KEPT_BYTES) if plan.calibrate else 0
        together = min(examples, max(IMAGES_AN_UPDATE, batch * tiles))
        group = together * features
        coming_in = group + activations + (factors + kept if examples > together else 0)
        waiting = (_READ_AHEAD + _BATCHED * batch) * math.prod(config.image_size) if len(tiling) > 1 else 0
        memory = LIBRARIES + 2 * weights + waiting + max(coming_in, factors + kept + 2 * group, 2 * factors)
        parts = {"moments": factors, "factors": factors, "features_of_an_image": tiles * features}
        moments = factors + 2 * features if plan.keep_moments or plan.more else 0
        earlier = 2 * factors if plan.more else 0  # the old model, which stays until all has gone well
        stored = factors * STORAGES[plan.storage].itemsize // 4 + features + weights * plan.embed_backbone + moments
        return Estimate(memory + moments + earlier, stored, parts)

    def _sizes(self) -> list[tuple[int, int]]:
        """Cells and drawn channels of every level, coarse to fine."""
        cells = [self._tile_models * height * width for height, width in self.pyramid.grids]
        return [*zip(cells, map(len, reversed(self._level_channels)), strict=True)]

    def _widths(self) -> list[int]:
        """How many channels each level has, finest first."""
        return [shape[0] for shape in self.backbone.shapes]

    def _draw(self, channels: list[int]) -> None:
        """Keep these channels of the joined levels."""
        self.channels = channels
        self._level_channels = [
            torch.tensor(level, dtype=torch.int64, device=self.device)
            for level in split_by_level(channels, self._widths())
        ]

    @torch.no_grad()
    def features(self, images: Tensor) -> list[Tensor]:
        """The selected channels of every level, coarse to fine: `[cells_l, d_l, n]`, float32.

        Of images in tiles, the tiles that share a model are further images, those that don't are further cells.

        Raises:
            PadimError: the images have another size, or are floats outside 0..1.
        """
        with full_float32(self.device):
            return self._features(self.on_device(images))

    def _features(self, images: Tensor) -> list[Tensor]:
        """As `features`, of images on the device."""
        tiles = [self.select(self.backbone(tile)) for tile in self.tiling.cut(images)]
        if len(tiles) == 1:
            return tiles[0]
        if self._tile_models > 1:
            return [torch.cat(level) for level in zip(*tiles, strict=True)]
        return [torch.stack(level, dim=3).flatten(2) for level in zip(*tiles, strict=True)]

    def select(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """The drawn channels of the backbone's maps `[n, c_l, h_l, w_l]`, finest first: `[cells_l, d_l, n]`."""
        selected = [level.index_select(1, drawn) for level, drawn in zip(levels, self._level_channels, strict=True)]
        return [self.pyramid.to_cells(depth, level) for depth, level in enumerate(reversed(selected))]

    def _maps(self, squared: Tensor) -> Tensor:
        """Anomaly maps `[n, h, w]` of squared distances `[cells, n]`, whose tiles are arranged as in `features`."""
        tiles = squared.sqrt().unflatten(0, (self._tile_models, -1)).permute(1, 2, 0).flatten(1)
        maps: Tensor = self.anomaly_map(self.tiling.side_by_side(self.pyramid.to_map(tiles)))
        return maps

    @torch.no_grad()
    def learn(self, batches: Batches, calibrate: bool, training: TrainingOptions, more: bool) -> int:
        """As `Detector.learn`, in memory that does not grow with the number of images.

        One pass fits. The calibration scores the same images as if each had been left out: from their
        features if they are few enough to keep, else in a second pass. There is none for an iterator
        that can't be gone through twice, once its images are too many to keep, nor for two images.
        The scores of more images join those of the earlier ones, which are gone.
        """
        self.check(Plan(resume=training.resume))
        if more and self.moments is None:
            raise PadimError("the model can't take in more images: it was trained without --keep-moments")
        # A copy, so that the model is what it was until all has gone well.
        earlier, before = (self.moments.copy(), self.calibration) if more and self.moments else (None, None)
        kept: list[list[Tensor]] = []
        groups = self._features_of(batches)
        with full_float32(self.device):
            seen = _keeping(groups, kept) if calibrate else groups
            moments = distributed.moments(seen, self._sizes(), self.device, earlier)
            count = moments.count // self._examples
            if count < 2:
                raise PadimError(f"a Gaussian needs at least two training images, there is {count}")
            sums = moments.copy() if training.keep_moments or more else None
            gaussian = distributed.fit(moments, self.config.epsilon)
            again: Iterable[Sequence[Tensor]] = kept
            if calibrate and not kept and not isinstance(batches, Iterator):
                again = self._features_of(batches)
            tally = Tally()
            if count > 2:
                for maps in self._left_out_maps(gaussian, again, moments.count):
                    tally.add(maps)
            found = distributed.tally(tally).calibration()
        self.gaussian, self.moments = gaussian, sums
        self.calibration = before.joined(found) if before and found else found or before
        return count

    def _features_of(self, batches: Batches) -> Iterator[list[Tensor]]:
        """Features of batches of images, joined until they are enough for an update of the moments."""
        return gather(self.features(images_of(batch)) for batch in batches)

    def _left_out_maps(
        self, gaussian: Gaussian, groups: Iterable[Sequence[Tensor]], count: int
    ) -> Iterator[NDArray[np.float32]]:
        """Anomaly maps `[n, h, w]` of groups of training images, had each been left out of the fit to `count`.

        Of tiles that share a model, only the one that is scored is left out, not the others of its image.
        """
        size = max(1, self.config.batch_size // self._examples) * self._examples
        for features in groups:
            for part in zip(*(level.split(size, dim=2) for level in features), strict=True):
                yield self._maps(gaussian.left_out_distances(part, count, self.config.epsilon)).cpu().numpy()

    def forward(self, images: Tensor) -> Scores:
        """As `Detector.forward`."""
        maps = self._maps(self._fitted().squared_distances(self._features(images)))
        return Scores(image_scores(maps), maps)

    def tensors(self, embed_backbone: bool, dtype: torch.dtype) -> dict[str, Tensor]:
        """As `Detector.tensors`."""
        gaussian = self._fitted()
        tensors = {"channels": torch.tensor(self.channels, dtype=torch.int64)}
        for i, (mean, row) in enumerate(zip(gaussian.mean, gaussian.factors, strict=True)):
            tensors[f"mean.{i}"] = mean
            tensors |= {f"factor.{i}.{j}": _narrowed(block, dtype) for j, block in enumerate(row)}
        if self.moments:
            for i, row in enumerate(self.moments.second):
                tensors |= {f"moments.shift.{i}": self.moments.shift[i], f"moments.total.{i}": self.moments.total[i]}
                tensors |= {f"moments.second.{i}.{j}": block for j, block in enumerate(row)}
        if embed_backbone:
            tensors |= {f"backbone.{key}": value for key, value in self.backbone.weights().items()}
        return tensors

    @classmethod
    def from_tensors(
        cls, tensors: Mapping[str, Tensor], config: Config, about: About, weights: Weights | None, device: str
    ) -> Self:
        """As `Detector.from_tensors`; other weights than those that it was fitted with are an error, too."""
        embedded = {key.removeprefix("backbone."): tensors[key] for key in tensors if key.startswith("backbone.")}
        model = cls(config, weights=weights or embedded or None, device=device)
        if model.about.weights_sha256 != about.weights_sha256:
            raise PadimError(
                f"fitted with other weights (SHA-256 {about.weights_sha256[:12]}.., these have"
                f" {model.about.weights_sha256[:12]}..): pass the right ones with --weights"
            )
        model._restore(tensors, about.images)
        return model

    def _restore(self, tensors: Mapping[str, Tensor], images: int) -> None:
        """Take what was fitted to so many images from the tensors of a model file, checking each one."""
        self._draw(take(tensors, "channels", len(self.channels), dtypes=(torch.int64,)).tolist())
        cells, drawn = zip(*self._sizes(), strict=True)
        levels = range(len(cells))

        def columns(name: str) -> list[Tensor]:
            return [take(tensors, f"{name}.{i}", cells[i], drawn[i], 1).to(self.device) for i in levels]

        def blocks(name: str, dtypes: Iterable[torch.dtype]) -> Blocks:
            shapes = [[(cells[i], drawn[i], drawn[j]) for j in range(i + 1)] for i in levels]
            return [
                [
                    take(tensors, f"{name}.{i}.{j}", *shape, dtypes=dtypes).to(self.device).float()
                    for j, shape in enumerate(row)
                ]
                for i, row in enumerate(shapes)
            ]

        self.gaussian = Gaussian(columns("mean"), blocks("factor", STORAGES.values()))
        if "moments.shift.0" in tensors:
            sums = columns("moments.shift"), columns("moments.total"), blocks("moments.second", (torch.float32,))
            self.moments = Moments(images * self._examples, *sums)

    def _fitted(self) -> Gaussian:
        if self.gaussian is None:
            raise PadimError("the model isn't fitted: call fit, or load one")
        return self.gaussian


def _narrowed(block: Tensor, dtype: torch.dtype) -> Tensor:
    """A tensor in another type, unless that would overflow."""
    narrow = block.to(dtype)
    return narrow if bool(narrow.isfinite().all()) else block


def _keeping(groups: Iterable[list[Tensor]], kept: list[list[Tensor]]) -> Iterator[list[Tensor]]:
    """The groups, which are also put into `kept`; that is empty at the end if they are too many."""
    images, size = 0, 0
    for features in groups:
        images += features[0].shape[2]
        size += sum(level.nbytes for level in features)
        if images <= KEPT_IMAGES and size <= KEPT_BYTES:
            kept.append(features)
        else:
            kept.clear()
        yield features


def _tiling(config: Config, grid: tuple[int, int]) -> tuple[Tiling, int, int]:
    """The tiles of an image, which have such a grid of patches; how many have Gaussians of their own, and share one."""
    tiling = Tiling.of(config.image_size, config.tile_size, grid, config.tile_overlap)
    return (tiling, len(tiling), 1) if config.tile_model == "position" else (tiling, 1, len(tiling))


def _check_nesting(size: tuple[int, int], grids: list[tuple[int, int]]) -> None:
    """Refuse image sizes whose grids don't nest.

    Raises:
        PadimError: a side is not a multiple of the coarsest stride; names the nearest sides that work.
    """
    for side, cells in zip(size, zip(*grids, strict=True), strict=True):
        if any(fine % coarse for fine, coarse in pairwise(cells)):
            stride = 1 << (math.ceil(side / cells[-1]) - 1).bit_length()
            below = side // stride * stride
            nearest = " or ".join(str(works) for works in (below, below + stride) if works)
            raise PadimError(
                f"images or tiles of {size[0]} x {size[1]} pixels don't divide into the patches of these layers:"
                f" instead of {side} take {nearest}"
            )
