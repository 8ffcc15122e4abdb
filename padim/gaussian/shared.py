"""One Gaussian per position of a pyramid of features, in memory shared between positions.

The embedding of a position joins the features of L levels, from coarse to fine. The grids nest, so
all positions inside one coarse cell have the coarse features in common, and with them the leading
block of their covariance and of its Cholesky factor G. Row blocks are therefore kept once a cell of
their own level, never once a position:

    G[i][j] : [cells_i, d_i, d_j]    for j <= i, level 0 being the coarsest

    w_i    = G_ii^-1 (x_i - mean_i - sum_{j < i} G_ij w_j)
    M(p)^2 = sum_i |w_i|^2

which is the Mahalanobis distance of Defard et al. 2020 (equation 2), not an approximation of it;
`padim.gaussian.dense` is the plain form. This module knows nothing of images: features come as
`[cells_i, d_i, n]`, coarse to fine, and the cells of a level that lie in one coarser cell follow one
another, so that a product with a coarser level is one batched product on the coarser grid.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from padim.errors import PadimError

# Blocks [cells_i, d_i, d_j] of a matrix that is block lower triangular over the levels.
Blocks = list[list[Tensor]]

# An update reads and writes all second moments: with few images at a time that costs more than the sums.
IMAGES_AN_UPDATE = 32

# How many floats a temporary product of the factorisation may hold.
_CHUNK_FLOATS = 2_000_000


def _stack(fine: Tensor, cells: int) -> Tensor:
    """View `[cells_i, rows, k]` on a coarser grid: `[cells, cells_i / cells * rows, k]`."""
    rows, columns = fine.shape[1:]
    return fine.view(cells, len(fine) // cells * rows, columns)


def _unstack(coarse: Tensor, cells: int) -> Tensor:
    """Lay the columns of `[cells_j, n, k]`, stacked over finer cells, out on their grid: `[cells, n, k / inside]`."""
    parents, n, k = coarse.shape
    inside = cells // parents
    return coarse.view(parents, n, inside, k // inside).transpose(1, 2).reshape(cells, n, k // inside)


def _from_coarser(blocks: Sequence[Tensor], whitened: Sequence[Tensor], level: Tensor) -> Tensor:
    """What the coarser levels predict of a level: sum of `G_ij w_j`, `[cells_i, n, d_i]`, zero for the coarsest."""
    total = torch.zeros_like(level)
    if blocks:
        total = torch.bmm(whitened[0], _stack(blocks[0], len(whitened[0])).mT)
        for block, coarse in zip(blocks[1:], whitened[1:], strict=True):
            total = _unstack(total, len(coarse)).baddbmm_(coarse, _stack(block, len(coarse)).mT)
    return _unstack(total, len(level))


def _add_product(out: Tensor, fine: Tensor, coarse: Tensor, weight: float = 1.0) -> None:
    """Add to `out`, `[cells_i, d, e]`, each cell's matrix in `fine` times that in `coarse` of its parent."""
    cells = len(coarse)
    _stack(out, cells).baddbmm_(_stack(fine, cells), coarse, alpha=weight)


def _add_products(blocks: Blocks, features: Sequence[Tensor], weight: float) -> None:
    """Add `weight * x_i x_j^T`, summed over the n columns of `[cells_i, d_i, n]`, to every block."""
    for i, fine in enumerate(features):
        for j, coarse in enumerate(features[: i + 1]):
            _add_product(blocks[i][j], fine, coarse.mT, weight)


def gather(batches: Iterable[Sequence[Tensor]]) -> Iterator[list[Tensor]]:
    """Join batches of features, `[cells_i, d_i, n]` a level, until they have enough images for an update."""
    waiting: list[Sequence[Tensor]] = []
    for batch in batches:
        waiting.append(batch)
        if sum(features[0].shape[2] for features in waiting) >= IMAGES_AN_UPDATE:
            yield [torch.cat(level, dim=2) for level in zip(*waiting, strict=True)]
            waiting = []
    if waiting:
        yield [torch.cat(level, dim=2) for level in zip(*waiting, strict=True)]


@dataclass(eq=False)
class Moments:
    """Count, sums and second moments about a fixed shift, for every cell of every level.

    A value of fixed size, whatever the number of images: `update` takes in a batch, `merge` another
    part of the same images, `Gaussian.fit` turns it into a model.

    Attributes:
        count: how many images were taken in.
        shift: a point near the mean, `[cells_i, d_i, 1]` a level; moments about it lose no digits.
        total: sum of x - shift, `[cells_i, d_i, 1]` a level.
        second: sum of (x_i - shift_i) (x_j - shift_j)^T, blocks `[cells_i, d_i, d_j]`.
    """

    count: int
    shift: list[Tensor]
    total: list[Tensor]
    second: Blocks

    @classmethod
    def of(cls, groups: Iterable[Sequence[Tensor]], moments: Moments | None = None) -> Moments:
        """The moments of all images in groups of features, `[cells_i, d_i, n]` a level.

        Args:
            groups: the features.
            moments: those of earlier images, which take these in.

        Raises:
            PadimError: there is no group and nothing earlier, or a feature is not finite.
        """
        for features in groups:
            moments = moments or cls.about(features)
            moments.update(features)
        if moments is None:
            raise PadimError("a Gaussian needs at least two training images, there is none")
        return moments

    @classmethod
    def about(cls, features: Sequence[Tensor]) -> Moments:
        """Empty moments whose shift is the mean of a batch of features, `[cells_i, d_i, n]` a level."""
        shift = [level.mean(dim=2, keepdim=True) for level in features]
        return cls(
            count=0,
            shift=shift,
            total=[torch.zeros_like(level) for level in shift],
            second=[
                [fine.new_zeros(len(fine), fine.shape[1], coarse.shape[1]) for coarse in shift[: i + 1]]
                for i, fine in enumerate(shift)
            ],
        )

    def update(self, features: Sequence[Tensor]) -> None:
        """Take in n images' features, `[cells_i, d_i, n]` a level.

        Raises:
            PadimError: a feature is not finite; nothing has been taken in then.
        """
        if not all(bool(level.isfinite().all()) for level in features):
            raise PadimError(
                "the backbone gave features that are not finite: check the weights, or use another --precision"
            )
        centred = [level - shift for level, shift in zip(features, self.shift, strict=True)]
        for total, level in zip(self.total, centred, strict=True):
            total += level.sum(dim=2, keepdim=True)
        _add_products(self.second, centred, 1.0)
        self.count += features[0].shape[2]

    def copy(self) -> Moments:
        """The same in memory of its own."""
        return Moments(
            self.count,
            [level.clone() for level in self.shift],
            [level.clone() for level in self.total],
            [[block.clone() for block in row] for row in self.second],
        )

    def part(self, start: int, stop: int) -> Moments:
        """Views of what belongs to a range of the coarsest cells, with all finer ones that lie in them."""
        cells = len(self.shift[0])
        return Moments(
            self.count,
            [_rows(level, cells, start, stop) for level in self.shift],
            [_rows(level, cells, start, stop) for level in self.total],
            [[_rows(block, cells, start, stop) for block in row] for row in self.second],
        )

    def merge(self, other: Moments) -> None:
        """Take in the moments of other images about the same shift.

        Raises:
            PadimError: the shifts differ.
        """
        if not all(torch.equal(a, b) for a, b in zip(self.shift, other.shift, strict=True)):
            raise PadimError("moments about different shifts can't be merged: start both from one shift")
        self.count += other.count
        for total, more in zip(self.total, other.total, strict=True):
            total += more
        for row, other_row in zip(self.second, other.second, strict=True):
            for block, more in zip(row, other_row, strict=True):
                block += more


@dataclass(eq=False)
class Gaussian:
    """Means and Cholesky factors of every position's covariance, shared as above.

    Attributes:
        mean: `[cells_i, d_i, 1]` a level, coarse to fine.
        factors: blocks `[cells_i, d_i, d_j]` of G, but those on the diagonal inverted.
    """

    mean: list[Tensor]
    factors: Blocks

    @classmethod
    def fit(cls, moments: Moments, epsilon: float) -> Gaussian:
        """The Gaussian of the images in `moments`: unbiased covariance plus `epsilon` on its diagonal.

        Uses up `moments`: the factors take the place of the second moments, so that the two
        never stand in memory together.

        Raises:
            PadimError: fewer than two images, a covariance that is not positive definite, or an `epsilon`
                that is lost beside the variances where they alone would leave the covariance singular.
        """
        n = moments.count
        if n < 2:
            raise PadimError(f"a Gaussian needs at least two training images, there is {n}")
        drift = [total / n for total in moments.total]
        second, moments.second = moments.second, []
        _add_products(second, drift, -float(n))  # now about the mean
        for row in second:
            for block in row:
                block /= n - 1
            row[-1].diagonal(dim1=1, dim2=2).add_(epsilon)
        _check_variances(second, n, epsilon)
        _factorise(second)
        return cls([shift + d for shift, d in zip(moments.shift, drift, strict=True)], second)

    def squared_distances(self, features: Sequence[Tensor]) -> Tensor:
        """Squared Mahalanobis distances `[cells, n]` on the finest grid of `[cells_i, d_i, n]` features."""
        return _squared(self._whiten(features))

    def left_out_distances(self, features: Sequence[Tensor], count: int, epsilon: float) -> Tensor:
        """Squared distances `[cells, n]` of training images, had each been left out of the fit to `count` images.

        Without image x, the covariance is (n-1)/(n-2) (S - epsilon/(n-1) - n/(n-1)^2 v v^T), where S is
        that of all images with its regulariser and v = x - mean. With q = v^T (S - epsilon/(n-1))^-1 v
        the Sherman-Morrison formula gives (n/(n-1))^2 (n-2)/(n-1) q / (1 - n/(n-1)^2 q), and q itself is
        v^T S^-1 v + epsilon/(n-1) |S^-1 v|^2 to first order, the second being smaller by a factor of n.

        Args:
            features: of images that the Gaussian was fitted to, `[cells_i, d_i, n]` a level.
            count: how many images it was fitted to, at least 3.
            epsilon: what was added to the diagonal.
        """
        whitened, n = self._whiten(features), count
        q = _squared(whitened) + epsilon / (n - 1) * self._solved_norms(whitened)
        left = (1 - n / (n - 1) ** 2 * q).clamp(min=torch.finfo(q.dtype).eps)
        return (n / (n - 1)) ** 2 * (n - 2) / (n - 1) * q / left

    def _whiten(self, features: Sequence[Tensor]) -> list[Tensor]:
        """w of every level, `[cells_i, n, d_i]`, by forward substitution from coarse to fine."""
        # Images before channels: the batched products are several times faster than the other way round.
        centred = [(level - mean).mT for level, mean in zip(features, self.mean, strict=True)]
        whitened: list[Tensor] = []
        for (*left, own), level in zip(self.factors, centred, strict=True):
            whitened.append(torch.bmm(level - _from_coarser(left, whitened, level), own.mT))
        return whitened

    def _solved_norms(self, whitened: Sequence[Tensor]) -> Tensor:
        """|S^-1 v|^2 from w, `[cells, n]` on the finest grid, by backward substitution from fine to coarse."""
        cells = len(whitened[-1])
        solved: list[Tensor] = []  # S^-1 v of the levels from i on, `[cells, n, d_k]`
        for i in reversed(range(len(whitened))):
            rest = whitened[i].repeat_interleave(cells // len(whitened[i]), dim=0)
            for row, fine in zip(self.factors[i + 1 :], solved, strict=True):
                rest = rest - _times(fine, row[i])
            solved.insert(0, _times(rest, self.factors[i][i]))
        return torch.stack([level.square().sum(dim=2) for level in solved]).sum(dim=0)


def _times(fine: Tensor, blocks: Tensor) -> Tensor:
    """`[cells, n, d]` times each one's matrix in `[cells_k, d, e]` of a coarser grid: `[cells, n, e]`."""
    cells, n, d = fine.shape
    stacked = fine.reshape(len(blocks), cells // len(blocks) * n, d)
    return torch.bmm(stacked, blocks).view(cells, n, blocks.shape[2])


def _squared(whitened: Sequence[Tensor]) -> Tensor:
    """Squares summed over the levels, `[cells, n]` on the finest grid."""
    squared = whitened[0].new_zeros(whitened[0].shape[:2])
    for level in whitened:
        inside = len(level) // len(squared)  # cells of this level in one of the level above
        squared = squared.repeat_interleave(inside, dim=0) + level.square().sum(dim=2)
    return squared


def _check_variances(covariance: Blocks, n: int, epsilon: float) -> None:
    """Refuse large variances of so many channels that n images leave them to an epsilon which roundings drown.

    `docs/numerics.md` has the measurements.

    Raises:
        PadimError: that is so, or a variance is not finite.
    """
    variances = [row[-1].diagonal(dim1=1, dim2=2) for row in covariance if row[-1].numel()]
    if not all(bool(level.isfinite().all()) for level in variances):
        raise PadimError("the variances of the features are too large for float32: check the weights")
    roundings = 100 * torch.finfo(torch.float32).eps / 2
    large = sum(int((roundings * level > epsilon).sum(dim=1).max()) for level in variances)
    if n <= large:
        least = roundings * max(float(level.max()) for level in variances)
        raise PadimError(
            f"epsilon {epsilon:g} is lost in the roundings of large variances: use a larger epsilon, above {least:.1g},"
            f" or more than {large} images"
        )


def _factorise(blocks: Blocks) -> None:
    """Turn covariance blocks S into blocks of the Cholesky factor G, in place, coarse to fine.

    Raises:
        PadimError: a covariance is not positive definite.
    """
    failed = [_factorise_level(chunk, i) for i in range(len(blocks)) for chunk in _chunks(blocks)]
    if bool(torch.cat(failed).any()):
        raise PadimError("a covariance is not positive definite: use a larger epsilon")


def _factorise_level(blocks: Blocks, i: int) -> Tensor:
    """Turn row i from S to G, the rows above being done; returns which cells of it failed, `[cells_i]`.

        G_ij = (S_ij - sum_{k < j} G_ik G_jk^T) G_jj^-T
        G_ii = the Cholesky factor of the Schur complement S_ii - sum_j G_ij G_ij^T

    Blocks on the diagonal take their inverse, which is what G_ij and scoring need.
    """
    *left, own = blocks[i]
    for j, block in enumerate(left):
        for k in range(j):
            _add_product(block, left[k], blocks[j][k].mT, -1.0)
        inverse = blocks[j][j]
        block.copy_(torch.bmm(_stack(block, len(inverse)), inverse.mT).view_as(block))
        own.baddbmm_(block, block.mT, alpha=-1.0)
    failed: Tensor
    lower, failed = torch.linalg.cholesky_ex(own)
    identity = torch.eye(own.shape[1], dtype=own.dtype, device=own.device)
    own.copy_(torch.linalg.solve_triangular(lower, identity.expand_as(lower), upper=False))
    return failed


def _chunks(blocks: Blocks) -> Iterator[Blocks]:
    """Views of the blocks over a few coarsest cells at a time, with all that lies in them.

    What is below one coarsest cell depends on nothing outside it; only the temporary products of
    a chunk are ever in memory.
    """
    cells = len(blocks[0][0])
    floats_a_cell = max(block.numel() for row in blocks for block in row) // cells
    step = max(1, _CHUNK_FLOATS // max(1, floats_a_cell))
    for start in range(0, cells, step):
        yield [[_rows(block, cells, start, start + step) for block in row] for row in blocks]


def _rows(block: Tensor, cells: int, start: int, stop: int) -> Tensor:
    """View of the rows of `block` that lie in a range of the coarsest cells."""
    inside = len(block) // cells
    return block[start * inside : stop * inside]
