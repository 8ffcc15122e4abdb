"""padim-eval: how well trained models find the defects of their test images."""

from __future__ import annotations

import dataclasses
import json
import logging
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from padim.cli.common import (
    USER_ERROR,
    Parser,
    add_data_option,
    add_folder_options,
    add_machine_options,
    add_output_option,
    add_rate_option,
    add_report_option,
    add_scoring_options,
    aligned,
    category_from,
    command,
    in_own_folders,
    peak_memory,
    pick_device,
    progress,
    threshold_summary,
)
from padim.errors import PadimError

if TYPE_CHECKING:
    import argparse

    from padim.config import BaseConfig
    from padim.data.items import Category
    from padim.data.loader import ImageLoader
    from padim.detectors.contract import Detector
    from padim.evaluation.evaluate import ImageResult

log = logging.getLogger(__name__)

# Column heading -> key of the result.
_COLUMNS = {
    "image AUROC": "image_auroc",
    "pixel AUROC": "pixel_auroc",
    "AUPRO 0.3": "aupro",
    "pixel AP": "pixel_ap",
    "pixel F1-max": "pixel_f1_max",
    "at": "pixel_f1_threshold",
    "image F1-max": "image_f1_max",
    "at ": "image_f1_threshold",
    "threshold": "threshold",
    "false alarms": "false_alarms",
    "found": "defects_found",
}
_NO_MEAN = ("pixel_f1_threshold", "image_f1_threshold", "threshold")


def parser() -> Parser:
    """The command's options."""
    result = Parser(
        prog="padim-eval",
        description="Score the test images of categories with their trained models and print the figures.",
    )
    result.add_argument(
        "--category", nargs="+", default=["all"], metavar="NAME", help="categories (default: all trained ones)"
    )
    add_data_option(result)
    add_folder_options(result, train=False)
    add_output_option(result)
    add_scoring_options(result)
    add_machine_options(result)
    add_rate_option(result, "as trained")
    add_report_option(result)
    result.add_argument("--json", action="store_true", help="print one JSON object a category instead of the table")
    return result


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    options = parser().parse_args(arguments)
    names = list(dict.fromkeys(options.category))
    if "all" in names:
        names = sorted(path.parent.name for path in options.output.glob("*/model.safetensors"))
        if not names:
            raise PadimError(f"no trained model under {options.output}: run padim-train first, or pass --output DIR")
    if in_own_folders(options) and len(names) > 1:
        raise PadimError(f"--test and --defect are for one model: pass --category with one of {', '.join(names)}")
    results: list[dict[str, Any]] = []
    for name in names:
        try:
            result = _load_and_evaluate(name, options)
        except PadimError as error:  # the other categories are evaluated all the same
            log.error("%s: %s", name, error)
            continue
        if options.json:
            print(json.dumps(result), flush=True)
        results.append(result)
    if results and not options.json:
        print(table(results))
    return 0 if len(results) == len(names) else USER_ERROR


def _load_and_evaluate(category: str, options: argparse.Namespace) -> dict[str, Any]:
    from padim.detectors.registry import load

    model = load(
        options.output / category / "model.safetensors",
        weights=options.weights,
        device=pick_device(options.device),
        precision=options.precision,
    )
    loader = read_test_images(category_from(options, category), model.config, options)
    return evaluate_category(model, category, loader, options)


def read_test_images(category: Category, config: BaseConfig, options: argparse.Namespace) -> ImageLoader:
    """The category's test images.

    Raises:
        PadimError: there is none.
    """
    from padim.data.layouts import EXPECTED
    from padim.data.loader import ImageLoader
    from padim.data.transform import Transform

    if not category.test:
        missing = "pass --test or --defect" if in_own_folders(options) else EXPECTED
        raise PadimError(f"category {category.name!r} has no test images: {missing}")
    return ImageLoader(category.test, Transform.of(config), workers=options.workers, strict=options.strict)


def evaluate_category(
    model: Detector, category: str, loader: ImageLoader, options: argparse.Namespace
) -> dict[str, Any]:
    """Evaluate a model on its category; writes `eval.json`, and a report if asked for, and returns the figures."""
    from padim.evaluation.evaluate import evaluate_model
    from padim.storage.files import write_json

    start = time.perf_counter()
    batch_size = options.batch_size or model.config.batch_size
    samples = progress(loader, len(loader), category)
    embed = model.embed if options.report else None
    metrics, images = evaluate_model(model, samples, batch_size, keep_images=options.report, embed=embed)
    verdict = threshold_summary(model, options.false_alarm_rate)
    figures = {
        "category": category,
        "images": len(images),
        "defective": sum(image.item.anomalous for image in images),
        "skipped": loader.skipped,
        "unmasked": loader.unmasked,
        **dataclasses.asdict(metrics),
        **verdict,
        **_flagged(images, verdict["threshold"]),
        "remark": model.remark,
        "seconds": round(time.perf_counter() - start, 3),
        **peak_memory(model.device),
    }
    if model.remark:
        log.warning("%s: %s", category, model.remark)
    if loader.unmasked:
        log.warning(
            "%s: %d defective images have no mask; the pixel figures are without them", category, loader.unmasked
        )
    folder = options.output / category
    scores = [{"path": str(image.item.path), "defect": image.item.defect, "score": image.score} for image in images]
    write_json(folder / "eval.json", figures | {"config": model.config.to_dict(), "scores": scores})
    if options.report:
        from padim.report.colours import ColourScale
        from padim.report.page import write_report

        scale = ColourScale.about(verdict["threshold"], model.dimensions)
        known = None if model.embeddings is None else model.embeddings.numpy()
        thresholds = verdict["threshold"], verdict["pixel_threshold"]
        page = write_report(folder, category, metrics, images, scale, *thresholds, known, model.remark)
        print(f"report: {page}", file=sys.stderr)
    return figures


def _flagged(images: Sequence[ImageResult], threshold: float | None) -> dict[str, float | None]:
    """Which share of the normal images a threshold flags, and of the defective ones."""
    shares: dict[str, float | None] = {}
    for name, anomalous in (("false_alarms", False), ("defects_found", True)):
        scores = [image.score for image in images if image.item.anomalous == anomalous]
        known = bool(scores) and threshold is not None
        shares[name] = sum(score >= (threshold or 0.0) for score in scores) / len(scores) if known else None
    return shares


def table(results: Sequence[dict[str, Any]]) -> str:
    """The results as text, one row a category and their plain mean."""
    means = {key: None if key in _NO_MEAN else _mean(results, key) for key in _COLUMNS.values()}
    total = {"category": "mean", "images": sum(result["images"] for result in results)}
    rows = [["category", "images", *(heading.strip() for heading in _COLUMNS)]]
    rows += [
        [row["category"], str(row["images"]), *(_figure(row[key]) for key in _COLUMNS.values())]
        for row in [*results, total | means]
    ]
    return aligned(rows)


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _mean(results: Sequence[dict[str, Any]], key: str) -> float | None:
    values = [result[key] for result in results if result[key] is not None]
    return sum(values) / len(values) if values else None


if __name__ == "__main__":
    sys.exit(main())
