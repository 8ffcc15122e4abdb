"""The CutPaste detector: a network trained to recognise pasted patches, and a density of its embeddings."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import Self, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from padim.calibration import Calibration
from padim.config import BaseConfig
from padim.cutpaste.config import CutPasteConfig
from padim.cutpaste.density import GaussianDensity, KernelDensity
from padim.cutpaste.network import EMBEDDING, CutPasteNetwork
from padim.cutpaste.training import train
from padim.detectors.batches import Batches, as_pixels, check_images
from padim.detectors.contract import Detector
from padim.detectors.frame import CommonFrame
from padim.detectors.options import FitOptions, FitResult
from padim.detectors.scores import Scores
from padim.errors import PadimError
from padim.evaluation.metrics import Curve
from padim.storage.provenance import Provenance
from padim.storage.tensorfile import STORAGES, take
from padim.system import distributed
from padim.system.device import all_cores, autocast, full_float32
from padim.system.progress import OnProgress, silent
from padim.weights import StateDict, Weights, digest, weights_from

log = logging.getLogger(__name__)

Density = GaussianDensity | KernelDensity


class CutPaste(Detector):
    """CutPaste (Li et al. 2021), with SSPCAB (Ristea et al. 2022) where the configuration has it.

    Scores whole images: the distance of an image's embedding from those of the training images.

    Attributes:
        network: gives the embeddings.
        density: how those of normal images are distributed, once fitted.
        embeddings: those of the training images, `[n, 512]`.
    """

    configuration = CutPasteConfig
    has_maps = False
    config: CutPasteConfig

    def __init__(
        self, config: CutPasteConfig | None = None, *, weights: Weights | None = None, device: str = "cpu"
    ) -> None:
        """As `Detector`."""
        super().__init__(config, device=device)
        self.network = CutPasteNetwork(self.config)
        if self.config.pretrained:
            self.network.load_pretrained(weights_from(weights, self.config.pretrained))
        self.network.to(memory_format=torch.channels_last)
        self.density: Density | None = None
        self.embeddings: Tensor | None = None
        self.to(self.device).eval()

    @property
    def dimensions(self) -> int:
        """Of the embeddings."""
        return EMBEDDING

    def fit(
        self,
        batches: Batches,
        options: FitOptions = FitOptions(),
        *,
        tests: Iterable[tuple[Tensor, Tensor]] = (),
        progress: OnProgress = silent,
    ) -> FitResult:
        """Train the network, then fit the density; all images stay in memory, at a byte per channel of a pixel."""
        self.check(options)
        if distributed.processes() > 1:
            raise PadimError("cutpaste trains in one process: start it without torchrun")
        chooses = self.config.select == "best-on-test"
        labelled = [*tests] if chooses else []
        if chooses and len({bool(label) for _, labels in labelled for label in labels}) < 2:
            raise PadimError(
                "--select best-on-test needs normal and defective test images: pass --eval, with images of both kinds"
            )
        frame = CommonFrame(self.config)
        images = _collected(frame.images(batches), *self.config.image_size)
        self.alignment = frame.finish()
        if len(images) < 2:
            raise PadimError(f"a density needs at least two training images, there is {len(images) or 'none'}")
        weights = digest(self.network.state_dict())

        def test_auroc() -> float:
            self._fit_density(images)
            return self._image_auroc(labelled)

        with all_cores(self.device):
            result = train(self.network, self.config, images, weights, options, test_auroc, progress)
            scores = self._fit_density(images)
        if self.embeddings is not None and not bool((self.embeddings != self.embeddings[0]).any()):
            log.warning("all training images have the same embedding: the network has learned nothing")
        calibrates = options.calibrate and len(images) > 2
        self.calibration = Calibration(np.sort(scores.cpu().numpy()), None) if calibrates else None
        self.provenance = dataclasses.replace(self.provenance, weights_sha256=weights)
        self.note_fit(len(images), options)
        return result

    def forward(self, images: Tensor) -> Scores[Tensor]:
        """As `Detector.forward`."""
        density, embeddings = self._fitted(), self._embed(images)
        return Scores(density(embeddings), None, embeddings)

    def training_embeddings(self) -> NDArray[np.float32] | None:
        """As `Detector.training_embeddings`."""
        return None if self.embeddings is None else self.embeddings.numpy()

    def tensors(self, options: FitOptions) -> dict[str, Tensor]:
        """As `Detector.tensors`."""
        density, dtype = self._fitted(), STORAGES[options.storage]
        assert self.embeddings is not None
        tensors = {
            f"network.{key}": value.to(dtype if value.dim() > 1 else value.dtype)  # convolutions and products alone
            for key, value in self.network.state_dict().items()
        }
        tensors |= {f"density.{key}": value for key, value in density.state_dict().items()}
        return tensors | {"embeddings": self.embeddings}

    @classmethod
    def unfitted(cls, config: BaseConfig, tensors: StateDict, weights: Weights | None, device: str) -> Self:  # noqa: ARG003
        """As `Detector.unfitted`: it starts at random, since the file has the whole network."""
        detector = cls(dataclasses.replace(cast(CutPasteConfig, config), initial="random"), device=device)
        detector.config = cast(CutPasteConfig, config)
        return detector

    def restore(self, tensors: StateDict, provenance: Provenance) -> None:
        """As `Detector.restore`."""
        found = {}
        for key, value in self.network.state_dict().items():
            kinds = (torch.float32, torch.float16) if value.is_floating_point() else (value.dtype,)
            found[key] = take(tensors, f"network.{key}", *value.shape, dtypes=kinds).to(value.dtype)
        self.network.load_state_dict(found)
        d, images = EMBEDDING, provenance.images
        self.embeddings = take(tensors, "embeddings", images, d)
        if self.config.density == "gaussian":
            mean, whitening = take(tensors, "density.mean", d), take(tensors, "density.whitening", d, d)
            density: Density = GaussianDensity(mean, whitening)
        else:
            density = KernelDensity(take(tensors, "density.points", images, d), take(tensors, "density.bandwidth"))
        self.density = density.to(self.device)

    def _fitted(self) -> Density:
        if self.density is None:
            raise PadimError("the model isn't fitted: call fit, or load one")
        return self.density

    @torch.no_grad()
    def _embed(self, images: Tensor) -> Tensor:
        """Embeddings `[n, 512]` of length 1, of images on the device."""
        with autocast(self.device, self.config.precision):
            embeddings, _ = self.network.embed(images)
        return F.normalize(embeddings.float(), dim=1)

    def _fit_density(self, images: NDArray[np.uint8]) -> Tensor:
        """Fit the density to the embeddings of the images; gives what each scores, left out of it, `[n]`."""
        with full_float32(self.device):  # as in scoring
            self.embeddings = torch.cat([self._embed(batch) for batch in self._batches(images)]).cpu()
        if not bool(self.embeddings.isfinite().all()):
            raise PadimError("the embeddings are not finite: train with a smaller --learning-rate, or --precision fp32")
        density: Density
        if self.config.density == "gaussian":
            density, scores = GaussianDensity.fit(self.embeddings)
        else:
            density, scores = KernelDensity.fit(self.embeddings, self.config.bandwidth)
        self.density = density.to(self.device)
        return scores

    def _batches(self, images: NDArray[np.uint8]) -> Iterator[Tensor]:
        """Images `[n, h, w, 3]` as batches on the device."""
        size = self.config.batch_size
        for start in range(0, len(images), size):
            yield torch.from_numpy(images[start : start + size]).permute(0, 3, 1, 2).to(self.device)

    def _image_auroc(self, tests: Sequence[tuple[Tensor, Tensor]]) -> float:
        """The image AUROC on labelled batches."""
        scores = torch.cat([self.score(images).images for images, _ in tests])
        labels = torch.cat([labels for _, labels in tests])
        return Curve.of(labels.cpu().numpy(), scores.cpu().numpy()).area()


def _collected(batches: Iterable[Tensor], height: int, width: int) -> NDArray[np.uint8]:
    """Batches of images, uint8 or floats in 0..1, as one array `[n, h, w, 3]`."""
    parts = []
    for batch in batches:
        check_images(batch, height, width)
        parts.append(as_pixels(batch))
    return np.concatenate(parts) if parts else np.empty((0, 0, 0, 3), dtype=np.uint8)
