"""Images sorted into folders by their verdict."""

from __future__ import annotations

import filecmp
import shutil
from pathlib import Path

from padim.data.items import real
from padim.errors import PadimError
from padim.storage.files import atomic_write

VERDICTS = ("normal", "anomalous")


def sort_image(folder: Path, verdict: str, image: Path, name: Path) -> Path:
    """Put a link to an image into the folder of its verdict, or a copy where links can't be made.

    A link or copy that an earlier verdict has put into the other folder is removed; nothing else is.

    Args:
        folder: has the folders of the verdicts.
        verdict: one of `VERDICTS`.
        image: the file.
        name: what it is called there, with folders if need be.

    Returns:
        The path of the link or copy.

    Raises:
        PadimError: another file or link is there, or nothing can be written.
    """
    try:
        return _placed(folder, verdict, image, name)
    except OSError as error:
        raise PadimError(f"can't sort {image} into {folder}: {error.strerror or error}") from error


def _placed(folder: Path, verdict: str, image: Path, name: Path) -> Path:
    source, path = real(image), folder / verdict / name
    for place in (path, *(folder / other / name for other in VERDICTS if other != verdict)):
        if place.is_symlink() and real(place) not in (source, place) and place.exists():
            raise PadimError(f"{place} is a link to another image: choose another folder with --sort")
        if place.is_symlink() or (place != path and place.exists() and _is_copy(place, source)):
            place.unlink()
    if path.exists():
        if _is_copy(path, source) or real(path) == source:
            return path
        raise PadimError(f"{path} is another file: choose another folder with --sort")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(source)
    except OSError:  # a file system without links
        with atomic_write(path) as temporary:
            shutil.copyfile(source, temporary)
    return path


def _is_copy(path: Path, source: Path) -> bool:
    """Whether a file is another one with the same content."""
    return real(path) != source and path.is_file() and filecmp.cmp(path, source, shallow=False)
