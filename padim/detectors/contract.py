"""What a detector is: it learns from normal images, scores others, and is kept in one file."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

import padim
from padim.backbones import StateDict, download_weights, read_weights
from padim.calibration import PIXEL_RATES, Calibration
from padim.config import FALSE_ALARM_RATE, BaseConfig
from padim.errors import PadimError
from padim.storage import modelfile
from padim.storage.provenance import About
from padim.system.device import find_device, full_float32

# What Python, torch and their threads take before there is a model; measured with torch 2.15 on Linux.
LIBRARIES = 850_000_000

# How the large tensors may be kept in a file.
STORAGES = {"fp32": torch.float32, "fp16": torch.float16}

Weights = Path | str | StateDict

# Images as batches; of a pair like those that a `DataLoader` gives, the first entry is taken.
Batches = Iterable[Tensor | Sequence[Tensor]]


class Scores(NamedTuple):
    """What a batch of n images scores; 0 is the mean of the normal images, and higher is more anomalous.

    Attributes:
        images: image scores `[n]`.
        maps: anomaly maps `[n, h, w]`, one value a pixel of the image that the network saw; None from a detector
            that scores whole images only.
    """

    images: Tensor
    maps: Tensor | None


@dataclass(frozen=True)
class TrainingOptions:
    """How a fit is run; for detectors that take many steps, or whose models can take in more images.

    Attributes:
        folder: where the log and the checkpoints go; None for neither.
        checkpoint_steps: steps from one checkpoint to the next.
        resume: whether to go on from the checkpoint in the folder.
        workers: threads that prepare images.
        keep_moments: whether the model is to carry what it takes to `update` it.
        test: gives the image AUROC of the detector as it is, for those that choose their weights by it.
    """

    folder: Path | None = None
    checkpoint_steps: int = 50
    resume: bool = False
    workers: int = 1
    keep_moments: bool = False
    test: Callable[[], float] | None = None


@dataclass(frozen=True)
class Plan:
    """What is asked of a fit and of its file, by the names that `fit`, `TrainingOptions` and `save` have for it."""

    calibrate: bool = True
    more: bool = False
    keep_moments: bool = False
    resume: bool = False
    embed_backbone: bool = True
    storage: str = "fp32"


class Estimate(NamedTuple):
    """Bytes, before any work is done.

    Attributes:
        memory: at the most, with the libraries.
        model: of the model file.
        parts: what else there is to know, by name.
    """

    memory: int
    model: int
    parts: dict[str, int]


class Detector(ABC):
    """The common part of the methods.

    Batches of images are RGB tensors `[n, 3, h, w]`, h x w being `config.image_size`: uint8, or
    floats in 0..1. They are moved to the detector's device and normalised there.

    Attributes:
        has_maps: whether there are anomaly maps, or image scores only.
        device: where it computes.
        about: where it comes from.
        calibration: what normal images score, once fitted and where that is known.
        embeddings: of the training images `[n, d]`, from a detector that has them.
        facts: what else there is to know of the fit, by name.
        history: what was measured at each step of the fit, by name, from a detector that takes many.
    """

    configuration: ClassVar[type[BaseConfig]]
    has_maps: ClassVar[bool]
    config: Any

    @abstractmethod
    def __init__(self, config: Any = None, *, weights: Weights | None = None, device: str = "cpu") -> None:
        """An unfitted detector.

        Args:
            config: the protocol; by default that of the method's first preset.
            weights: state dict of the backbone, or its file; by default the published weights are downloaded.
            device: where to compute, in torch's terms.

        Raises:
            PadimError: the weights can't be had or don't fit, or torch finds no such device.
        """
        self.config = config or self.configuration()
        self.device = find_device(device)
        self.about = About("", 0, FALSE_ALARM_RATE, "", padim.__version__)
        self.calibration: Calibration | None = None
        self.embeddings: Tensor | None = None
        self.facts: dict[str, Any] = {}
        self.history: list[dict[str, float | None]] = []

    def fit(
        self,
        batches: Batches,
        category: str = "",
        *,
        calibrate: bool = True,
        false_alarm_rate: float | None = None,
        training: TrainingOptions | None = None,
        more: bool = False,
    ) -> Self:
        """Learn what normal images look like.

        Args:
            batches: of images.
            category: a name that the model will carry.
            calibrate: whether thresholds are wanted.
            false_alarm_rate: the share of fresh normal images that the detector's verdict may flag, by default 1 %;
                with `more`, category and rate stay what they are unless they are given.
            training: how to run a fit of many steps.
            more: whether to learn from these images and the earlier ones together, where a detector can.

        Raises:
            PadimError: too few images, values that are not finite, or a detector that can't take in more.
        """
        images = self.learn(batches, calibrate, training or TrainingOptions(), more)
        name, rate = (self.about.category, self.false_alarm_rate) if more else ("", FALSE_ALARM_RATE)
        self.about = dataclasses.replace(
            self.about, category=category or name, images=images, false_alarm_rate=false_alarm_rate or rate
        )
        return self

    @abstractmethod
    def learn(self, batches: Batches, calibrate: bool, training: TrainingOptions, more: bool) -> int:
        """The method's own part of `fit`; gives the number of images that it knows now."""

    @abstractmethod
    def forward(self, images: Tensor) -> Scores:
        """The scores of images on the device, as one function of tensors, which `padim.deploy.export` traces."""

    def embed(self, images: Tensor) -> Tensor | None:  # noqa: ARG002 (not every detector has them)
        """Embeddings `[n, d]` of a batch of images, from a detector that compares whole images."""
        return None

    @abstractmethod
    def tensors(self, embed_backbone: bool, dtype: torch.dtype) -> dict[str, Tensor]:
        """What the model file has to hold, beside the calibration; large tensors in `dtype`."""

    @classmethod
    @abstractmethod
    def from_tensors(
        cls, tensors: Mapping[str, Tensor], config: Any, about: About, weights: Weights | None, device: str
    ) -> Self:
        """A detector from what `tensors` gave.

        Raises:
            PadimError: a tensor is missing, or isn't as it has to be.
        """

    @classmethod
    def initial_weights(cls, config: Any, weights: Weights | None) -> StateDict | None:
        """What a detector of this configuration starts from: weights from a file or the published ones, or None.

        Raises:
            PadimError: they can't be had.
        """
        return weights_from(weights, config.backbone)

    @classmethod
    def augmented(cls, image: Image.Image, config: Any, number: int) -> dict[str, Image.Image]:  # noqa: ARG003
        """The versions of a training image that the detector learns from, by their names, for a look at them."""
        raise PadimError(f"{config.method} learns from the images as they are: there are no augmentations to show")

    @property
    def false_alarm_rate(self) -> float:
        """The share of fresh normal images that the verdict may flag."""
        return self.about.false_alarm_rate

    @classmethod
    @abstractmethod
    def is_seeded(cls, config: Any) -> bool:
        """Whether a detector of this configuration depends on its seed."""

    @classmethod
    @abstractmethod
    def check(cls, plan: Plan) -> None:
        """Raises PadimError for what the method can't do."""

    @classmethod
    @abstractmethod
    def estimate(cls, config: Any, images: int, plan: Plan | None = None) -> Estimate:
        """What a fit to so many images will take on the CPU, from formulas that `docs/scaling.md` measures."""

    @property
    def remark(self) -> str | None:
        """What has to be said beside the detector's figures."""
        return None

    @property
    @abstractmethod
    def dimensions(self) -> int:
        """Of the space in which distances are measured."""

    @torch.no_grad()
    def score(self, images: Tensor) -> Scores:
        """What the images of a batch score, on the detector's device.

        Raises:
            PadimError: it isn't fitted, the images have another size, or a score is not finite.
        """
        with full_float32(self.device):
            scores = self.forward(self.on_device(images))
        values = scores.images if scores.maps is None else scores.maps
        if not bool(values.isfinite().all()):
            raise PadimError("the scores are not finite: score with --precision fp32 or bf16")
        return scores

    def on_device(self, images: Tensor) -> Tensor:
        """A batch of images where they are computed on.

        Raises:
            PadimError: they have another size, or are floats outside 0..1.
        """
        if tuple(images.shape[1:]) != (3, *self.config.image_size):
            expected = f"[n, 3, {self.config.image_size[0]}, {self.config.image_size[1]}]"
            raise PadimError(f"images have shape {list(images.shape)}, expected {expected}")
        if images.is_floating_point() and bool(((images < 0) | (images > 1)).any()):
            raise PadimError("floating point images have values in 0..1: divide by 255, or pass uint8")
        if self.device.type == "cuda" and images.device.type == "cpu":
            images = images.pin_memory()  # only then does the copy overlap with what the GPU still computes
        return images.to(self.device, non_blocking=images.is_pinned())

    def save(self, path: Path | str, *, embed_backbone: bool = True, storage: str = "fp32") -> None:
        """Write the model as one file, whole or not at all; `padim.storage.modelfile` describes it.

        Args:
            path: where to; by convention `model.safetensors`.
            embed_backbone: whether the file carries the backbone's weights, so that it scores anywhere.
            storage: `fp32`, or `fp16` for half as many bytes in the large tensors, which costs digits.

        Raises:
            PadimError: the detector isn't fitted, or the file can't be written, or would lack what was trained.
        """
        self.check(Plan(embed_backbone=embed_backbone, storage=storage))
        tensors = self.tensors(embed_backbone, STORAGES[storage])
        if self.calibration:
            tensors["normal.scores"] = torch.from_numpy(self.calibration.scores)
            if self.calibration.pixels is not None:
                tensors["normal.pixels"] = torch.from_numpy(self.calibration.pixels)
        modelfile.write(Path(path), tensors, self.config, self.about)

    @classmethod
    def load(
        cls, path: Path | str, *, weights: Path | str | None = None, device: str = "cpu", precision: str | None = None
    ) -> Self:
        """A fitted detector from its file.

        Args:
            path: the model file.
            weights: weights of the backbone, for a file that doesn't carry them; downloaded by default.
            device: where to compute.
            precision: arithmetic of the network, by default what the model was fitted with.

        Raises:
            PadimError: the file can't be read or is damaged, is that of another method, or the weights are others
                than those that the model was fitted with.
        """
        tensors, config, about = modelfile.read(Path(path), cls.configuration)
        config = dataclasses.replace(config, precision=precision or config.precision)
        try:
            detector = cls.from_tensors(tensors, config, about, weights, device)
            detector.calibration = _calibration(tensors, about.images)
        except PadimError as error:
            raise PadimError(f"{path}: {error}") from error
        detector.about = about
        return detector


def images_of(batch: Tensor | Sequence[Tensor]) -> Tensor:
    """The images of a batch that may be a pair."""
    return batch if isinstance(batch, Tensor) else batch[0]


def _calibration(tensors: Mapping[str, Tensor], images: int) -> Calibration | None:
    if "normal.scores" not in tensors:
        return None
    count = tensors["normal.scores"].numel()  # that of the images, unless one was gone before the second pass
    scores: NDArray[np.float32] = take(tensors, "normal.scores", min(max(1, count), images)).numpy()
    has_pixels = "normal.pixels" in tensors
    return Calibration(scores, take(tensors, "normal.pixels", len(PIXEL_RATES)).numpy() if has_pixels else None)


def take(
    tensors: Mapping[str, Tensor], key: str, *shape: int, dtypes: Iterable[torch.dtype] = (torch.float32,)
) -> Tensor:
    """A tensor of a model file.

    Raises:
        PadimError: it isn't there, has another shape or type, or holds values that are not finite.
    """
    value, allowed = tensors.get(key), tuple(dtypes)
    if value is None or value.dtype not in allowed or value.shape != shape or not bool(value.isfinite().all()):
        kinds = " or ".join(str(dtype).removeprefix("torch.") for dtype in allowed)
        raise PadimError(f"a damaged model: {key!r} is not there as finite {kinds} of shape {list(shape)}")
    return value


def weights_from(weights: Weights | None, backbone: str) -> StateDict:
    """Weights as they are, from their file, or by default the published ones.

    Raises:
        PadimError: they can't be had.
    """
    if weights is None:
        return download_weights(backbone)
    return read_weights(Path(weights)) if isinstance(weights, Path | str) else weights
