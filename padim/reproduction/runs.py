"""One run of an experiment on one category, whose result is kept in a file."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision

from padim.cutpaste.checkpoint import CHECKPOINT
from padim.data.items import Category
from padim.detectors.options import FitOptions
from padim.errors import CheckpointError, PadimError
from padim.evaluation.category import Evaluation, roc_curves
from padim.pipeline.evaluate import evaluate_category
from padim.pipeline.train import TrainResult, train_category
from padim.reproduction.experiments import Experiment
from padim.reproduction.rows import COSTS, COUNTS, METRICS
from padim.storage.files import write_json
from padim.system.machine import cpu_model, reset_peak_memory
from padim.version import __version__
from padim.weights import StateDict

log = logging.getLogger(__name__)

_CORNERS = 200  # of a ROC curve that are kept: no line of a figure is drawn more finely


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
        except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            return None

    def execute(self, weights: StateDict | None, device: str, workers: int) -> dict[str, Any]:
        """Fit and evaluate; the figures, which are also written to the file.

        A training of many steps goes on where an earlier call was interrupted. Its log lies in a folder beside the
        file, where its checkpoints are as long as it runs.

        Raises:
            PadimError: there is nothing to fit to or to evaluate on, or the weights don't fit.
        """
        if not self.category.train or not self.category.test:
            raise PadimError("a run needs training images and test images")
        key = self._key()  # of the files as they are before they are read
        reset_peak_memory()
        checkpoint = self.path.with_suffix("") / CHECKPOINT
        try:
            trained = self._train(weights, device, workers, checkpoint.parent, resume=checkpoint.exists())
        except CheckpointError as error:
            log.warning("%s: starting with the first step", str(error).rpartition(":")[0])
            trained = self._train(weights, device, workers, checkpoint.parent, resume=False)
        evaluation = evaluate_category(trained.detector, self.category, workers=workers)
        counts = {"train": len(self.category.train) - trained.skipped, "skipped": trained.skipped + evaluation.skipped}
        figures = _figures(trained, evaluation) | counts | {"environment": _environment(device)}
        write_json(self.path, {"key": key, "figures": figures})
        checkpoint.unlink(missing_ok=True)
        return figures

    def _train(
        self, weights: StateDict | None, device: str, workers: int, folder: Path, *, resume: bool
    ) -> TrainResult:
        return train_category(
            self.category,
            self.experiment.config,
            options=FitOptions(calibrate=False, workers=workers, folder=folder, resume=resume),
            weights=weights,
            device=device,
            tests=self.category.test,
            make=self.experiment.make,
        )

    def _key(self) -> dict[str, Any]:
        """All that the figures depend on."""
        return {
            "padim": __version__,
            "experiment": self.experiment.name,
            "detector": self.experiment.make.__qualname__,  # of an ablation, say, with the configuration of another
            "config": json.loads(json.dumps(self.experiment.config.to_dict())),  # lists for tuples
            "weights_sha256": self.weights_sha256,
            "images_sha256": _fingerprint(self.category),
        }


def _figures(trained: TrainResult, evaluation: Evaluation) -> dict[str, Any]:
    """What was measured: metrics, curves, and what it took. The steps before an interruption took their time, too."""
    steps = sum((row["data_seconds"] or 0) + (row["compute_seconds"] or 0) for row in trained.fit.history)
    memory, on_device = evaluation.memory, trained.taken.device.startswith("cuda")
    curves = roc_curves(evaluation.images).items()
    return dataclasses.asdict(evaluation.metrics) | {
        "images": len(evaluation.images),
        "unmasked": evaluation.unmasked,
        "seconds": round(max(trained.taken.seconds, steps), 3),
        "images_per_second": round(len(evaluation.images) / evaluation.seconds, 2),
        "peak_memory_gb": round(memory["device_peak_memory_bytes" if on_device else "peak_memory_bytes"] / 1e9, 3),
        "curves": {name: np.round(curve.thinned_points(_CORNERS), 5).tolist() for name, curve in curves},
    }


def _environment(device: str) -> dict[str, str]:
    """What a run on a device is made with, by name."""
    gpu = {"GPU": torch.cuda.get_device_name(device)} if device.startswith("cuda") else {}
    versions = {"Python": platform.python_version(), "torch": torch.__version__, "torchvision": torchvision.__version__}
    machine = {"numpy": np.__version__, "CPU": cpu_model()} | gpu
    return {"padim": __version__} | versions | machine | {"date": date.today().isoformat()}


def _are_figures(figures: Mapping[str, Any]) -> bool:
    """Whether figures from a file are such as tables and drawings take.

    Raises:
        AttributeError, KeyError, OverflowError, TypeError, ValueError: they are not.
    """
    shares = [figures[column.figure] for column in METRICS.values()]
    amounts = [figures[name] for name in (*COUNTS, *(column.figure for column in COSTS.values()))]
    curves = [np.array(curve, dtype=float) for curve in figures["curves"].values()]
    numbers = np.concatenate([amounts, *(curve.ravel() for curve in curves)])
    return (
        all(share is None or 0 <= share <= 1 for share in shares)
        and all(curve.ndim == len(curve) == 2 for curve in curves)
        and bool(np.isfinite(numbers).all() and numbers.min() >= 0)
        and all(isinstance(value, str) for value in figures["environment"].values())
    )


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
