"""Images of a data set, each with what is known about it, and how image files are found in folders."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from padim.errors import PadimError

GOOD = "good"

SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".pgm", ".ppm", ".jp2", ".tga", ".avif"}
)


@dataclass(frozen=True)
class Item:
    """One image of a data set.

    Attributes:
        path: the image file.
        defect: its defect type, "good" for a normal image, None where that isn't known.
        mask: the file of its ground truth, None for a normal image or where there is none.
        frame: which of the masks in that file is its own, of a file of several.
    """

    path: Path
    defect: str | None = None
    mask: Path | None = None
    frame: int | None = None

    @property
    def anomalous(self) -> bool:
        """Whether the image is known to have a defect."""
        return self.defect not in (None, GOOD)


@dataclass(frozen=True)
class Category:
    """The images of one kind of part.

    Attributes:
        name: what it is called.
        train: normal images to learn from, sorted.
        test: labelled images to test on, sorted by defect type and name.
        folders: where a user said that they are, by `normal`, `test`, `defect` and `masks`; none for a data set.
    """

    name: str
    train: list[Item]
    test: list[Item]
    folders: Mapping[str, Path] = field(default_factory=dict)


def some(items: Sequence[Item], count: int) -> list[Item]:
    """At most so many of the items, spread evenly."""
    return [items[number * len(items) // count] for number in range(count)] if len(items) > count else [*items]


def real(path: Path) -> Path:
    """The path without links, in as far as they lead anywhere; `Path.resolve` raises for a loop of them."""
    return Path(os.path.realpath(path))


def images_in(folder: Path) -> list[Path]:
    """The image files right in a folder, sorted by name.

    Raises:
        PadimError: the folder can't be listed.
    """
    try:
        return sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())
    except OSError as error:
        raise PadimError(f"can't list {folder}: {error.strerror}") from error


def _refuse(error: OSError) -> None:
    """Raise a PadimError for a folder that can't be listed; one that has just gone has no images."""
    if not isinstance(error, FileNotFoundError):
        raise PadimError(f"can't list {error.filename}: {error.strerror}") from error


def images_below(folder: Path, *exclude: Path, on_error: Callable[[OSError], None] = _refuse) -> Iterator[Path]:
    """Image files in a folder and those below it, sorted, but for folders that are excluded.

    Links to folders are not followed.

    Raises:
        PadimError: a folder can't be listed, unless `on_error` is told of that.
    """
    excluded = [*map(real, exclude)]
    for here, folders, files in os.walk(folder, onerror=on_error):
        folders[:] = sorted(name for name in folders if real(Path(here, name)) not in excluded)
        yield from (Path(here, name) for name in sorted(files) if Path(name).suffix.lower() in SUFFIXES)


def image_with_stem(folder: Path, *stems: str) -> Path | None:
    """The first file in a folder that has one of these names and an image's suffix."""
    found = (folder / f"{stem}{suffix}" for stem in stems for suffix in sorted(SUFFIXES))
    return next((path for path in found if path.is_file()), None)


def collect_images(inputs: Sequence[Path], *exclude: Path) -> dict[Path, Path]:
    """The image files among `inputs` and in the folders among them, recursively.

    Args:
        inputs: files and folders; files are taken whatever their suffix.
        exclude: folders of results, whose contents are left out.

    Returns:
        Each image once, in order, with a name for what is made of it: its path below the folder that
        all of them have in common, without the suffix where that is enough to tell them apart. It has no `..`.

    Raises:
        PadimError: an input isn't there, an image lies in an excluded folder, or there is none.
    """
    found: dict[Path, Path] = {}
    excluded = [*map(real, exclude)]
    for path in inputs:
        if not path.exists():
            raise PadimError(f"there is no image or folder {path}")
        for image in images_below(path, *excluded) if path.is_dir() else [path]:
            for folder in excluded:
                if real(image).is_relative_to(folder):
                    raise PadimError(f"{image} is in {folder}, where the results go: choose another folder for them")
            found.setdefault(_place(image), image)
    if not found:
        raise PadimError(f"no images in {', '.join(map(str, inputs))} ({', '.join(sorted(SUFFIXES))})")
    common = os.path.commonpath([place.parent for place in found])
    names = {path: place.relative_to(common) for place, path in found.items()}
    uses = Counter(name.with_suffix("") for name in names.values()) + Counter(names.values())
    return {path: bare if uses[bare := name.with_suffix("")] == 1 else name for path, name in names.items()}


def _place(path: Path) -> Path:
    """The absolute path of a file; one with `..` in it leads where its links do."""
    return real(path.parent) / path.name if ".." in path.parts else path.absolute()
