"""Items in, batches of tensors out, read ahead by threads (Pillow decodes and resizes outside Python's lock)."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from padim.data.images import drawable, read_mask, read_with_size
from padim.data.items import GOOD, Item
from padim.data.transform import Transform
from padim.errors import ImageError
from padim.system.ahead import Ahead

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)

T = TypeVar("T")

# How many images each worker reads ahead of the one that is asked for; fewer where the originals are kept,
# which take up to 36 MB each.
_AHEAD = 8
_AHEAD_WITH_ORIGINALS = 2

# Seconds before a file is tried once more.
_PAUSES = (0.1, 0.3, 1.0)


@dataclass(frozen=True)
class Sample:
    """One image, ready for the backbone.

    Attributes:
        item: what it is and where it came from.
        image: RGB, uint8, `[h, w, 3]`.
        mask: where it is defective, bool `[h, w]`; None where there is no ground truth.
        outside: whether all of the ground truth lies where the transform crops.
        size: width and height of the image before the transform.
        original: that image to draw on, where the loader was asked to keep it; a whole fraction of its size where that
            is above 12 megapixels, or where the file was decoded at reduced size.
        seconds: what reading and the transform took.
    """

    item: Item
    image: NDArray[np.uint8]
    mask: NDArray[np.bool_] | None
    outside: bool
    size: tuple[int, int]
    original: Image.Image | None
    seconds: float = 0.0


class ImageLoader:
    """Iterates over the samples of items in their order; what can't be read is named, skipped and counted.

    Attributes:
        failures: the images that were left out so far, and why.
        unmasked: how many defective images had no usable mask so far.
    """

    def __init__(
        self,
        items: Sequence[Item],
        transform: Transform,
        *,
        workers: int,
        strict: bool = False,
        keep_originals: bool = False,
        skip_faults: bool = False,
    ) -> None:
        """Reads with `workers` threads; `strict` makes the first unreadable file an error.

        A fault of the machine that does not pass is an error, too, unless `skip_faults` leaves it to the caller, who
        says so: what images there are must not depend on it.
        """
        self.items = items
        self.transform = transform
        self.workers = workers
        self.strict = strict
        self.keep_originals = keep_originals
        self.skip_faults = skip_faults
        self.failures: dict[Path, ImageError] = {}
        self.unmasked = 0
        self._started: Ahead[Item, tuple[Sample, ImageError | None]] | None = None

    def start(self) -> Self:
        """Begin to read the first images now, while whatever else has to be done before they are asked for."""
        self._started = self._begun()
        return self

    def _begun(self) -> Ahead[Item, tuple[Sample, ImageError | None]]:
        """The items, each with its sample and what is wrong with its mask; the first are being read."""
        count = self.workers * (_AHEAD_WITH_ORIGINALS if self.keep_originals else _AHEAD)
        return Ahead(self._read, self.items, threads=self.workers, count=count, eager=True)

    def __len__(self) -> int:
        return len(self.items)

    @property
    def skipped(self) -> int:
        """How many images were left out so far."""
        return len(self.failures)

    def __iter__(self) -> Iterator[Sample]:
        """Raises ImageError for the first image or mask that makes it stop, see `__init__`."""
        readings, self._started = self._started or self._begun(), None
        with closing(iter(readings)) as begun:
            for item, future in begun:
                sample = self._result(item, future)
                if sample is not None:
                    yield sample

    def _read(self, item: Item) -> tuple[Sample, ImageError | None]:
        """A sample, and what is wrong with its mask."""
        start = time.perf_counter()
        transform = self.transform.posed(item.path)
        image, size = _patiently(read_with_size, item.path, transform.least)
        pixels = np.array(transform.image(image))
        mask, outside, problem = None, False, None
        try:
            mask, outside = self._mask(item, image, transform)
        except ImageError as error:
            problem = error
        original = drawable(image) if self.keep_originals else None
        return Sample(item, pixels, mask, outside, size, original, time.perf_counter() - start), problem

    def _mask(self, item: Item, image: Image.Image, transform: Transform) -> tuple[NDArray[np.bool_] | None, bool]:
        """Where the item is defective, as the backbone sees it, and whether all of that is cropped."""
        if item.mask is None:
            return np.zeros(transform.size, dtype=bool) if item.defect == GOOD else None, False
        if not os.path.isfile(item.mask):
            raise ImageError(f"no mask for {item.path}: expected {item.mask}")
        mask = _patiently(read_mask, item.mask, item.frame)
        if abs(mask.width * image.height - mask.height * image.width) > max(mask.size + image.size):
            raise ImageError(
                f"the mask {item.mask} is {mask.width} x {mask.height} pixels, another shape than its image"
            )
        pixels = np.asarray(transform.mask(mask)) >= transform.mask_threshold
        cropped = not pixels.any() and not mask.crop(transform.seen(*mask.size)).getbbox()  # nor too small to be left
        return pixels, cropped and mask.getbbox() is not None

    def _result(self, item: Item, future: Future[tuple[Sample, ImageError | None]]) -> Sample | None:
        try:
            sample, problem = future.result()
        except ImageError as error:
            if self._stops(error):
                raise
            self.failures[item.path] = error
            if not (self.skip_faults and error.may_pass):
                log.warning("skipped: %s", error)
            return None
        if sample.item.anomalous and sample.mask is None:
            self.unmasked += 1
        if problem is not None:
            if self._stops(problem):
                raise problem
            log.warning("mask not used: %s", problem)
        return sample

    def _stops(self, error: ImageError) -> bool:
        return self.strict or (error.of_machine and not self.skip_faults)


def _patiently(read: Callable[..., T], *arguments: object) -> T:
    """What a function reads; what is no fault of the image is tried again for a while."""
    for pause in _PAUSES:
        try:
            return read(*arguments)
        except ImageError as error:
            if not error.of_machine:
                raise
        time.sleep(pause)
    return read(*arguments)


def batched(values: Iterable[T], size: int) -> Iterator[list[T]]:
    """Groups of `size` values, the last one smaller; an image that stops the run costs none of those before it."""
    remaining, batch, problem = iter(values), list[T](), None
    while problem is None:
        try:
            for value in islice(remaining, size):
                batch.append(value)
        except ImageError as error:
            problem = error
        if not batch:
            break
        yield batch
        batch = []
    if problem is not None:
        raise problem


def as_tensor(batch: Sequence[Sample]) -> Tensor:
    """The images of a batch as one tensor `[n, 3, h, w]`, uint8."""
    import torch

    return torch.from_numpy(np.stack([sample.image for sample in batch])).permute(0, 3, 1, 2)
