"""Runs of experiments, in several processes where there is room for them."""

from __future__ import annotations

import logging
import signal
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path

import torch

from padim.detectors.contract import weights_from
from padim.errors import PadimError
from padim.reproduction.experiments import Run
from padim.system.machine import available_memory_bytes

_DIED = "its process died twice, of too little memory perhaps: run again with fewer --jobs"


def most_jobs(runs: Sequence[Run], device: str, cores: int) -> int:
    """How many processes suit this machine: one a GPU; else two cores for each, as far as the memory goes."""
    if device != "cpu":
        return len(_devices(device))
    largest = max((run.experiment.memory_bytes() for run in runs), default=1)
    return max(1, min(cores // 2, available_memory_bytes() // largest))


def execute(
    runs: Sequence[Run], files: Mapping[str, Path], device: str, cores: int, jobs: int
) -> Generator[tuple[Run, str | None], None, None]:
    """Execute runs in `jobs` processes, each of which keeps to one of the GPUs, if there are any.

    A run whose process died is tried once more. All processes are gone when the iterator is closed.

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
    if jobs == 1:
        for run in runs:
            yield run, _perform(run, files, devices[0], share)
        return
    waiting, tried_again = deque(runs), set[Path]()
    workers = [_Worker.start(files, devices[number % len(devices)], share) for number in range(jobs)]
    try:
        busy: dict[Connection, _Worker] = {}
        while waiting or busy:
            for worker in workers:
                if waiting and worker.connection not in busy:
                    worker.take(waiting.popleft())
                    busy[worker.connection] = worker
            for connection in wait(list(busy)):
                assert isinstance(connection, Connection)
                worker = busy.pop(connection)
                run, problem = worker.outcome()
                if problem == _DIED:
                    workers[workers.index(worker)] = _Worker.start(files, worker.device, share)
                    if run.path not in tried_again:
                        tried_again.add(run.path)
                        waiting.append(run)
                        continue
                yield run, problem
    finally:
        for worker in workers:
            worker.process.terminate()


@dataclass(eq=False)
class _Worker:
    """A process that executes one run after another, and the run that it is at."""

    process: SpawnProcess
    connection: Connection
    device: str
    run: Run | None = None

    @classmethod
    def start(cls, files: Mapping[str, Path], device: str, cores: int) -> _Worker:
        context = get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, files, device, cores), daemon=True)
        handler = signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, from the first moment on
        process.start()
        signal.signal(signal.SIGINT, handler)
        theirs.close()
        return cls(process, ours, device)

    def take(self, run: Run) -> None:
        self.run = run
        with suppress(BrokenPipeError):  # if it died while it waited, `outcome` will find that
            self.connection.send(run)

    def outcome(self) -> tuple[Run, str | None]:
        assert self.run is not None
        try:
            return self.run, self.connection.recv()
        except (EOFError, ConnectionResetError):
            self.process.join()
            return self.run, _DIED


def _serve(connection: Connection, files: Mapping[str, Path], device: str, cores: int) -> None:
    """Execute the runs that come until no more do."""
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    while True:
        try:
            run = connection.recv()
        except EOFError:
            return
        connection.send(_perform(run, files, device, cores))


def _perform(run: Run, files: Mapping[str, Path], device: str, cores: int) -> str | None:
    """Execute a run in this process; returns what went wrong."""
    torch.set_num_threads(max(1, cores // 2))
    try:
        backbone = run.experiment.config.backbone
        run.execute(weights_from(files.get(backbone), backbone), device, cores)
    except PadimError as error:
        return str(error)
    except Exception as error:  # whatever it is, the other runs go on
        return f"{type(error).__name__}: {error}"
    return None


def _devices(device: str) -> list[str]:
    """Every GPU, for `cuda`; else the device itself."""
    count = torch.cuda.device_count() if device == "cuda" else 1
    return [f"cuda:{number}" for number in range(count)] if count > 1 else [device]
