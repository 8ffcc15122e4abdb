"""What makes a function a command: exit codes, errors in one line, and what it says of its progress."""

from __future__ import annotations

import argparse
import functools
import io
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn, Protocol

from padim.errors import PadimError, printable
from padim.system.progress import Lines, OnProgress, Progress, silent

log = logging.getLogger(__name__)

USER_ERROR = 2
INTERRUPTED = 130
BROKEN_PIPE = 141
TERMINATED = 143


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(USER_ERROR, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


class OneLine(logging.Formatter):
    """Messages in one line, even where a file name has several, or codes that a terminal would obey."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(" ".join(super().format(record).splitlines()))


class Command(Protocol):
    """A command's entry point: arguments, by default those of the process, in; exit code out."""

    def __call__(self, arguments: Sequence[str] | None = None, prog: str = ...) -> int: ...


def command(run: Command) -> Command:
    """Make a function of command-line arguments a command: exit codes, and errors in one line on stderr."""

    @functools.wraps(run)
    def main(arguments: Sequence[str] | None = None, *prog: str, **named: str) -> int:
        _open_descriptors()
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, _terminate)
        for library in ("PIL", "torch.cuda", "joblib"):  # what is wrong with images or the machine is said by us
            warnings.filterwarnings("ignore", module=library)
        handler = logging.StreamHandler()
        handler.setFormatter(OneLine("%(levelname)s: %(message)s"))
        logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
        logging.getLogger("matplotlib").setLevel(logging.ERROR)  # where home is read-only, it has much to say
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")  # file names may be anything
        try:
            if "" in (sys.argv[1:] if arguments is None else arguments):
                raise PadimError("an argument is empty: is a variable unset?")
            return run(arguments, *prog, **named)
        except PadimError as error:
            log.error("%s", error)
            return USER_ERROR
        except (ImportError, MemoryError, RuntimeError) as error:
            advice = _shortage(error)
            if advice is None:
                raise
            log.error("%s", advice)
            return USER_ERROR
        except KeyboardInterrupt as stop:
            print("interrupted", file=sys.stderr)
            return TERMINATED if isinstance(stop, _Terminated) else INTERRUPTED
        except BrokenPipeError:  # whoever read the results has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return BROKEN_PIPE
        except OSError as error:  # a full disk behind stdout, say
            log.error("%s", error)
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return USER_ERROR

    return main


class _Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a command as Ctrl-C does: what it has started and half written goes with it."""


def _terminate(number: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001 (of a given form)
    raise _Terminated


def _open_descriptors() -> None:
    """Open what was closed before the start, or files of ours would get its number, and what is meant for it.

    Results have to go somewhere, so nothing is done without a stdout.
    """
    closed = [number for number in range(3) if not _is_open(number)]
    for _ in closed:  # each time the lowest number that is free
        os.open(os.devnull, os.O_RDWR)
    sys.stdin = sys.stdin or open(0, closefd=False)  # noqa: SIM115 (for the life of the process)
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115
    if sys.stdout is None:
        sys.exit("stdout is closed: send it to a file, or to /dev/null")


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def _shortage(error: Exception) -> str | None:
    """What to do if Python, torch on the CPU or torch on a GPU ran out of memory; None if it is another error."""
    text = str(error)
    if isinstance(error, MemoryError) or "can't allocate memory" in text or "failed to map segment" in text:
        return "out of memory: take a smaller --batch-size, smaller images, or fewer --channels or --workers"
    if "out of memory" in text or "ALLOC_FAILED" in text:  # of CUDA's libraries, some have classes of their own
        return "the GPU is out of memory: take a smaller --batch-size, or --device cpu"
    return None


class Failures:
    """Counts what went wrong, so that what can go on does.

    Attributes:
        count: how many errors were caught.
    """

    def __init__(self, *, fatal: bool = False) -> None:
        """With `fatal`, the first error stops everything."""
        self.count, self._fatal = 0, fatal

    @contextmanager
    def caught(self, name: str) -> Iterator[None]:
        """Log an error that arises within, under a name, and count it."""
        try:
            yield
        except PadimError as error:
            if self._fatal:
                raise
            log.error("%s: %s", name, error)
            self.count += 1


@contextmanager
def progress_bars(*, quiet: bool = False) -> Iterator[OnProgress]:
    """A callback that shows progress on stderr, unless it is to be quiet: bars on a terminal, elsewhere a few lines."""
    if quiet:
        yield silent
    elif sys.stderr.isatty():
        with _bars() as show:
            yield show
    else:
        yield Lines(lambda line: print(printable(line), file=sys.stderr, flush=True))


@contextmanager
def _bars() -> Iterator[OnProgress]:
    from tqdm import tqdm
    from tqdm.contrib.logging import logging_redirect_tqdm

    bar: tqdm | None = None

    def show(progress: Progress) -> None:
        nonlocal bar
        what = printable(progress.what)
        if bar is None or bar.desc != what or progress.done < bar.n:
            if bar is not None:
                bar.close()
            bar = tqdm(total=progress.total, initial=progress.done, desc=what, unit=progress.unit)
        if progress.figures:
            bar.set_postfix({name: f"{value:.3g}" for name, value in progress.figures.items()}, refresh=False)
        bar.update(progress.done - bar.n)
        if progress.done >= progress.total:
            bar.close()
            bar = None

    with logging_redirect_tqdm():
        try:
            yield show
        finally:
            if bar is not None:
                bar.close()
