"""The features of training images, gone through once for the moments and again for what is asked of each image."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from padim.errors import PadimError
from padim.gaussian.moments import Moments
from padim.system import distributed

# Features stay in memory where they are few: so many images, or tiles that share a model, in so many bytes. Each has
# 0.3 MB for ResNet18 and 100 channels, and 1.7 MB for WideResNet50-2 and 550. Every category of MVTec AD fits.
KEPT_IMAGES, KEPT_BYTES = 400, 700_000_000


class TrainingFeatures:
    """Groups of features of this process's training images, `[cells_i, d_i, n]` per level.

    The first pass reads the images. Another one has the features in memory if they are few, and else reads again.
    """

    def __init__(
        self,
        read: Callable[[], Iterator[list[Tensor]]],
        examples: int,
        *,
        keep: bool,
        repeatable: bool,
        announced: int = 0,
    ) -> None:
        """The features that `read` gives, of images with so many columns n each.

        There is another pass over them only if they are kept or `repeatable`. Of so many images that it is known
        beforehand that they can't all be kept, none is.
        """
        self._read, self._examples, self._repeatable = read, examples, repeatable
        self._announced = announced * examples if repeatable else 0
        self._kept: list[list[Tensor]] | None = [] if keep else None
        self._passed = False

    def __iter__(self) -> Iterator[list[Tensor]]:
        if self._passed:
            return iter(self._kept) if self._kept is not None else self._read() if self._repeatable else iter(())
        self._passed = True
        return self._keeping(self._read())

    def _keeping(self, groups: Iterator[list[Tensor]]) -> Iterator[list[Tensor]]:
        columns = 0
        for features in groups:
            columns += features[0].shape[2]
            size = sum(4 * level.shape[0] * level.shape[1] for level in features)
            most = max(columns, self._announced)
            if self._kept is not None and most <= KEPT_IMAGES and most * size <= KEPT_BYTES:
                self._kept.append(features)
            else:
                self._kept = None
            yield features

    def moments(self, nothing: Sequence[Tensor], shift: Sequence[Tensor] | None = None) -> Moments:
        """The moments of the images of all processes, about a shift or, by default, the mean of their first images.

        A process without an image of its own takes part all the same, with the features of `nothing`: the others wait
        for its sums.
        """
        groups = iter(self)
        first = next(groups, None) or [*nothing]
        moments = Moments.about(shift or _common_mean(first))
        for features in chain([first], groups):
            moments.add(features)
        return _of_all_processes(moments)

    def moments_of(self, chosen: NDArray[np.bool_], shift: Sequence[Tensor]) -> Moments:
        """The moments of the chosen ones of this process's images `[n]`, and of those of the others, about a shift."""
        moments, start = Moments.about(shift), 0
        columns = chosen.repeat(self._examples)
        for features in self:
            stop = start + features[0].shape[2]
            some = torch.from_numpy(columns[start:stop].nonzero()[0]).to(shift[0].device)
            moments.add([level.index_select(2, some) for level in features])
            start = stop
        if start != len(columns):
            raise PadimError("a training image was gone when it was read again: train once more")
        return _of_all_processes(moments)


def trimmed_count(share: float, images: int) -> int:
    """How many of the images a share is, rounded up.

    Raises:
        PadimError: fewer than three would be left, which a calibration takes.
    """
    count = math.ceil(share * images - 1e-9)
    if images - count < 3:
        raise PadimError(f"trim: {images - count} of {images} training images would be left, at least 3 are needed")
    return count


def highest(scores: NDArray[np.float32], count: int, images: int) -> NDArray[np.int64]:
    """The positions of so many images with the highest leave-one-out scores `[images]`, ascending.

    Raises:
        PadimError: not all of the images have a score.
    """
    if len(scores) != images:
        raise PadimError("trim: the training images can't be gone through again, to score them")
    return np.sort(np.argsort(-scores, kind="stable")[:count])


def _of_all_processes(moments: Moments) -> Moments:
    distributed.sum_up(moments.sums())
    moments.count = distributed.total(moments.count)
    return moments


def _common_mean(features: Sequence[Tensor]) -> list[Tensor]:
    """The mean of the first images of all processes, `[cells_i, d_i, 1]`, from `[cells_i, d_i, n]` per level.

    Raises:
        PadimError: no process has an image.
    """
    count = distributed.total(features[0].shape[2])
    if count == 0:
        raise PadimError("a Gaussian needs at least two training images, there is none")
    sums = [level.sum(dim=2, keepdim=True) for level in features]
    distributed.sum_up(sums)
    return [level / count for level in sums]
