"""Whether a data set is whole and fit to learn from: every file is read, and MVTec AD's counts are compared."""

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

from padim.data.images import read_image, read_mask
from padim.data.items import GOOD, Category, Item, images_below, some
from padim.data.remarks import Looks, leaks, remarks
from padim.errors import ImageError
from padim.poses.grid import grey
from padim.poses.spread import ENOUGH, describe, find_spread
from padim.system.progress import OnProgress, Progress, silent


@dataclass(frozen=True)
class CategoryReport:
    """What a category has.

    Attributes:
        category: its name.
        train: how many training images.
        test: how many test images of each defect type, `good` being the normal ones.
        masks: how many masks of each defect type.
        sizes: how many images of each size, as `width x height`.
        problems: one line for each thing that is wrong; none if the data set is whole.
        remarks: one line for each thing to look at, by kind: `proportions`, `duplicates`, `uniform`, `exposure`.
        advice: how the training images' parts lie, and what to do about it, if anything.
    """

    category: str
    train: int
    test: dict[str, int]
    masks: dict[str, int]
    sizes: dict[str, int]
    problems: list[str]
    remarks: dict[str, list[str]]
    advice: str | None = None


class ItemResult(NamedTuple):
    """How an image looks, unless it can't be read, and what is wrong with it and its mask."""

    looks: Looks | None
    problems: list[str]


@cache
def published() -> dict[str, Any]:
    """The categories of MVTec AD and what each has, see `mvtec.toml`."""
    return tomllib.loads(Path(__file__).with_name("mvtec.toml").read_text(encoding="utf-8"))


def check_category(root: Path, category: Category, workers: int, progress: OnProgress = silent) -> CategoryReport:
    """Report on a category under a data root as `check_folders` does, and on what a whole data set would have."""
    report = check_folders(category, workers, progress, root / category.name / "ground_truth")
    more = _incomplete(category) + _differences(report)
    return dataclasses.replace(report, problems=report.problems + more)


def check_folders(
    category: Category, workers: int, progress: OnProgress = silent, masks: Path | None = None
) -> CategoryReport:
    """Read every image and mask of a category, in several threads, and report on them.

    Args:
        category: its images.
        workers: the number of threads.
        progress: is told of every image.
        masks: the folder of the masks, each of which should have an image; by default that of the category, if it
            has one.
    """
    masks = masks or category.folders.get("masks")
    items = [*category.train, *category.test]
    results: list[ItemResult] = []
    with ThreadPoolExecutor(workers) as pool:
        for result in pool.map(_check_item, items):
            results.append(result)
            progress(Progress(category.name, len(results), len(items)))
    split = len(category.train)
    train, test = ([result.looks for result in part if result.looks] for part in (results[:split], results[split:]))
    sizes = Counter(looks.size for looks in (*train, *test))
    return CategoryReport(
        category.name,
        len(category.train),
        dict(Counter(str(item.defect) for item in category.test)),
        dict(Counter(str(item.defect) for item in category.test if item.mask and os.path.isfile(item.mask))),
        dict(sizes),
        [
            *(problem for result in results for problem in result.problems),
            *_general_problems(category),
            *leaks(train, test),
            *(_masks_without_image(masks, category) if masks else ()),
        ],
        remarks(train, test),
        _advice(category, sizes),
    )


def _check_item(item: Item) -> ItemResult:
    try:
        image = read_image(item.path)
    except ImageError as error:
        return ItemResult(None, [str(error)])
    problems = []
    if item.mask:
        try:
            mask = read_mask(item.mask, item.frame)
            if mask.size != image.size:
                problems.append(f"{item.mask}: {mask.size[0]} x {mask.size[1]} pixels, another size than its image")
            elif not mask.getbbox():
                problems.append(f"{item.mask}: marks nothing")
        except ImageError as error:
            problems.append(str(error))
    return ItemResult(Looks.of(item.path, image), problems)


def _advice(category: Category, sizes: Counter[str]) -> str | None:
    """What to do about how the parts of the training images lie, those of the usual size."""
    usual, _ = next(iter(sizes.most_common(1)), ("", 0))
    pictures = []
    for item in some(category.train, ENOUGH):
        with suppress(ImageError):  # which is among the problems
            image = read_image(item.path)
            if f"{image.width} x {image.height}" == usual:
                pictures.append(grey(np.asarray(image)))
    spread = find_spread(pictures) if pictures else None
    return describe(spread) if spread and spread.align != "none" else None


def _general_problems(category: Category) -> list[str]:
    """What no data set should have."""
    paths = Counter(item.path for item in (*category.train, *category.test))
    problems = [f"{path}: listed {count} times" for path, count in paths.items() if count > 1]
    if len(category.train) < 2:
        problems.append(f"{category.name}: {len(category.train)} training images, at least two are needed")
    return problems


def _masks_without_image(folder: Path, category: Category) -> list[str]:
    used = {item.mask.absolute() for item in category.test if item.mask}
    return [f"{path}: a mask without an image" for path in images_below(folder) if path.absolute() not in used]


def _incomplete(category: Category) -> list[str]:
    """What a data set lacks, which folders of one's own may lack."""
    problems = [f"{item.path}: no mask" for item in category.test if item.anomalous and not item.mask]
    for kind, wanted in (("normal", False), ("defective", True)):
        if not any(item.anomalous == wanted for item in category.test):
            problems.append(f"{category.name}: no {kind} test images")
    return problems


def _differences(report: CategoryReport) -> list[str]:
    """Where a category of MVTec AD differs from what was published."""
    truth = published().get(report.category)
    if truth is None:
        return []
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
    return [
        f"{report.category}: {found} {what}, expected {wanted}" for what, found, wanted in counts if found != wanted
    ]
