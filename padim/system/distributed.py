"""The processes of one run under torchrun, and what they tell each other. Alone, a process has everything.

Gloo connects CPUs, nccl GPUs. In a fit, a process sends the sum of its first features, for the common shift of the
moments; the sums of its moments; the factors of its cells; and the image scores and pixel counts of its calibration.
Of aligned images it sends the mean part, the poses, and how often each position was covered. It never sends an image.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from padim.errors import PadimError, first_line
from padim.system.device import find_device

T = TypeVar("T")
Number = TypeVar("Number", np.int64, np.float32)


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
        torch.cuda.set_device(find_device(device))
    _check_launcher()
    with _talking():
        dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def _check_launcher() -> None:
    """Raise a PadimError if torchrun, in whose store the processes meet, was killed while this one was starting."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return
    try:
        socket.create_connection((os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])), timeout=60).close()
    except OSError as error:
        raise PadimError(f"torchrun is gone: {error.strerror or error}") from error


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def processes() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def share(items: Sequence[T]) -> Sequence[T]:
    """The items that this process takes; every process takes different ones."""
    return items[rank() :: processes()]


def portion(count: int, number: int | None = None) -> tuple[int, int]:
    """Start and stop of the part of a range that a process takes, by default this one."""
    number = rank() if number is None else number
    return count * number // processes(), count * (number + 1) // processes()


def total(count: int) -> int:
    """The sum of a number over all processes."""
    value = torch.tensor(count, device=_device())
    sum_up([value])
    return int(value)


def sum_up(tensors: Iterable[Tensor]) -> None:
    """Replace tensors by their sums over all processes, in place."""
    if processes() == 1:
        return
    with _talking():
        for tensor in tensors:
            dist.all_reduce(tensor)


def exchange(tensors: Sequence[Tensor], count: int) -> None:
    """Give all processes what each has made, in place: its `portion` of the rows of every tensor, in `count` parts."""
    if processes() == 1:
        return
    for number in range(processes()):
        start, stop = portion(count, number)
        for tensor in tensors:
            rows = len(tensor) // count
            with _talking():
                dist.broadcast(tensor[start * rows : stop * rows], src=number)


def gathered(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """The values `[n]` of all processes in a new array, whatever number each has; they are never NaN."""
    if processes() == 1:
        return values
    own = torch.from_numpy(values).to(_device())
    longest = torch.tensor(len(own), device=_device())
    with _talking():
        dist.all_reduce(longest, dist.ReduceOp.MAX)
        padded = own.new_full((int(longest),), torch.nan)  # all processes have to send equally many
        padded[: len(own)] = own
        everyone = [torch.empty_like(padded) for _ in range(processes())]
        dist.all_gather(everyone, padded)
    joined = torch.cat(everyone).cpu().numpy()
    finite: NDArray[np.float32] = joined[~np.isnan(joined)]
    return finite


def own_part(values: NDArray[Any], count: int) -> NDArray[Any]:
    """Of values in the order of `gathered`, those of this process, which has so many."""
    start = int(gathered(np.array([count], dtype=np.float32))[: rank()].sum())
    return values[start : start + count]


def summed(values: NDArray[Number]) -> NDArray[Number]:
    """The sums of numbers over all processes, as a new array."""
    tensor = torch.tensor(values, device=_device())  # a copy, even on the CPU
    sum_up([tensor])
    return tensor.cpu().numpy()


def _device() -> torch.device:
    return torch.device("cuda" if dist.is_initialized() and dist.get_backend() == "nccl" else "cpu")


@contextmanager
def _talking() -> Iterator[None]:
    """What the backends raise when another process is gone, as an error of one line."""
    try:
        yield
    except RuntimeError as error:
        reason = first_line(error)
        raise PadimError(f"another process of this run has stopped, so this one does, too ({reason})") from error
