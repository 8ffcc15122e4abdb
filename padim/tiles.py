"""Images cut into overlapping tiles, and the maps of tiles joined into one."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from padim.config import Config
from padim.errors import PadimError


@dataclass(frozen=True)
class Side:
    """Tiles along one side of an image, spread evenly.

    Attributes:
        pixels: of the image.
        tile: pixels of a tile.
        cells: patches of a tile.
        overlap: pixels that neighbours have in common, at least.
    """

    pixels: int
    tile: int
    cells: int
    overlap: int

    def __post_init__(self) -> None:
        """Raises PadimError where tiles don't cover the image patch by patch, or overlap by more than half."""
        if self.pixels == self.tile:
            return
        if self.tile % self.cells:
            raise PadimError(f"tile: {self.tile} pixels don't divide into patches: take a multiple of 32")
        if beyond := (self.pixels - self.tile) % self.patch:
            below = self.pixels - beyond
            raise PadimError(
                f"tile: patches of tiles of {self.tile} pixels don't end where {self.pixels} pixels do:"
                f" instead of {self.pixels} take {below} or {below + self.patch}"
            )
        most = min(self.tile // 2, self.tile - self.patch)  # or next to every patch has a tile of its own
        if self.overlap > most:
            raise PadimError(f"tile_overlap: {self.overlap} of {self.tile} pixels is too much, take at most {most}")

    @property
    def patch(self) -> int:
        """Pixels of a patch."""
        return self.tile // self.cells

    @property
    def starts(self) -> list[int]:
        """Where the tiles begin, in patches, so that those of neighbours coincide."""
        if self.pixels == self.tile:
            return [0]
        rest = (self.pixels - self.tile) // self.patch
        steps = math.ceil(rest / ((self.tile - self.overlap) // self.patch))
        return [number * rest // steps for number in range(steps + 1)]

    def joining(self) -> NDArray[np.float64]:
        """What makes the patches of all tiles those of the image, as a matrix `[cells of the image, tiles * cells]`.

        Where tiles overlap it is a mean whose weights fall off towards a tile's edges: they know least.
        """
        starts, cells = self.starts, self.cells
        weights = np.minimum(np.arange(1, cells + 1), np.arange(cells, 0, -1))
        matrix = np.zeros((starts[-1] + cells, len(starts) * cells))
        for number, start in enumerate(starts):
            np.fill_diagonal(matrix[start : start + cells, number * cells :], weights)
        joined: NDArray[np.float64] = matrix / matrix.sum(axis=1, keepdims=True)
        return joined


@dataclass(frozen=True)
class Tiling:
    """Tiles that cover an image, numbered row by row; there may be a single one.

    Attributes:
        rows: the tiles from top to bottom.
        columns: the tiles from left to right.
        shared: whether one model serves all tiles, or each has its own.
    """

    rows: Side
    columns: Side
    shared: bool = True

    @classmethod
    def of(cls, size: tuple[int, int], tile: tuple[int, int], grid: tuple[int, int], overlap: int = 0) -> Tiling:
        """Tiles of an image, from height and width of the image, a tile, and a tile's grid of patches.

        Raises:
            PadimError: they don't cover the image patch by patch, or overlap by more than half.
        """
        rows, columns = (Side(*side, overlap) for side in zip(size, tile, grid, strict=True))
        return cls(rows, columns)

    @classmethod
    def of_config(cls, config: Config, grid: tuple[int, int]) -> Tiling:
        """The tiles that a configuration asks for, each with a grid of patches; raises as `of`."""
        tiling = cls.of(config.image_size, config.tile_size, grid, config.tile_overlap)
        return dataclasses.replace(tiling, shared=config.tile_model == "shared")

    @property
    def models(self) -> int:
        """How many tiles have a model of their own."""
        return 1 if self.shared else len(self)

    @property
    def examples(self) -> int:
        """How many tiles of an image one model learns from."""
        return len(self) if self.shared else 1

    def __len__(self) -> int:
        return len(self.rows.starts) * len(self.columns.starts)

    def cut(self, images: Tensor) -> Iterator[Tensor]:
        """The tiles `[n, c, h_tile, w_tile]` of images `[n, c, h, w]`."""
        for row in self.rows.starts:
            for column in self.columns.starts:
                top, left = row * self.rows.patch, column * self.columns.patch
                yield images[:, :, top : top + self.rows.tile, left : left + self.columns.tile]

    def side_by_side(self, maps: Tensor) -> Tensor:
        """Maps `[n * tiles, h, w]`, all of an image in a run -> `[n, rows * h, columns * w]`."""
        rows, columns, (height, width) = len(self.rows.starts), len(self.columns.starts), maps.shape[1:]
        grid = maps.view(-1, rows, columns, height, width).transpose(2, 3)
        return grid.reshape(-1, rows * height, columns * width)
