"""The order of cells: whatever lies in one coarse cell is contiguous at every level."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from padim.errors import PadimError


@dataclass(frozen=True)
class Pyramid:
    """Grids `(h_i, w_i)` that nest, coarsest first, and the order of their cells.

    The cells of a level are grouped by the coarsest cell that they lie in, within it by the next
    coarser one, and so on. `cells = h * w` of a level; n images, d channels.

    Raises:
        PadimError: the grids don't nest.
    """

    grids: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        for (coarse_h, coarse_w), (h, w) in pairwise(self.grids):
            if h % coarse_h or w % coarse_w:
                raise PadimError(f"a {coarse_h} x {coarse_w} grid does not nest in a {h} x {w} grid")

    @classmethod
    def of_images(cls, size: tuple[int, int], grids: Sequence[tuple[int, int]]) -> Pyramid:
        """The pyramid of a backbone's grids, finest first, for images or tiles of a height and width in pixels.

        Raises:
            PadimError: the grids don't nest; the message names the nearest sides that are multiples of the coarsest
                stride, if that is why.
        """
        for side, cells in zip(size, zip(*grids, strict=True), strict=True):
            if any(fine % coarse for fine, coarse in pairwise(cells)):
                stride = 1 << (math.ceil(side / cells[-1]) - 1).bit_length()  # the next power of two
                below = side // stride * stride
                if below == side:
                    grid = " and ".join(map(str, cells))
                    raise PadimError(
                        f"layers: grids of {grid} patches along {side} pixels don't nest: take other layers"
                    )
                nearest = " or ".join(str(works) for works in (below, below + stride) if works)
                raise PadimError(
                    f"images or tiles of {size[0]} x {size[1]} pixels don't divide into the patches of these layers:"
                    f" instead of {side} take {nearest}"
                )
        return cls(tuple(reversed(grids)))

    def to_cells(self, level: int, maps: Tensor) -> Tensor:
        """Maps `[n, d, h, w]` of one level -> `[cells, d, n]` in the order of the pyramid."""
        rows, columns = self._splits(level)
        n, d = maps.shape[:2]
        blocks = maps.reshape(n, d, *rows, *columns)  # [n, d, r_0 .. r_l, c_0 .. c_l]
        depth = len(rows)
        order = [axis for k in range(depth) for axis in (2 + k, 2 + depth + k)]
        return blocks.permute(*order, 1, 0).reshape(math.prod(self.grids[level]), d, n).contiguous()

    def to_map(self, values: Tensor, level: int = -1) -> Tensor:
        """Values `[cells, n]` of one level, by default the finest -> maps `[n, h, w]`."""
        rows, columns = self._splits(level % len(self.grids))
        depth = len(rows)
        sizes = [size for pair in zip(rows, columns, strict=True) for size in pair]
        blocks = values.T.reshape(-1, *sizes)  # [n, r_0, c_0, r_1, c_1, ..]
        order = [1 + 2 * k for k in range(depth)] + [2 + 2 * k for k in range(depth)]
        return blocks.permute(0, *order).reshape(-1, *self.grids[level])

    def _splits(self, level: int) -> tuple[list[int], list[int]]:
        """How a level's rows and columns divide: coarsest grid first, then the steps down to the level."""
        chain = ((1, 1), *self.grids[: level + 1])
        steps = list(pairwise(chain))
        return [fine[0] // coarse[0] for coarse, fine in steps], [fine[1] // coarse[1] for coarse, fine in steps]
