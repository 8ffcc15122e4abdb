"""Runs of experiments, in several processes where there is room for them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path

import psutil
import torch

from padim.backbones import StateDict, download_weights, read_weights
from padim.errors import PadimError
from padim.reproduce import Run

# About what a process takes that fits ResNet18, libraries included.
_BYTES_A_JOB = 1.2e9


def backbone_weights(backbone: str, files: Mapping[str, Path]) -> StateDict:
    """The weights of a backbone, from its file if it has one.

    Raises:
        PadimError: they can't be had.
    """
    return read_weights(files[backbone]) if backbone in files else download_weights(backbone)


def most_jobs(device: str, cores: int) -> int:
    """How many processes suit this machine: one a GPU; else two cores for each, as far as the memory goes."""
    if device != "cpu":
        return len(_devices(device))
    return max(1, min(cores // 2, int(psutil.virtual_memory().available / _BYTES_A_JOB)))


def execute(
    runs: Sequence[Run], files: Mapping[str, Path], device: str, cores: int, jobs: int
) -> Iterator[tuple[Run, str | None]]:
    """Execute runs, each in one of `jobs` processes; every GPU takes its turn.

    Args:
        runs: what to do.
        files: weights of the backbones that are not to be downloaded.
        device: where to compute.
        cores: of the machine, shared out between the processes.
        jobs: how many processes; one is this one.

    Yields:
        Each run once it is done, and what went wrong with it, if anything.
    """
    devices, share = _devices(device), max(1, cores // jobs)
    calls = [(run, files, devices[number % len(devices)], share) for number, run in enumerate(runs)]
    if jobs == 1:
        for call in calls:
            yield call[0], _perform(*call)
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        futures = {pool.submit(_perform, *call): call[0] for call in calls}
        for future in as_completed(futures):
            try:
                yield futures[future], future.result()
            except BrokenProcessPool:
                yield futures[future], "a process died, of too little memory perhaps: run again with fewer --jobs"


def _perform(run: Run, files: Mapping[str, Path], device: str, cores: int) -> str | None:
    """Execute a run in this process; returns what went wrong."""
    torch.set_num_threads(max(1, cores // 2))
    try:
        run.execute(backbone_weights(run.experiment.config.backbone, files), device, cores)
    except PadimError as error:
        return str(error)
    return None


def _devices(device: str) -> list[str]:
    """Every GPU, for `cuda`; else the device itself."""
    count = torch.cuda.device_count() if device == "cuda" else 1
    return [f"cuda:{number}" for number in range(count)] if count > 1 else [device]
