"""The CutPaste detector: a network trained to recognise pasted patches, and a density of its embeddings."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from padim.backbones import StateDict, digest
from padim.calibration import Calibration
from padim.cutpaste.augment import CLASSES, views
from padim.cutpaste.checkpoint import Journal, Row
from padim.cutpaste.config import CutPasteConfig
from padim.cutpaste.density import GaussianDensity, KernelDensity
from padim.cutpaste.network import EMBEDDING, CutPasteNetwork
from padim.cutpaste.training import Training, view_generator
from padim.detectors.contract import (
    LIBRARIES,
    STORAGES,
    Batches,
    Detector,
    Estimate,
    Plan,
    Scores,
    TrainingOptions,
    Weights,
    images_of,
    take,
    weights_from,
)
from padim.errors import PadimError
from padim.storage.provenance import About
from padim.system import distributed
from padim.system.device import all_cores, arithmetic, full_float32
from padim.system.signals import stop_requests

log = logging.getLogger(__name__)

# Bytes that a step keeps for a pixel of an image.
_GRADIENTS = 900

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
        if self.config.initial == "imagenet":
            self.network.load_pretrained(weights_from(weights, self.config.backbone))
        self.network.to(memory_format=torch.channels_last)
        self.network.to(self.device).eval()
        self.density: Density | None = None

    @property
    def dimensions(self) -> int:
        """Of the embeddings."""
        return EMBEDDING

    def learn(self, batches: Batches, calibrate: bool, training: TrainingOptions, more: bool) -> int:
        """As `Detector.learn`; all images stay in memory, at a byte a channel of a pixel."""
        self.check(Plan(more=more, keep_moments=training.keep_moments))
        if distributed.processes() > 1:
            raise PadimError("cutpaste trains in one process: start it without torchrun")
        if self.config.select == "best-on-test" and training.test is None:
            raise PadimError("--select best-on-test needs test images: pass --eval")
        images = _collected(self.on_device(images_of(batch)) for batch in batches)
        if len(images) < 2:
            raise PadimError(f"a density needs at least two training images, there is {len(images) or 'none'}")
        self.about = dataclasses.replace(self.about, weights_sha256=digest(self.network.state_dict()))
        with all_cores(self.device):
            self._train(images, training)
            scores = self._fit_density(images)
        if self.embeddings is not None and not bool((self.embeddings != self.embeddings[0]).any()):
            log.warning("all training images have the same embedding: the network has learned nothing")
        self.calibration = Calibration(np.sort(scores.cpu().numpy()), None) if calibrate and len(images) > 2 else None
        return len(images)

    def forward(self, images: Tensor) -> Scores:
        """As `Detector.forward`."""
        density = self._fitted()
        return Scores(density(self._embed(images)), None)

    def tensors(self, embed_backbone: bool, dtype: torch.dtype) -> dict[str, Tensor]:  # noqa: ARG002 (it is)
        """As `Detector.tensors`."""
        density = self._fitted()
        assert self.embeddings is not None
        tensors = {
            f"network.{key}": value.to(_stored(value, dtype)) for key, value in self.network.state_dict().items()
        }
        tensors |= {f"density.{key}": value for key, value in density.state_dict().items()}
        return tensors | {"embeddings": self.embeddings}

    def _fitted(self) -> Density:
        if self.density is None:
            raise PadimError("the model isn't fitted: call fit, or load one")
        return self.density

    @classmethod
    def from_tensors(
        cls,
        tensors: Mapping[str, Tensor],
        config: CutPasteConfig,
        about: About,
        weights: Weights | None,  # noqa: ARG003 (the file carries its own)
        device: str,
    ) -> Self:
        """As `Detector.from_tensors`."""
        detector = cls(dataclasses.replace(config, initial="random"), device=device)
        detector.config = config
        found = {}
        for key, value in detector.network.state_dict().items():
            kinds = (torch.float32, torch.float16) if value.is_floating_point() else (value.dtype,)
            found[key] = take(tensors, f"network.{key}", *value.shape, dtypes=kinds).to(value.dtype)
        detector.network.load_state_dict(found)
        d, images = EMBEDDING, about.images
        detector.embeddings = take(tensors, "embeddings", images, d)
        if config.density == "gaussian":
            mean, whitening = take(tensors, "density.mean", d), take(tensors, "density.whitening", d, d)
            density: Density = GaussianDensity(mean, whitening)
        else:
            density = KernelDensity(take(tensors, "density.points", images, d), take(tensors, "density.bandwidth"))
        detector.density = density.to(detector.device)
        return detector

    @classmethod
    def initial_weights(cls, config: CutPasteConfig, weights: Weights | None) -> StateDict | None:
        """As `Detector.initial_weights`."""
        return super().initial_weights(config, weights) if config.initial == "imagenet" else None

    @classmethod
    def augmented(cls, image: Image.Image, config: CutPasteConfig, number: int) -> dict[str, Image.Image]:
        """As `Detector.augmented`."""
        made = views(image, config, view_generator(config, number))
        return dict(zip(CLASSES[config.variant], made, strict=True))

    @classmethod
    def is_seeded(cls, config: CutPasteConfig) -> bool:
        """As `Detector.is_seeded`."""
        return config.steps > 0 or config.initial == "random"

    @classmethod
    def check(cls, plan: Plan) -> None:
        """As `Detector.check`."""
        if plan.more:
            raise PadimError("cutpaste can't take in more images: train it again with all of them")
        if plan.keep_moments:
            raise PadimError("--keep-moments: cutpaste has none, train it again with all images")
        if not plan.embed_backbone:
            raise PadimError("--no-embed-backbone: the network is trained, so its weights are nowhere else")

    @classmethod
    def estimate(cls, config: CutPasteConfig, images: int, plan: Plan | None = None) -> Estimate:
        """As `Detector.estimate`: what a step keeps for its gradients."""
        height, width = config.image_size
        examples = config.training_batch * len(CLASSES[config.variant])
        step = examples * height * width * (_GRADIENTS if config.precision == "fp32" else _GRADIENTS // 2)
        pixels = 3 * height * width * images
        weights = sum(4 * value.numel() for value in CutPasteNetwork(config).state_dict().values())
        parts = {"images": pixels, "step": step}
        storage = STORAGES[(plan or Plan()).storage]
        model = weights * storage.itemsize // 4 + 4 * EMBEDDING * (EMBEDDING + images)
        return Estimate(LIBRARIES + 3 * weights + pixels + step, model, parts)

    @property
    def remark(self) -> str | None:
        """As `Detector.remark`."""
        if self.config.select == "last":
            return None
        return "the step was chosen by the AUROC on the test images: figures on them have seen the answers"

    def embed(self, images: Tensor) -> Tensor:
        """As `Detector.embed`; they have length 1."""
        with full_float32(self.device):
            return self._embed(self.on_device(images))

    @torch.no_grad()
    def _embed(self, images: Tensor) -> Tensor:
        """Embeddings `[n, 512]` of images on the device."""
        with arithmetic(self.device, self.config.precision):
            embeddings, _ = self.network.embed(images)
        return F.normalize(embeddings.float(), dim=1)

    def _batches(self, images: NDArray[np.uint8]) -> Iterator[Tensor]:
        """Images `[n, h, w, 3]` as batches on the device."""
        size = self.config.batch_size
        for start in range(0, len(images), size):
            yield torch.from_numpy(images[start : start + size]).permute(0, 3, 1, 2).to(self.device)

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

    def _train(self, images: NDArray[np.uint8], options: TrainingOptions) -> None:
        """Make all steps, and take the weights of the last or of the best one.

        Raises:
            KeyboardInterrupt: after Ctrl-C or SIGTERM, with a checkpoint.
        """
        name = options.folder.name if options.folder else "training"
        journal = Journal.of(options.folder, self.config, images, self.about.weights_sha256)
        found = journal.read_checkpoint() if options.resume else None
        if options.resume and not found:
            log.warning("there is no %s to resume: starting with the first step", journal.checkpoint)
        run = Training(self.network, self.config, images)
        best = _Best()
        if found:
            try:
                run.restore(*found)
                best = _Best.restored(*found, self.network)
            except (KeyError, OverflowError, RuntimeError, TypeError, ValueError) as error:
                raise PadimError(f"{journal.checkpoint} is damaged: train without --resume") from error

        def checkpoint() -> None:
            tensors, values = run.state()
            journal.write_checkpoint(tensors | best.tensors(), values | {"best": [best.auroc, best.step]})

        with (
            stop_requests() as stop,
            tqdm(total=self.config.steps, initial=run.step, desc=name, unit="step", disable=None) as bar,
        ):
            for step in run.steps(options.workers):
                auroc = None
                looked_at = step.step % self.config.test_steps == 0 or step.step == self.config.steps
                if self.config.select == "best-on-test" and options.test and looked_at:
                    self._fit_density(images)
                    auroc = options.test()
                    best.offer(auroc, step.step, self.network)
                journal.rows.append(Row(step, auroc))
                bar.set_postfix(
                    loss=f"{step.loss:.3f}",
                    accuracy=f"{step.accuracy:.3f}",
                    images=f"{step.images_per_second:.0f}/s",
                    data=f"{step.data_seconds:.2f}s",
                    compute=f"{step.compute_seconds:.2f}s",
                    refresh=False,
                )
                bar.update()
                if stop.is_set():
                    checkpoint()
                    raise KeyboardInterrupt
                if run.step % options.checkpoint_steps == 0 and run.step < self.config.steps:
                    checkpoint()
        checkpoint()
        if best.weights is not None:
            self.network.load_state_dict(best.weights)
        self.history = [dataclasses.asdict(row.step) | {"test_auroc": row.test_auroc} for row in journal.rows]
        self.facts = {"step": best.step or run.step}
        tested = [(row.step.step, row.test_auroc) for row in journal.rows if row.test_auroc is not None]
        if tested:
            self.facts |= {"best_test_auroc": best.auroc, "last_test_auroc": tested[-1][1]}


@dataclasses.dataclass
class _Best:
    """The weights with the highest AUROC on the test images, the latest of several, as the reference has it."""

    auroc: float = -math.inf
    step: int = 0
    weights: StateDict | None = None

    def offer(self, auroc: float, step: int, network: nn.Module) -> None:
        """Take the network's weights if none were better."""
        if auroc >= self.auroc:
            self.auroc, self.step = auroc, step
            self.weights = {key: value.clone() for key, value in network.state_dict().items()}

    def tensors(self) -> dict[str, Tensor]:
        """The weights, for a checkpoint."""
        return {f"best.{key}": value for key, value in (self.weights or {}).items()}

    @classmethod
    def restored(cls, tensors: Mapping[str, Tensor], values: Mapping[str, Any], network: nn.Module) -> _Best:
        """From a checkpoint of a network.

        Raises:
            KeyError, OverflowError, TypeError, ValueError: it isn't one.
        """
        weights = {key.removeprefix("best."): value for key, value in tensors.items() if key.startswith("best.")}
        shapes = {key: value.shape for key, value in network.state_dict().items()}
        if weights and {key: value.shape for key, value in weights.items()} != shapes:
            raise ValueError("best")
        auroc, step = values["best"]
        return cls(float(auroc), int(step), weights or None)


def _collected(batches: Iterable[Tensor]) -> NDArray[np.uint8]:
    """Batches of images, uint8 or floats in 0..1, as one array `[n, h, w, 3]`."""
    parts = []
    for batch in batches:
        pixels = batch if batch.dtype == torch.uint8 else (batch * 255).round().to(torch.uint8)
        parts.append(pixels.permute(0, 2, 3, 1).cpu().numpy())
    return np.concatenate(parts) if parts else np.empty((0, 0, 0, 3), dtype=np.uint8)


def _stored(value: Tensor, dtype: torch.dtype) -> torch.dtype:
    """`dtype` for weights of convolutions and products, the tensor's own for all else."""
    return dtype if value.dim() > 1 else value.dtype
