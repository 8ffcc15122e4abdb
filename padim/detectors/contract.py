"""What a detector is: it fits normal images, scores others, and is kept in one file."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from padim.calibration import PIXEL_RATES, Calibration
from padim.config import FALSE_ALARM_RATE, BaseConfig
from padim.detectors.batches import Batches, as_images, as_pixels, check_images
from padim.detectors.options import FitOptions, FitResult
from padim.detectors.scores import NumpyScores, Scores, score_aligned
from padim.errors import PadimError
from padim.poses.alignment import Alignment
from padim.poses.grid import grid_of
from padim.storage import modelfile
from padim.storage.provenance import Provenance
from padim.storage.tensorfile import take
from padim.system.device import find_device, full_float32
from padim.system.progress import OnProgress, silent
from padim.version import __version__
from padim.weights import Weights

_UNFITTED = Provenance(
    category="", images=0, false_alarm_rate=FALSE_ALARM_RATE, weights_sha256="", padim_version=__version__
)


# What stands for pixels that are ignored; nearly ImageNet's mean.
_GREY = 116


class Detector(nn.Module, ABC):
    """The common part of the methods.

    A batch of images is an RGB tensor `[n, 3, h, w]`, h x w being `config.image_size`: uint8, or floats in 0..1.
    It is moved to the detector's device and normalised there.

    Attributes:
        configuration: the class of its configuration.
        has_maps: whether it gives anomaly maps, or image scores only.
        config: the protocol.
        provenance: where it comes from.
        calibration: what normal images score, once fitted and where that is known.
        alignment: the common frame that images are moved into, once fitted and where the configuration has one.
        ignored: the pixels `[h, w]` that neither fit nor scores may depend on, where there are some: see `ignore`.
    """

    configuration: ClassVar[type[BaseConfig]]
    has_maps: ClassVar[bool]
    config: BaseConfig
    ignored: Tensor | None

    def __init__(
        self,
        config: BaseConfig | None = None,
        *,
        weights: Weights | None = None,  # noqa: ARG002 (what a detector does with them is its own matter)
        device: str = "cpu",
    ) -> None:
        """An unfitted detector.

        Args:
            config: the protocol, by default that of the method's first preset.
            weights: state dict of the backbone, or its file; by default the published weights are downloaded.
            device: where to compute, in torch's terms.

        Raises:
            PadimError: the weights can't be read or don't fit, torch finds no such device, or the size of the images
                does not suit the network.
        """
        super().__init__()
        self.config = config or self.configuration()
        self.register_buffer("_placed", torch.empty(0, device=find_device(device)), persistent=False)
        self.register_buffer("ignored", None, persistent=False)
        self.provenance = _UNFITTED
        self.calibration: Calibration | None = None
        self.alignment: Alignment | None = None

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.get_buffer("_placed").device

    def ignore(self, mask: NDArray[np.bool_]) -> None:
        """Make fit and scores independent of the pixels of a mask `[h, w]`, which are painted over.

        Raises:
            PadimError: the method or the configuration does not allow it, or the mask marks nothing or everything.
        """
        if not self.has_maps or self.config.align != "none" or self.config.rotation:
            raise PadimError("only a method with anomaly maps can ignore pixels, and only where images are not moved")
        if mask.shape != self.config.image_size or mask.all() or not mask.any():
            raise PadimError("the mask of pixels to ignore marks nothing or everything of what the model sees")
        self.ignored = torch.tensor(mask, device=self.device)

    def painted(self, images: Tensor) -> Tensor:
        """Images `[n, 3, h, w]` with grey in place of the ignored pixels."""
        if self.ignored is None:
            return images
        return images.masked_fill(self.ignored, _GREY if images.dtype == torch.uint8 else _GREY / 255)

    def filled(self, maps: Tensor, value: float) -> Tensor:
        """Maps `[n, h, w]` with a value in place of the ignored pixels."""
        return maps if self.ignored is None else maps.masked_fill(self.ignored, value)

    def train(self, mode: bool = True) -> Self:  # noqa: ARG002 (torch's own name)
        """Stay in evaluation mode: a detector learns by `fit` alone."""
        return super().train(False)

    @property
    @abstractmethod
    def dimensions(self) -> int:
        """Of the space in which distances are measured."""

    @abstractmethod
    def fit(
        self,
        batches: Batches,
        options: FitOptions = FitOptions(),
        *,
        tests: Iterable[tuple[Tensor, Tensor]] = (),
        progress: OnProgress = silent,
    ) -> FitResult:
        """Learn what normal images look like.

        Images go through a `padim.detectors.frame.CommonFrame`, which aligns them where the configuration says so.

        Args:
            batches: of images; gone through twice where features don't fit into memory.
            options: how.
            tests: batches of images `[n, 3, h, w]` and whether each is anomalous `[n]`, for a configuration that
                chooses its weights by them.
            progress: is told how far a fit of many steps has come.

        Raises:
            PadimError: there are too few images, values that are not finite, or options that the method refuses.
        """

    @abstractmethod
    def forward(self, images: Tensor) -> Scores[Tensor]:
        """The scores of images on the device, in the frame of the model if it has one.

        It is one function of tensors, which `padim.deploy.export` traces.
        """

    @abstractmethod
    def tensors(self, options: FitOptions) -> dict[str, Tensor]:
        """What the model file has to hold, beside the calibration."""

    @classmethod
    @abstractmethod
    def unfitted(cls, config: BaseConfig, tensors: Mapping[str, Tensor], weights: Weights | None, device: str) -> Self:
        """A detector that is ready to `restore` these tensors.

        Raises:
            PadimError: weights that it needs beside them can't be read or don't fit, or torch finds no such device.
        """

    @abstractmethod
    def restore(self, tensors: Mapping[str, Tensor], provenance: Provenance) -> None:
        """Take over what `tensors` gave, in a detector that `unfitted` gave.

        Raises:
            PadimError: a tensor is missing, or isn't as it has to be; or the weights are others.
        """

    @classmethod
    def check(cls, options: FitOptions) -> None:
        """Raise a PadimError for an option that the method refuses."""
        for name, reason in cls.configuration.refused.items():
            if getattr(options, name) != getattr(FitOptions, name):
                raise PadimError(f"{name}: {reason}")

    def score(self, images: Tensor) -> Scores[Tensor]:
        """The scores of a batch of images, on the detector's device.

        Raises:
            PadimError: it isn't fitted, the images have another size, or a score is not finite.
        """
        if self.alignment is None:
            return self._score(images)
        check_images(images, *self.config.image_size)
        found = self.score_pixels(as_pixels(images))
        maps, embeddings = (
            None if values is None else torch.from_numpy(values).to(self.device)
            for values in (found.maps, found.embeddings)
        )
        return Scores(torch.from_numpy(found.images).to(self.device), maps, embeddings, found.parts)

    @torch.no_grad()
    def _score(self, images: Tensor) -> Scores[Tensor]:
        """The scores of images that are moved already, if the model does that."""
        with full_float32(self.device):
            scores = self.forward(self.on_device(images))
        values = scores.images if scores.maps is None else scores.maps
        if not bool(values.isfinite().all()):
            raise PadimError("the scores are not finite: score with --precision fp32 or bf16")
        if scores.maps is None:
            return scores
        return scores._replace(maps=self.filled(scores.maps, torch.nan))

    def score_pixels(self, pixels: NDArray[np.uint8]) -> Scores[NDArray[np.float32]]:
        """The scores of RGB images `[n, h, w, 3]`, as `score`, in NumPy."""
        return score_aligned(self.alignment, pixels, self.score_in_frame)

    def score_in_frame(self, pixels: NDArray[np.uint8]) -> NumpyScores:
        """The scores of images that are moved already, if the model does that."""
        images, maps, embeddings, _ = self._score(as_images(pixels))
        return Scores(images.cpu().numpy(), _as_array(maps), _as_array(embeddings))

    def training_embeddings(self) -> NDArray[np.float32] | None:
        """Those of the training images `[n, d]`, from a detector that compares whole images by them."""
        return None

    def on_device(self, images: Tensor) -> Tensor:
        """A batch of images where they are computed on.

        Raises:
            PadimError: they have another size, or are floats outside 0..1.
        """
        check_images(images, *self.config.image_size)
        return images.to(self.device, non_blocking=images.is_pinned())

    def save(self, path: Path | str, options: FitOptions = FitOptions()) -> None:
        """Write the model as one file, whole or not at all; `padim.storage.modelfile` describes it.

        Raises:
            PadimError: the detector isn't fitted, the file can't be written, or it would lack what was trained.
        """
        self.check(options)
        tensors = self.tensors(options)
        if self.calibration:
            tensors["normal.scores"] = torch.from_numpy(self.calibration.scores)
            if self.calibration.pixels is not None:
                tensors["normal.pixels"] = torch.from_numpy(self.calibration.pixels)
        if self.alignment:
            tensors |= _alignment_tensors(self.alignment)
        if self.ignored is not None:
            tensors["ignored"] = self.ignored.to(torch.uint8)
        modelfile.write(Path(path), tensors, self.config, self.provenance)

    @classmethod
    def load(
        cls, path: Path | str, *, weights: Weights | None = None, device: str = "cpu", precision: str | None = None
    ) -> Self:
        """A fitted detector from its file.

        Args:
            path: the model file.
            weights: weights of the backbone, for a file that doesn't carry them; downloaded by default.
            device: where to compute.
            precision: of the network's arithmetic, by default what the model was fitted with.

        Raises:
            PadimError: the file can't be read or is damaged, is that of another method, or the weights are others
                than those that the model was fitted with.
        """
        tensors, config, provenance = modelfile.read(Path(path), cls.configuration)
        config = dataclasses.replace(config, precision=precision or config.precision)
        try:
            detector = cls.unfitted(config, tensors, weights, device)
            detector.restore(tensors, provenance)
            detector.calibration = _calibration(tensors, provenance.images)
            detector.alignment = _alignment(tensors, config, provenance.images)
            if "ignored" in tensors:
                detector.ignore(take(tensors, "ignored", *config.image_size, dtypes=(torch.uint8,)).bool().numpy())
        except PadimError as error:
            raise PadimError(f"{path}: {error}") from error
        detector.provenance = provenance
        return detector

    def note_fit(self, images: int, options: FitOptions) -> None:
        """Note in the provenance what was fitted; the last thing that a fit does."""
        before = self.provenance if options.update else _UNFITTED
        self.provenance = dataclasses.replace(
            self.provenance,
            category=options.category or before.category,
            images=images,
            false_alarm_rate=options.false_alarm_rate or before.false_alarm_rate,
        )


def _as_array(tensor: Tensor | None) -> NDArray[np.float32] | None:
    return None if tensor is None else tensor.cpu().numpy()


def _calibration(tensors: Mapping[str, Tensor], images: int) -> Calibration | None:
    if "normal.scores" not in tensors:
        return None
    count = tensors["normal.scores"].numel()  # that of the images, unless one was gone before the second pass
    scores: NDArray[np.float32] = take(tensors, "normal.scores", min(max(1, count), images)).numpy()
    has_pixels = "normal.pixels" in tensors
    try:
        return Calibration(scores, take(tensors, "normal.pixels", len(PIXEL_RATES)).numpy() if has_pixels else None)
    except ValueError as error:
        raise PadimError(f"a damaged model: {error}") from error


def _alignment_tensors(alignment: Alignment) -> dict[str, Tensor]:
    arrays = {
        "reference": alignment.reference,
        "turns": np.array(alignment.turns, dtype=np.uint8),
        "field": alignment.field.astype(np.uint8),
        "angles": alignment.angles,
        "shifts": alignment.shifts,
        "correlations": alignment.correlations,
    }
    return {f"pose.{name}": torch.from_numpy(array) for name, array in arrays.items()}


def _alignment(tensors: Mapping[str, Tensor], config: BaseConfig, images: int) -> Alignment | None:
    if config.align == "none":
        return None
    count = min(max(1, tensors["pose.angles"].numel() if "pose.angles" in tensors else 0), images)
    arrays = (
        take(tensors, "pose.reference", *grid_of(*config.image_size)).numpy(),
        bool(take(tensors, "pose.turns", dtypes=(torch.uint8,))),
        take(tensors, "pose.field", *config.image_size, dtypes=(torch.uint8,)).bool().numpy(),
        take(tensors, "pose.angles", count).numpy(),
        take(tensors, "pose.shifts", count, 2).numpy(),
        take(tensors, "pose.correlations", count).numpy(),
    )
    try:
        return Alignment(*arrays)
    except ValueError as error:
        raise PadimError("a damaged model: its poses are out of range") from error
