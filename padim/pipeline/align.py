"""Before a fit: whether aligning the training images pays."""

from __future__ import annotations

import dataclasses

from padim.config import BaseConfig
from padim.data.items import Category, some
from padim.data.loader import ImageLoader
from padim.data.transform import Transform
from padim.poses.grid import grey
from padim.poses.spread import ENOUGH, Spread, find_spread
from padim.system.progress import OnProgress, silent, tracked


def choose_alignment(
    category: Category, config: BaseConfig, *, workers: int = 1, progress: OnProgress = silent
) -> tuple[BaseConfig, Spread]:
    """The configuration with the alignment that pays for the training images of a category, and how their parts lie."""
    loader = ImageLoader(some(category.train, ENOUGH), Transform.of(config), workers=workers)
    samples = tracked(loader, f"{category.name}, poses", progress)
    spread = find_spread([grey(sample.image) for sample in samples])
    return dataclasses.replace(config, align=spread.align), spread
