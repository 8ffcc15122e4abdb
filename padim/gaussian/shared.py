"""One Gaussian per position, in memory shared between positions. The notation is that of `padim.gaussian.dense`.

The embedding of a position joins the features of L levels, x = [x_0, .., x_{L-1}] from coarse to fine. The grids
nest, so all positions inside one coarse cell have the coarse features in common, and with them the leading block
of S and of its Cholesky factor G. So block row i of G depends on the position only by the cell of level i that
contains it, and it is kept once per cell of that level, never once per position:

    coupling   G_ij for j < i   [cells_i, d_i, d_j]
    inverse    G_ii^-1          [cells_i, d_i, d_i]

The distance then follows by forward substitution, each term on the grid of its own level:

    w_i  = G_ii^-1 (x_i - m_i - sum_{j < i} G_ij w_j)
    q(x) = sum_i |w_i|^2

That is the Mahalanobis distance of the dense form, not an approximation of it. The example that is worked there,
with its first channel on a coarse level and its second one on a fine level, of one cell each:

>>> train = [torch.tensor([[[0.0, 1.0, 2.0]]]), torch.tensor([[[1.0, 0.0, 5.0]]])]  # [cells_i, d_i, n] per level
>>> moments = Moments.about([level.mean(dim=2, keepdim=True) for level in train])
>>> moments.add(train)
>>> gaussian = Gaussian.fit(moments, epsilon=3.0)  # G = [[2, 0], [1, 3]]
>>> gaussian.inverse[0].item(), gaussian.coupling[1][0].item(), round(1 / gaussian.inverse[1].item(), 5)
(0.5, 1.0, 3.0)
>>> test = [torch.tensor([[[5.0]]]), torch.tensor([[[10.0]]])]  # w = (2, 2)
>>> round(gaussian.squared_distances(test).item(), 5)
8.0

This module knows nothing of images: features come as `[cells_i, d_i, n]` per level, coarse to fine.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Self

import torch
from torch import Tensor, nn

from padim.errors import PadimError
from padim.gaussian.blocks import Blocks, add_outer_products, add_product, rows_of, stack, times, unstack
from padim.gaussian.moments import Moments
from padim.system import distributed

# How many floats a temporary product of the factorisation may hold.
_CHUNK_FLOATS = 2_000_000


class Gaussian(nn.Module):
    """Means and Cholesky factors of every position's covariance; the attributes have an entry per level.

    Attributes:
        mean: m_i, `[cells_i, d_i, 1]`.
        coupling: G_ij for every j < i, `[cells_i, d_i, d_j]`; the coarsest level has none.
        inverse: G_ii^-1, `[cells_i, d_i, d_i]`.
    """

    def __init__(self, mean: Sequence[Tensor], coupling: Sequence[Sequence[Tensor]], inverse: Sequence[Tensor]) -> None:
        super().__init__()
        self.levels = len(mean)
        for i in range(self.levels):
            self.register_buffer(f"mean_{i}", mean[i])
            self.register_buffer(f"inverse_{i}", inverse[i])
            for j, block in enumerate(coupling[i]):
                self.register_buffer(f"coupling_{i}_{j}", block)

    @property
    def mean(self) -> list[Tensor]:
        return [self.get_buffer(f"mean_{i}") for i in range(self.levels)]

    @property
    def coupling(self) -> Blocks:
        return [[self.get_buffer(f"coupling_{i}_{j}") for j in range(i)] for i in range(self.levels)]

    @property
    def inverse(self) -> list[Tensor]:
        return [self.get_buffer(f"inverse_{i}") for i in range(self.levels)]

    @classmethod
    def fit(cls, moments: Moments, epsilon: float) -> Self:
        """The Gaussian of the images in `moments`, with `epsilon` on the diagonal of every covariance.

        This uses up the second moments: the factors take their place, so that the two never stand in memory together.

        Raises:
            PadimError: there are fewer than two images, a covariance is not positive definite, or `epsilon` is lost
                beside the variances where they alone would leave the covariance singular.
        """
        mean = moments.mean()
        factors = covariance(moments, epsilon)
        factorise(factors)
        return cls(mean, [row[:-1] for row in factors], [row[-1] for row in factors])

    def largest_mean(self) -> float:
        """The largest norm |m| of a position."""
        return float(_squared_norms([mean.mT for mean in self.mean]).max().sqrt())

    def squared_distances(self, features: Sequence[Tensor]) -> Tensor:
        """q `[cells, n]` on the finest grid, of features `[cells_i, d_i, n]`."""
        return _squared_norms(self._whiten(features))

    def leave_one_out_distances(self, features: Sequence[Tensor], count: int, epsilon: float) -> Tensor:
        """q_-k `[cells, n]` of training images: their distances if each had been left out of the fit to `count`.

        With v = x_k - m, leaving x_k out changes the mean and the covariance to

            m_-k = m - v / (n-1), so that x_k - m_-k = n/(n-1) v
            C_-k = (n-1)/(n-2) (C - n/(n-1)^2 v v^T)
            S_-k = C_-k + epsilon I = (n-1)/(n-2) (T - c v v^T)
                   where T = S - epsilon/(n-1) I and c = n/(n-1)^2

        since (n-2)/(n-1) epsilon = epsilon - epsilon/(n-1). With r = v^T T^-1 v, the Sherman-Morrison formula gives
        v^T (T - c v v^T)^-1 v = r / (1 - c r), and therefore

            q_-k = (n/(n-1))^2 (n-2)/(n-1) r / (1 - c r)

        r itself is v^T S^-1 v + epsilon/(n-1) |S^-1 v|^2 to first order in epsilon/(n-1). T - c v v^T is positive
        definite, so 1 - c r is above 0; where rounding errors deny that, a clamp keeps the distance finite.

        Args:
            features: of images that the Gaussian was fitted to, `[cells_i, d_i, n]` per level.
            count: n, how many images it was fitted to, at least 3.
            epsilon: what was added to the diagonal.
        """
        n, c = count, count / (count - 1) ** 2
        whitened = self._whiten(features)
        r = _squared_norms(whitened) + epsilon / (n - 1) * _squared_norms(self._solve(whitened))
        left = (1 - c * r).clamp(min=torch.finfo(r.dtype).eps)
        return (n / (n - 1)) ** 2 * (n - 2) / (n - 1) * r / left

    def _whiten(self, features: Sequence[Tensor]) -> list[Tensor]:
        """w = G^-1 (x - m), `[cells_i, n, d_i]` per level, by forward substitution from coarse to fine."""
        # Images before channels: the batched products are several times faster than the other way round.
        centred = [(level - mean).mT for level, mean in zip(features, self.mean, strict=True)]
        whitened: list[Tensor] = []
        for level, coupling, inverse in zip(centred, self.coupling, self.inverse, strict=True):
            whitened.append(torch.bmm(level - _predicted(coupling, whitened, level), inverse.mT))
        return whitened

    def _solve(self, whitened: Sequence[Tensor]) -> list[Tensor]:
        """S^-1 (x - m) = G^-T w, `[cells, n, d_i]` on the finest grid, by backward substitution from fine to coarse."""
        cells, coupling, inverse = len(whitened[-1]), self.coupling, self.inverse
        solved: list[Tensor] = []
        for i in reversed(range(self.levels)):
            rest = whitened[i].repeat_interleave(cells // len(whitened[i]), dim=0)
            for row, fine in zip(coupling[i + 1 :], solved, strict=True):
                rest = rest - times(fine, row[i])
            solved.insert(0, times(rest, inverse[i]))
        return solved


def covariance(moments: Moments, epsilon: float) -> Blocks:
    """The blocks of S, in place of the second moments.

        C = (second - n (m - s)(m - s)^T) / (n - 1)    with m - s = total / n
        S = C + epsilon I

    Raises:
        PadimError: there are fewer than two images, or what `_check_variances` refuses.
    """
    n = moments.count
    if n < 2:
        raise PadimError(f"a Gaussian needs at least two training images, there is {n}")
    blocks, moments.second = moments.second, []
    add_outer_products(blocks, [total / n for total in moments.total], weight=-float(n))
    for row in blocks:
        for block in row:
            block /= n - 1
        row[-1].diagonal(dim1=1, dim2=2).add_(epsilon)
    _check_variances(blocks, n, epsilon)
    return blocks


def _check_variances(blocks: Blocks, n: int, epsilon: float) -> None:
    """Refuse an epsilon below the rounding errors, where the covariance would be singular without it.

    Where a covariance has as many large variances as there are images, or more, some of its directions have no
    variance but epsilon; `docs/numerics.md` has the measurements.

    Raises:
        PadimError: epsilon is lost, or a variance is not finite.
    """
    variances = [row[-1].diagonal(dim1=1, dim2=2) for row in blocks if row[-1].numel()]
    if not all(bool(level.isfinite().all()) for level in variances):
        raise PadimError("the variances of the features are too large for float32: check the weights")
    rounding = 100 * torch.finfo(torch.float32).eps / 2  # relative; what long sums were measured to lose
    large = sum(int((rounding * level > epsilon).sum(dim=1).max()) for level in variances)
    if n <= large:
        least = rounding * max(float(level.max()) for level in variances)
        raise PadimError(
            f"epsilon {epsilon:g} is lost in the rounding errors of large variances: use a larger epsilon, above"
            f" {least:.1g}, or more than {large} images"
        )


def factorise(blocks: Blocks) -> None:
    """Turn the blocks of S into those of G, in place, except that the diagonal ones become G_ii^-1.

    Whatever lies in one coarsest cell depends on nothing outside of it. So each process of a distributed fit takes
    its portion of these cells, and a process works on a few of them at a time, to keep temporary products small.

    Raises:
        PadimError: a covariance is not positive definite.
    """
    cells = len(blocks[0][0])
    start, stop = distributed.portion(cells)
    failed = [_factorise_row(chunk, i) for i in range(len(blocks)) for chunk in _chunks(blocks, start, stop)]
    if any(bool(level.any()) for level in failed):
        raise PadimError("a covariance is not positive definite: use a larger epsilon")
    distributed.exchange([block for row in blocks for block in row], cells)


def _factorise_row(blocks: Blocks, i: int) -> Tensor:
    """Turn row i from S to G, the rows above being done; returns which of its cells failed, `[cells_i]`.

    G_ij = (S_ij - sum_{k < j} G_ik G_jk^T) G_jj^-T
    G_ii = the Cholesky factor of the Schur complement S_ii - sum_{j < i} G_ij G_ij^T
    """
    *left, own = blocks[i]
    for j, block in enumerate(left):
        for k in range(j):
            add_product(block, left[k], blocks[j][k].mT, weight=-1.0)
        inverse = blocks[j][j]
        block.copy_(torch.bmm(stack(block, len(inverse)), inverse.mT).view_as(block))
        own.baddbmm_(block, block.mT, alpha=-1.0)
    failed: Tensor
    lower, failed = torch.linalg.cholesky_ex(own)
    identity = torch.eye(own.shape[1], dtype=own.dtype, device=own.device)
    own.copy_(torch.linalg.solve_triangular(lower, identity.expand_as(lower), upper=False))
    return failed


def _chunks(blocks: Blocks, start: int, stop: int) -> Iterator[Blocks]:
    """Views of the blocks in a few of the coarsest cells from `start` to `stop` at a time."""
    cells = len(blocks[0][0])
    floats_per_cell = max(block.numel() for row in blocks for block in row) // cells
    step = max(1, _CHUNK_FLOATS // max(1, floats_per_cell))
    for first in range(start, stop, step):
        yield [[rows_of(block, cells, first, min(first + step, stop)) for block in row] for row in blocks]


def _predicted(coupling: Sequence[Tensor], whitened: Sequence[Tensor], level: Tensor) -> Tensor:
    """What the coarser levels predict of a level, sum_{j < i} G_ij w_j, `[cells_i, n, d_i]`; 0 for the coarsest."""
    if not coupling:
        return torch.zeros_like(level)
    total = torch.bmm(whitened[0], stack(coupling[0], len(whitened[0])).mT)
    for block, coarse in zip(coupling[1:], whitened[1:], strict=True):
        total = unstack(total, len(coarse)).baddbmm_(coarse, stack(block, len(coarse)).mT)
    return unstack(total, len(level))


def _squared_norms(levels: Sequence[Tensor]) -> Tensor:
    """Squares of `[cells_i, n, d_i]` summed over channels and levels, `[cells, n]` on the finest grid."""
    squared = levels[0].new_zeros(levels[0].shape[:2])
    for level in levels:
        inside = len(level) // len(squared)  # cells of this level in one cell of the level above
        squared = squared.repeat_interleave(inside, dim=0) + level.square().sum(dim=2)
    return squared
