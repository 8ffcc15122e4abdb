"""Runs of experiments, in several processes of this machine or of a cluster where there is room for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import torch

from padim.errors import PadimError
from padim.reproduction.backends import DIED, Backend, Outcomes
from padim.reproduction.runs import Run
from padim.system.machine import available_memory_bytes, keep_to
from padim.weights import weights_from

_own_device: dict[str, str] = {}  # for each device that was asked for, the GPU that this process keeps to


def most_jobs(runs: Sequence[Run], device: str, cores: int) -> int:
    """How many processes suit this machine: one per GPU; else two cores for each, as far as the memory goes."""
    if device != "cpu":
        return len(_devices(device))
    largest = 1
    for run in runs:
        with suppress(PadimError):  # which the run itself will report
            largest = max(largest, run.experiment.memory_bytes())
    return max(1, min(cores // 2, available_memory_bytes() // largest))


def execute(
    runs: Sequence[Run],
    files: Mapping[str, Path],
    device: str,
    cores: int,
    jobs: int,
    backend: str = "loky",
    address: str | None = None,
) -> Outcomes:
    """Execute runs in several processes, each of which keeps to one of the GPUs, if there are any.

    A run whose process died is tried once more, on its own, when the others are done. All processes that were
    started for this are gone when the iterator is closed.

    Args:
        runs: what to do.
        files: weights of the backbones that are not to be downloaded.
        device: where to compute.
        cores: of a machine, shared out between its processes.
        jobs: how many processes a machine has; one, without a cluster, is this one.
        backend: what manages the processes: `loky`, `dask` or `ray`.
        address: of the cluster's scheduler, for `dask` and `ray`; without one, they manage this machine.

    Yields:
        Each run once it is done, and what went wrong with it, if anything.

    Raises:
        PadimError: the backend is not installed, or no scheduler answers.
    """
    share = max(1, cores // jobs)
    work = partial(_perform, files, device, share)
    if jobs == 1 and not address and backend == "loky":
        yield from ((run, work(0, run)) for run in runs)
        return
    with Backend(backend, jobs, share, device == "cuda", address).start() as perform:
        died = []
        for run, problem in perform(work, runs):
            if problem == DIED:
                died.append(run)
            else:
                yield run, problem
        for run in died:  # one after another, so that a death is that run's own
            yield from perform(work, [run])


def _perform(files: Mapping[str, Path], device: str, cores: int, number: int, run: Run) -> str | None:
    """Execute a run in this process; returns what went wrong."""
    keep_to(cores)
    torch.set_num_threads(max(1, cores // 2))
    devices = _devices(device)
    own = _own_device.setdefault(device, devices[number % len(devices)])
    try:
        backbone = run.experiment.config.pretrained
        weights = weights_from(files.get(backbone), backbone) if backbone else None
        run.execute(weights, own, cores)
    except PadimError as error:
        return str(error)
    except (Exception, SystemExit) as error:  # whatever it is, the other runs go on
        return f"{type(error).__name__}: {error}"
    return None


def _devices(device: str) -> list[str]:
    """Every GPU, for `cuda`; else the device itself."""
    count = torch.cuda.device_count() if device == "cuda" else 1
    return [f"cuda:{number}" for number in range(count)] if count > 1 else [device]
