"""A training from its first step to its last: the log, the checkpoints, and the choice of the weights."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from padim.cutpaste.checkpoint import Checkpoint, LoggedStep
from padim.cutpaste.config import CutPasteConfig
from padim.cutpaste.network import CutPasteNetwork
from padim.cutpaste.steps import Step, Training
from padim.detectors.options import FitOptions, FitResult
from padim.errors import CheckpointError
from padim.system.progress import OnProgress, Progress
from padim.system.signals import stop_requests
from padim.weights import StateDict

log = logging.getLogger(__name__)


def train(
    network: CutPasteNetwork,
    config: CutPasteConfig,
    images: NDArray[np.uint8],
    weights_sha256: str,
    options: FitOptions,
    test_auroc: Callable[[], float],
    progress: OnProgress,
) -> FitResult:
    """Make all steps, and leave the network with the weights of the last one, or of the best one on the test images.

    Args:
        network: what is trained.
        config: the protocol.
        images: RGB `[n, h, w, 3]`.
        weights_sha256: digest of the weights at the start.
        options: folder of log and checkpoints, whether to go on from one, threads.
        test_auroc: the image AUROC on the test images of the network as it is; only asked for `best-on-test`.
        progress: is told of every step.

    Raises:
        CheckpointError: the checkpoint is damaged or of another training.
        PadimError: a loss is not finite.
        KeyboardInterrupt: after Ctrl-C or SIGTERM, with a checkpoint.
    """
    checkpoint = Checkpoint.of(options.folder, config, images, weights_sha256)
    run, best = Training(network, config, images), BestWeights()
    if options.resume:
        best = _resume(run, checkpoint)

    def save() -> None:
        tensors, values = run.state()
        checkpoint.write(tensors | best.tensors(), values | {"best": [best.auroc, best.step]})

    def look() -> float:
        auroc = test_auroc()
        best.offer(auroc, run.step, network)
        return auroc

    name, chooses = options.category or "training", config.select == "best-on-test"
    checkpoint.write_log()
    progress(Progress(name, run.step, config.steps, "step"))
    with stop_requests() as stop:
        for step in run.steps(options.workers):
            checkpoint.add(LoggedStep(step, look() if chooses and step.step % config.test_steps == 0 else None))
            progress(Progress(name, step.step, config.steps, "step", _figures(step)))
            if stop.is_set():
                save()
                raise KeyboardInterrupt
            if run.step % options.checkpoint_steps == 0 and run.step < config.steps:
                save()
    save()
    if chooses and run.step % config.test_steps:  # a look that a longer run would not have: no checkpoint knows of it
        checkpoint.steps[-1] = LoggedStep(checkpoint.steps[-1].step, look())
        checkpoint.write_log()
    if best.weights is not None:
        network.load_state_dict(best.weights)
    figures: dict[str, float] = {"step": best.step or run.step}
    tested = [row.test_auroc for row in checkpoint.steps if row.test_auroc is not None]
    if tested:
        figures |= {"best_test_auroc": best.auroc, "last_test_auroc": tested[-1]}
    history = [dataclasses.asdict(row.step) | {"test_auroc": row.test_auroc} for row in checkpoint.steps]
    return FitResult(len(images), figures=figures, history=history)


def _resume(run: Training, checkpoint: Checkpoint) -> BestWeights:
    """Take a run up from its checkpoint, if there is one; gives the best weights so far."""
    found = checkpoint.read()
    if not found:
        log.warning("there is no %s to resume: starting with the first step", checkpoint.path)
        return BestWeights()
    try:
        run.restore(*found)
        return BestWeights.restored(*found, run.network)
    except torch.OutOfMemoryError:  # which is a RuntimeError, and no fault of the checkpoint
        raise
    except (KeyError, OverflowError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{checkpoint.path} is damaged: train without --resume") from error


def _figures(step: Step) -> dict[str, float]:
    return {
        "loss": step.loss,
        "accuracy": step.accuracy,
        "learning_rate": step.learning_rate,
        "data_seconds": step.data_seconds,
        "compute_seconds": step.compute_seconds,
    }


@dataclasses.dataclass
class BestWeights:
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
    def restored(cls, tensors: Mapping[str, Tensor], values: Mapping[str, Any], network: nn.Module) -> BestWeights:
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
