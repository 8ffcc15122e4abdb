"""How parts lie in the images of a data set, and whether aligning them pays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from padim.poses.grid import Grey, unit
from padim.poses.pose import Pose, outside
from padim.poses.reference import build_reference

# How many pictures tell enough of a data set, and how few tell nothing.
ENOUGH, FEW = 60, 4

# What is not worth aligning: degrees, and the share of a side that two patches of a 256-pixel image take.
_LEAST_ANGLE, _LEAST_SHIFT = 3.0, 1 / 32

# Aligning has to leave at most so much of what was unexplained, and to explain so much in the median.
_LEFT, _EXPLAINED = 0.75, 0.7

# How much of the part has to stay in sight in nine of ten images: of a texture that fills them, much gets lost.
_IN_SIGHT = 0.9


class Spread(NamedTuple):
    """How the parts of some images lie, once they were moved in one way.

    Attributes:
        align: the way: `none`, `shift` or `rotate`.
        angle: by how many degrees nine of ten parts are turned at most, against the middle one.
        shift: by which share of the image's side they are shifted at most, likewise.
        correlation: the median correlation with the mean of the moved images.
        in_sight: the share of the mean part that nine of ten images cover.
    """

    align: str
    angle: float
    shift: float
    correlation: float
    in_sight: float

    def pays(self, before: Spread) -> bool:
        """Whether the images agree much better than they did `before`, and stay in sight."""
        better = 1 - self.correlation <= _LEFT * (1 - before.correlation)
        return better and self.correlation >= _EXPLAINED and self.in_sight >= _IN_SIGHT


def find_spread(pictures: Sequence[Grey]) -> Spread:
    """How the parts lie in pictures `[rows, columns]`, and in `align` what to do about it.

    Turning has to pay beyond shifting, see `build_reference`, and either of them beyond leaving the images as they are.
    """
    if len(pictures) < FEW:
        return Spread("none", 0.0, 0.0, 0.0, 0.0)
    nothing = Spread("none", 0.0, 0.0, _correlation([unit(picture) for picture in pictures]), 1.0)
    for turns in (True, False):
        spread = _spread(pictures, turns=turns)
        wide = spread.angle > _LEAST_ANGLE or spread.shift > _LEAST_SHIFT
        if wide and spread.pays(nothing):
            return spread
    return nothing


def describe(spread: Spread) -> str:
    """What there is to say of it to a person, with the option to try."""
    if not spread.in_sight:
        return "there are too few images to tell whether aligning pays"
    if spread.align == "none":
        return "aligning these parts would not pay: they lie alike, or are no rigid parts before an even background"
    turned = f"turned by up to {spread.angle:.0f} degrees and " if spread.align == "rotate" else ""
    return (
        f"nine of ten of these parts lie {turned}shifted by up to {100 * spread.shift:.0f} % of the image, and once"
        f" aligned their correlation with the mean is {spread.correlation:.2f}: --align {spread.align}"
    )


def _correlation(units: Sequence[Grey]) -> float:
    """The median correlation of pictures of norm 1 with their mean."""
    mean = unit(np.mean(units, axis=0))
    return float(np.median([(picture * mean).sum() for picture in units]))


def _spread(pictures: Sequence[Grey], *, turns: bool) -> Spread:
    """How the parts lie if they are moved, by turns where these pay."""
    template, _, correlation = build_reference(pictures, turns=turns)
    poses = [template.find(picture).pose for picture in pictures]
    rows, columns = template.values.shape
    covering = np.mean([~outside(pose, rows, columns) for pose in poses], axis=0)
    weights = template.values**2
    return Spread(
        "rotate" if template.turns else "shift",
        float(np.quantile([abs(pose.angle) for pose in poses], 0.9)),
        float(np.quantile([_farther(pose) for pose in poses], 0.9)) / min(rows, columns),
        correlation,
        float(weights[covering >= 0.9].sum() / max(weights.sum(), 1e-6)),
    )


def _farther(pose: Pose) -> float:
    return max(abs(pose.shift[0]), abs(pose.shift[1]))
