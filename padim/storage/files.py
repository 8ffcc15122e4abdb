"""Files that are written whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from padim.errors import PadimError

# Folders of this name have unfinished files, and the killed leave them behind.
_PREFIX, _SUFFIX = ".padim-", ".tmp"
_ABANDONED = 3600.0  # seconds, after which nobody writes there any more


def check_writable(folder: Path) -> None:
    """Make a folder if need be, and make sure that files can be written there, before long work starts.

    Raises:
        PadimError: they can't.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise PadimError(f"can't write to the folder {folder}: {error.strerror or error}") from error


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, whole or not at all; what a file name has beyond that becomes `?`.

    Raises:
        PadimError: it can't be written.
    """
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="replace")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file for people and programs, whole or not at all.

    Raises:
        PadimError: it can't be written.
    """
    write_text(path, json.dumps(value, indent=2) + "\n")


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Give the path of a new file to write to; it takes the place of `path` once all went well.

    Whoever is killed before that leaves the old file, or none. Folders are made as needed.

    Raises:
        PadimError: the file can't be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(path.parent)
        with tempfile.TemporaryDirectory(_SUFFIX, _PREFIX, path.parent) as folder:
            temporary = Path(folder, "new")
            temporary.touch()
            mode = stat.S_IMODE((path if path.exists() else temporary).stat().st_mode)
            yield temporary
            with temporary.open("r+b") as written:
                os.fsync(written.fileno())
            temporary.chmod(mode)  # safetensors would have it private
            temporary.replace(path)
    except OSError as error:
        raise PadimError(f"can't write {path}: {error.strerror or error}") from error


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """Give a folder for files that are of no use afterwards, in the system's folder for such files."""
    _remove_abandoned(Path(tempfile.gettempdir()))
    with tempfile.TemporaryDirectory(_SUFFIX, _PREFIX) as folder:
        yield Path(folder)


@cache
def _remove_abandoned(folder: Path) -> None:
    """Remove what others left in a folder when they were killed; once in a process, since folders can be large."""
    for left in folder.glob(f"{_PREFIX}*{_SUFFIX}"):
        with suppress(OSError):  # another process removes it, too
            if time.time() - left.stat().st_mtime > _ABANDONED:
                shutil.rmtree(left)


@contextmanager
def utf8_path(path: Path) -> Iterator[Path]:
    """The path, or a link to it where its bytes are no UTF-8, which safetensors and ONNX Runtime can't open."""
    if os.fsencode(path).decode(errors="replace") == str(path):
        yield path
        return
    with scratch_folder() as folder:
        link = folder / "link"
        link.symlink_to(path.absolute())
        yield link
