"""Matrices over nested grids, and the products that need no index.

Levels count from 0, the coarsest, to L - 1, the finest. Level i has `cells_i` cells and d_i of the d channels. The
grids nest, and the cells of a level that lie in one coarser cell follow one another (`padim.pyramid`). So a matrix
per cell on a fine grid, `[cells_i, rows, k]`, is also a taller matrix per cell on a coarser grid: its rows are those
of all fine cells inside, stacked. A product of every fine cell with the matrix of its coarse parent thereby is one
batched product on the coarse grid, and no coarse matrix is repeated.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# A matrix per position that is block lower triangular over the levels: row i has the blocks j <= i, and block (i, j)
# is `[cells_i, d_i, d_j]`, since it depends on the position only by the cell of level i.
Blocks = list[list[Tensor]]


def stack(fine: Tensor, cells: int) -> Tensor:
    """View `[cells_i, rows, k]` on a coarser grid of so many cells: `[cells, cells_i / cells * rows, k]`."""
    rows, columns = fine.shape[1:]
    return fine.view(cells, len(fine) // cells * rows, columns)


def add_product(out: Tensor, fine: Tensor, coarse: Tensor, weight: float = 1.0) -> None:
    """Add to `out`, `[cells_i, d, e]`, `weight` times the product of each cell's `fine` and its parent's `coarse`.

    Args:
        out: what is added to, in place.
        fine: `[cells_i, d, k]`.
        coarse: `[cells_j, k, e]`, on a grid that is no finer.
        weight: factor of the product.
    """
    cells = len(coarse)
    stack(out, cells).baddbmm_(stack(fine, cells), coarse, alpha=weight)


def add_outer_products(blocks: Blocks, features: Sequence[Tensor], weight: float = 1.0) -> None:
    """Add `weight * sum_k x_ki x_kj^T` to every block (i, j), the columns k of `[cells_i, d_i, n]` being images."""
    for i, fine in enumerate(features):
        for j, coarse in enumerate(features[: i + 1]):
            add_product(blocks[i][j], fine, coarse.mT, weight)


def times(fine: Tensor, coarse: Tensor) -> Tensor:
    """Each cell's `[cells, n, d]` times its parent's matrix `[cells_j, d, e]`: `[cells, n, e]`."""
    cells, n, _ = fine.shape
    return torch.bmm(stack(fine, len(coarse)), coarse).view(cells, n, coarse.shape[2])


def unstack(coarse: Tensor, cells: int) -> Tensor:
    """Columns `[cells_j, n, k]` that belong to finer cells side by side, laid out on their grid: `[cells, n, k / r]`.

    r is the number of fine cells in one coarse cell.
    """
    parents, n, k = coarse.shape
    inside = cells // parents
    return coarse.view(parents, n, inside, k // inside).transpose(1, 2).reshape(cells, n, k // inside)


def rows_of(block: Tensor, cells: int, start: int, stop: int) -> Tensor:
    """View of the rows of a tensor `[cells_i, ..]` that lie in the coarsest cells from `start` to `stop`."""
    inside = len(block) // cells
    return block[start * inside : stop * inside]
