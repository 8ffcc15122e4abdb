"""One category evaluated: images through a model, scores and maps into the metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from padim.config import BaseConfig
from padim.data.items import Item
from padim.data.loader import Sample, batched, stack
from padim.detectors.contract import Scores
from padim.errors import PadimError
from padim.evaluation.metrics import Bools, Floats, Metrics, evaluate


@dataclass(frozen=True)
class ImageResult:
    """One scored image of a data set.

    Attributes:
        item: what it is.
        score: its image score.
        anomaly_map: `[h, w]`, from a detector that has maps.
        mask: where it is defective, `[h, w]`, where that is known.
        image: RGB, uint8, `[h, w, 3]`, as the model has seen it, where it was asked for.
        embedding: `[d]`, from a detector that compares whole images.
    """

    item: Item
    score: float
    anomaly_map: Floats | None
    mask: Bools | None
    image: NDArray[np.uint8] | None
    embedding: Floats | None = None


class Scorer(Protocol):
    """What scores images of one size, as every `padim.detectors.contract.Detector` does."""

    @property
    def config(self) -> BaseConfig: ...

    def score(self, images: Tensor) -> Scores: ...


def evaluate_model(
    model: Scorer,
    samples: Iterable[Sample],
    batch_size: int,
    *,
    keep_images: bool = False,
    embed: Callable[[Tensor], Tensor | None] | None = None,
) -> tuple[Metrics, list[ImageResult]]:
    """The figures of a fitted model on labelled samples, and what each image scores.

    Holds the maps of all images, 4 bytes a pixel, since exact pixel figures need every value.

    Args:
        model: what scores them.
        samples: the images with their labels and masks.
        batch_size: how many are scored at a time.
        keep_images: whether the results carry the images too.
        embed: gives embeddings of a batch of images, for results that carry them too.

    Raises:
        PadimError: no sample could be read.
    """
    results = []
    for batch in batched(samples, batch_size):
        images = stack(batch)
        scores = model.score(images)
        optional = scores.maps, embed(images) if embed else None
        maps, embeddings = ([None] * len(batch) if part is None else part.cpu().numpy() for part in optional)
        for sample, score, anomaly_map, embedding in zip(batch, scores.images.tolist(), maps, embeddings, strict=True):
            image = sample.image if keep_images else None
            results.append(ImageResult(sample.item, score, anomaly_map, sample.mask, image, embedding))
    if not results:
        raise PadimError("no test image could be read")
    size = model.config.image_size
    masked = [result for result in results if result.mask is not None and result.anomaly_map is not None]
    metrics = evaluate(
        np.array([result.item.anomalous for result in results]),
        np.array([result.score for result in results]),
        np.array([result.mask for result in masked], dtype=bool).reshape(-1, *size),
        np.array([result.anomaly_map for result in masked]).reshape(-1, *size),
    )
    return metrics, results
