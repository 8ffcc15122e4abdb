"""Experiments: presets and the paper's comparisons, and one run of an experiment on one category."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from padim.config import BaseConfig, Config, preset_path
from padim.data.items import Category
from padim.detectors.contract import Detector
from padim.detectors.options import FitOptions
from padim.detectors.registry import new_detector, read_config
from padim.errors import PadimError
from padim.estimate import estimate
from padim.extractor import Backbone
from padim.pipeline.evaluate import evaluate_category
from padim.pipeline.train import train_category
from padim.reproduction.ablations import PcaPadim, SumOfMaps
from padim.reproduction.tables import COUNTS, METRICS
from padim.storage.files import write_json
from padim.version import __version__
from padim.weights import StateDict


@dataclass(frozen=True)
class Experiment:
    """A detector under one configuration.

    Attributes:
        name: a preset or an ablation; what `padim.reproduction.published` knows it by.
        config: its protocol.
        make: gives the unfitted detector of the configuration.
        repeated: the field of the configuration that a repetition changes.
    """

    name: str
    config: BaseConfig
    make: Callable[..., Detector] = new_detector
    repeated: str = "seed"

    def with_seed(self, number: int) -> Experiment:
        """The experiment with the seed of its repetition `number`; the first one has its own."""
        first = getattr(self.config, self.repeated)
        return dataclasses.replace(self, config=dataclasses.replace(self.config, **{self.repeated: first + number}))

    @property
    def seeded(self) -> bool:
        """Whether anything in it is drawn at random; the variants that take all channels draw none of them."""
        return self.config.rotation > 0 or (self.make is new_detector and self.config.seeded)

    def memory_bytes(self) -> int:
        """About what a process takes that fits it to some hundred images on the CPU."""
        if self.make is new_detector or not isinstance(self.config, Config):
            return estimate(self.config, 400).memory
        memory = estimate(dataclasses.replace(self.config, channels=0), 400).memory
        _, height, width = Backbone(self.config.backbone, self.config.layers[:1], self.config.image_size).shapes[0]
        return (
            memory + 2 * 4 * 2 * height * width * self.config.channels**2
        )  # the projected moments and what is made of them


# The comparisons of Defard et al. 2020, and aligning: preset, what differs from it, and what makes the detector.
_ABLATIONS: dict[str, tuple[str, dict[str, Any], Callable[..., Detector]]] = {
    "layer1": ("paper-r18", {"layers": ("layer1",), "channels": 0}, new_detector),
    "layer2": ("paper-r18", {"layers": ("layer2",), "channels": 0}, new_detector),
    "layer3": ("paper-r18", {"layers": ("layer3",), "channels": 0}, new_detector),
    "sum": ("paper-r18", {"channels": 0}, SumOfMaps),
    "joined": ("paper-r18", {"channels": 0}, new_detector),
    "random100": ("paper-r18", {"channels": 100}, new_detector),
    "random200": ("paper-r18", {"channels": 200}, new_detector),
    "pca100": ("paper-r18", {"channels": 100}, PcaPadim),
    "pca200": ("paper-r18", {"channels": 200}, PcaPadim),
    "non-aligned": ("paper-wr50", {"rotation": 10.0}, new_detector),
    "non-aligned-r18": ("paper-r18", {"rotation": 10.0}, new_detector),
    "align-none": ("pytorch-r18", {"rotation": 10.0}, new_detector),
    "align-rotate": ("pytorch-r18", {"rotation": 10.0, "align": "rotate"}, new_detector),
}

# Names of comparisons that are of use together. Those of `align` are repeated on other poses, with the same channels.
PAIRS = {"align": ("align-none", "align-rotate")}


def preset(name: str) -> Experiment:
    """The experiment of a preset.

    Raises:
        PadimError: there is no such preset.
    """
    return Experiment(name, read_config(preset_path(name)))


def ablation(name: str) -> Experiment:
    """One of the comparisons.

    Raises:
        PadimError: there is no such one; the message lists them.
    """
    if name not in _ABLATIONS:
        raise PadimError(f"there is no ablation {name!r}; there are {', '.join([*_ABLATIONS, *PAIRS])}")
    base, changes, make = _ABLATIONS[name]
    repeated = "rotation_seed" if name in PAIRS["align"] else "seed"
    return Experiment(name, dataclasses.replace(preset(base).config, **changes), make, repeated)


def ablations() -> list[str]:
    """The names of all of them."""
    return list(_ABLATIONS)


@dataclass(frozen=True)
class Run:
    """One experiment on one category, whose result is a JSON file.

    Attributes:
        experiment: what is run.
        category: on what.
        weights_sha256: digest of the backbone's weights.
        path: where the result is kept.
    """

    experiment: Experiment
    category: Category
    weights_sha256: str
    path: Path

    def result(self) -> dict[str, Any] | None:
        """The figures of an earlier run, unless there is none or anything that they depend on has changed."""
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))
            whole = found["key"] == self._key() and _are_figures(found["figures"])
            return dict(found["figures"]) if whole else None
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None

    def execute(self, weights: StateDict | None, device: str, workers: int) -> dict[str, Any]:
        """Fit and evaluate; the figures, which are also written to the file.

        Raises:
            PadimError: there is nothing to fit to or to evaluate on, or the weights don't fit.
        """
        if not self.category.train or not self.category.test:
            raise PadimError("a run needs training images and test images")
        key = self._key()  # of the files as they are before they are read
        trained = train_category(
            self.category,
            self.experiment.config,
            options=FitOptions(calibrate=False, workers=workers),
            weights=weights,
            device=device,
            tests=self.category.test,
            make=self.experiment.make,
        )
        evaluation = evaluate_category(trained.detector, self.category, workers=workers)
        counts = {"skipped": trained.skipped + evaluation.skipped, "unmasked": evaluation.unmasked}
        figures = dataclasses.asdict(evaluation.metrics) | {"images": len(evaluation.images)} | counts
        write_json(self.path, {"key": key, "figures": figures})
        return figures

    def _key(self) -> dict[str, Any]:
        """All that the figures depend on."""
        return {
            "padim": __version__,
            "experiment": self.experiment.name,
            "config": json.loads(json.dumps(self.experiment.config.to_dict())),  # lists for tuples
            "weights_sha256": self.weights_sha256,
            "images_sha256": _fingerprint(self.category),
        }


def _are_figures(figures: Mapping[str, Any]) -> bool:
    """Whether figures from a file are such as `padim.reproduction.tables.table` takes.

    Raises:
        KeyError, TypeError: they are not.
    """
    shares = [figures[name] for name in METRICS.values()]
    return all(share is None or 0 <= share <= 1 for share in shares) and all(figures[name] >= 0 for name in COUNTS)


def _fingerprint(category: Category) -> str:
    """SHA-256 of a category's list of images with their labels, and of size and date of all files."""
    sha = hashlib.sha256()
    for split, items in (("train", category.train), ("test", category.test)):
        for item in items:
            files = [_stamp(item.path), _stamp(item.mask) if item.mask else None]
            sha.update(f"{split} {item.defect} {files}\n".encode(errors="backslashreplace"))
    return sha.hexdigest()


def _stamp(path: Path) -> tuple[str, int, int]:
    try:
        status = path.stat()
    except OSError:  # it is not there, which reading will report
        return str(path.absolute()), 0, 0
    return str(path.absolute()), status.st_size, status.st_mtime_ns
