"""Preprocessing on decoded images: resize, then centre crop, as torchvision does on Pillow images."""

from __future__ import annotations

import dataclasses
import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from padim.config import BaseConfig


class Box(NamedTuple):
    """A rectangle in pixels."""

    left: int
    top: int
    right: int
    bottom: int


@dataclass(frozen=True)
class Transform:
    """Resize and crop of one configuration.

    Attributes:
        resize: the shorter side, or height and width, in pixels.
        size: height and width of the result.
        interpolation: how images are resized.
        mask_interpolation: how masks are resized.
        mask_threshold: of 255, from where on a pixel of a resized mask is defective.
        reduced: whether JPEG files are decoded at reduced size, see `least`.
        rotation: by how many degrees images are turned at most, and then cropped anywhere; see `posed`.
        seed: of these poses.
        angle: by how many degrees images are turned after resizing.
        place: where the result lies in the resized image, from left to right and top to bottom, 0.5 the centre.
    """

    resize: tuple[int, ...]
    size: tuple[int, int]
    interpolation: str
    mask_interpolation: str
    mask_threshold: int = 1
    reduced: bool = False
    rotation: float = 0.0
    seed: int = 0
    angle: float = 0.0
    place: tuple[float, float] = (0.5, 0.5)

    @classmethod
    def of(cls, config: BaseConfig) -> Transform:
        """The transform that a configuration asks for."""
        interpolations = config.interpolation, config.mask_interpolation
        poses = config.rotation, config.seed + config.rotation_seed
        decoding = config.mask_threshold, config.decode == "reduced"
        return cls(config.resize, config.image_size, *interpolations, *decoding, *poses)

    def posed(self, path: Path) -> Transform:
        """The transform of one image: this one, unless images are turned and cropped at random.

        That is the non-aligned protocol of Defard et al. 2020. The pose depends on the seed and on the
        last four parts of the absolute path, so that an image has the same one in every run.
        """
        if self.rotation == 0:
            return self
        name = "/".join(path.absolute().parts[-4:])
        angle, x, y = np.random.default_rng([self.seed, zlib.crc32(os.fsencode(name))]).random(3)
        return dataclasses.replace(self, angle=(2 * angle - 1) * self.rotation, place=(x, y))

    @property
    def least(self) -> int | None:
        """How long the sides of an image have to be at least when it is decoded; None for all that the file has."""
        return max(self.resize) if self.reduced else None

    def image(self, image: Image.Image) -> Image.Image:
        """The image as the backbone sees it."""
        return self._apply(image, self.interpolation, Image.Resampling.BILINEAR)

    def mask(self, mask: Image.Image) -> Image.Image:
        """The mask of that image, pixel for pixel."""
        return self._apply(mask, self.mask_interpolation, Image.Resampling.NEAREST)

    def seen(self, width: int, height: int) -> Box:
        """The part of an image of that size that survives the crop, in its own pixels."""
        resized_width, resized_height = self._resized(width, height)
        left, top, right, bottom = self._crop(resized_width, resized_height)
        x, y = width / resized_width, height / resized_height
        left, top, right, bottom = round(left * x), round(top * y), round(right * x), round(bottom * y)
        left, top = min(left, width - 1), min(top, height - 1)
        return Box(left, top, max(right, left + 1), max(bottom, top + 1))  # never empty

    def _apply(self, image: Image.Image, interpolation: str, turning: Image.Resampling) -> Image.Image:
        resized = image.resize(self._resized(*image.size), Image.Resampling[interpolation.upper()])
        if self.angle:
            resized = resized.rotate(self.angle, turning)
        return resized.crop(self._crop(*resized.size))

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        """Width and height after resizing; the longer side is cut off to whole pixels."""
        if len(self.resize) == 2:
            return self.resize[1], self.resize[0]
        shorter = self.resize[0]
        if width <= height:
            return shorter, int(shorter * height / width)
        return int(shorter * width / height), shorter

    def _crop(self, width: int, height: int) -> Box:
        left, top = round((width - self.size[1]) * self.place[0]), round((height - self.size[0]) * self.place[1])
        return Box(left, top, left + self.size[1], top + self.size[0])
