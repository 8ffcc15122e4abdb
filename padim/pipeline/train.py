"""Train on a category: read its images, fit a detector, write the model file."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from padim.calibration import Thresholds, outlying, shortest
from padim.config import BaseConfig
from padim.data.items import Category, Item
from padim.data.layouts import EXPECTED
from padim.data.loader import ImageLoader, as_tensor, batched
from padim.data.transform import Transform
from padim.detectors.contract import Detector
from padim.detectors.options import FitOptions, FitResult
from padim.detectors.registry import load, model_config, new_detector
from padim.errors import ImageError, PadimError
from padim.pipeline.remembered import remembered_folders
from padim.pipeline.size import check_rigid, ignored_pixels
from padim.storage.files import check_writable, write_json
from padim.system import distributed
from padim.system.machine import peak_memory
from padim.system.progress import OnProgress, silent, tracked
from padim.weights import Weights


class Resources(NamedTuple):
    """What a training took.

    Attributes:
        seconds: of wall time.
        memory: the most memory in bytes that the process has had, and on a GPU.
        device: where it ran.
    """

    seconds: float
    memory: dict[str, int]
    device: str


@dataclass(frozen=True)
class TrainResult:
    """A trained category.

    Attributes:
        detector: the fitted detector, as its file holds it.
        category: what it was fitted to.
        path: the model file, where one was written.
        fit: what the fit found.
        added: how many images it took in; fewer than it knows after an update.
        skipped: how many images could not be used.
        folders: the folders of one's own that the images are in, see `Category`.
        unusual: the images that score far higher than the others when they are left out, with these scores.
        trimmed: the images that the fit has left out.
        thresholds: what is anomalous.
        taken: time and memory.
    """

    detector: Detector
    category: str
    path: Path | None
    fit: FitResult
    added: int
    skipped: int
    folders: Mapping[str, Path]
    unusual: Mapping[Path, float]
    trimmed: Sequence[Path]
    thresholds: Thresholds
    taken: Resources

    def summary(self) -> dict[str, Any]:
        """The result as plain values, for JSON."""
        return {
            "category": self.category,
            "model": str(self.path),
            "images": self.fit.images,
            "skipped": self.skipped,
            **dataclasses.asdict(self.thresholds),
            **self.fit.figures,
            "seconds": round(self.taken.seconds, 3),
            "images_per_second": round(self.added / self.taken.seconds, 2),
            **self.taken.memory,
            "model_bytes": self.path.stat().st_size if self.path else None,
            "device": self.taken.device,
            "poses": self.detector.alignment and self.detector.alignment.summary(),
            "unusual": [{"path": str(path), "score": score} for path, score in self.unusual.items()],
            "trimmed": [*map(str, self.trimmed)],
            "folders": {use: str(folder) for use, folder in self.folders.items()},
        }


def train_category(
    category: Category,
    config: BaseConfig,
    output: Path | str | None = None,
    *,
    options: FitOptions = FitOptions(),
    weights: Weights | None = None,
    device: str = "cpu",
    strict: bool = False,
    update_from: Path | str | None = None,
    tests: Sequence[Item] = (),
    make: Callable[..., Detector] = new_detector,
    progress: OnProgress = silent,
) -> TrainResult:
    """Fit a detector to the training images of a category, and write it to `OUTPUT/CATEGORY/model.safetensors`.

    Under torchrun, each process reads its share of the images, and the first one writes.

    Args:
        category: the images.
        config: the protocol.
        output: folder of the models; None writes nothing.
        options: how the fit is run and what its file carries; `category` and `update` follow from the other
            arguments, and `folder` does where there is an `output`.
        weights: of the backbone, as state dict or file; by default the published ones are downloaded.
        device: where to compute, in torch's terms.
        strict: whether the first unreadable image is an error; else it is skipped and counted.
        update_from: a model file that is to take in the images, with its own configuration.
        tests: labelled images, for a configuration that chooses its weights by them.
        make: gives the unfitted detector of a configuration.
        progress: is told how far it has come.

    Raises:
        PadimError: there are too few images, the weights don't fit, or the model can't be written.
    """
    if not category.train:
        raise PadimError(f"no training images: {EXPECTED}")
    if options.ignore and update_from:
        raise PadimError("an update keeps the pixels that the model ignores: omit the mask")
    start = time.perf_counter()
    folder = Path(output, category.name) if output is not None else None
    if folder:
        check_writable(folder)
    config = model_config(update_from) if update_from else config
    if not update_from:
        check_rigid(config, category.train)
    transform = Transform.of(config)
    loader = ImageLoader(distributed.share(category.train), transform, workers=options.workers, strict=strict)
    loader.start()  # while the network is built
    if update_from:
        detector = load(update_from, weights=weights, device=device)
    else:
        detector = make(config, weights=weights, device=device)
    if options.ignore:
        detector.ignore(ignored_pixels(options.ignore, category.train, transform))
    earlier = detector.provenance.images
    options = dataclasses.replace(
        options, category=category.name, folder=folder or options.folder, update=update_from is not None
    )
    held_out = ImageLoader(tests, transform, workers=options.workers, strict=strict)
    batches = LoaderBatches(loader, category.name, config, progress)
    fit = detector.fit(batches, options, tests=_labelled(held_out, config.batch_size), progress=progress)
    added = fit.images - earlier
    skipped = len(category.train) - added - len(fit.trimmed)  # one that is gone before the second pass is in the model
    whole = skipped + (detector.provenance.skipped if update_from else 0)
    detector.provenance = dataclasses.replace(detector.provenance, skipped=whole)
    scored, trimmed = _scored_images(category.train, loader.failures, fit)
    path = None
    if folder and distributed.rank() == 0:
        path = folder / "model.safetensors"
        detector.save(path, options)
    taken = Resources(time.perf_counter() - start, peak_memory(), device)
    if path and options.storage != "fp32":  # which rounds: what is given back is what was written
        detector = load(path, weights=weights, device=device)
    thresholds = Thresholds.calibrated(detector.calibration, detector.provenance.false_alarm_rate)
    folders = category.folders
    if update_from and folder:
        folders = {**remembered_folders(folder), **folders}
    result = TrainResult(
        detector, category.name, path, fit, added, skipped, folders, scored, trimmed, thresholds, taken
    )
    if folder and path:
        write_json(folder / "train.json", result.summary() | {"config": config.to_dict()})
        if fit.history:
            from padim.report.figures import save_figure, training_figure  # matplotlib is slow to import

            save_figure(folder, "training", training_figure(fit.history))
    return result


def _scored_images(
    items: Sequence[Item], failures: Mapping[Path, ImageError], fit: FitResult
) -> tuple[dict[Path, float], list[Path]]:
    """The training images that stood out when they were left out of the fit, and those that were trimmed."""
    own = [number for number in distributed.share(range(len(items))) if items[number].path not in failures]
    used = distributed.gathered(np.array(own, dtype=np.float32)).astype(int)
    if fit.scores is None or len(used) != len(fit.scores):  # one was gone before the second pass
        return {}, []
    paths = [items[number].path.absolute() for number in used]
    unusual = [position for position in outlying(fit.scores) if position not in fit.trimmed]
    scores = {paths[position]: shortest(fit.scores[position]) for position in unusual}
    return scores, [paths[position] for position in fit.trimmed]


class LoaderBatches:
    """The images of a loader in batches `[n, 3, h, w]`, which can be gone through again.

    Attributes:
        images: how many there are, unless some can't be read.
        passes: how often they were gone through.
    """

    def __init__(self, loader: ImageLoader, name: str, config: BaseConfig, progress: OnProgress) -> None:
        self._loader, self._name, self._size, self._progress = loader, name, config.batch_size, progress
        self.images = len(loader)
        self.passes = 0

    def __len__(self) -> int:
        return -(-len(self._loader) // self._size)

    def __iter__(self) -> Iterator[Tensor]:
        self.passes += 1
        what = self._name if self.passes == 1 else f"{self._name}, calibration"
        return map(as_tensor, batched(tracked(self._loader, what, self._progress), self._size))


def _labelled(loader: ImageLoader, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of images `[n, 3, h, w]`, and whether each is anomalous `[n]`, read when they are asked for."""
    for batch in batched(loader, size):
        yield as_tensor(batch), torch.tensor([sample.item.anomalous for sample in batch])
