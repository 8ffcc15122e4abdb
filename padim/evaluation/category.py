"""One category evaluated: images through a model, scores and maps into the metrics."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from padim.calibration import Thresholds, shortest
from padim.data.items import Item
from padim.data.loader import Sample, batched
from padim.data.transform import Box, Transform
from padim.detectors.scores import Scorer
from padim.evaluation.metrics import Bools, Curve, Floats, Metrics, measure, seen_pixels
from padim.evaluation.operating import DefectType, OperatingPoint, flagged

if TYPE_CHECKING:
    from padim.poses.alignment import PartPose


@dataclass(frozen=True)
class ImageResult:
    """One scored image of a data set.

    Attributes:
        item: what it is.
        score: its image score.
        anomaly_map: `[h, w]`, from a detector that has maps; NaN where it has not seen enough, or ignores.
        mask: where it is defective, `[h, w]`, where that is known.
        seen: the part of the image that the model sees, in its pixels.
        outside: whether all that is defective lies outside what the model sees.
        image: RGB, uint8, `[h, w, 3]`, as the model has seen it, where it was asked for.
        embedding: `[d]`, from a detector that compares whole images.
        part: how the part lies in the image, from a model that aligns them.
    """

    item: Item
    score: float
    anomaly_map: Floats | None
    mask: Bools | None
    seen: Box
    outside: bool
    image: NDArray[np.uint8] | None
    embedding: Floats | None = None
    part: PartPose | None = None

    @property
    def found(self) -> bool:
        """Whether the image agrees with the model's reference, if that has one."""
        return self.part is None or self.part.found

    def summary(self) -> dict[str, Any]:
        """The score as plain values, for JSON."""
        line: dict[str, Any] = {"path": str(self.item.path), "defect": self.item.defect, "score": self.score}
        line |= {"pose": self.part.summary()} if self.part else {}
        return line | ({"outside": True} if self.outside else {})


@dataclass(frozen=True)
class Evaluation:
    """How well a model finds the defects of a category's test images.

    Attributes:
        category: what was evaluated.
        metrics: the figures.
        images: every scored image.
        skipped: how many images could not be used.
        unmasked: how many defective images have no mask; the pixel figures are without them.
        thresholds: what is anomalous.
        points: what other false-alarm rates mean.
        defects: how well each type of defects is found.
        advice: what a user should know of the figures, and may try.
        remark: what has to be said beside the figures, if anything.
        report: the HTML page, where one was written.
        seconds: how long it took.
        memory: the most memory in bytes that the process has had, and on a GPU.
    """

    category: str
    metrics: Metrics
    images: Sequence[ImageResult]
    skipped: int
    unmasked: int
    thresholds: Thresholds
    points: Sequence[OperatingPoint]
    defects: Sequence[DefectType]
    advice: Sequence[str]
    remark: str | None
    report: Path | None
    seconds: float
    memory: dict[str, int]

    def flagged(self, *, anomalous: bool) -> float | None:
        """The share of the normal or the anomalous images that reach the threshold; None where that isn't known.

        It is the false-positive rate of the normal images, and the recall of the anomalous ones.
        """
        images = [image for image in self.images if image.item.anomalous == anomalous]
        return flagged(images, self.thresholds.threshold)

    def summary(self) -> dict[str, Any]:
        """The figures as plain values, for JSON."""
        return {
            "category": self.category,
            "images": len(self.images),
            "defective": sum(image.item.anomalous for image in self.images),
            "skipped": self.skipped,
            "unmasked": self.unmasked,
            "defects_outside": sum(image.outside for image in self.images),
            "poses_not_found": sum(not image.found for image in self.images),
            **dataclasses.asdict(self.metrics),
            **dataclasses.asdict(self.thresholds),
            "false_alarms": self.flagged(anomalous=False),
            "defects_found": self.flagged(anomalous=True),
            "rates": [dataclasses.asdict(point) for point in self.points],
            "defect_types": [dataclasses.asdict(defect) for defect in self.defects],
            "advice": self.advice,
            "remark": self.remark,
            "seconds": round(self.seconds, 3),
            "images_per_second": round(len(self.images) / self.seconds, 2),
            **self.memory,
        }


def score_samples(
    scorer: Scorer, samples: Iterable[Sample], batch_size: int, *, keep_images: bool = False
) -> list[ImageResult]:
    """What a fitted model says of labelled samples.

    Holds the maps of all images, 4 bytes per pixel, since exact pixel metrics need every value.

    Args:
        scorer: what scores them.
        samples: the images with their labels and masks.
        batch_size: how many are scored at a time.
        keep_images: whether the results carry the images too.
    """
    results = []
    transform = Transform.of(scorer.config)
    for batch in batched(samples, batch_size):
        scores, maps, embeddings, parts = scorer.score_pixels(np.stack([sample.image for sample in batch]))
        for index, sample in enumerate(batch):
            a_map = None if maps is None else maps[index]
            results.append(
                ImageResult(
                    sample.item,
                    shortest(scores[index]),
                    a_map,
                    sample.mask,
                    transform.seen(*sample.size),
                    sample.outside or _unseen(sample.mask, a_map),
                    sample.image if keep_images else None,
                    None if embeddings is None else embeddings[index],
                    None if parts is None else parts[index],
                )
            )
    return results


def metrics_of(results: Sequence[ImageResult], size: tuple[int, int]) -> Metrics:
    """The metrics of scored images, whose maps have a height and width."""
    masks, maps = masks_and_maps(results)
    return measure(*_labels_and_scores(results), masks.reshape(-1, *size), maps.reshape(-1, *size))


def roc_curves(results: Sequence[ImageResult]) -> dict[str, Curve]:
    """The ROC curves of the `images` and of the `pixels`, as far as there are normal and anomalous ones of them."""
    entries = {"images": _labels_and_scores(results), "pixels": seen_pixels(*masks_and_maps(results))}
    return {name: Curve.of(*each) for name, each in entries.items() if each[0].any() and not each[0].all()}


def masks_and_maps(results: Sequence[ImageResult]) -> tuple[Bools, Floats]:
    """Masks and anomaly maps `[m, h, w]` of the images that have both."""
    both = [result for result in results if result.mask is not None and result.anomaly_map is not None]
    masks = np.array([result.mask for result in both], dtype=bool)
    return masks, np.array([result.anomaly_map for result in both])


def _labels_and_scores(results: Sequence[ImageResult]) -> tuple[Bools, Floats]:
    """Whether each image is anomalous, and its score, `[n]`."""
    return np.array([result.item.anomalous for result in results]), np.array([result.score for result in results])


def _unseen(mask: Bools | None, anomaly_map: Floats | None) -> bool:
    """Whether there are defective pixels, and the model has seen none of them."""
    if mask is None or anomaly_map is None or not mask.any():
        return False
    return bool(np.isnan(anomaly_map[mask]).all())
