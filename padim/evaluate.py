"""One category evaluated: images through a model, scores and maps into the metrics."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from padim.data.loader import Sample, batched, stack
from padim.errors import PadimError
from padim.metrics import Metrics, evaluate
from padim.model import Padim


@dataclass(frozen=True)
class ImageResult:
    """One scored image of a data set.

    Attributes:
        path: the file.
        defect: its defect type.
        score: its image score.
    """

    path: str
    defect: str | None
    score: float


def evaluate_model(model: Padim, samples: Iterable[Sample], batch_size: int) -> tuple[Metrics, list[ImageResult]]:
    """The figures of a model on labelled samples, and the score of each image.

    Holds the maps of all images, 4 bytes a pixel, since exact pixel figures need every value.

    Raises:
        PadimError: no sample could be read.
    """
    results, labels, masks, maps = [], [], [], []
    for batch in batched(samples, batch_size):
        scores = model.score(stack(batch))
        for sample, score, anomaly_map in zip(batch, scores.images.tolist(), scores.maps.cpu().numpy(), strict=True):
            results.append(ImageResult(str(sample.item.path), sample.item.defect, score))
            labels.append(sample.item.anomalous)
            if sample.mask is not None:
                masks.append(sample.mask)
                maps.append(anomaly_map)
    if not results:
        raise PadimError("no test image could be read")
    height_width = model.config.image_size
    metrics = evaluate(
        np.array(labels),
        np.array([result.score for result in results]),
        np.array(masks).reshape(-1, *height_width),
        np.array(maps).reshape(-1, *height_width),
    )
    return metrics, results
