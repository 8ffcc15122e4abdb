"""Evaluate on a category: score its test images, measure, and write what was found. It needs no torch of its own."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

from padim.calibration import Thresholds
from padim.data.items import GOOD, Category, Item
from padim.data.layouts import EXPECTED
from padim.data.loader import ImageLoader
from padim.data.transform import Transform
from padim.detectors.scores import Scorer
from padim.errors import PadimError
from padim.evaluation.category import Evaluation, ImageResult, metrics_of, score_samples
from padim.evaluation.operating import advice, defect_types, operating_points
from padim.pipeline.remembered import unusual_images
from padim.storage.files import write_json
from padim.system.machine import peak_memory
from padim.system.progress import OnProgress, silent, tracked

# So many of the training images that stood out are in the report.
_SHOWN = 12


def evaluate_category(
    scorer: Scorer,
    category: Category,
    output: Path | str | None = None,
    *,
    false_alarm_rate: float | None = None,
    batch_size: int | None = None,
    workers: int = 1,
    strict: bool = False,
    report: bool = False,
    trained_in: Path | None = None,
    progress: OnProgress = silent,
) -> Evaluation:
    """Score the test images of a category and measure how well their defects are found.

    Args:
        scorer: a fitted detector, or an exported model.
        category: the images.
        output: folder of the models; `OUTPUT/CATEGORY/eval.json` is written there. None writes nothing.
        false_alarm_rate: the share of fresh normal images that the threshold may flag, by default the model's own.
        batch_size: images that are scored at a time, by default as trained.
        workers: threads that read images.
        strict: whether the first unreadable image or mask is an error; else it is skipped and counted.
        report: whether to write `report.html`, too, which needs no test images to show training images that stood out.
        trained_in: the folder of the model, whose `train.json` names them; by default where the results go.
        progress: is told how far it has come.

    Raises:
        PadimError: there are no test images, none can be read, or the model can't vouch for the rate.
    """
    start = time.perf_counter()
    if not category.test and not (report and output):
        raise PadimError(f"category {category.name!r} has no test images: {EXPECTED}")
    thresholds = Thresholds.calibrated(scorer.calibration, scorer.provenance.false_alarm_rate, false_alarm_rate)
    loader = ImageLoader(category.test, Transform.of(scorer.config), workers=workers, strict=strict)
    samples = tracked(loader, category.name, progress)
    size = batch_size or scorer.config.batch_size
    images = score_samples(scorer, samples, size, keep_images=report)
    if category.test and not images:
        raise PadimError("no test image could be read")
    metrics = metrics_of(images, scorer.config.image_size)
    counts = loader.skipped, loader.unmasked
    folder = Path(output, category.name) if output is not None else None
    page = folder / "report.html" if folder and report else None
    seconds = time.perf_counter() - start
    found = Evaluation(
        category.name,
        metrics,
        images,
        *counts,
        thresholds,
        operating_points(images, scorer.calibration),
        defect_types(images, thresholds.threshold),
        advice(images, thresholds, scorer),
        scorer.config.remark,
        page,
        seconds,
        peak_memory(),
    )
    if folder and images:
        scores = [image.summary() for image in images]
        write_json(folder / "eval.json", found.summary() | {"config": scorer.config.to_dict(), "scores": scores})
    if folder and report:
        from padim.report.page import write_report

        write_report(folder, found, scorer, _unusual(trained_in or folder, scorer, workers, size))
    return found


def _unusual(folder: Path, scorer: Scorer, workers: int, batch_size: int) -> list[ImageResult]:
    """The training images that stood out, with the scores that they had when they were left out of the fit."""
    scores = dict(list(unusual_images(folder).items())[:_SHOWN])
    loader = ImageLoader([Item(path, GOOD) for path in scores], Transform.of(scorer.config), workers=workers)
    results = score_samples(scorer, loader, batch_size, keep_images=True)
    return [dataclasses.replace(result, score=scores[result.item.path]) for result in results]
