"""What a fit will take on the CPU, before any of it: closed forms, which `docs/scaling.md` compares with runs."""

from __future__ import annotations

import math
from typing import NamedTuple

from padim.config import BaseConfig, Config
from padim.cutpaste.augment import CLASSES
from padim.cutpaste.config import CutPasteConfig
from padim.cutpaste.network import EMBEDDING, CutPasteNetwork
from padim.detectors.frame import HELD_BYTES, HELD_IMAGES
from padim.detectors.options import FitOptions
from padim.embedding import draw_channels, split_by_level
from padim.errors import PadimError
from padim.extractor import Backbone
from padim.fitting import KEPT_BYTES, KEPT_IMAGES
from padim.gaussian.moments import IMAGES_PER_BATCH
from padim.pyramid import Pyramid
from padim.storage.tensorfile import STORAGES
from padim.tiles import Tiling

# What Python, torch and their threads take before there is a model; measured with torch 2.15 on Linux.
_LIBRARIES = 850_000_000

# Bytes per pixel of an image that the first layers take: some two and a half maps of 64 channels at half its size.
_ACTIVATIONS = 2.5 * 64

# Bytes per pixel of images that are cut into tiles: of some 26 that are read ahead or being read, and of each image
# of a batch; they wait in two batches, as images and as one tensor, and while they are put together.
_READ_AHEAD, _BATCHED = 26 * 3, 6 * 3

# Bytes per pixel of an image that a step of CutPaste keeps for its gradients.
_GRADIENTS = 900


class Estimate(NamedTuple):
    """Bytes, before any work is done.

    Attributes:
        memory: the peak, with the libraries.
        model: of the model file.
        parts: what else there is to know, by name.
    """

    memory: int
    model: int
    parts: dict[str, int]


def estimate(config: BaseConfig, images: int, options: FitOptions = FitOptions()) -> Estimate:
    """What a fit to so many images will take.

    Raises:
        PadimError: the size of the images does not suit the layers, or the method has no estimate.
    """
    if isinstance(config, Config):
        return _of_padim(config, images, options)
    if isinstance(config, CutPasteConfig):
        return _of_cutpaste(config, images, options)
    raise PadimError(f"there is no estimate for the method {config.method}")


def _of_padim(config: Config, images: int, options: FitOptions) -> Estimate:
    """The most of three moments: while features come in, while they are added up, and while the file is written."""
    backbone = Backbone(config.backbone, config.layers, config.tile_size)
    grids, widths = [shape[1:] for shape in backbone.shapes], [shape[0] for shape in backbone.shapes]
    Pyramid.of_images(config.tile_size, grids)  # or an error
    chosen = draw_channels(sum(widths), config.channels, config.seed)
    tiling = Tiling.of_config(config, grids[0])
    factors, features, coarser = 0, 0, 0
    for drawn, (height, width) in reversed([*zip(map(len, split_by_level(chosen, widths)), grids, strict=True)]):
        cells, coarser = tiling.models * height * width, coarser + drawn
        factors += 4 * cells * drawn * coarser
        features += 4 * cells * drawn
    weights = sum(4 * value.numel() for value in backbone.network.state_dict().values())
    batch = min(images, config.batch_size)
    activations = int(_ACTIVATIONS * math.prod(config.tile_size) * batch)
    examples = images * tiling.examples
    keeps = examples <= KEPT_IMAGES and examples * features <= KEPT_BYTES and (options.calibrate or config.trim > 0)
    kept = examples * features if keeps else 0
    together = min(examples, max(IMAGES_PER_BATCH, batch * tiling.examples))
    group = together * features
    coming_in = group + activations + (factors + kept if examples > together else 0)
    waiting = (_READ_AHEAD + _BATCHED * batch) * math.prod(config.image_size) if len(tiling) > 1 else 0
    if config.align != "none":
        waiting += min(3 * math.prod(config.image_size) * min(images, HELD_IMAGES), HELD_BYTES)
    memory = _LIBRARIES + 2 * weights + waiting + max(coming_in, factors + kept + 2 * group, 2 * factors)
    moments = factors + 2 * features if options.keep_moments or options.update else 0
    earlier = 2 * factors if options.update else 0  # the old model, which stays until all has gone well
    trimming = 2 * factors if config.trim else 0  # the moments of all images, beside those of the trimmed ones
    stored = factors * STORAGES[options.storage].itemsize // 4 + features + weights * options.embed_backbone + moments
    parts = {"moments": factors, "factors": factors, "features_of_an_image": tiling.examples * features}
    return Estimate(memory + moments + earlier + trimming, stored, parts)


def _of_cutpaste(config: CutPasteConfig, images: int, options: FitOptions) -> Estimate:
    """All images, and what a step keeps for its gradients."""
    pixels = math.prod(config.image_size)
    examples = config.training_batch * len(CLASSES[config.variant])
    step = examples * pixels * (_GRADIENTS if config.precision in ("fp32", "tf32") else _GRADIENTS // 2)
    weights = sum(4 * value.numel() for value in CutPasteNetwork(config).state_dict().values())
    stored = weights * STORAGES[options.storage].itemsize // 4 + 4 * EMBEDDING * (EMBEDDING + images)
    parts = {"images": 3 * pixels * images, "step": step}
    copies = 4 if config.optimizer == "adam" else 3  # the weights, their gradients, what the optimizer keeps
    return Estimate(_LIBRARIES + copies * weights + 3 * pixels * images + step, stored, parts)
