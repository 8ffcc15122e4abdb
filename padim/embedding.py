"""From the feature maps of several levels to one embedding per position.

`embedding_concat` is the plain form, which repeats the coarse levels at every fine position; the
model itself keeps every level on its own grid (`Pyramid`) and never builds that tensor.
Shapes: n images, c channels of a level, d of them selected, h x w positions, `cells = h * w`.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from padim.errors import PadimError


def embedding_concat(levels: Sequence[Tensor]) -> Tensor:
    """Join maps `[n, c_l, h_l, w_l]`, finest first, into `[n, sum c_l, h_1, w_1]` by nearest repetition."""
    height, width = levels[0].shape[2:]
    return torch.cat(
        [
            level.repeat_interleave(height // level.shape[2], dim=2).repeat_interleave(width // level.shape[3], dim=3)
            for level in levels
        ],
        dim=1,
    )


def draw_channels(total: int, count: int, seed: int) -> list[int]:
    """`count` different channels of `total`, drawn as the reference does it; 0 keeps all, in order.

    Raises:
        PadimError: more channels are asked for than there are.
    """
    if count > total:
        raise PadimError(f"--channels {count} is more than the {total} channels of the chosen layers")
    if count == 0:
        return list(range(total))
    return random.Random(seed).sample(range(total), count)


def split_by_level(channels: Sequence[int], widths: Sequence[int]) -> list[list[int]]:
    """Channels of the concatenated embedding -> channels within each level, given the levels' widths."""
    starts = [sum(widths[:level]) for level in range(len(widths))]
    return [
        [channel - start for channel in channels if start <= channel < start + width]
        for start, width in zip(starts, widths, strict=True)
    ]


@dataclass(frozen=True)
class Pyramid:
    """Grids `(h_l, w_l)` that nest, coarsest first, and the order of their cells.

    The cells of a level are grouped by the coarsest cell that they lie in, within it by the next
    coarser one, and so on: whatever lies in one coarse cell is contiguous at every level.
    """

    grids: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        for (coarse_h, coarse_w), (h, w) in pairwise(self.grids):
            if h % coarse_h or w % coarse_w:
                raise PadimError(f"a {coarse_h} x {coarse_w} grid does not nest in a {h} x {w} grid")

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
