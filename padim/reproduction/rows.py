"""The rows of a table: the figures of every category, and the means of groups of them, beside published ones."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from padim.data.check import published as mvtec_ad
from padim.reproduction import published

# The figures of a category's runs, one per seed.
_Seeds = Sequence[Mapping[str, Any]]
_Several = Sequence[_Seeds]

# By the name of the category.
Results = Mapping[str, _Seeds]


class Column(NamedTuple):
    """A column of a table.

    Attributes:
        heading: what stands above it.
        figure: what a run calls it.
        digits: how many are printed after the point.
    """

    heading: str
    figure: str
    digits: int


METRICS = {
    "image": Column("image AUROC", "image_auroc", 4),
    "pixel": Column("pixel AUROC", "pixel_auroc", 4),
    "aupro": Column("AUPRO 0.3", "aupro", 4),
    "ap": Column("pixel AP", "pixel_ap", 4),
    "f1": Column("pixel F1", "pixel_f1_max", 4),
}
COSTS = {
    "seconds": Column("training s", "seconds", 1),
    "speed": Column("images/s", "images_per_second", 1),
    "memory": Column("peak GB", "peak_memory_gb", 2),
}
COLUMNS = METRICS | COSTS

COUNTS = ("train", "images", "skipped", "unmasked")


@dataclass(frozen=True)
class Cell:
    """A figure of a table, metrics in 0..1; each is None where there is none.

    Attributes:
        mean: over the seeds.
        deviation: standard deviation over the seeds, where there are several.
        published: what was published for it.
        difference: `mean - published`, where both are of the same images.
    """

    mean: float | None
    deviation: float | None
    published: float | None
    difference: float | None


@dataclass(frozen=True)
class TableRow:
    """A category or a group of them in a table.

    Attributes:
        name: what it is called.
        images: how many test images it has; with what could not be used, if anything.
        missing: of a category, how few of MVTec AD's images it has; "" if all, or if it is no such category.
        is_mean: whether it is the mean of a group.
        cells: the figures, by the names of `COLUMNS`.
    """

    name: str
    images: str
    missing: str
    is_mean: bool
    cells: dict[str, Cell]

    @property
    def label(self) -> str:
        """Its name, with a mark if it is incomplete."""
        return f"{self.name}†" if self.missing else self.name


def table_rows(protocol: str | None, results: Results) -> list[TableRow]:
    """The rows of an experiment, as in the paper: textures, objects, and the means of groups below.

    A mean that may stand beside a published one is over whole categories of MVTec AD, and the
    published one over the same categories.

    Args:
        protocol: what `padim.reproduction.published` knows the experiment by, if it does.
        results: the figures of each category, equally many seeds for each.
    """
    known = published.GROUPS["all"]
    order = [name for name in known if name in results] + sorted(set(results) - set(known))
    missing = {name: _missing(name, results[name][0]) for name in order}
    rows = []
    for name in order:
        truth = {metric: published.category_figure(protocol, metric, name) for metric in COLUMNS}
        rows.append(_row(name, [results[name]], truth, missing[name]))
    for group, members in published.GROUPS.items():
        whole = tuple(name for name in members if missing.get(name) == "")
        if whole:
            count = "" if whole == members else f" (mean of {len(whole)} of {len(members)})"
            truth = {metric: published.group_figure(protocol, metric, group, whole) for metric in COLUMNS}
            rows.append(_row(f"{group}{count}", [results[name] for name in whole], truth))
    if len(order) > 1 and any(missing[name] or name not in known for name in order):
        rows.append(_row(f"mean of these {len(order)}", [results[name] for name in order], {}))
    return rows


def _row(name: str, results: _Several, truth: Mapping[str, float | None], missing: str | None = None) -> TableRow:
    """The row of a category, of which `missing` says what it lacks, or of several."""
    cells = {key: _cell(results, column.figure, truth.get(key), not missing) for key, column in COLUMNS.items()}
    return TableRow(name, _images(results), missing or "", missing is None, cells)


def _missing(category: str, figures: Mapping[str, Any]) -> str:
    """`25 of 264 training images, 14 of 78 test images` of a category that lacks some of MVTec AD's, else nothing."""
    truth = mvtec_ad().get(category)
    if truth is None:
        return ""
    defective = sum(truth["defects"].values())
    counts = {
        "training images": (figures["train"], truth["train"]),
        "test images": (figures["images"], truth["good"] + defective),
        "masks": (defective - figures["unmasked"], defective),
    }
    return ", ".join(f"{found} of {whole} {what}" for what, (found, whole) in counts.items() if found < whole)


def _images(results: _Several) -> str:
    """`83`, or `80 (3 skipped, 1 without mask)`."""
    first = [seeds[0] for seeds in results]
    counts = {name: sum(figures[name] for figures in first) for name in COUNTS}
    named = {"skipped": counts["skipped"], "without mask": counts["unmasked"]}
    problems = ", ".join(f"{count} {name}" for name, count in named.items() if count)
    return f"{counts['images']} ({problems})" if problems else str(counts["images"])


def _cell(results: _Several, figure: str, truth: float | None, comparable: bool) -> Cell:
    """The mean over categories, then mean and deviation over seeds; none where a category has no figure."""
    figures = [[entry[figure] for entry in seed] for seed in zip(*results, strict=True)]
    if any(value is None for seed in figures for value in seed):
        return Cell(None, None, truth, None)
    by_seed = [statistics.mean(seed) for seed in figures]
    mean = statistics.mean(by_seed)
    return Cell(
        mean,
        statistics.stdev(by_seed) if len(by_seed) > 1 else None,
        truth,
        mean - truth if comparable and truth is not None else None,
    )
