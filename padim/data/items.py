"""Which images a category has, in MVTec AD's layout:

ROOT/CATEGORY/train/good/000.png
ROOT/CATEGORY/test/good/000.png
ROOT/CATEGORY/test/DEFECT/000.png
ROOT/CATEGORY/ground_truth/DEFECT/000_mask.png
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from padim.errors import PadimError

GOOD = "good"

SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".pgm", ".ppm", ".jp2", ".tga", ".avif"}
)

_LAYOUT = (
    "expected ROOT/CATEGORY/train/good/*.png, ROOT/CATEGORY/test/good/*.png, ROOT/CATEGORY/test/DEFECT/*.png"
    " and ROOT/CATEGORY/ground_truth/DEFECT/*_mask.png, as MVTec AD has them"
    " (https://www.mvtec.com/company/research/datasets/mvtec-ad)"
)


@dataclass(frozen=True)
class Item:
    """One image of a data set.

    Attributes:
        path: the image file.
        defect: its defect type, "good" for a normal image, None where that isn't known.
        mask: the file of its ground truth, None for a normal image or where there is none.
    """

    path: Path
    defect: str | None = None
    mask: Path | None = None

    @property
    def anomalous(self) -> bool:
        """Whether the image is known to have a defect."""
        return self.defect not in (None, GOOD)


def categories(root: Path) -> list[str]:
    """The categories under a data root, sorted.

    Raises:
        PadimError: there is no such folder, or none in it has training images.
    """
    if not root.is_dir():
        raise PadimError(f"there is no data folder {root}: pass --data ROOT or set PADIM_DATA; {_LAYOUT}")
    found = sorted(path.parents[1].name for path in root.glob(f"*/train/{GOOD}") if path.is_dir())
    if not found:
        raise PadimError(f"no category under {root}: {_LAYOUT}")
    return found


def train_items(root: Path, category: str) -> list[Item]:
    """The training images of a category, sorted.

    Raises:
        PadimError: the category isn't there, or has no training images.
    """
    return [Item(path, GOOD) for path in list_images(_folder(root, category, f"train/{GOOD}"))]


def test_items(root: Path, category: str) -> list[Item]:
    """The test images of a category with their masks, sorted by defect type and name.

    Raises:
        PadimError: the category isn't there, or has no test images.
    """
    folder = _folder(root, category, "test")
    defects = sorted(path.name for path in folder.iterdir() if path.is_dir())
    items = [
        Item(path, defect, find_mask(path) if defect != GOOD else None)
        for defect in defects
        for path in _images_in(folder / defect)
    ]
    if not items:
        raise PadimError(f"no images under {folder}: {_LAYOUT}")
    return items


def find_mask(path: Path) -> Path | None:
    """The mask of a test image, matched by name: `test/DEFECT/000.png` -> `ground_truth/DEFECT/000_mask.png`."""
    path = path.absolute()
    if len(path.parents) < 3:
        return None
    folder = path.parents[2] / "ground_truth" / path.parent.name
    stems = (f"{path.stem}_mask", path.stem)
    found = [folder / f"{stem}{suffix}" for stem in stems for suffix in sorted(SUFFIXES)]
    return next((mask for mask in found if mask.is_file()), None)


def list_images(folder: Path) -> list[Path]:
    """The image files of a folder, sorted by name.

    Raises:
        PadimError: there is none.
    """
    images = _images_in(folder)
    if not images:
        raise PadimError(f"no images in {folder} ({', '.join(sorted(SUFFIXES))})")
    return images


def collect_images(inputs: Sequence[Path], exclude: Path) -> dict[Path, Path]:
    """The image files among `inputs` and in the folders among them, recursively.

    Args:
        inputs: files and folders; files are taken whatever their suffix.
        exclude: a folder whose contents are left out.

    Returns:
        Each image once, in order, with a name for what is made of it: its path below the folder that
        all of them have in common, without the suffix where that is enough to tell them apart.

    Raises:
        PadimError: an input isn't there or is the excluded folder, or there is no image.
    """
    found: dict[Path, None] = {}
    for path in inputs:
        if path.is_dir():
            if path.resolve() == exclude.resolve():
                raise PadimError(f"{path} is where the results go: choose another folder for them with --out")
            found |= dict.fromkeys(_images_below(path, exclude.resolve()))
        elif path.exists():
            found[path] = None
        else:
            raise PadimError(f"there is no image or folder {path}")
    if not found:
        raise PadimError(f"no images in {', '.join(map(str, inputs))} ({', '.join(sorted(SUFFIXES))})")
    common = os.path.commonpath([path.parent.absolute() for path in found])
    names = {path: path.absolute().relative_to(common) for path in found}
    uses = Counter(name.with_suffix("") for name in names.values())
    return {path: bare if uses[bare := name.with_suffix("")] == 1 else name for path, name in names.items()}


def _images_below(folder: Path, exclude: Path) -> Iterator[Path]:
    """Image files in a folder and those below it, sorted; links to folders are not followed."""
    for here, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if Path(here, name).resolve() != exclude)
        yield from (Path(here, name) for name in sorted(files) if Path(name).suffix.lower() in SUFFIXES)


def _images_in(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())
    except OSError as error:
        raise PadimError(f"can't list {folder}: {error.strerror}") from error


def _folder(root: Path, category: str, split: str) -> Path:
    if Path(category).name != category:
        raise PadimError(f"category {category!r} is not the name of a folder in {root}: pass its folder with --data")
    folder = root / category / split
    if not folder.is_dir():
        there = ", ".join(categories(root))
        raise PadimError(f"category {category!r} has no folder {folder} (categories there: {there}); {_LAYOUT}")
    return folder
