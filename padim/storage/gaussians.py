"""Gaussians and moments as the tensors of a model file; `padim.storage.modelfile` has their names and shapes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from padim.errors import PadimError
from padim.gaussian.blocks import Blocks
from padim.gaussian.moments import Moments
from padim.gaussian.shared import Gaussian
from padim.storage.tensorfile import STORAGES, take

# Cells and channels of every level, coarse to fine.
Sizes = Sequence[tuple[int, int]]


def gaussian_tensors(gaussian: Gaussian, dtype: torch.dtype) -> dict[str, Tensor]:
    """Means, and factors in a type, except those that would overflow in it."""
    tensors = {f"mean.{i}": mean for i, mean in enumerate(gaussian.mean)}
    for i, (coupling, inverse) in enumerate(zip(gaussian.coupling, gaussian.inverse, strict=True)):
        tensors |= {f"factor.{i}.{j}": _narrowed(block, dtype) for j, block in enumerate([*coupling, inverse])}
    return tensors


def read_gaussian(tensors: Mapping[str, Tensor], sizes: Sizes) -> Gaussian:
    """The Gaussian of levels of such sizes.

    Raises:
        PadimError: a tensor is missing, or isn't as it has to be.
    """
    factors = _blocks(tensors, "factor", sizes, STORAGES.values())
    if not all(bool((row[-1].diagonal(dim1=1, dim2=2) > 0).all()) for row in factors):
        raise PadimError("a damaged model: a factor has a diagonal that is not positive")
    return Gaussian(_columns(tensors, "mean", sizes), [row[:-1] for row in factors], [row[-1] for row in factors])


def moments_tensors(moments: Moments) -> dict[str, Tensor]:
    """All but the count, which is that of the images."""
    tensors: dict[str, Tensor] = {}
    for i, row in enumerate(moments.second):
        tensors |= {f"moments.shift.{i}": moments.shift[i], f"moments.total.{i}": moments.total[i]}
        tensors |= {f"moments.second.{i}.{j}": block for j, block in enumerate(row)}
    return tensors


def read_moments(tensors: Mapping[str, Tensor], sizes: Sizes, count: int) -> Moments | None:
    """The moments of so many images, or None where the file has none.

    Raises:
        PadimError: a tensor is missing, or isn't as it has to be.
    """
    if "moments.shift.0" not in tensors:
        return None
    shift, total = (_columns(tensors, f"moments.{name}", sizes) for name in ("shift", "total"))
    return Moments(count, shift, total, _blocks(tensors, "moments.second", sizes, (torch.float32,)))


def _columns(tensors: Mapping[str, Tensor], name: str, sizes: Sizes) -> list[Tensor]:
    """`[cells_i, d_i, 1]` per level."""
    return [take(tensors, f"{name}.{i}", *size, 1) for i, size in enumerate(sizes)]


def _blocks(tensors: Mapping[str, Tensor], name: str, sizes: Sizes, dtypes: Iterable[torch.dtype]) -> Blocks:
    """Blocks `[cells_i, d_i, d_j]`, float32."""
    return [
        [
            take(tensors, f"{name}.{i}.{j}", cells, rows, columns, dtypes=dtypes).float()
            for j, (_, columns) in enumerate(sizes[: i + 1])
        ]
        for i, (cells, rows) in enumerate(sizes)
    ]


def _narrowed(block: Tensor, dtype: torch.dtype) -> Tensor:
    """A tensor in another type, unless that would overflow."""
    narrow = block.to(dtype)
    return narrow if bool(narrow.isfinite().all()) else block
