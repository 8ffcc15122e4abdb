"""Where a part lies in an image: turned and shifted against a reference, and how pixels move between both.

Points are `(x, y)` in pixels from the centre of the image or of the reference, x to the right and y down. What lies
at point u of the reference lies at `R u + shift` in the image, R being the rotation by the angle.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image


class Pose(NamedTuple):
    """A rigid movement.

    Attributes:
        angle: by how many degrees the part is turned, counter-clockwise, in -180..180.
        shift: where the centre of the reference lies in the image, `(x, y)` in pixels from the image's centre.
    """

    angle: float = 0.0
    shift: tuple[float, float] = (0.0, 0.0)

    @classmethod
    def of(cls, angle: float, shift: NDArray[np.floating]) -> Pose:
        """The movement of any angle in degrees and a shift `[2]`."""
        return cls(float((angle + 180) % 360 - 180), (float(shift[0]), float(shift[1])))

    @property
    def rotation(self) -> NDArray[np.float64]:
        """The matrix R for points `(x, y)`."""
        cos, sin = math.cos(math.radians(self.angle)), math.sin(math.radians(self.angle))
        return np.array([[cos, sin], [-sin, cos]])  # y points down

    def after(self, first: Pose) -> Pose:
        """The movement that does the `first` one and then this one."""
        return Pose.of(self.angle + first.angle, self.rotation @ first.shift + self.shift)

    def inverse(self) -> Pose:
        """The movement back."""
        return Pose.of(-self.angle, -self.rotation.T @ self.shift)

    def scaled(self, scale: float) -> Pose:
        """The same movement where a pixel becomes `scale` pixels."""
        return Pose.of(self.angle, np.multiply(self.shift, scale))


def moved(
    image: Image.Image,
    pose: Pose,
    resampling: Image.Resampling,
    *,
    fill: float | None = None,
    size: tuple[int, int] | None = None,
) -> Image.Image:
    """An image that has a part at `pose`, moved so that the part lies as in the reference.

    Args:
        image: of any mode.
        pose: of the part in it.
        resampling: how values between pixels are made.
        fill: the value of what lies outside the image, by default 0.
        size: width and height of the result, about the same centre; by default those of the image.
    """
    size = size or image.size
    offset = np.array(image.size) / 2 + pose.shift - pose.rotation @ (np.array(size) / 2)
    matrix = np.column_stack([pose.rotation, offset]).ravel().tolist()
    return image.transform(size, Image.Transform.AFFINE, matrix, resampling, fillcolor=fill)


def outside(pose: Pose, height: int, width: int) -> NDArray[np.bool_]:
    """Which pixels `[height, width]` of the reference lie outside an image of the same size."""
    x, y = np.arange(width) + 0.5 - width / 2, np.arange(height)[:, None] + 0.5 - height / 2
    (a, b), (c, d) = pose.rotation
    too_wide = np.abs(a * x + b * y + pose.shift[0]) > width / 2
    too_high = np.abs(c * x + d * y + pose.shift[1]) > height / 2
    beyond: NDArray[np.bool_] = too_wide | too_high
    return beyond
