"""How commands evaluate a category and print what was found."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from padim.cli.options import in_own_folders
from padim.cli.tables import aligned
from padim.errors import PadimError, printable

if TYPE_CHECKING:
    from padim.config import BaseConfig
    from padim.data.items import Category, Item
    from padim.detectors.scores import Scorer
    from padim.system.progress import OnProgress

log = logging.getLogger(__name__)

# Column heading and key of the result.
_COLUMNS = (
    ("image AUROC", "image_auroc"),
    ("pixel AUROC", "pixel_auroc"),
    ("AUPRO 0.3", "aupro"),
    ("pixel AP", "pixel_ap"),
    ("pixel F1-max", "pixel_f1_max"),
    ("at pixel", "pixel_f1_threshold"),
    ("image F1-max", "image_f1_max"),
    ("at score", "image_f1_threshold"),
    ("threshold", "threshold"),
    ("false alarms", "false_alarms"),
    ("found", "defects_found"),
)
_WITHOUT_MEAN = ("pixel_f1_threshold", "image_f1_threshold", "threshold")


def check_tests(category: Category, options: argparse.Namespace) -> None:
    """Raise a PadimError if there is nothing to evaluate on, before any work is done."""
    from padim.data.layouts import EXPECTED

    if not category.test and not (options.report and category.folders):
        missing = "pass --test or --defect" if in_own_folders(options) or category.folders else EXPECTED
        raise PadimError(f"category {category.name!r} has no test images: {missing}")


def evaluated(
    scorer: Scorer,
    category: Category,
    options: argparse.Namespace,
    progress: OnProgress,
    batch_size: int | None = None,
    trained_in: Path | None = None,
) -> list[dict[str, Any]]:
    """Evaluate a category as the options ask for, say what there is to say of it, and give its summary.

    There is none where only a report on the training images was wanted.
    """
    from padim.evaluation.operating import describe_outside
    from padim.pipeline.evaluate import evaluate_category

    evaluation = evaluate_category(
        scorer,
        category,
        options.output,
        false_alarm_rate=options.false_alarm_rate,
        batch_size=batch_size,
        workers=options.workers,
        strict=options.strict,
        report=options.report,
        trained_in=trained_in,
        progress=progress,
    )
    name, unmasked = evaluation.category, evaluation.unmasked
    if evaluation.remark:
        log.warning("%s: %s", name, evaluation.remark)
    outside = describe_outside(evaluation.images, scorer)
    for advice in evaluation.advice if options.detailed else filter(None, [outside]):
        log.warning("%s: %s", name, advice)
    if unmasked:
        log.warning("%s: %d defective images have no mask; the pixel figures are without them", name, unmasked)
    if evaluation.report:
        print(printable(f"report: {evaluation.report}"), file=sys.stderr)
    if not evaluation.images:
        return []
    summary = evaluation.summary()
    if options.json:
        print(json.dumps(summary), flush=True)
    return [summary]


def warn_of_crop(config: BaseConfig, name: str, items: Sequence[Item]) -> bool:
    """Say that a protocol leaves out much of the images of a category, if it does; returns whether it does."""
    from padim.pipeline.size import describe_crop

    crop = describe_crop(config, items)
    if crop:
        log.warning("%s: %s", name, crop)
    return crop is not None


def evaluation_tables(results: Sequence[Mapping[str, Any]], *, detailed: bool) -> str:
    """The summaries of evaluations as text; in detail also what rates mean, and each defect type."""
    tables = [_figures_table(results)]
    for result in results if detailed else ():
        tables += [_rates_table(result)] if result["rates"] else []
        tables += [_defects_table(result)] if result["defect_types"] else []
    return "\n\n".join(tables)


def _rates_table(result: Mapping[str, Any]) -> str:
    rows = [[result["category"], "threshold", "false alarms", "found"]]
    for point in result["rates"]:
        figures = [_figure(point[key]) for key in ("threshold", "false_alarms", "defects_found")]
        rows.append([f"rate {point['false_alarm_rate']:.1%}", *figures])
    return aligned(rows)


def _defects_table(result: Mapping[str, Any]) -> str:
    rows = [[result["category"], "images", "found", "outside", "image AUROC"]]
    for defect in result["defect_types"]:
        counts = str(defect["images"]), _figure(defect["found"]), str(defect["outside"])
        rows.append([defect["name"], *counts, _figure(defect["image_auroc"])])
    return aligned(rows)


def _figures_table(results: Sequence[Mapping[str, Any]]) -> str:
    """The figures, one row per category, and their plain mean where there are several."""
    means = {key: None if key in _WITHOUT_MEAN else _mean(results, key) for _, key in _COLUMNS}
    total = {"category": "mean", "images": sum(result["images"] for result in results)}
    rows = [["category", "images", *(heading for heading, _ in _COLUMNS)]]
    rows += [
        [row["category"], str(row["images"]), *(_figure(row[key]) for _, key in _COLUMNS)]
        for row in [*results, *([total | means] if len(results) > 1 else [])]
    ]
    return aligned(rows)


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _mean(results: Sequence[Mapping[str, Any]], key: str) -> float | None:
    values = [result[key] for result in results if result[key] is not None]
    return sum(values) / len(values) if values else None
