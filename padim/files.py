"""Files that are written whole or not at all."""

from __future__ import annotations

import json
import os
import secrets
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from padim.errors import PadimError


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
    """Give the path of a new file beside `path` to write to; it takes that name once all went well.

    Whoever is killed before that leaves the old file, or none. Folders are made as needed.

    Raises:
        PadimError: the file can't be written.
    """
    temporary = path.with_name(f".{path.name[:100]}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        mode = stat.S_IMODE((path if path.exists() else temporary).stat().st_mode)
        yield temporary
        with temporary.open("r+b") as written:
            os.fsync(written.fileno())
        temporary.chmod(mode)  # safetensors would have it private
        temporary.replace(path)
    except OSError as error:
        raise PadimError(f"can't write {path}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)
