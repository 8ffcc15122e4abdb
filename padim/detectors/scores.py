"""What scores images, with torch or without: a detector, or an exported model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from padim.calibration import Calibration
from padim.config import BaseConfig
from padim.storage.provenance import Provenance

if TYPE_CHECKING:
    from padim.poses.alignment import Alignment, PartPose

Array = TypeVar("Array")


class Scores(NamedTuple, Generic[Array]):
    """What a batch of n images scores: the higher, the more anomalous.

    Attributes:
        images: image scores `[n]`.
        maps: anomaly maps `[n, h, w]`, one value per pixel of the images, NaN for pixels that are ignored and where
            an aligned model has not seen enough; None from a detector that scores whole images only.
        embeddings: `[n, d]`, from a detector that compares whole images by them.
        parts: how the parts lie in the images, from a model that aligns them.
    """

    images: Array
    maps: Array | None
    embeddings: Array | None = None
    parts: Sequence[PartPose] | None = None


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

    @property
    def alignment(self) -> Alignment | None:
        """The common frame that images are moved into, for a model that aligns them."""

    @property
    def ignored(self) -> Any:
        """The pixels `[h, w]` that scores do not depend on, as a tensor or array; None if there are none."""

    def training_embeddings(self) -> NDArray[np.float32] | None:
        """Those of the training images `[n, d]`, from a detector that compares whole images by them."""

    def score_pixels(self, pixels: NDArray[np.uint8]) -> Scores[NDArray[np.float32]]:
        """The scores of RGB images `[n, h, w, 3]` of the size that the configuration names.

        Raises:
            PadimError: the images have another size, or a score is not finite.
        """


NumpyScores = Scores[NDArray[np.float32]]


def score_aligned(
    alignment: Alignment | None,
    pixels: NDArray[np.uint8],
    score: Callable[[NDArray[np.uint8]], NumpyScores],
) -> NumpyScores:
    """The scores of RGB images `[n, h, w, 3]`, moved into a model's frame if it has one; maps lie in the images' own.

    An image score is the largest value of the map among the positions that count.
    """
    if alignment is None or pixels.shape[1:3] != alignment.field.shape:  # which the model refuses
        return score(pixels)
    frames, parts = alignment.into_frame(pixels)
    scores = score(frames)._replace(parts=parts)
    if scores.maps is None:
        return scores
    maps = alignment.masked(scores.maps, parts)
    return scores._replace(images=np.nanmax(maps, axis=(1, 2)), maps=alignment.moved_back(maps, parts))
