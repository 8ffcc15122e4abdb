"""The reference: what the part of the training images looks like on average, once it lies in all of them alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from padim.poses.grid import Grey, unit
from padim.poses.pose import Pose, moved
from padim.poses.search import Template

# How many pictures are tried as the first reference, and with how many others they are compared.
_TRIED, _OTHERS = 8, 24

# How often the reference becomes the mean of what was aligned to it.
_ROUNDS = 2

# Turning has to leave at most so much of what shifting leaves unexplained: else, as in a round part, any angle is as
# good as another, and those that are found are noise.
WORTH_TURNING = 0.85


class Reference(NamedTuple):
    """A mean part.

    Attributes:
        template: to look for it.
        kept: of how many pictures it is the mean.
        correlation: the median correlation of all pictures with the reference before the last.
    """

    template: Template
    kept: int
    correlation: float


def build_reference(pictures: Sequence[Grey], *, turns: bool) -> Reference:
    """The reference of pictures `[rows, columns]`, at least one, of parts that may be turned or are only shifted.

    Where nothing is to be gained by turning, they are only shifted.
    """
    shifted = _built(pictures, turns=False)
    turned = _built(pictures, turns=True) if turns else shifted
    return turned if 1 - turned.correlation <= WORTH_TURNING * (1 - shifted.correlation) else shifted


def _built(pictures: Sequence[Grey], *, turns: bool) -> Reference:
    """The reference of pictures of which one way to move them is known.

    The first reference is the picture that most others agree with, so that a bad one is never taken. Each later one
    is the mean of the better half of the pictures, with a norm of 1 each, so that wrong ones have no part in it. It
    lies as the parts do on average, so that much of every image falls into its frame.
    """
    first = max(_some(pictures, _TRIED), key=lambda picture: _agreement(picture, pictures, turns))
    reference = Reference(Template(unit(first), turns=turns), 1, 1.0)
    for _ in range(_ROUNDS):
        matches = [reference.template.find(picture) for picture in pictures]
        middle = float(np.quantile([match.correlation for match in matches], 0.5, method="lower"))
        better = [number for number, match in enumerate(matches) if match.correlation >= middle]
        poses = [matches[number].pose for number in better]
        onto_mean = _mean_pose(poses, reference.template.middle).inverse()
        aligned = [
            np.asarray(moved(Image.fromarray(unit(pictures[number])), pose.after(onto_mean), Image.Resampling.BILINEAR))
            for number, pose in zip(better, poses, strict=True)
        ]
        reference = Reference(Template(np.mean(aligned, axis=0), turns=turns), len(better), middle)
    return reference


def left_out(correlation: float, reference: Grey, kept: int) -> float:
    """The correlation that a picture would have with the mean of the others, had it been one of the `kept` ones.

    With a picture x of norm 1 and the mean T of k of them, `<x, k T - x> / |k T - x|` in terms of `<x, T> / |T|`.
    """
    total = kept * float(np.linalg.norm(reference))
    rest = total**2 - 2 * total * correlation + 1
    return (total * correlation - 1) / np.sqrt(rest) if rest > 1e-6 else 0.0


def _agreement(candidate: Grey, pictures: Sequence[Grey], turns: bool) -> float:
    template = Template(candidate, turns=turns)
    return float(np.median([template.correlation(picture) for picture in _some(pictures, _OTHERS)]))


def _some(pictures: Sequence[Grey], count: int) -> list[Grey]:
    """At most so many of the pictures, spread evenly."""
    return [pictures[number] for number in sorted({*np.linspace(0, len(pictures) - 1, count).astype(int).tolist()})]


def _mean_pose(poses: Sequence[Pose], middle: NDArray[np.float64]) -> Pose:
    """The mean place of a part's middle, and the angle among those of the poses that is nearest to all of them.

    A mean of the angles can be one at which no part lies, and a long one would not fit into the image.
    """
    angles = np.array([pose.angle for pose in poses])
    apart = np.abs((angles[:, None] - angles + 180) % 360 - 180)
    turn = Pose(float(angles[apart.mean(axis=1).argmin()]))
    places = [pose.rotation @ middle + pose.shift for pose in poses]
    return Pose.of(turn.angle, np.mean(places, axis=0) - turn.rotation @ middle)
