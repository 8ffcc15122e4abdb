"""What executes many runs side by side: processes of this machine, or a cluster of Dask or Ray."""

from __future__ import annotations

import importlib
import logging
import multiprocessing
import os
import signal
import socket
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from joblib import Parallel, delayed
from joblib.externals.loky import get_reusable_executor

from padim.errors import PadimError, first_line
from padim.reproduction.runs import Run
from padim.system.signals import end_with

Work = Callable[[int, Run], str | None]
Outcomes = Generator[tuple[Run, str | None], None, None]

# The problem of a run that was under way when a process died: it may have been that process, and it may not be done.
DIED = "its process died twice, of too little memory perhaps: run again with fewer --jobs"

# Gives each run once `work(number, run)` is done, with what that returned, or `DIED`.
Perform = Callable[[Work, Sequence[Run]], Outcomes]

_Submit = Callable[..., Future[str | None]]
_Deaths = type[Exception] | tuple[type[Exception], ...]


@dataclass(frozen=True)
class Backend:
    """Where runs are executed.

    Attributes:
        name: `loky`, `dask` or `ray`.
        jobs: how many processes a machine has.
        cores: how many of them a process takes.
        gpu: whether it takes a GPU.
        address: of the cluster's scheduler; None for this machine alone.
    """

    name: str
    jobs: int
    cores: int
    gpu: bool
    address: str | None

    @contextmanager
    def start(self) -> Iterator[Perform]:
        """What performs runs; at the end, all processes are gone that were started for that.

        Raises:
            PadimError: the backend is not installed, there is no scheduler at the address, or processes can't wait
                for each other.
        """
        if self.name == "loky":
            _check_semaphores()
            try:
                yield partial(_by_loky, self.jobs)
            finally:
                get_reusable_executor(reuse=True).shutdown(kill_workers=True)
        else:
            if self.address:
                _check_scheduler(self.address)
            with _dask(self) if self.name == "dask" else _ray(self) as (submit, deaths):
                yield partial(_by_cluster, submit, deaths)


def _check_semaphores() -> None:
    """Raise a PadimError where processes have nothing to wait for each other with."""
    try:
        multiprocessing.Semaphore()
    except (ImportError, OSError) as error:
        problem = f"{first_line(error)}; Linux needs a folder /dev/shm that can be written to"
        raise PadimError(f"several processes can't be run here ({problem}): pass --jobs 1") from error


def _by_loky(jobs: int, work: Work, runs: Sequence[Run]) -> Outcomes:
    """In processes of this machine; when one dies, all are started anew."""
    warnings.filterwarnings("ignore", module="joblib")  # that a process is replaced, or stopped before its time
    os.environ.setdefault("PYTHONWARNINGS", "ignore:resource_tracker")  # what it clears away after a kill
    waiting = deque(enumerate(runs))
    while waiting:
        started: dict[int, Run] = {}
        with _deaf_to_ctrl_c():
            outcomes = Parallel(
                jobs,
                "loky",
                return_as="generator_unordered",
                pre_dispatch="n_jobs",
                batch_size=1,
                initializer=_follow,
                initargs=(os.getpid(),),
            )(_calls(work, waiting, started))
        try:
            for number, problem in outcomes:
                yield started.pop(number), problem
        except BrokenProcessPool:
            yield from ((run, None if run.result() else DIED) for run in started.values())


def _calls(work: Work, waiting: deque[tuple[int, Run]], started: dict[int, Run]) -> Iterator[Any]:
    """What there is to call, which is noted as it starts."""
    while waiting:
        number, run = waiting.popleft()
        started[number] = run
        yield delayed(_numbered)(work, number, run)


def _numbered(work: Work, number: int, run: Run) -> tuple[int, str | None]:
    return number, work(number, run)


@contextmanager
def _deaf_to_ctrl_c() -> Iterator[None]:
    """Processes that are started in here leave Ctrl-C to their parent, from the first moment on."""
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


def _follow(parent: int) -> None:
    """Prepare a process of loky, which by itself would live on for minutes after its parent was killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    end_with(parent)


def _by_cluster(submit: _Submit, deaths: _Deaths, work: Work, runs: Sequence[Run]) -> Outcomes:
    futures = {submit(work, number, run): run for number, run in enumerate(runs)}
    for future in as_completed(futures):
        yield futures[future], _problem(future, futures[future], deaths)


def _problem(future: Future[str | None], run: Run, deaths: _Deaths) -> str | None:
    """What went wrong with a run on a cluster."""
    try:
        problem = future.result()
    except deaths:
        return DIED
    except Exception as error:  # padim is not there, say, or another version of it
        return f"{type(error).__name__}: {first_line(error)}"
    if problem is None and not run.path.exists():
        return f"{run.path} was written, but not here: the machines of a cluster have to share their files"
    return problem


# joblib's own way to Dask waits forever for a call whose process died, and its way to Ray gives no result before the
# last: so the runs are given to them directly.


@contextmanager
def _dask(backend: Backend) -> Iterator[tuple[_Submit, _Deaths]]:
    distributed = _import("distributed", "dask")
    here = {"n_workers": backend.jobs, "threads_per_worker": 1, "memory_limit": 0, "dashboard_address": None}
    options = {"address": backend.address} if backend.address else here | {"silence_logs": logging.CRITICAL}
    logging.getLogger("distributed").propagate = False  # it tells of every connection
    settings = importlib.import_module("dask").config.set({"distributed.scheduler.allowed-failures": 0})
    with settings:
        with _deaf_to_ctrl_c():
            started = distributed.Client(**options)
        with started as client:
            executor = client.get_executor(pure=False)
            try:
                yield executor.submit, distributed.KilledWorker
            finally:
                executor.shutdown(wait=False)


@contextmanager
def _ray(backend: Backend) -> Iterator[tuple[_Submit, _Deaths]]:
    ray = _import("ray", "ray")
    here = {"num_cpus": backend.jobs * backend.cores, "include_dashboard": False}
    options = {"address": backend.address} if backend.address else here
    ray.init(**options, log_to_driver=False, logging_level=logging.CRITICAL)
    try:
        task = ray.remote(num_cpus=backend.cores, num_gpus=int(backend.gpu), max_retries=0)(_call)
        deaths = (ray.exceptions.WorkerCrashedError, ray.exceptions.NodeDiedError, ray.exceptions.OutOfMemoryError)
        yield lambda *arguments: task.remote(*arguments).future(), deaths
    finally:
        ray.shutdown()


def _call(work: Work, number: int, run: Run) -> str | None:
    return work(number, run)


def _check_scheduler(address: str) -> None:
    host, _, port = address.rpartition("//")[2].rpartition(":")  # Dask prints tcp://HOST:PORT
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, ValueError, OverflowError) as error:  # Ray itself would try for minutes
        raise PadimError(f"--address {address}: no scheduler answers there ({first_line(error)})") from error


def _import(module: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise PadimError(f"--backend {extra} needs more packages: pip install 'padim-toolkit[{extra}]'") from error
