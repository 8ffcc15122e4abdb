"""Preprocessing on decoded images: resize, then centre crop, as torchvision does on Pillow images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from PIL import Image

from padim.config import Config


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
        size: height and width of the result, the centre of the resized image.
        interpolation: how images are resized.
        mask_interpolation: how masks are resized.
    """

    resize: tuple[int, ...]
    size: tuple[int, int]
    interpolation: str
    mask_interpolation: str

    @classmethod
    def of(cls, config: Config) -> Transform:
        """The transform that a configuration asks for."""
        return cls(config.resize, config.image_size, config.interpolation, config.mask_interpolation)

    def image(self, image: Image.Image) -> Image.Image:
        """The image as the backbone sees it."""
        return self._apply(image, self.interpolation)

    def mask(self, mask: Image.Image) -> Image.Image:
        """The mask of that image, pixel for pixel."""
        return self._apply(mask, self.mask_interpolation)

    def seen(self, width: int, height: int) -> Box:
        """The part of an image of that size that survives the crop, in its own pixels."""
        resized_width, resized_height = self._resized(width, height)
        left, top, right, bottom = self._crop(resized_width, resized_height)
        x, y = width / resized_width, height / resized_height
        left, top, right, bottom = round(left * x), round(top * y), round(right * x), round(bottom * y)
        left, top = min(left, width - 1), min(top, height - 1)
        return Box(left, top, max(right, left + 1), max(bottom, top + 1))  # never empty

    def _apply(self, image: Image.Image, interpolation: str) -> Image.Image:
        resized = image.resize(self._resized(*image.size), Image.Resampling[interpolation.upper()])
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
        left, top = round((width - self.size[1]) / 2), round((height - self.size[0]) / 2)
        return Box(left, top, left + self.size[1], top + self.size[0])
