"""One category evaluated: images through a model, scores and maps into the metrics."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from padim.calibration import Thresholds
from padim.data.items import Item
from padim.data.loader import Sample, batched
from padim.detectors.scores import Scorer
from padim.errors import PadimError
from padim.evaluation.metrics import Bools, Floats, Metrics, measure

if TYPE_CHECKING:
    from padim.poses.alignment import PartPose


@dataclass(frozen=True)
class ImageResult:
    """One scored image of a data set.

    Attributes:
        item: what it is.
        score: its image score.
        anomaly_map: `[h, w]`, from a detector that has maps; NaN where an aligned model has not seen enough.
        mask: where it is defective, `[h, w]`, where that is known.
        image: RGB, uint8, `[h, w, 3]`, as the model has seen it, where it was asked for.
        embedding: `[d]`, from a detector that compares whole images.
        part: how the part lies in the image, from a model that aligns them.
    """

    item: Item
    score: float
    anomaly_map: Floats | None
    mask: Bools | None
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
        return line | ({"pose": self.part.summary()} if self.part else {})


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
    remark: str | None
    report: Path | None
    seconds: float
    memory: dict[str, int]

    def flagged(self, *, anomalous: bool) -> float | None:
        """The share of the normal or the anomalous images that reach the threshold; None where that isn't known.

        It is the false-positive rate of the normal images, and the recall of the anomalous ones.
        """
        images = [image for image in self.images if image.item.anomalous == anomalous]
        if not images or self.thresholds.threshold is None:
            return None
        return sum(bool(self.thresholds.is_anomalous(image.score, found=image.found)) for image in images) / len(images)

    def summary(self) -> dict[str, Any]:
        """The figures as plain values, for JSON."""
        return {
            "category": self.category,
            "images": len(self.images),
            "defective": sum(image.item.anomalous for image in self.images),
            "skipped": self.skipped,
            "unmasked": self.unmasked,
            "poses_not_found": sum(not image.found for image in self.images),
            **dataclasses.asdict(self.metrics),
            **dataclasses.asdict(self.thresholds),
            "false_alarms": self.flagged(anomalous=False),
            "defects_found": self.flagged(anomalous=True),
            "remark": self.remark,
            "seconds": round(self.seconds, 3),
            **self.memory,
        }


def evaluate(
    scorer: Scorer, samples: Iterable[Sample], batch_size: int, *, keep_images: bool = False
) -> tuple[Metrics, list[ImageResult]]:
    """The metrics of a fitted model on labelled samples, and the score of each image.

    Holds the maps of all images, 4 bytes per pixel, since exact pixel metrics need every value.

    Args:
        scorer: what scores them.
        samples: the images with their labels and masks.
        batch_size: how many are scored at a time.
        keep_images: whether the results carry the images too.

    Raises:
        PadimError: no sample could be read.
    """
    results = []
    for batch in batched(samples, batch_size):
        scores, maps, embeddings, parts = scorer.score_pixels(np.stack([sample.image for sample in batch]))
        for index, sample in enumerate(batch):
            results.append(
                ImageResult(
                    sample.item,
                    float(scores[index]),
                    None if maps is None else maps[index],
                    sample.mask,
                    sample.image if keep_images else None,
                    None if embeddings is None else embeddings[index],
                    None if parts is None else parts[index],
                )
            )
    if not results:
        raise PadimError("no test image could be read")
    size = scorer.config.image_size
    masked = [result for result in results if result.mask is not None and result.anomaly_map is not None]
    metrics = measure(
        np.array([result.item.anomalous for result in results]),
        np.array([result.score for result in results]),
        np.array([result.mask for result in masked], dtype=bool).reshape(-1, *size),
        np.array([result.anomaly_map for result in masked]).reshape(-1, *size),
    )
    return metrics, results
