"""The size of what the network sees: whole images in their own proportions, and what a protocol leaves out of them."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from statistics import mean, median

import numpy as np
from numpy.typing import NDArray

from padim.config import BaseConfig
from padim.data.images import read_mask, read_size
from padim.data.items import Item, some
from padim.data.transform import Transform
from padim.errors import ImageError, PadimError

# So many pixels, nearly, has an image of one's own, unless another size is asked for.
_AREA = 256 * 256

# The longest side that is chosen, which the thinnest images that can be read have room in.
_LONGEST = 4096

# By how much height against width may change in the resize; a turned part is bent by as much.
_BENT = 0.03

# Of a protocol that sees a smaller share of the images, there is something to say.
_ENOUGH = 0.8

# So many images tell the size of all.
_MEASURED = 200


def sizes_of(items: Sequence[Item]) -> list[tuple[int, int]]:
    """Width and height of the images that can be read, of some that are spread evenly where there are many."""
    sizes = []
    for item in some(items, _MEASURED):
        with suppress(ImageError):  # which is said, and counted, when the images are read
            sizes.append(read_size(item.path))
    return sizes


def in_own_proportions(config: BaseConfig, items: Sequence[Item]) -> BaseConfig:
    """The configuration that sees whole images in their own proportions, with about as many pixels as 256 x 256."""
    sizes = sizes_of(items)
    return dataclasses.replace(config, resize=_whole(sizes, config.stride), crop=()) if sizes else config


def describe_size(config: BaseConfig, items: Sequence[Item]) -> str | None:
    """What becomes of the images in a protocol that sees them whole, in one line; None if none can be read."""
    sizes = Counter(sizes_of(items)).most_common()
    if not sizes:
        return None
    width, height = sizes[0][0]
    usual = f"{width} x {height}" if len(sizes) == 1 else f"{len(sizes)} sizes, mostly {width} x {height}"
    rows, columns = config.image_size
    return f"images of {usual} pixels are seen whole, resized to {columns} x {rows}, which is --size {rows} {columns}"


def describe_crop(config: BaseConfig, items: Sequence[Item]) -> str | None:
    """What a protocol leaves out of the images, in one line, where that is much."""
    if not config.crop:
        return None
    transform, sizes, shares = Transform.of(config), sizes_of(items), []
    for width, height in sizes:
        left, top, right, bottom = transform.seen(width, height)
        shares.append((right - left) * (bottom - top) / (width * height))
    if not shares or mean(shares) >= _ENOUGH:
        return None
    return (
        f"the protocol sees {mean(shares):.0%} of the images on average, and no defect outside of that: a model trained"
        f" with --size {_text(_whole(sizes, config.stride))} sees them whole"
    )


def check_rigid(config: BaseConfig, items: Sequence[Item]) -> None:
    """Raise a PadimError if the configuration turns parts that its resize would bend."""
    if config.align != "rotate" or len(config.resize) == 1:
        return
    sizes = sizes_of(items)
    if not sizes:
        return
    ratio, fits = _proportion(sizes), _whole(sizes, config.stride)
    if _bent(config.image_size, ratio) > max(_BENT, _bent(fits, ratio)):
        raise PadimError(
            f"the training images are {1 / ratio:.3g} times as wide as high, and turned parts would be bent by resizing"
            f" them to {config.resize[1]} x {config.resize[0]}: pass --size {_text(fits)}"
        )


def ignored_pixels(path: Path, items: Sequence[Item], transform: Transform) -> NDArray[np.bool_]:
    """The pixels `[h, w]` of what the network sees that a mask over the training images has an influence on.

    Raises:
        PadimError: the mask can't be read, or is not of the size of the training images.
    """
    mask, sizes = read_mask(path), Counter(sizes_of(items)).most_common(1)
    if sizes and mask.size != sizes[0][0]:
        width, height = sizes[0][0]
        raise PadimError(
            f"the mask {path} is {mask.width} x {mask.height} pixels, the training images are {width} x {height}:"
            " make a black picture of their size, white where nothing is to be looked at"
        )
    # Resized in numbers without rounding, all that is touched by the mask differs from 0.
    touched: NDArray[np.bool_] = np.asarray(transform.image(mask.convert("F"))) != 0
    if touched.all() or not touched.any():
        what = "everything" if touched.any() else "nothing"
        raise PadimError(
            f"the mask {path} marks {what} of what the model sees: it has to be black but for what to ignore"
        )
    return touched


def _text(sides: tuple[int, int]) -> str:
    return " ".join(map(str, sides))


def _proportion(sizes: Sequence[tuple[int, int]]) -> float:
    """Height by width of most images."""
    return median(height / width for width, height in sizes)


def _whole(sizes: Sequence[tuple[int, int]], stride: int) -> tuple[int, int]:
    """Height and width in multiples of a stride, in the images' proportions, nearly, with about `_AREA` pixels."""
    ratio = _proportion(sizes)

    def wrong(sides: tuple[int, int]) -> tuple[float, float]:
        bent = _bent(sides, ratio)
        return bent if bent > _BENT else 0.0, abs(sides[0] * sides[1] - _AREA)

    multiples = range(stride, _LONGEST + 1, stride)
    sides = itertools.product(multiples, multiples)
    return min((pair for pair in sides if _AREA / 2 <= pair[0] * pair[1] <= _AREA * 2), key=wrong)


def _bent(sides: tuple[int, int], ratio: float) -> float:
    """By how much height against width differs from a ratio."""
    return abs(sides[0] / sides[1] / ratio - 1)
