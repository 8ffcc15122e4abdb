"""Operating points: how many normal images a threshold rejects, how many defects it finds, and what could be better."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from padim.calibration import Calibration, Thresholds
from padim.evaluation.metrics import Curve

if TYPE_CHECKING:
    from padim.detectors.scores import Scorer
    from padim.evaluation.category import ImageResult

# The false-alarm rates that are looked at beside the one that was chosen.
RATES = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1)

# With a smaller share of the defects found, there is advice.
_FEW = 0.8


@dataclass(frozen=True)
class OperatingPoint:
    """What a false-alarm rate means on the test images.

    Attributes:
        false_alarm_rate: the share of fresh normal images that may be called anomalous.
        threshold: the image score for it; None where the training images are too few for the rate.
        false_alarms: the share of the normal test images that reach it, where there are any.
        defects_found: the share of the defective ones.
    """

    false_alarm_rate: float
    threshold: float | None = None
    false_alarms: float | None = None
    defects_found: float | None = None


@dataclass(frozen=True)
class DefectType:
    """How well the defects of one type are found.

    Attributes:
        name: of the type.
        images: how many images have it.
        found: the share of them that reaches the threshold; None without one.
        outside: how many of them have their defect outside what the model sees.
        image_auroc: of these images against the normal test images, where there are any.
    """

    name: str
    images: int
    found: float | None
    outside: int
    image_auroc: float | None


def flagged(images: Sequence[ImageResult], threshold: float | None) -> float | None:
    """The share of images that are anomalous by a threshold; None without a threshold or an image."""
    return None if not images or threshold is None else count_flagged(images, threshold) / len(images)


def count_flagged(images: Sequence[ImageResult], threshold: float) -> int:
    """How many images are anomalous by a threshold."""
    return sum(bool(Thresholds(threshold).is_anomalous(image.score, found=image.found)) for image in images)


def operating_points(images: Sequence[ImageResult], calibration: Calibration | None) -> list[OperatingPoint]:
    """What each of `RATES` means on test images; nothing without a calibration."""
    if calibration is None:
        return []
    normal, defective = split(images)
    points = []
    for rate in RATES:
        threshold = calibration.threshold(rate) if rate >= calibration.smallest_rate() else None
        points.append(OperatingPoint(rate, threshold, flagged(normal, threshold), flagged(defective, threshold)))
    return points


def defect_types(images: Sequence[ImageResult], threshold: float | None) -> list[DefectType]:
    """The defect types of test images, by name."""
    normal, defective = split(images)
    types = []
    for name in sorted({str(image.item.defect) for image in defective}):
        own = [image for image in defective if image.item.defect == name]
        labels = np.repeat([False, True], [len(normal), len(own)])
        scores = np.array([image.score for image in [*normal, *own]])
        auroc = Curve.of(labels, scores).area() if normal else None
        outside = sum(image.outside for image in own)
        types.append(DefectType(name, len(own), flagged(own, threshold), outside, auroc))
    return types


def advice(images: Sequence[ImageResult], thresholds: Thresholds, scorer: Scorer) -> list[str]:
    """What a user should know of the figures of a model, and may try, a sentence each."""
    calibration, rate = scorer.calibration, thresholds.false_alarm_rate
    found = flagged(split(images)[1], thresholds.threshold)
    known, outside = len(calibration.scores) if calibration else 0, describe_outside(images, scorer)
    said = [outside] if outside else []
    if rate is not None and calibration and math.floor(rate * (known + 1) + 1e-9) == 1:
        said.append(
            f"the threshold rests on the highest score of {known} training images alone: train with more images, or"
            f" choose a larger --false-alarm-rate than {rate:.3g}"
        )
    if found is not None and found < _FEW:
        moved = scorer.alignment is not None or scorer.ignored is not None
        align = "" if moved else ", and --align for parts that lie shifted or turned"
        said.append(
            f"{found:.0%} of the defects are found: a larger --false-alarm-rate finds more; so may more training"
            f" images, a larger --size for small defects{align}"
        )
    return said


def describe_outside(images: Sequence[ImageResult], scorer: Scorer) -> str | None:
    """How many defects lie outside what a model sees, if any, in a sentence."""
    defective = split(images)[1]
    outside = sum(image.outside for image in defective)
    if not outside:
        return None
    cure = ": --size in training crops nothing" if scorer.config.crop else ""
    ignored = ", or in what it ignores" if scorer.ignored is not None else ""
    return f"{outside} of {len(defective)} defects lie outside what the model sees{ignored}{cure}"


def split(images: Sequence[ImageResult]) -> tuple[list[ImageResult], list[ImageResult]]:
    """The normal and the defective ones."""
    normal = [image for image in images if not image.item.anomalous]
    return normal, [image for image in images if image.item.anomalous]
