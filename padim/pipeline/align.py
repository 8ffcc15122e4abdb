"""Before a fit: whether aligning the training images pays, and whether turned parts stay rigid in them."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

from padim.config import BaseConfig
from padim.data.images import read_image
from padim.data.items import Category, Item, some
from padim.data.loader import ImageLoader
from padim.data.transform import Transform
from padim.errors import ImageError, PadimError
from padim.poses.grid import grey
from padim.poses.spread import ENOUGH, Spread, find_spread
from padim.system.progress import OnProgress, silent, tracked

# By how much height against width may change in the resize; a turned part is bent by as much.
_BENT = 0.03

_SIDES = range(32, 1025, 32)  # that suit the layers of all backbones


def choose_alignment(
    category: Category, config: BaseConfig, *, workers: int = 1, progress: OnProgress = silent
) -> tuple[BaseConfig, Spread]:
    """The configuration with the alignment that pays for the training images of a category, and how their parts lie."""
    loader = ImageLoader(some(category.train, ENOUGH), Transform.of(config), workers=workers)
    samples = tracked(loader, f"{category.name}, poses", progress)
    spread = find_spread([grey(sample.image) for sample in samples])
    return dataclasses.replace(config, align=spread.align), spread


def check_rigid(items: Sequence[Item], config: BaseConfig) -> None:
    """Raise a PadimError if the configuration turns parts that its resize would bend."""
    if config.align != "rotate" or len(config.resize) == 1:
        return
    for item in items:
        try:
            width, height = read_image(item.path).size
        except ImageError:  # which is said, and counted, when the images are read
            continue
        wanted, given = height / width, config.resize[0] / config.resize[1]
        if abs(given / wanted - 1) > _BENT:
            sides = " ".join(map(str, _sides_like(wanted)))
            raise PadimError(
                f"{item.path} is {width} x {height} pixels, and a turned part would be bent by resizing it to"
                f" {config.resize[1]} x {config.resize[0]}: pass --size {sides}"
            )
        return


def _sides_like(ratio: float) -> tuple[int, int]:
    """Height and width of such a ratio, nearly, with about as many pixels as 256 x 256."""

    def wrong(sides: tuple[int, int]) -> tuple[float, float]:
        bent = abs(sides[0] / sides[1] / ratio - 1)
        return bent if bent > _BENT else 0.0, abs(sides[0] * sides[1] - 256**2)

    return min(itertools.product(_SIDES, _SIDES), key=wrong)
