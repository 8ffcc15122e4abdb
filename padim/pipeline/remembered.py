"""What `train.json` beside a model remembers of its training: folders of one's own, and images that stood out."""

from __future__ import annotations

import dataclasses
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from padim.data.items import Category
from padim.data.layouts import plain_category
from padim.errors import PadimError


def own_category(folder: Path, name: str) -> Category | None:
    """The images to test on in the folders that the model of a folder was trained with.

    There may be none; None if the training was with a data set.

    Raises:
        PadimError: the folders aren't there any more.
    """
    folders = remembered_folders(folder)
    if not folders:
        return None
    try:
        tests = plain_category(name, None, *(folders.get(use) for use in ("test", "defect", "masks")))
    except (OSError, PadimError) as error:
        raise PadimError(f"{error}; the model was trained with it: pass --test and --defect") from error
    return dataclasses.replace(tests, folders=folders)


def remembered_folders(folder: Path) -> dict[str, Path]:
    """The folders of one's own that the model of a folder was trained with, see `Category`."""
    folders = _summary(folder).get("folders")
    if not isinstance(folders, dict):
        return {}
    return {use: Path(path) for use, path in folders.items() if isinstance(path, str)}


def unusual_images(folder: Path) -> dict[Path, float]:
    """The training images that score higher than the rest and are still there, with their leave-one-out scores."""
    with suppress(KeyError, OSError, OverflowError, TypeError, ValueError):
        found = {Path(image["path"]): float(image["score"]) for image in _summary(folder).get("unusual", [])}
        return {path: score for path, score in found.items() if path.is_file()}
    return {}


def _summary(folder: Path) -> dict[str, Any]:
    """What `padim-train` has written; nothing where it has not, or another program has."""
    with suppress(OSError, ValueError, RecursionError):
        summary = json.loads((folder / "train.json").read_text(encoding="utf-8"))
        return summary if isinstance(summary, dict) else {}
    return {}
