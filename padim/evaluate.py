"""One category evaluated: images through a model, scores and maps into the metrics."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from padim.config import Config
from padim.data.items import Item
from padim.data.loader import Sample, batched, stack
from padim.errors import PadimError
from padim.metrics import Bools, Floats, Metrics, evaluate
from padim.model import Scores


@dataclass(frozen=True)
class ImageResult:
    """One scored image of a data set.

    Attributes:
        item: what it is.
        score: its image score.
        anomaly_map: `[h, w]`.
        mask: where it is defective, `[h, w]`, where that is known.
        image: RGB, uint8, `[h, w, 3]`, as the model has seen it, where it was asked for.
    """

    item: Item
    score: float
    anomaly_map: Floats
    mask: Bools | None
    image: NDArray[np.uint8] | None


class Detector(Protocol):
    """What scores images of one size, as `Padim` does."""

    @property
    def config(self) -> Config: ...

    def score(self, images: Tensor) -> Scores: ...


def evaluate_model(
    model: Detector, samples: Iterable[Sample], batch_size: int, *, keep_images: bool = False
) -> tuple[Metrics, list[ImageResult]]:
    """The figures of a fitted model on labelled samples, and what each image scores.

    Holds the maps of all images, 4 bytes a pixel, since exact pixel figures need every value.

    Args:
        model: what scores them.
        samples: the images with their labels and masks.
        batch_size: how many are scored at a time.
        keep_images: whether the results carry the images too.

    Raises:
        PadimError: no sample could be read.
    """
    results = []
    for batch in batched(samples, batch_size):
        scores = model.score(stack(batch))
        for sample, score, anomaly_map in zip(batch, scores.images.tolist(), scores.maps.cpu().numpy(), strict=True):
            image = sample.image if keep_images else None
            results.append(ImageResult(sample.item, score, anomaly_map, sample.mask, image))
    if not results:
        raise PadimError("no test image could be read")
    size = model.config.image_size
    masked = [result for result in results if result.mask is not None]
    metrics = evaluate(
        np.array([result.item.anomalous for result in results]),
        np.array([result.score for result in results]),
        np.array([result.mask for result in masked], dtype=bool).reshape(-1, *size),
        np.array([result.anomaly_map for result in masked]).reshape(-1, *size),
    )
    return metrics, results
