"""The common frame of a fit: the reference is made from the first training images, and all are moved into it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from padim.config import BaseConfig
from padim.detectors.batches import Batches, as_images, as_pixels, check_images, images_of
from padim.errors import PadimError
from padim.poses.alignment import COVERED, Alignment, PartPose, covered
from padim.poses.grid import grey, grid_of
from padim.poses.reference import build_reference, left_out
from padim.system import distributed

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]

# So many images wait in memory while the reference is made from them; fewer, where they are large.
HELD_IMAGES, HELD_BYTES = 100, 100_000_000
_LEAST_HELD = 8


class CommonFrame:
    """The frame of one fit, which takes the images in one pass; without alignment it leaves them as they are.

    Attributes:
        alignment: what moves images into the frame, once there is a reference; None without alignment.
    """

    def __init__(self, config: BaseConfig, earlier: Alignment | None = None) -> None:
        """The frame of an `earlier` fit, which is then kept as it is, or a new one, as the configuration asks for."""
        self._config, self._is_new, self.alignment = config, earlier is None, earlier
        self._kept = 0  # images in the mean that is the reference
        self._parts: list[PartPose] = []

    def images(self, batches: Batches) -> Iterator[Tensor]:
        """The images of the batches in the frame, `[n, 3, h, w]`."""
        images = map(images_of, batches)
        return images if self._config.align == "none" else self._moved(images)

    def _moved(self, images: Iterable[Tensor]) -> Iterator[Tensor]:
        self._parts = []
        pixels, held = map(self._pixels, images), list[Pixels]()
        if self.alignment is None:
            held += _first(pixels)
            self.alignment = self._begun(held)
        for batch in chain(_emptied(held), pixels):
            frames, parts = self.alignment.into_frame(batch)
            self._parts += parts
            yield as_images(frames)

    def _pixels(self, images: Tensor) -> Pixels:
        check_images(images, *self._config.image_size)
        return as_pixels(images)

    def _begun(self, held: Sequence[Pixels]) -> Alignment:
        """The alignment to the reference that the first process with images makes; poses are added by `finish`."""
        size = self._config.image_size
        own = np.array([distributed.rank()] if any(map(len, held)) else [], dtype=np.float32)
        reference, kept, turns = np.zeros(grid_of(*size), dtype=np.float32), 0, False
        if distributed.rank() == min(distributed.gathered(own), default=-1):
            pictures = [grey(image) for batch in held for image in batch]
            template, kept, _ = build_reference(pictures, turns=self._config.align == "rotate")
            reference, turns = template.values, template.turns
        self._kept, turns = distributed.total(kept), distributed.total(int(turns)) > 0
        reference = distributed.summed(reference)
        nothing = np.zeros(0, dtype=np.float32)
        return Alignment(reference, turns, np.ones(size, dtype=bool), nothing, nothing.reshape(0, 2), nothing)

    def finish(self) -> Alignment | None:
        """The alignment, with what all training images say of it; after the first pass, in all processes."""
        if self.alignment is None or not self._is_new:
            return self.alignment
        covering = np.zeros(self._config.image_size, dtype=np.int64)
        for part in self._parts:
            covering += covered(part.pose, *covering.shape)
        count, covering = distributed.total(len(self._parts)), distributed.summed(covering)
        if not (covering >= COVERED * count).any():
            wanted = self._config.align
            raise PadimError(f"the aligned images have nothing in common: train with another --align than {wanted}")
        reference = self.alignment.reference
        columns = [
            np.array(values, dtype=np.float32)
            for values in (
                [part.pose.angle for part in self._parts],
                [part.pose.shift[0] for part in self._parts],
                [part.pose.shift[1] for part in self._parts],
                [left_out(part.correlation, reference, self._kept) for part in self._parts],
            )
        ]
        angles, x, y, correlations = map(distributed.gathered, columns)
        self.alignment = dataclasses.replace(
            self.alignment,
            field=covering >= COVERED * count,
            angles=angles,
            shifts=np.stack([x, y], axis=1),
            correlations=correlations,
        )
        return self.alignment

    def masked(self, maps: Floats, start: int) -> Floats:
        """Maps `[n, h, w]` of n images of the pass from number `start` on, NaN at the positions that don't count."""
        if self.alignment is None:
            return maps
        return self.alignment.masked(maps, self._parts[start : start + len(maps)])


def _first(pixels: Iterator[Pixels]) -> Iterator[Pixels]:
    """The batches of the images that are held."""
    images, size = 0, 0
    for batch in pixels:
        yield batch
        images, size = images + len(batch), size + batch.nbytes
        if images >= HELD_IMAGES or (images >= _LEAST_HELD and size >= HELD_BYTES):
            return


def _emptied(held: list[Pixels]) -> Iterator[Pixels]:
    """The batches of a list, which does not keep them."""
    while held:
        yield held.pop(0)
