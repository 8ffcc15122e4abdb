"""One fit by several processes, each of which sees a share of the images; alone, a process sees them all.

Every process sums up the moments of its share about one common shift, and one all-reduce makes them
those of all images. Then each factorises a part of the coarsest cells, with all that lies in them,
and the parts are exchanged. The processes are those of torchrun: gloo connects CPUs, nccl GPUs.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from padim.calibration import Tally
from padim.errors import PadimError, first_line
from padim.gaussian.shared import Gaussian, Moments

T = TypeVar("T")


def under_torchrun() -> bool:
    """Whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def local_device(device: str) -> str:
    """The GPU of this process, where `cuda` was asked for."""
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if under_torchrun() and device == "cuda" else device


@contextmanager
def connected(device: str) -> Iterator[None]:
    """Within, this process and the others that torchrun started can talk to each other.

    Raises:
        PadimError: they can't.
    """
    if not under_torchrun():
        yield
        return
    if device.startswith("cuda"):
        torch.cuda.set_device(device)
    with _talking():
        dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def processes() -> int:
    """How many there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def share(items: Sequence[T]) -> Sequence[T]:
    """What of some items is for this process; every process has a different part of them."""
    return items[rank() :: processes()]


def total(count: int) -> int:
    """The sum of a number over all processes."""
    if processes() == 1:
        return count
    value = torch.tensor(count, device=_device())
    with _talking():
        dist.all_reduce(value)
    return int(value)


def moments(
    groups: Iterator[list[Tensor]],
    shapes: Sequence[tuple[int, int]],
    device: torch.device,
    earlier: Moments | None = None,
) -> Moments:
    """The moments of the images of all processes.

    Args:
        groups: features of the images of this one, `[cells_i, d_i, n]` a level; there may be none.
        shapes: cells and channels of every level, coarse to fine.
        device: where the features are.
        earlier: moments of earlier images, which every process has; they take these in.

    Raises:
        PadimError: there is no image at all, a feature is not finite, or another process has stopped.
    """
    if processes() == 1:
        return Moments.of(groups, earlier)
    first = next(groups, None) or [torch.zeros(*shape, 0, device=device) for shape in shapes]
    if earlier is None:
        count = total(first[0].shape[2])
        if count == 0:
            raise PadimError("a Gaussian needs at least two training images, there is none")
        shift = [level.sum(dim=2, keepdim=True) / count for level in first]
        _sum_up(shift)
        sums = Moments.about(shift)  # of one image, which is the mean of the first ones
    else:  # which must count once
        sums = earlier if rank() == 0 else Moments.about(earlier.shift)
    sums.update(first)
    for features in groups:
        sums.update(features)
    sums.count = total(sums.count)
    _sum_up([*sums.total, *(block for row in sums.second for block in row)])
    return sums


def fit(sums: Moments, epsilon: float) -> Gaussian:
    """The Gaussian of moments that all processes have, factorised by all of them; as `Gaussian.fit`."""
    if processes() == 1:
        return Gaussian.fit(sums, epsilon)
    cells = len(sums.shift[0])
    bounds = [cells * number // processes() for number in range(processes() + 1)]
    mean = [shift + sum_ / sums.count for shift, sum_ in zip(sums.shift, sums.total, strict=True)]
    factors = sums.second
    if bounds[rank()] < bounds[rank() + 1]:
        Gaussian.fit(sums.part(bounds[rank()], bounds[rank() + 1]), epsilon)  # in place
    for number in range(processes()):
        for row in factors:
            for block in row:
                inside = len(block) // cells
                with _talking():
                    dist.broadcast(block[bounds[number] * inside : bounds[number + 1] * inside], src=number)
    return Gaussian(mean, factors)


def tally(own: Tally) -> Tally:
    """The scores and pixels that all processes have counted."""
    if processes() == 1:
        return own
    counts = torch.from_numpy(own.counts).to(_device())
    scores = torch.from_numpy(own.scores()).to(_device())
    longest = torch.tensor(len(scores), device=_device())
    with _talking():
        dist.all_reduce(longest, dist.ReduceOp.MAX)
        padded = scores.new_full((int(longest),), torch.nan)
        padded[: len(scores)] = scores
        everyone = [torch.empty_like(padded) for _ in range(processes())]
        dist.all_gather(everyone, padded)
        dist.all_reduce(counts)
    joined = torch.cat(everyone).cpu().numpy()
    return Tally([joined[~np.isnan(joined)]], counts.cpu().numpy())


def _sum_up(tensors: Sequence[Tensor]) -> None:
    """Replace tensors by their sums over all processes."""
    with _talking():
        for tensor in tensors:
            dist.all_reduce(tensor)


def _device() -> torch.device:
    return torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")


@contextmanager
def _talking() -> Iterator[None]:
    """What the backends raise when another process is gone, as an error of one line."""
    try:
        yield
    except RuntimeError as error:
        reason = first_line(error)
        raise PadimError(f"another process of this run has stopped, so this one does, too ({reason})") from error
