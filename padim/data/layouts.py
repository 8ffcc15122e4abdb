"""Which images a category has, in the layouts that data sets come in.

MVTec AD        ROOT/CATEGORY/train/good/000.png
                ROOT/CATEGORY/test/good/000.png, ROOT/CATEGORY/test/DEFECT/000.png
                ROOT/CATEGORY/ground_truth/DEFECT/000_mask.png
BTAD            the same with `ok` for `good` and masks named as their images
MVTec 3D-AD     images in ROOT/CATEGORY/test/DEFECT/rgb, masks in ROOT/CATEGORY/test/DEFECT/gt
VisA            what ROOT/split_csv/1cls.csv lists
STC             the frames of ShanghaiTech Campus, see `padim.data.stc`
plain folders   whatever the user names
"""

from __future__ import annotations

import csv
import io
import logging
import os
from collections.abc import Callable
from itertools import permutations
from pathlib import Path
from typing import NamedTuple

from padim.data.items import GOOD, SUFFIXES, Category, Item, image_with_stem, images_below, images_in, real
from padim.data.stc import camera, cameras, is_stc
from padim.errors import PadimError

log = logging.getLogger(__name__)

# The folders of normal images: MVTec's name, and BTAD's.
_NORMAL = (GOOD, "ok")

_VISA = Path("split_csv", "1cls.csv")

EXPECTED = (
    "expected ROOT/CATEGORY/train/good/*.png, ROOT/CATEGORY/test/good/*.png, ROOT/CATEGORY/test/DEFECT/*.png"
    " and ROOT/CATEGORY/ground_truth/DEFECT/*_mask.png, as MVTec AD has them"
    " (https://www.mvtec.com/company/research/datasets/mvtec-ad), or the layout of BTAD, MVTec 3D-AD, VisA or"
    " ShanghaiTech Campus; images in folders of your own are named with --normal, --test and --defect"
)


def categories(root: Path) -> list[str]:
    """The categories under a data root that have training images, sorted.

    Raises:
        PadimError: there is no such folder, or no category in it.
    """
    if not root.is_dir():
        raise PadimError(f"there is no data folder {root}: pass --data ROOT or set PADIM_DATA; {EXPECTED}")
    found = _layout(root).categories(root)
    if not found:
        raise PadimError(f"no category under {root}: {EXPECTED}")
    return sorted(found)


def find_category(root: Path | str, name: str) -> Category:
    """A category of a data root, in whichever of the layouts it has.

    Raises:
        PadimError: it isn't there, or has no images.
    """
    _check_name(name)
    category = _layout(root := Path(root)).load(root, name)
    if not category.train and not category.test:
        raise PadimError(
            f"no category {name!r} with images in {root} (there: {', '.join(categories(root))}); {EXPECTED}"
        )
    return category


def plain_category(
    name: str,
    normal: Path | str | None = None,
    test: Path | str | None = None,
    defect: Path | str | None = None,
    masks: Path | str | None = None,
) -> Category:
    """A category from folders of any names, searched recursively.

    Args:
        name: what to call it.
        normal: images to learn from.
        test: images to test on: normal ones, or, where it has a folder `good`, a folder per defect type.
        defect: defective images to test on; folders in it are defect types.
        masks: ground truth of the defective images, in the same folders under the same names, or with `_mask`
            behind them.

    Raises:
        PadimError: a folder isn't there, has no images or is in another one, or the name is no folder's.
    """
    _check_name(name)
    normal, test, defect, masks = (Path(folder) if folder else None for folder in (normal, test, defect, masks))
    named = {"normal": normal, "test": test, "defect": defect, "masks": masks}
    for folder in named.values():
        if folder and not folder.is_dir():
            raise PadimError(f"there is no folder {folder}")
    _check_apart([folder for folder in (normal, test, defect) if folder])
    train = [Item(path, GOOD) for path in _found_below(normal)] if normal else []
    tests: list[Item] = []
    if test and any((test / good).is_dir() for good in _NORMAL):
        tests += _by_kind(test, masks)
    elif test:
        tests += [Item(path, GOOD) for path in _found_below(test, masks)]
        if any(path.is_dir() for path in test.iterdir()):
            log.warning(
                "all images below %s are taken as normal; with a folder good in it, the others are defects", test
            )
    if defect:
        for path in _found_below(defect, masks):
            inside = path.relative_to(defect).parts[:-1]
            kind = inside[0] if inside and inside[0] not in _NORMAL else "defect"
            tests.append(_with_mask(Item(path, kind), defect, masks))
    return Category(name, train, tests, {use: folder.absolute() for use, folder in named.items() if folder})


def _check_name(name: str) -> None:
    try:
        unfit = "\0" in name or len(os.fsencode(name)) > 255
    except UnicodeEncodeError:  # as half of a character outside the basic plane
        unfit = True
    if unfit or name in ("", "..") or Path(name).name != name:
        raise PadimError(f"category {name!r} is not the name of a folder: pass --category NAME")


def _check_apart(folders: list[Path]) -> None:
    """Refuse folders that contain one another, whose images would be both learned and tested."""
    for folder, other in permutations([real(folder) for folder in folders], 2):
        if folder.is_relative_to(other):
            raise PadimError(f"the folder {folder} is in {other}: take folders that are apart")


def _by_kind(folder: Path, masks: Path | None) -> list[Item]:
    """Test images below a folder; the names of its subfolders are defect types."""
    items = []
    for kind in sorted(path for path in folder.iterdir() if path.is_dir()):
        defect = GOOD if kind.name in _NORMAL else kind.name
        images = images_below(kind, *([masks] if masks else []))
        items += [_with_mask(Item(path, defect), folder, masks) for path in images]
    return items


def find_mask(path: Path) -> Path | None:
    """The mask of a test image, matched by name: `test/DEFECT/000.png` -> `ground_truth/DEFECT/000_mask.png`."""
    folder = _mask_folder(path.absolute())
    return image_with_stem(folder, f"{path.stem}_mask", path.stem) if folder else None


def _mask_folder(path: Path) -> Path | None:
    if path.parent.name == "rgb":  # MVTec 3D-AD
        return path.parents[1] / "gt"
    return path.parents[2] / "ground_truth" / path.parent.name if len(path.parents) > 2 else None


def _labelled(folder: Path) -> list[Item]:
    """The images in the subfolders of a folder, whose names are defect types; none if it isn't there.

    A defective image without a mask gets the name that its mask should have, so that its absence
    is noticed where masks are read, unless there is no ground truth at all.
    """
    if not folder.is_dir():
        return []
    items = []
    for kind in sorted(path for path in folder.iterdir() if path.is_dir()):
        images = images_in(kind / "rgb" if (kind / "rgb").is_dir() else kind)
        if kind.name in _NORMAL:
            items += [Item(path, GOOD) for path in images]
        else:
            items += [Item(path, kind.name, find_mask(path) or _missing_mask(path)) for path in images]
    return items


def _missing_mask(path: Path) -> Path | None:
    folder = _mask_folder(path.absolute())
    return folder / f"{path.stem}_mask.png" if folder and folder.parent.is_dir() else None


def _with_mask(item: Item, folder: Path, masks: Path | None) -> Item:
    """An item of plain folders with its mask, which lies below `masks` as the image does below `folder`."""
    if masks is None or not item.anomalous:
        return item
    place = masks / item.path.relative_to(folder).parent
    mask = image_with_stem(place, item.path.stem, f"{item.path.stem}_mask")
    return Item(item.path, item.defect, mask or place / f"{item.path.stem}.png")


def _found_below(folder: Path, exclude: Path | None = None) -> list[Path]:
    images = list(images_below(folder, *([exclude] if exclude else [])))
    if not images:
        raise PadimError(f"no images in the folder {folder} ({', '.join(sorted(SUFFIXES))})")
    return images


def _folder_categories(root: Path) -> set[str]:
    return {path.parents[1].name for good in _NORMAL for path in root.glob(f"*/train/{good}") if path.is_dir()}


def _folder_category(root: Path, name: str) -> Category:
    train, test = (_labelled(root / name / split) for split in ("train", "test"))
    return Category(name, [item for item in train if not item.anomalous], test)


def _visa_categories(root: Path) -> set[str]:
    return {row["object"] for row in _visa_rows(root)}


def _visa_category(root: Path, name: str) -> Category:
    splits: dict[str, list[Item]] = {"train": [], "test": []}
    for row in _visa_rows(root):
        if row["object"] == name and row["split"] in splits:
            defect = GOOD if row["label"] == "normal" else row["label"]
            mask = root / row["mask"] if row["mask"] else None
            splits[row["split"]].append(Item(root / row["image"], defect, mask))
    train, test = (sorted(items, key=lambda item: (item.defect, item.path)) for items in splits.values())
    return Category(name, train, test)


def _visa_rows(root: Path) -> list[dict[str, str]]:
    path = root / _VISA
    try:
        text = path.read_text(encoding="utf-8-sig")
        if "\0" in text:
            raise ValueError("no path has a zero byte")
        rows = list(csv.DictReader(io.StringIO(text), restval=""))
    except (OSError, ValueError, csv.Error) as error:
        raise PadimError(f"can't read {path}: {error}") from error
    columns = {"object", "split", "label", "image", "mask"}
    if not rows or not columns <= rows[0].keys():
        raise PadimError(f"{path} is not VisA's list of images: it lacks rows, or columns {', '.join(sorted(columns))}")
    return rows


class Layout(NamedTuple):
    """A way in which data sets come.

    Attributes:
        detect: whether a data root has it.
        categories: the names of the categories with training images under a root.
        load: a category of a root by its name, without images if it isn't there.
    """

    detect: Callable[[Path], bool]
    categories: Callable[[Path], set[str]]
    load: Callable[[Path, str], Category]


# The first one that is detected is taken.
LAYOUTS = (
    Layout(lambda root: (root / _VISA).is_file(), _visa_categories, _visa_category),
    Layout(is_stc, cameras, camera),
    Layout(lambda _: True, _folder_categories, _folder_category),  # MVTec AD, BTAD, MVTec 3D-AD
)


def _layout(root: Path) -> Layout:
    return next(layout for layout in LAYOUTS if layout.detect(root))
