"""Whether a copy of a data set is whole: every file is read, and MVTec AD's counts are compared."""

from __future__ import annotations

import dataclasses
import os
import tomllib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from padim.data.images import read_image, read_mask
from padim.data.items import GOOD, Category, Item, images_below, some
from padim.errors import ImageError
from padim.poses.grid import grey
from padim.poses.spread import ENOUGH, describe, find_spread
from padim.system.progress import OnProgress, Progress, silent


@dataclass(frozen=True)
class CategoryReport:
    """What a category's folder has.

    Attributes:
        category: its name.
        train: how many training images.
        test: how many test images of each defect type, `good` being the normal ones.
        masks: how many masks of each defect type.
        sizes: how many images of each size, as `width x height`.
        problems: one line for each thing that is wrong; none if the copy is whole.
        advice: how the training images' parts lie, and what to do about it, if anything.
    """

    category: str
    train: int
    test: dict[str, int]
    masks: dict[str, int]
    sizes: dict[str, int]
    problems: list[str]
    advice: str | None = None


class ItemResult(NamedTuple):
    """The size of an image, unless it can't be read, and what is wrong with it and its mask."""

    size: str | None
    problems: list[str]


@cache
def published() -> dict[str, Any]:
    """The categories of MVTec AD and what each has, see `mvtec.toml`."""
    return tomllib.loads(Path(__file__).with_name("mvtec.toml").read_text(encoding="utf-8"))


def check_category(root: Path, category: Category, workers: int, progress: OnProgress = silent) -> CategoryReport:
    """Read every image and mask of a category under a data root, in several threads, and report on them."""
    items = [*category.train, *category.test]
    problems: list[str] = []
    sizes: Counter[str] = Counter()
    with ThreadPoolExecutor(workers) as pool:
        for number, result in enumerate(pool.map(_check_item, items), 1):
            progress(Progress(category.name, number, len(items)))
            problems += result.problems
            sizes.update([result.size] if result.size else [])
    problems += _general_problems(category)
    problems += _masks_without_image(root / category.name / "ground_truth", category)
    return _with_differences(
        CategoryReport(
            category.name,
            len(category.train),
            dict(Counter(str(item.defect) for item in category.test)),
            dict(Counter(str(item.defect) for item in category.test if item.mask and os.path.isfile(item.mask))),
            dict(sizes),
            problems,
            _advice(category, sizes),
        )
    )


def _check_item(item: Item) -> ItemResult:
    try:
        image = read_image(item.path)
    except ImageError as error:
        return ItemResult(None, [str(error)])
    problems = []
    if item.mask:
        try:
            mask = read_mask(item.mask)
            if mask.size != image.size:
                problems.append(f"{item.mask}: {mask.size[0]} x {mask.size[1]} pixels, another size than its image")
            elif not mask.getbbox():
                problems.append(f"{item.mask}: marks nothing")
        except ImageError as error:
            problems.append(str(error))
    elif item.anomalous:
        problems.append(f"{item.path}: no mask")
    return ItemResult(_size(image), problems)


def _advice(category: Category, sizes: Counter[str]) -> str | None:
    """What to do about how the parts of the training images lie, those of the usual size."""
    usual, _ = next(iter(sizes.most_common(1)), ("", 0))
    pictures = []
    for item in some(category.train, ENOUGH):
        with suppress(ImageError):  # which is among the problems
            image = read_image(item.path)
            if _size(image) == usual:
                pictures.append(grey(np.asarray(image)))
    spread = find_spread(pictures) if pictures else None
    return describe(spread) if spread and spread.align != "none" else None


def _size(image: Image.Image) -> str:
    return f"{image.width} x {image.height}"


def _general_problems(category: Category) -> list[str]:
    """What no data set should have."""
    paths = Counter(item.path for item in (*category.train, *category.test))
    problems = [f"{path}: listed {count} times" for path, count in paths.items() if count > 1]
    if len(category.train) < 2:
        problems.append(f"{category.name}: {len(category.train)} training images, at least two are needed")
    for kind, wanted in (("normal", False), ("defective", True)):
        if not any(item.anomalous == wanted for item in category.test):
            problems.append(f"{category.name}: no {kind} test images")
    return problems


def _masks_without_image(folder: Path, category: Category) -> list[str]:
    used = {item.mask for item in category.test}
    return [f"{path}: a mask without an image" for path in images_below(folder) if path.absolute() not in used]


def _with_differences(report: CategoryReport) -> CategoryReport:
    """The report, with where a category of MVTec AD differs from what was published."""
    truth = published().get(report.category)
    if truth is None:
        return report
    side = f"{truth['side']} x {truth['side']}"
    defects = set(truth["defects"]) | (set(report.test) - {GOOD})
    counts = [
        ("training images", report.train, truth["train"]),
        ("normal test images", report.test.get(GOOD, 0), truth["good"]),
        *(
            (f"test images of {name}", report.test.get(name, 0), truth["defects"].get(name, 0))
            for name in sorted(defects)
        ),
        *((f"masks of {name}", report.masks.get(name, 0), truth["defects"].get(name, 0)) for name in sorted(defects)),
        (f"images of {side} pixels", report.sizes.get(side, 0), sum(report.sizes.values())),
    ]
    different = [
        f"{report.category}: {found} {what}, expected {wanted}" for what, found, wanted in counts if found != wanted
    ]
    return dataclasses.replace(report, problems=report.problems + different)
