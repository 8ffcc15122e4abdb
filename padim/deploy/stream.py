"""A folder that images arrive in: which of them are finished, and which are done already."""

from __future__ import annotations

import errno
import json
import logging
import os
import stat
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar

from padim.data.items import Item, images_below, real
from padim.data.loader import batched
from padim.errors import ImageError, PadimError
from padim.pipeline.predict import Prediction

log = logging.getLogger(__name__)

T = TypeVar("T")

# Bytes of a line of a record, which is no record if it has a longer one.
_LONGEST_LINE = 2**20

# A link is not followed, and a pipe not waited for.
_NEITHER_LINK_NOR_PIPE = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)

# Images that are taken on at a time, so that a long queue is neither held nor waited for.
_AT_ONCE = 64


class Stamp(NamedTuple):
    """What changes when a file is written to."""

    bytes: int
    modified_ns: int


# Of a line, what an image is known by.
_KEY = ("name", *Stamp._fields)


class Record:
    """A file of JSON lines, one per image that is done; what is in it is not done again after a restart.

    Images go by their `name`, the path below the watched folder. In memory one takes no more than a
    number in a set.
    """

    def __init__(self, path: Path) -> None:
        """The record at a path, whose lines are read if there are any; a broken last one is passed over.

        Raises:
            PadimError: it can't be read or written, is another kind of file, or another process writes to it.
        """
        self.path = path
        self._done: set[int] = set()
        try:
            self._open()
            self._read()
        except OSError as error:
            raise self._problem(error) from error
        except PadimError:
            self._file.close()
            raise

    def __len__(self) -> int:
        return len(self._done)

    def __contains__(self, image: tuple[str, Stamp]) -> bool:
        name, stamp = image
        return hash((name, *stamp)) in self._done

    def add(self, line: dict[str, Any]) -> None:
        """Write a line, which has the `name` of an image and the fields of its stamp.

        Raises:
            PadimError: it can't be written.
        """
        try:
            if os.fstat(self._file.fileno()).st_nlink == 0:  # someone has deleted it
                self._file.close()
                self._open()
            text = json.dumps(line).encode() + b"\n"
            if len(text) >= _LONGEST_LINE:
                text = json.dumps({field: line[field] for field in _KEY}).encode() + b"\n"
            self._file.write(text)
            self._file.flush()
        except OSError as error:
            raise self._problem(error) from error
        self.pass_over(line)

    def pass_over(self, line: dict[str, Any]) -> None:
        """Take an image for done until the process ends."""
        self._done.add(_key(line))

    def _read(self) -> None:
        self._file.seek(0)
        text = b"\n"
        for text in iter(partial(self._file.readline, _LONGEST_LINE), b""):
            if len(text) == _LONGEST_LINE or (self._file.tell() == len(text) and not text.startswith(b"{")):
                raise PadimError(f"{self.path} is no record of images: choose another file with --record")
            with suppress(ValueError, KeyError, TypeError, RecursionError):  # cut off, or not one of ours
                self._done.add(_key(json.loads(text)))
        if not text.endswith(b"\n"):  # whoever wrote the last line was killed
            self._file.write(b"\n")

    def _open(self) -> None:
        """Open the file itself, for this process alone: others may be able to put links, pipes and devices there."""
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | _NEITHER_LINK_NOR_PIPE, 0o666)
        self._file = os.fdopen(descriptor, "ab+")
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise OSError(errno.EINVAL, "it is not a regular file")
            with suppress(ImportError):  # on Windows, which has no such locks
                import fcntl

                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.close()
            busy = isinstance(error, BlockingIOError)
            raise OSError(errno.EBUSY, "another padim-predict --watch writes to it") if busy else error from error

    def _problem(self, error: OSError) -> PadimError:
        reason = error.strerror or error
        return PadimError(f"can't use the record {self.path}: {reason}; choose another file with --record")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        with suppress(OSError):  # what could not be written was said
            self._file.close()


class Watch:
    """The images of a folder, and those below it, that are finished and not done.

    An image is finished once neither its size nor its date has changed for a while: the clock of
    whoever writes it need not be ours, so only changes count.
    """

    def __init__(self, folder: Path, settle: float, *exclude: Path) -> None:
        """Images in `folder`, but for those below folders of results; `settle` is the while, in seconds.

        Raises:
            PadimError: there is no such folder, or it is the excluded one.
        """
        if not folder.is_dir():
            raise PadimError(f"there is no folder {folder}")
        if real(folder) in map(real, exclude):
            raise PadimError(f"{folder} is where the results go: choose another folder for them")
        self._exclude = exclude
        self.folder, self.settle = folder, settle
        self._unfinished: dict[Path, tuple[Stamp, float]] = {}
        self._unlisted: set[str] = set()

    def name(self, path: Path) -> str:
        """What an image is called in the record."""
        return str(path.relative_to(self.folder))

    def finished(self, record: Record) -> dict[Path, Stamp]:
        """The finished images that are not in the record, oldest first."""
        now = time.monotonic()
        before, self._unfinished = self._unfinished, {}
        found: dict[Path, Stamp] = {}
        for path in images_below(self.folder, *self._exclude, on_error=self._say_once):
            try:
                status = os.stat(path)
            except OSError:  # gone again
                continue
            stamp = Stamp(status.st_size, status.st_mtime_ns)
            if (self.name(path), stamp) in record:
                continue
            known, since = before.get(path, (None, now))
            if known != stamp:
                since = now
            self._unfinished[path] = stamp, since
            if now - since >= self.settle:
                found[path] = stamp
        return dict(sorted(found.items(), key=lambda entry: entry[1].modified_ns))

    def _say_once(self, error: OSError) -> None:
        """Say that a folder can't be listed, which is tried again."""
        if not isinstance(error, FileNotFoundError) and error.filename not in self._unlisted:
            log.warning("can't list %s, which will be tried again: %s", error.filename, error.strerror)
            self._unlisted.add(error.filename)

    def postpone(self, path: Path) -> None:
        """Take an image for unfinished once more."""
        self._unfinished.pop(path, None)


def follow(
    watch: Watch,
    record: Record,
    predict: Callable[[Sequence[Item]], Generator[tuple[Prediction, T]]],
    stop: threading.Event,
) -> Iterator[tuple[Prediction, T, Stamp]]:
    """What is predicted of images as they appear, until the event is set; whoever takes it adds it to the record.

    What the machine is to blame for, rather than the image, is tried again.
    """
    postponed: set[Path] = set()
    while not stop.is_set():
        if not os.path.isdir(watch.folder):
            log.warning("the folder %s is not there: waiting for it", watch.folder)
            while not os.path.isdir(watch.folder) and not stop.wait(watch.settle + 0.05):
                pass
        start = time.monotonic()
        finished, idle = watch.finished(record), True
        # A folder of many files takes long to look through: not more than a tenth of the time.
        pause = max(watch.settle / 2, 0.05, 9 * (time.monotonic() - start))
        for stamps in map(dict, batched(finished.items(), _AT_ONCE)):
            if stop.is_set():
                return
            with closing(predict([Item(path) for path in stamps])) as predictions:
                for prediction, made_of_it in predictions:
                    path, problem = prediction.path, prediction.problem
                    if isinstance(problem, ImageError) and problem.may_pass:
                        watch.postpone(path)
                        if path not in postponed:
                            log.warning("will be tried again: %s", problem)
                            postponed.add(path)
                    else:
                        idle = False
                        yield prediction, made_of_it, stamps[path]
                    if stop.is_set():
                        return
        if idle:
            stop.wait(pause)


def _key(line: dict[str, Any]) -> int:
    """A number for the image of a line, as it is now.

    Raises:
        KeyError, TypeError: it isn't a line of a record.
    """
    return hash(tuple(line[field] for field in _KEY))
