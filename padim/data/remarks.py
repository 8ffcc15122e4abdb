"""What strikes the eye in the images of a category: other proportions, copies, no structure, another exposure."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

# Proportions that differ by no more than this factor are taken as equal.
_SAME_PROPORTION = 1.03

# The noise of a camera that sees nothing, as a standard deviation of grey values.
_NOISE = 2.0

# An image's mean grey value is far off beyond so many spreads of the training images', and one spread is at least so
# many grey values: exposures that are nearly equal would make trifles stand out.
_FAR, _LEAST_SPREAD = 5.0, 4.0

# What makes the median absolute deviation of normally distributed values their standard deviation.
_NORMAL = 1.4826


class Looks(NamedTuple):
    """What is kept of an image.

    Attributes:
        path: its file.
        width: in pixels.
        height: in pixels.
        digest: tells whether another image has the same size and RGB pixels.
        mean: of the grey values, in 0..255.
        deviation: the standard deviation of the grey values.
    """

    path: Path
    width: int
    height: int
    digest: bytes
    mean: float
    deviation: float

    @property
    def proportion(self) -> float:
        """The width as a multiple of the height."""
        return self.width / self.height

    @property
    def size(self) -> str:
        """As `width x height`."""
        return f"{self.width} x {self.height}"

    @classmethod
    def of(cls, path: Path, image: Image.Image) -> Looks:
        """How an image from a file looks."""
        digest = hashlib.blake2b(str(image.size).encode(), digest_size=16)
        digest.update(image.tobytes())
        counts, values = image.convert("L").histogram(), np.arange(256)
        mean = float(np.average(values, weights=counts))
        variance = float(np.average((values - mean) ** 2, weights=counts))
        return cls(path, *image.size, digest.digest(), mean, variance**0.5)


def remarks(train: Sequence[Looks], test: Sequence[Looks]) -> dict[str, list[str]]:
    """What to look at, by kind."""
    images = [*train, *test]
    return {
        "proportions": _proportions(images),
        "duplicates": _copies(train) + _copies(test),
        "uniform": _uniform(images),
        "exposure": _exposure(train, images),
    }


def leaks(train: Sequence[Looks], test: Sequence[Looks]) -> list[str]:
    """Test images that are learned, too, so that figures would flatter."""
    learned = _originals(train)
    return [
        f"{image.path}: the same pixels as the training image {original}"
        for image in test
        if (original := learned.get(image.digest, image.path)) != image.path
    ]


def _copies(images: Sequence[Looks]) -> list[str]:
    """Images that repeat one before them."""
    originals = _originals(images)
    return [
        f"{image.path}: the same pixels as {original}"
        for image in images
        if (original := originals[image.digest]) != image.path
    ]


def _originals(images: Sequence[Looks]) -> dict[bytes, Path]:
    """The first file with each digest."""
    return {image.digest: image.path for image in reversed(images)}


def _proportions(images: Sequence[Looks]) -> list[str]:
    """The image whose proportions are farthest from the usual ones, if it differs."""
    if not images:
        return []
    usual, count = Counter(image.proportion for image in images).most_common(1)[0]
    extreme = max(images, key=lambda image: _ratio(image.proportion, usual))
    if _ratio(extreme.proportion, usual) <= _SAME_PROPORTION:
        return []
    return [
        f"{extreme.path}: {extreme.size} pixels, width/height {extreme.proportion:.3g}, where {count} of"
        f" {len(images)} images have {usual:.3g}; all are resized to one size"
    ]


def _ratio(one: float, other: float) -> float:
    return max(one / other, other / one)


def _uniform(images: Sequence[Looks]) -> list[str]:
    """Images that show next to nothing."""
    return [
        f"{image.path}: hardly any structure, the grey values have a standard deviation of {image.deviation:.1f}"
        for image in images
        if image.deviation < _NOISE
    ]


def _exposure(train: Sequence[Looks], images: Sequence[Looks]) -> list[str]:
    """Images that are much brighter or darker than the training images usually are."""
    if not train:
        return []
    means = np.array([image.mean for image in train])
    usual = float(np.median(means))
    spread = max(_LEAST_SPREAD, _NORMAL * float(np.median(np.abs(means - usual))))
    return [
        f"{image.path}: the mean grey value is {image.mean:.0f}, in the training images usually {usual:.0f}"
        for image in images
        if abs(image.mean - usual) > _FAR * spread
    ]
