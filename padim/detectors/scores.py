"""What scores images, with torch or without: a detector, or an exported model."""

from __future__ import annotations

from typing import Generic, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from padim.calibration import Calibration
from padim.config import BaseConfig
from padim.storage.provenance import Provenance

Array = TypeVar("Array")


class Scores(NamedTuple, Generic[Array]):
    """What a batch of n images scores: the higher, the more anomalous.

    Attributes:
        images: image scores `[n]`.
        maps: anomaly maps `[n, h, w]`, one value per pixel of the images that the network saw; None from a detector
            that scores whole images only.
        embeddings: `[n, d]`, from a detector that compares whole images by them.
    """

    images: Array
    maps: Array | None
    embeddings: Array | None = None


class Scorer(Protocol):
    """What evaluation and prediction ask of a model."""

    @property
    def config(self) -> BaseConfig:
        """The protocol that it was fitted with."""

    @property
    def provenance(self) -> Provenance:
        """Where it comes from."""

    @property
    def calibration(self) -> Calibration | None:
        """What normal images score, where that is known."""

    @property
    def has_maps(self) -> bool:
        """Whether it gives anomaly maps, or image scores only."""

    @property
    def dimensions(self) -> int:
        """Of the space in which distances are measured."""

    def training_embeddings(self) -> NDArray[np.float32] | None:
        """Those of the training images `[n, d]`, from a detector that compares whole images by them."""

    def score_pixels(self, pixels: NDArray[np.uint8]) -> Scores[NDArray[np.float32]]:
        """The scores of RGB images `[n, h, w, 3]` of the size that the configuration names.

        Raises:
            PadimError: the images have another size, or a score is not finite.
        """
