"""Count, sum and second moments of the features: all that a fit has to know of its images.

They have a fixed size, whatever the number of images, and are taken about a shift s near the mean, so that float32
loses no digits to features far from zero:

    count    n
    total    sum_k (x_k - s)
    second   sum_k (x_k - s)(x_k - s)^T

Moments of different images about one shift merge by addition. Streams of batches, updates of a model and the
processes of a distributed fit all rest on that one rule.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from padim.errors import PadimError
from padim.gaussian.blocks import Blocks, add_outer_products

# Adding a batch reads and writes all second moments: with few images at a time that costs more than the products.
IMAGES_PER_BATCH = 32


@dataclass(eq=False)
class Moments:
    """The moments of some images at every cell of every level, coarse to fine.

    Attributes:
        count: n, how many images were added.
        shift: s, `[cells_i, d_i, 1]` per level.
        total: `[cells_i, d_i, 1]` per level.
        second: blocks `[cells_i, d_i, d_j]`.
    """

    count: int
    shift: list[Tensor]
    total: list[Tensor]
    second: Blocks

    @classmethod
    def about(cls, shift: Sequence[Tensor]) -> Moments:
        """The moments of no image about a shift, `[cells_i, d_i, 1]` per level."""
        return cls(
            count=0,
            shift=[*shift],
            total=[torch.zeros_like(level) for level in shift],
            second=[
                [fine.new_zeros(len(fine), fine.shape[1], coarse.shape[1]) for coarse in shift[: i + 1]]
                for i, fine in enumerate(shift)
            ],
        )

    def add(self, features: Sequence[Tensor]) -> None:
        """Add the features of n images, `[cells_i, d_i, n]` per level.

        Raises:
            PadimError: a feature is not finite; nothing is added then.
        """
        if not all(bool(level.isfinite().all()) for level in features):
            raise PadimError(
                "the backbone gave features that are not finite: check the weights, or use another --precision"
            )
        centred = [level - shift for level, shift in zip(features, self.shift, strict=True)]
        for total, level in zip(self.total, centred, strict=True):
            total += level.sum(dim=2, keepdim=True)
        add_outer_products(self.second, centred)
        self.count += features[0].shape[2]

    def merge(self, other: Moments) -> None:
        """Add the moments of other images about the same shift.

        Raises:
            PadimError: the shifts differ.
        """
        if not all(torch.equal(own, others) for own, others in zip(self.shift, other.shift, strict=True)):
            raise PadimError("moments about different shifts can't be merged: start both from one shift")
        self.count += other.count
        for own, more in zip(self.sums(), other.sums(), strict=True):
            own += more

    def remove(self, other: Moments) -> None:
        """Take away the moments of images that were added, about the same shift."""
        self.count -= other.count
        for own, less in zip(self.sums(), other.sums(), strict=True):
            own -= less

    def sums(self) -> list[Tensor]:
        """The tensors that are added up when moments merge, beside the count."""
        return [*self.total, *(block for row in self.second for block in row)]

    def mean(self) -> list[Tensor]:
        """The mean m of the features, `[cells_i, d_i, 1]` per level."""
        return [shift + total / self.count for shift, total in zip(self.shift, self.total, strict=True)]

    def copy(self) -> Moments:
        """The same moments in memory of their own."""
        return self._each(Tensor.clone)

    def to(self, device: torch.device) -> Moments:
        """The same moments on a device."""
        return self._each(lambda tensor: tensor.to(device))

    def _each(self, change: Callable[[Tensor], Tensor]) -> Moments:
        second = [[*map(change, row)] for row in self.second]
        return Moments(self.count, [*map(change, self.shift)], [*map(change, self.total)], second)


def rebatch(batches: Iterable[Sequence[Tensor]]) -> Iterator[list[Tensor]]:
    """Join batches of features, `[cells_i, d_i, n]` per level, until each has `IMAGES_PER_BATCH` images or more."""
    waiting: list[Sequence[Tensor]] = []
    for batch in batches:
        waiting.append(batch)
        if sum(features[0].shape[2] for features in waiting) >= IMAGES_PER_BATCH:
            yield _joined(waiting)
            waiting = []
    if waiting:
        yield _joined(waiting)


def _joined(batches: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    return [torch.cat(level, dim=2) for level in zip(*batches, strict=True)]
