"""The PaDiM model: backbone, channel selection, Gaussians and anomaly map in one object."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import padim
from padim import modelfile
from padim.backbones import Backbone, StateDict, digest, download_weights, read_weights
from padim.calibration import PIXEL_RATES, Calibration
from padim.config import FALSE_ALARM_RATE, Config
from padim.device import find_device, full_float32
from padim.embedding import Pyramid, draw_channels, split_by_level
from padim.errors import PadimError
from padim.gaussian import Gaussian, Moments, gather
from padim.modelfile import About
from padim.scoring import AnomalyMap, image_scores

# The features of so many training images are kept for the calibration: 0.3 MB each for ResNet18 and 100 channels,
# 1.7 MB for WideResNet50-2 and 550. Every category of MVTec AD has fewer.
KEPT_IMAGES = 400

# How the factors may be kept in a model file.
STORAGES = {"fp32": torch.float32, "fp16": torch.float16}


class Scores(NamedTuple):
    """What a batch of n images scores; distances, so 0 is the mean of the normal images.

    Attributes:
        images: image scores `[n]`, the largest value of each map.
        maps: anomaly maps `[n, h, w]`, one value a pixel of the image that the backbone saw.
    """

    images: Tensor
    maps: Tensor


class Padim:
    """Patch distribution modelling (Defard et al. 2020).

    Batches of images are RGB tensors `[n, 3, h, w]`, h x w being `config.image_size`: uint8, or
    floats in 0..1. They are moved to the model's device and normalised there.
    """

    def __init__(
        self,
        config: Config | None = None,
        *,
        weights: Path | str | StateDict | None = None,
        device: str = "cpu",
    ) -> None:
        """An unfitted model.

        Args:
            config: the protocol; by default that of the preset `pytorch-r18`.
            weights: state dict of the backbone, or its file; by default the published weights are downloaded.
            device: where to compute, in torch's terms.

        Raises:
            PadimError: the weights can't be had or don't fit, the image size doesn't suit the layers, or torch
                finds no such device.
        """
        self.config = config or Config()
        self.device = find_device(device)
        size = self.config.image_size
        self.backbone = Backbone(self.config.backbone, self.config.layers, size, self.config.precision)
        grids = [shape[1:] for shape in self.backbone.shapes]
        _check_nesting(size, grids)
        self.pyramid = Pyramid(tuple(reversed(grids)))
        self.anomaly_map = AnomalyMap(grids[0], size, self.config.upsampling, self.config.sigma).to(self.device)
        self._draw(draw_channels(sum(self._widths()), self.config.channels, self.config.seed))
        self.gaussian: Gaussian | None = None
        self.calibration: Calibration | None = None

        if weights is None:
            weights = download_weights(self.config.backbone)
        elif isinstance(weights, Path | str):
            weights = read_weights(Path(weights))
        self.backbone.load_weights(weights)
        self.backbone.to(self.device)
        self.about = About("", 0, FALSE_ALARM_RATE, digest(self.backbone.weights()), padim.__version__)

    @property
    def dimensions(self) -> int:
        """How many channels are drawn."""
        return len(self.channels)

    @property
    def false_alarm_rate(self) -> float:
        """The share of fresh normal images that the verdict may flag."""
        return self.about.false_alarm_rate

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

        Raises:
            PadimError: the images have another size, or are floats outside 0..1.
        """
        if tuple(images.shape[1:]) != (3, *self.config.image_size):
            expected = f"[n, 3, {self.config.image_size[0]}, {self.config.image_size[1]}]"
            raise PadimError(f"images have shape {list(images.shape)}, expected {expected}")
        if images.is_floating_point() and bool(((images < 0) | (images > 1)).any()):
            raise PadimError("floating point images have values in 0..1: divide by 255, or pass uint8")
        if self.device.type == "cuda" and images.device.type == "cpu":
            images = images.pin_memory()  # only then does the copy overlap with what the GPU still computes
        with full_float32(self.device):
            return self.select(self.backbone(images.to(self.device, non_blocking=images.is_pinned())))

    def select(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """The drawn channels of the backbone's maps `[n, c_l, h_l, w_l]`, finest first, as `features` gives them."""
        selected = [level.index_select(1, drawn) for level, drawn in zip(levels, self._level_channels, strict=True)]
        return [self.pyramid.to_cells(depth, level) for depth, level in enumerate(reversed(selected))]

    def maps(self, features: Sequence[Tensor]) -> Tensor:
        """Anomaly maps `[n, h, w]` of features as `features` gives them."""
        squared = self._fitted().squared_distances(features)
        maps: Tensor = self.anomaly_map(self.pyramid.to_map(squared.sqrt()))
        return maps

    @torch.no_grad()
    def fit(
        self,
        batches: Iterable[Tensor | Sequence[Tensor]],
        category: str = "",
        *,
        calibrate: bool = True,
        false_alarm_rate: float = FALSE_ALARM_RATE,
    ) -> Self:
        """Learn what normal images look like, in memory that does not grow with their number.

        One pass fits. The calibration scores the same images as if each had been left out: from their
        features if they are `KEPT_IMAGES` at most, else in a second pass.

        Args:
            batches: of images; of a pair like those that a `DataLoader` gives, the first entry is taken.
            category: a name that the model will carry.
            calibrate: whether thresholds are wanted; not for an iterator that can't be gone through twice,
                once its images are too many to keep, nor for two images.
            false_alarm_rate: the share of fresh normal images that the model's verdict may flag.

        Raises:
            PadimError: fewer than two images, or features that are not finite.
        """
        kept: list[list[Tensor]] = []
        groups = self._features_of(batches)
        with full_float32(self.device):
            moments = Moments.of(_keeping(groups, kept) if calibrate else groups)
            count = moments.count
            self.gaussian = Gaussian.fit(moments, self.config.epsilon)
            again: Iterable[Sequence[Tensor]] = kept
            if calibrate and not kept and not isinstance(batches, Iterator):
                again = self._features_of(batches)
            self.calibration = Calibration.of(self._left_out_maps(again, count)) if count > 2 else None
        self.about = dataclasses.replace(self.about, category=category, images=count, false_alarm_rate=false_alarm_rate)
        return self

    def _features_of(self, batches: Iterable[Tensor | Sequence[Tensor]]) -> Iterator[list[Tensor]]:
        """Features of batches of images, joined until they are enough for an update of the moments."""
        return gather(self.features(batch if isinstance(batch, Tensor) else batch[0]) for batch in batches)

    def _left_out_maps(self, groups: Iterable[Sequence[Tensor]], count: int) -> Iterator[NDArray[np.float32]]:
        """Anomaly maps `[n, h, w]` of groups of training images, had each image been left out of the fit."""
        gaussian = self._fitted()
        for features in groups:
            for part in zip(*(level.split(self.config.batch_size, dim=2) for level in features), strict=True):
                squared = gaussian.left_out_distances(part, count, self.config.epsilon)
                yield self.anomaly_map(self.pyramid.to_map(squared.sqrt())).cpu().numpy()

    @torch.no_grad()
    def score(self, images: Tensor) -> Scores:
        """Image scores `[n]` and anomaly maps `[n, h, w]` of a batch, on the model's device.

        Raises:
            PadimError: the model isn't fitted, the images have another size, or a distance is not finite.
        """
        with full_float32(self.device):
            maps = self.maps(self.features(images))
        if not bool(maps.isfinite().all()):
            raise PadimError("the distances are not finite: score with --precision fp32 or bf16")
        return Scores(image_scores(maps), maps)

    def save(self, path: Path | str, *, embed_backbone: bool = True, storage: str = "fp32") -> None:
        """Write the model as one file, whole or not at all; `padim.modelfile` describes it.

        Args:
            path: where to; by convention `model.safetensors`.
            embed_backbone: whether the file carries the backbone's weights, so that it scores anywhere.
            storage: `fp32`, or `fp16` for half as many bytes in the factors, which costs digits.

        Raises:
            PadimError: the model isn't fitted, or the file can't be written.
        """
        gaussian = self._fitted()
        dtype = STORAGES[storage]
        tensors = {"channels": torch.tensor(self.channels, dtype=torch.int64)}
        for i, (mean, row) in enumerate(zip(gaussian.mean, gaussian.factors, strict=True)):
            tensors[f"mean.{i}"] = mean
            tensors |= {f"factor.{i}.{j}": block.to(dtype) for j, block in enumerate(row)}
        if self.calibration:
            tensors |= {
                "normal.scores": torch.from_numpy(self.calibration.scores),
                "normal.pixels": torch.from_numpy(self.calibration.pixels),
            }
        if embed_backbone:
            tensors |= {f"backbone.{key}": value for key, value in self.backbone.weights().items()}
        modelfile.write(Path(path), tensors, self.config, self.about)

    @classmethod
    def load(
        cls, path: Path | str, *, weights: Path | str | None = None, device: str = "cpu", precision: str | None = None
    ) -> Padim:
        """A fitted model from its file.

        Args:
            path: the model file.
            weights: weights of the backbone, for a file that doesn't carry them; downloaded by default.
            device: where to compute.
            precision: arithmetic of the backbone, by default what the model was fitted with.

        Raises:
            PadimError: the file can't be read or is damaged, or the weights are others than those
                that the model was fitted with.
        """
        tensors, config, about = modelfile.read(Path(path))
        embedded = {key.removeprefix("backbone."): tensors[key] for key in tensors if key.startswith("backbone.")}
        config = dataclasses.replace(config, precision=precision or config.precision)
        try:
            model = cls(config, weights=weights or embedded or None, device=device)
            if model.about.weights_sha256 != about.weights_sha256:
                raise PadimError(
                    f"fitted with other weights (SHA-256 {about.weights_sha256[:12]}.., these have"
                    f" {model.about.weights_sha256[:12]}..): pass the right ones with --weights"
                )
            model._restore(tensors, about.images)
        except PadimError as error:
            raise PadimError(f"{path}: {error}") from error
        model.about = about
        return model

    def _restore(self, tensors: dict[str, Tensor], images: int) -> None:
        """Take channels, Gaussians and calibration from the tensors of a model file, checking each one."""

        def take(key: str, *shape: int, dtypes: Collection[torch.dtype] = (torch.float32,)) -> Tensor:
            value = tensors.get(key)
            if value is None or value.dtype not in dtypes or value.shape != shape or not bool(value.isfinite().all()):
                kinds = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
                raise PadimError(f"a damaged model: {key!r} is not there as finite {kinds} of shape {list(shape)}")
            return value.to(self.device)

        self._draw(take("channels", len(self.channels), dtypes=(torch.int64,)).tolist())
        cells = [height * width for height, width in self.pyramid.grids]
        drawn = [len(level) for level in reversed(self._level_channels)]
        levels = range(len(cells))
        self.gaussian = Gaussian(
            [take(f"mean.{i}", cells[i], drawn[i], 1) for i in levels],
            [
                [
                    take(f"factor.{i}.{j}", cells[i], drawn[i], drawn[j], dtypes=STORAGES.values()).float()
                    for j in range(i + 1)
                ]
                for i in levels
            ],
        )

        if "normal.scores" in tensors:
            self.calibration = Calibration(
                take("normal.scores", images).cpu().numpy(), take("normal.pixels", len(PIXEL_RATES)).cpu().numpy()
            )

    def _fitted(self) -> Gaussian:
        if self.gaussian is None:
            raise PadimError("the model isn't fitted: call fit, or load one")
        return self.gaussian


def _keeping(groups: Iterable[list[Tensor]], kept: list[list[Tensor]]) -> Iterator[list[Tensor]]:
    """The groups, which are also put into `kept`; that is empty at the end if they had more than `KEPT_IMAGES`."""
    images = 0
    for features in groups:
        images += features[0].shape[2]
        if images <= KEPT_IMAGES:
            kept.append(features)
        else:
            kept.clear()
        yield features


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
                f"images of {size[0]} x {size[1]} pixels don't divide into the patches of these layers:"
                f" instead of {side} take {nearest}"
            )
