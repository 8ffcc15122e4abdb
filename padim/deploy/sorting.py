"""Images sorted into folders by their verdict."""

from __future__ import annotations

import filecmp
import os
import shutil
from pathlib import Path

from padim.errors import PadimError
from padim.storage.files import atomic_write

VERDICTS = ("normal", "anomalous")


def sort_image(folder: Path, verdict: str, image: Path, name: Path) -> Path:
    """Put a link to an image into the folder of its verdict, or a copy where links can't be made.

    A link that an earlier verdict has put into the other folder is removed; nothing else is.

    Args:
        folder: has the folders of the verdicts.
        verdict: one of `VERDICTS`.
        image: the file.
        name: what it is called there, with folders if need be.

    Returns:
        The path of the link or copy.

    Raises:
        PadimError: another file is there, or nothing can be written.
    """
    path = folder / verdict / name
    if path.exists() and not path.is_symlink() and not filecmp.cmp(path, image, shallow=False):
        raise PadimError(f"{path} is another file: choose another folder with --sort")
    if path.exists() and not path.is_symlink():
        return path
    for other in VERDICTS:
        if (folder / other / name).is_symlink():
            (folder / other / name).unlink()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(image.absolute())
    except OSError:  # a file system without links
        with atomic_write(path) as temporary:
            shutil.copyfile(image, temporary)
            os.utime(temporary)
    return path
