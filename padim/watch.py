"""A folder that images arrive in: which of them are finished, and which are done already."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any, NamedTuple, Self

from padim.data.items import images_below
from padim.errors import PadimError


class Stamp(NamedTuple):
    """What changes when a file is written to."""

    bytes: int
    modified_ns: int


class Record:
    """A file of JSON lines, one an image that is done; what is in it is not done again after a restart.

    In memory an image takes no more than a number in a set.
    """

    def __init__(self, path: Path) -> None:
        """The record at a path, whose lines are read if there are any; a broken last one is passed over.

        Raises:
            PadimError: it can't be read or written.
        """
        self.path = path
        self._done: set[int] = set()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("ab", buffering=0)
            last = b"\n"
            with path.open("rb") as lines:
                for last in lines:
                    self._remember(last)
            if not last.endswith(b"\n"):  # whoever wrote it was killed
                self._file.write(b"\n")
        except OSError as error:
            raise PadimError(f"can't use the record {path}: {error.strerror or error}") from error

    def __contains__(self, image: tuple[Path, Stamp]) -> bool:
        path, stamp = image
        return hash((str(path), *stamp)) in self._done

    def add(self, line: dict[str, Any]) -> None:
        """Write a line, which has the `path` of an image and the fields of its stamp.

        Raises:
            PadimError: it can't be written.
        """
        try:
            self._file.write(json.dumps(line).encode() + b"\n")
        except OSError as error:
            raise PadimError(f"can't write to the record {self.path}: {error.strerror or error}") from error
        self._done.add(hash((line["path"], line["bytes"], line["modified_ns"])))

    def _remember(self, text: bytes) -> None:
        try:
            line = json.loads(text)
            self._done.add(hash((line["path"], line["bytes"], line["modified_ns"])))
        except (ValueError, KeyError, TypeError, RecursionError):
            return  # not one of ours

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()


class Watch:
    """The images of a folder, and those below it, that are finished and not done.

    An image is finished once neither its size nor its date has changed for a while: the clock of
    whoever writes it need not be ours, so only changes count.
    """

    def __init__(self, folder: Path, settle: float, exclude: Path | None = None) -> None:
        """Images in `folder`, but for those below `exclude`; `settle` is the while, in seconds.

        Raises:
            PadimError: there is no such folder.
        """
        if not folder.is_dir():
            raise PadimError(f"there is no folder {folder}")
        self._folder, self._settle = folder, settle
        self._exclude = exclude.resolve() if exclude else None
        self._unfinished: dict[Path, tuple[Stamp, float]] = {}

    def finished(self, record: Record) -> dict[Path, Stamp]:
        """The finished images that are not in the record, oldest first."""
        now = time.monotonic()
        before, self._unfinished = self._unfinished, {}
        found: dict[Path, Stamp] = {}
        for path in images_below(self._folder, self._exclude):
            try:
                status = os.stat(path)
            except OSError:  # gone again
                continue
            stamp = Stamp(status.st_size, status.st_mtime_ns)
            if (path, stamp) in record:
                continue
            known, since = before.get(path, (None, now))
            if known != stamp:
                since = now
            self._unfinished[path] = stamp, since
            if now - since >= self._settle:
                found[path] = stamp
        return dict(sorted(found.items(), key=lambda entry: entry[1].modified_ns))
