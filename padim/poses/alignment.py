"""The common frame of a model: images are moved into it, and maps back into the frames of the images."""

from __future__ import annotations

import math
from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import scipy.ndimage
from numpy.typing import NDArray
from PIL import Image

from padim.config import MAX_SIDE
from padim.poses.grid import Grey, cells_per_pixel, grey, grid_of
from padim.poses.pose import Pose, moved, outside
from padim.poses.search import Template
from padim.system.machine import cores

Pixels = NDArray[np.uint8]
Bools = NDArray[np.bool_]
Floats = NDArray[np.float32]

# Pixels next to what an image does not cover that don't count either.
MARGIN = 2

# The share of the training images that have to cover a position, for it to count.
COVERED = 0.9

# A pose is found from `median - 4.5 max(median - 10 % quantile, 0.2)` of the training images' correlations on, all on
# the scale of Fisher's z, which is their atanh.
_LEAST_DISTANCE, _TIMES = 0.2, 4.5


class PartPose(NamedTuple):
    """How a part lies in an image.

    Attributes:
        pose: against the reference, in pixels of the image that the network sees.
        correlation: with the reference, at most 1.
        found: whether the image agrees with the reference as well as normal images do.
    """

    pose: Pose
    correlation: float
    found: bool

    def summary(self, x: float = 1.0, y: float = 1.0) -> dict[str, Any]:
        """As plain values, for JSON, where a pixel is `x` wide and `y` high."""
        shift = [round(self.pose.shift[0] * x, 2), round(self.pose.shift[1] * y, 2)]
        return {
            "angle": round(self.pose.angle, 2),
            "shift": shift,
            "correlation": round(self.correlation, 4),
            "found": self.found,
        }


@dataclass(frozen=True)
class Alignment:
    """A reference, and how the training images lie against it.

    Attributes:
        reference: the picture of the part `[rows, columns]`, see `padim.poses.grid`.
        turns: whether parts are looked for at every angle, or only where they are shifted.
        field: the positions `[h, w]` of the frame that count: those that enough training images cover.
        angles: of the training images, in degrees, `[n]`.
        shifts: of the training images, in pixels, `[n, 2]`.
        correlations: of the training images with the reference without them, `[n]`.
    """

    reference: Grey
    turns: bool
    field: Bools
    angles: Floats
    shifts: Floats
    correlations: Floats

    def __post_init__(self) -> None:
        """Raises ValueError for values that no fit gives, as a damaged file may have."""
        limits = ((self.reference, 1), (self.angles, 180), (self.shifts, 2 * MAX_SIDE), (self.correlations, 1))
        if not all((np.abs(values) <= 1.001 * limit).all() for values, limit in limits):
            raise ValueError("poses")

    @cached_property
    def least(self) -> float:
        """The correlation below which a pose is not found.

        It happens to one normal image in some thousands if the low ones of Fisher's atanh of the correlations thin out
        like an exponential distribution, and to fewer if faster. Up to a tenth of wrong training images change little.
        """
        if not len(self.correlations):
            return -1.0
        scale = np.arctanh(self.correlations.clip(-0.9999, 0.9999))
        middle, low = np.quantile(scale, [0.5, 0.1])
        return float(np.tanh(middle - _TIMES * max(middle - low, _LEAST_DISTANCE)))

    def find(self, image: Pixels) -> PartPose:
        """How the part lies in an image `[h, w, 3]`."""
        correlation, pose = self._template.find(grey(image))
        pose = pose.scaled(1 / cells_per_pixel(*image.shape[:2]))
        return PartPose(pose, correlation, correlation >= self.least)

    def into_frame(self, images: Pixels) -> tuple[Pixels, list[PartPose]]:
        """Images `[n, h, w, 3]` in the frame, and how their parts lie."""
        if not len(images):
            return images, []
        with ThreadPoolExecutor(min(len(images), cores())) as pool:  # most of the work is outside Python's lock
            found = [*pool.map(self.find, images)]
            frames = [*pool.map(into_frame, images, [part.pose for part in found])]
        return np.stack(frames), found

    def masked(self, maps: Floats, parts: Sequence[PartPose]) -> Floats:
        """Maps `[n, h, w]` in the frame, NaN at the positions that don't count or that an image doesn't cover."""
        if not parts:
            return maps
        seen = np.stack([self._seen(part.pose) for part in parts])
        return np.where(seen, maps, np.float32(np.nan))

    def moved_back(self, maps: Floats, parts: Sequence[PartPose]) -> Floats:
        """Maps `[n, h, w]` of the frame in the frames of the images."""
        back = [out_of_frame(a_map, part.pose) for a_map, part in zip(maps, parts, strict=True)]
        return np.stack(back) if back else maps

    def _seen(self, pose: Pose) -> Bools:
        """The positions `[h, w]` that count in an image; all of them where none would."""
        seen = self.field & covered(pose, *self.field.shape)
        return seen if seen.any() else np.ones_like(seen)

    @cached_property
    def _template(self) -> Template:
        return Template(self.reference, turns=self.turns)

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values, for JSON."""
        return {
            "reference": _text(self.reference.astype("<f4")),
            "turns": self.turns,
            "field": _text(np.packbits(self.field)),
            "angles": self.angles.tolist(),
            "shifts": self.shifts.tolist(),
            "correlations": self.correlations.tolist(),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], height: int, width: int) -> Alignment:
        """What `to_dict` gave, for images of a height and width.

        Raises:
            KeyError, TypeError, ValueError: the values are not valid.
        """
        reference = np.frombuffer(b64decode(values["reference"]), dtype="<f4").reshape(grid_of(height, width))
        bits = np.unpackbits(np.frombuffer(b64decode(values["field"]), dtype=np.uint8))[: height * width]
        numbers = [np.array(values[name], dtype=np.float32) for name in ("angles", "shifts", "correlations")]
        count = len(numbers[0])
        if [array.shape for array in numbers] != [(count,), (count, 2), (count,)]:
            raise ValueError("poses")
        return cls(reference, bool(values["turns"]), bits.reshape(height, width).astype(bool), *numbers)

    def summary(self) -> dict[str, Any]:
        """How the training images lie, as plain values, for JSON."""
        return {
            "angle": _range(self.angles),
            "shift_x": _range(self.shifts[:, 0]),
            "shift_y": _range(self.shifts[:, 1]),
            "correlation": round(float(np.median(self.correlations)), 4),
            "least_correlation": round(self.least, 4),
            "not_found": int((self.correlations < self.least).sum()),
            "field": round(float(self.field.mean()), 4),
        }


def covered(pose: Pose, height: int, width: int) -> Bools:
    """The positions `[height, width]` of the frame that an image covers, with a margin to those that it doesn't."""
    beyond = outside(pose, height, width)
    return ~scipy.ndimage.maximum_filter(beyond, 2 * MARGIN + 1) if beyond.any() else ~beyond


def into_frame(image: Pixels, pose: Pose) -> Pixels:
    """An image `[h, w, 3]` moved into the frame, by one cubic interpolation, and mirrored where it ends.

    Mirrors keep the grain of a background, which the network takes for normal; repeated borders would be stripes.
    """
    height, width = image.shape[:2]
    corners = np.array([[1, 1], [1, -1]]) * (width / 2, height / 2)
    x, y = np.abs(corners @ pose.rotation.T).max(axis=0) + np.abs(pose.shift) + 2 - (width / 2, height / 2)
    beyond = [(min(max(0, int(edge)), side),) * 2 for edge, side in ((y, height), (x, width))]
    padded = Image.fromarray(np.pad(image, [*beyond, (0, 0)], mode="symmetric"))
    return np.asarray(moved(padded, pose, Image.Resampling.BICUBIC, size=(width, height)))


def out_of_frame(a_map: Floats, pose: Pose) -> Floats:
    """A map `[h, w]` of the frame in the frame of the image; NaN where the frame has nothing."""
    return np.asarray(moved(Image.fromarray(a_map), pose.inverse(), Image.Resampling.BILINEAR, fill=math.nan))


def _text(values: NDArray[Any]) -> str:
    return b64encode(values.tobytes()).decode()


def _range(values: Floats) -> list[float]:
    return [round(float(values.min()), 2), round(float(values.max()), 2)]
