"""How well scores and maps tell defects from normal: arrays in, numbers out, all of them exact.

A figure that isn't defined, because there are no defects or nothing else, is None.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.ndimage
from numpy.typing import NDArray
from sklearn.metrics import auc, confusion_matrix_at_thresholds

Bools = NDArray[np.bool_]
Floats = NDArray[np.floating]

_EIGHT_CONNECTED = np.ones((3, 3))


@dataclass(frozen=True)
class Metrics:
    """The figures of one category, in 0..1 but for the thresholds, which are distances.

    Both F1 thresholds are chosen on the images that they are measured on.
    """

    image_auroc: float | None
    image_f1_max: float | None
    image_f1_threshold: float | None
    pixel_auroc: float | None
    pixel_ap: float | None
    pixel_f1_max: float | None
    pixel_f1_threshold: float | None
    aupro: float | None


@dataclass(frozen=True)
class Curve:
    """How many normal and how many anomalous entries score at or above each threshold.

    Attributes:
        false_positives: counts `[t]`, from the highest threshold to the lowest.
        true_positives: counts `[t]`.
        thresholds: every distinct score, descending, `[t]`.
    """

    false_positives: Floats
    true_positives: Floats
    thresholds: Floats

    @classmethod
    def of(cls, labels: Bools, scores: Floats) -> Curve | None:
        """The curve of labels and scores of any one shape; None unless there are both kinds."""
        if not _both_kinds(labels):
            return None
        _, false_positives, _, true_positives, thresholds = confusion_matrix_at_thresholds(
            labels.ravel(), scores.ravel()
        )
        return cls(false_positives, true_positives, thresholds)

    def auroc(self) -> float:
        """Area under the ROC curve."""
        rates = (np.append(0, counts / counts[-1]) for counts in (self.false_positives, self.true_positives))
        return float(auc(*rates))

    def average_precision(self) -> float:
        """Sum of the precision at each threshold times the step in recall."""
        precision = self.true_positives / (self.true_positives + self.false_positives)
        return float(np.diff(self.true_positives, prepend=0) @ precision / self.true_positives[-1])

    def f1_max(self) -> tuple[float, float]:
        """The largest F1 of any threshold, and that threshold."""
        f1 = 2 * self.true_positives / (self.true_positives + self.false_positives + self.true_positives[-1])
        best = int(f1.argmax())
        return float(f1[best]), float(self.thresholds[best])


def evaluate(labels: Bools, scores: Floats, masks: Bools, maps: Floats) -> Metrics:
    """All figures of a category.

    Args:
        labels: whether each image is anomalous, `[n]`.
        scores: image scores `[n]`.
        masks: where the images that have a ground truth are defective, `[m, h, w]`.
        maps: the anomaly maps of those images, `[m, h, w]`.
    """
    overlap = aupro(masks, maps)
    images, pixels = Curve.of(labels, scores), Curve.of(masks, maps)
    image_f1, image_threshold = images.f1_max() if images else (None, None)
    pixel_f1, pixel_threshold = pixels.f1_max() if pixels else (None, None)
    return Metrics(
        image_auroc=images.auroc() if images else None,
        image_f1_max=image_f1,
        image_f1_threshold=image_threshold,
        pixel_auroc=pixels.auroc() if pixels else None,
        pixel_ap=pixels.average_precision() if pixels else None,
        pixel_f1_max=pixel_f1,
        pixel_f1_threshold=pixel_threshold,
        aupro=overlap,
    )


def aupro(masks: Bools, maps: Floats, limit: float = 0.3) -> float | None:
    """Area under the per-region overlap curve up to a false-positive rate, divided by that rate.

    Bergmann et al. 2020 (arXiv 1911.02357): the overlap is the plain mean over all 8-connected
    defect regions of the share that is found; the rate is over all normal pixels. Every distinct
    value is a threshold, and the curve is interpolated linearly at the limit.

    Args:
        masks: ground truth `[n, h, w]`.
        maps: anomaly maps `[n, h, w]`.
        limit: the largest false-positive rate, in 0..1.
    """
    if not _both_kinds(masks):
        return None
    descending = np.argsort(maps, axis=None)[::-1]
    scores = maps.ravel()[descending]
    false_positives = np.cumsum(~masks.ravel()[descending])
    at_limit = int(np.searchsorted(false_positives, limit * false_positives[-1]))
    end = int(np.searchsorted(-scores, -scores[at_limit], side="right"))  # all of equal value count at once

    weights = _region_weights(masks).ravel()
    overlap = np.cumsum(weights[descending[:end]]) / weights.sum()
    last_of_value = np.append(np.flatnonzero(np.diff(scores[:end])), end - 1)
    pro = np.append(0.0, overlap[last_of_value])
    fpr = np.append(0.0, false_positives[last_of_value] / false_positives[-1])
    beyond = int(np.searchsorted(fpr, limit))  # the first point at the limit or past it
    share = (limit - fpr[beyond - 1]) / (fpr[beyond] - fpr[beyond - 1])
    pro_at_limit = pro[beyond - 1] + share * (pro[beyond] - pro[beyond - 1])
    area = np.trapezoid(np.append(pro[:beyond], pro_at_limit), np.append(fpr[:beyond], limit))
    return float(area / limit)


def _region_weights(masks: Bools) -> Floats:
    """What each pixel adds to the summed overlap: 1 / area of its region, 0 outside; `[n, h, w]`."""
    weights = np.zeros(masks.shape)
    for mask, weight in zip(masks, weights, strict=True):
        regions, _ = scipy.ndimage.label(mask, structure=_EIGHT_CONNECTED)
        areas = np.bincount(regions.ravel())
        weight[mask] = 1 / areas[regions[mask]]
    return weights


def _both_kinds(labels: Bools) -> bool:
    return bool(labels.any()) and not bool(labels.all())
