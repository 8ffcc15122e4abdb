"""How well scores and maps tell defects from normal: arrays in, numbers out, all of them exact.

A figure that isn't defined, because there are no defects or nothing else, is None.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from padim.evaluation.regions import connected

Bools = NDArray[np.bool_]
Floats = NDArray[np.floating]
Ints = NDArray[np.integer]

# The false-positive rate up to which AUPRO is measured.
PRO_LIMIT = 0.3


@dataclass(frozen=True)
class Metrics:
    """The figures of one category, in 0..1 but for the thresholds, which are distances.

    The thresholds, of the largest F1 and of Youden's index (the true-positive rate less the
    false-positive rate), are chosen on the images that they are measured on.
    """

    image_auroc: float | None
    image_f1_max: float | None
    image_f1_threshold: float | None
    image_youden_threshold: float | None
    pixel_auroc: float | None
    pixel_ap: float | None
    pixel_f1_max: float | None
    pixel_f1_threshold: float | None
    aupro: float | None


@dataclass(frozen=True)
class Curve:
    """True and false positives at every threshold that matters.

    Those are the distinct scores of anomalous entries: between two of them a lower threshold only
    flags more normal entries, which makes a straight line of the ROC curve and a worse F1.

    Attributes:
        thresholds: the distinct scores of anomalous entries, descending, `[t]`.
        true_positives: weight of the anomalous entries at or above each threshold, `[t]`; the last is all of it.
        false_positives: how many normal entries score at or above each threshold, `[t]`.
        false_above: how many score above it, `[t]`.
        normal: how many normal entries there are.
    """

    thresholds: Floats
    true_positives: Floats
    false_positives: Ints
    false_above: Ints
    normal: int

    @classmethod
    def of(cls, labels: Bools, scores: Floats, weights: Floats | None = None) -> Curve:
        """The curve of labels and scores of any one shape; there must be labels of both kinds.

        Args:
            labels: which entries are anomalous.
            scores: their scores, all finite.
            weights: of the anomalous entries, in their order; 1 by default.
        """
        anomalous, normal = scores[labels], np.sort(scores[~labels])
        order = np.argsort(anomalous)[::-1]
        descending = anomalous[order]
        last = np.append(descending[1:] != descending[:-1], True)  # of the entries with one score
        thresholds = descending[last]
        reached = np.arange(1.0, len(order) + 1) if weights is None else np.cumsum(weights[order])
        return cls(
            thresholds,
            reached[last],
            len(normal) - np.searchsorted(normal, thresholds, side="left"),
            len(normal) - np.searchsorted(normal, thresholds, side="right"),
            len(normal),
        )

    @property
    def recall(self) -> Floats:
        """The true-positive rate at each threshold, `[t]`."""
        rate: Floats = self.true_positives / self.true_positives[-1]
        return rate

    def points(self) -> tuple[Floats, Floats]:
        """The corners of the ROC curve, from (0, 0) to (1, 1): false-positive rate and recall, `[2 t + 2]`."""
        rate = np.column_stack([self.false_above, self.false_positives]).ravel() / self.normal
        return np.concatenate([[0], rate, [1]]), np.concatenate([[0, 0], np.repeat(self.recall, 2)])

    def thinned_points(self, most: int) -> tuple[Floats, Floats]:
        """So many of the corners, evenly along the curve, the first and the last among them."""
        rate, recall = self.points()
        kept = np.unique(np.searchsorted(rate + recall, np.linspace(0, 2, most)))
        return rate[kept], recall[kept]

    def area(self, limit: float = 1.0) -> float:
        """Area under the ROC curve up to a false-positive rate in 0..1, divided by that rate."""
        rate, recall = self.points()
        beyond = int(np.searchsorted(rate, limit))  # the first corner at the limit or past it
        share = (limit - rate[beyond - 1]) / (rate[beyond] - rate[beyond - 1])
        at_limit = recall[beyond - 1] + share * (recall[beyond] - recall[beyond - 1])
        return float(np.trapezoid(np.append(recall[:beyond], at_limit), np.append(rate[:beyond], limit)) / limit)

    def average_precision(self) -> float:
        """Sum of the precision at each threshold times the step in recall."""
        precision = self.true_positives / (self.true_positives + self.false_positives)
        return float(np.diff(self.recall, prepend=0) @ precision)

    def f1_max(self) -> tuple[float, float]:
        """The largest F1 of any threshold, and that threshold."""
        f1 = 2 * self.true_positives / (self.true_positives + self.false_positives + self.true_positives[-1])
        best = int(f1.argmax())
        return float(f1[best]), float(self.thresholds[best])

    def youden_threshold(self) -> float:
        """The threshold of the largest difference between recall and false-positive rate."""
        return float(self.thresholds[(self.recall - self.false_positives / self.normal).argmax()])


def measure(labels: Bools, scores: Floats, masks: Bools, maps: Floats) -> Metrics:
    """All metrics of a category.

    Args:
        labels: whether each image is anomalous, `[n]`.
        scores: image scores `[n]`.
        masks: where the images that have a ground truth are defective, `[m, h, w]`.
        maps: the anomaly maps of those images, `[m, h, w]`; pixels that are NaN count for nothing.
    """
    images = Curve.of(labels, scores) if _both_kinds(labels) else None
    seen_masks, seen_maps = seen_pixels(masks, maps)
    pixels = Curve.of(seen_masks, seen_maps) if _both_kinds(seen_masks) else None
    image_f1, image_threshold = images.f1_max() if images else (None, None)
    pixel_f1, pixel_threshold = pixels.f1_max() if pixels else (None, None)
    return Metrics(
        image_auroc=images.area() if images else None,
        image_f1_max=image_f1,
        image_f1_threshold=image_threshold,
        image_youden_threshold=images.youden_threshold() if images else None,
        pixel_auroc=pixels.area() if pixels else None,
        pixel_ap=pixels.average_precision() if pixels else None,
        pixel_f1_max=pixel_f1,
        pixel_f1_threshold=pixel_threshold,
        aupro=pro_curve(masks, maps).area(PRO_LIMIT) if pixels else None,
    )


def pro_curve(masks: Bools, maps: Floats) -> Curve:
    """The per-region overlap curve; AUPRO is its area up to `PRO_LIMIT`.

    Bergmann et al. 2020 (arXiv 1911.02357): the overlap is the plain mean over all 8-connected
    defect regions of the share of their pixels that is found; the rate is over all normal pixels.

    Args:
        masks: ground truth `[n, h, w]`, with pixels of both kinds.
        maps: anomaly maps `[n, h, w]`; pixels that are NaN count for nothing.
    """
    weights = []
    for mask, seen in zip(masks, ~np.isnan(maps), strict=True):
        regions, _ = connected(mask)
        inside = regions[mask & seen]
        weights.append(1 / np.bincount(inside)[inside])  # every region counts as much as any other
    return Curve.of(*seen_pixels(masks, maps), np.concatenate(weights))


def seen_pixels(masks: Bools, maps: Floats) -> tuple[Bools, Floats]:
    """The pixels of masks and maps `[n, h, w]` that a model has seen, those whose distance is not NaN: `[k]` each."""
    seen = ~np.isnan(maps)
    return (masks, maps) if seen.all() else (masks[seen], maps[seen])


def _both_kinds(labels: Bools) -> bool:
    return bool(labels.any()) and not bool(labels.all())
