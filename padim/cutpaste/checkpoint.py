"""What a training leaves in its folder while it runs: a log of its steps, and checkpoints to go on from."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType
from typing import Any, get_type_hints

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor

from padim.cutpaste.config import CutPasteConfig
from padim.cutpaste.steps import Step
from padim.errors import CheckpointError, PadimError
from padim.storage import tensorfile
from padim.storage.files import write_text

LOG, CHECKPOINT = "training.csv", "checkpoint.safetensors"


@dataclass(frozen=True)
class LoggedStep:
    """A step of the log, with the image AUROC on the test images where it was looked at."""

    step: Step
    test_auroc: float | None = None


@dataclass
class Checkpoint:
    """The log and the checkpoint of one training.

    Attributes:
        folder: where they are; None keeps the log in memory and writes no checkpoint.
        run: what the training is of: configuration and images. A checkpoint of anything else is refused.
        steps: those so far.
    """

    folder: Path | None
    run: dict[str, Any]
    steps: list[LoggedStep] = field(default_factory=list)

    @classmethod
    def of(cls, folder: Path | None, config: CutPasteConfig, images: NDArray[np.uint8], weights: str) -> Checkpoint:
        """The checkpoint of a training on images `[n, h, w, 3]` that starts from weights of this digest."""
        pixels = hashlib.sha256(np.ascontiguousarray(images).data).hexdigest()
        run = {"config": config.to_dict(), "images_sha256": pixels, "weights_sha256": weights}
        return cls(folder, json.loads(json.dumps(run)))  # lists for tuples, as in a file

    @property
    def path(self) -> Path | None:
        """Its path, whether it is there or not."""
        return self.folder and self.folder / CHECKPOINT

    def write_log(self) -> None:
        """Write `training.csv`, a line per step."""
        if self.folder is None:
            return
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([*(column.name for column in dataclasses.fields(Step)), "test_auroc"])
        for row in self.steps:
            writer.writerow([*dataclasses.astuple(row.step), "" if row.test_auroc is None else row.test_auroc])
        write_text(self.folder / LOG, text.getvalue())

    def write(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Write the log, and a checkpoint of a state, whole or not at all.

        Raises:
            PadimError: one of them can't be written.
        """
        if self.folder is None:
            return
        self.write_log()
        rows = [(dataclasses.asdict(row.step), row.test_auroc) for row in self.steps]
        header = {"run": self.run, "values": dict(values), "rows": rows}
        tensorfile.write(self.folder / CHECKPOINT, tensors, {"padim-checkpoint": json.dumps(header)})

    def read(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Take the log of the checkpoint over; gives its tensors and values, or None where there is no checkpoint.

        Raises:
            CheckpointError: it is damaged, or it is that of another training.
            PadimError: it can't be read.
        """
        path = self.path
        if path is None or not path.exists():
            return None
        try:
            with tensorfile.opened(path) as file:
                header = json.loads(file.metadata()["padim-checkpoint"])
                tensors = tensorfile.tensors(file)
            for name, value in self.run.items():
                if header["run"][name] != value:
                    raise CheckpointError(
                        f"{path} is of a training with another {_difference(name, header['run'][name], value)}:"
                        " train without --resume"
                    )
            self.steps = [_logged_step(step, auroc) for step, auroc in header["rows"]]
            if [row.step.step for row in self.steps] != [*range(1, len(self.steps) + 1)]:
                raise ValueError("rows")
            return tensors, dict(header["values"])
        except OSError as error:
            raise PadimError(f"can't read {path}: {error.strerror or error}") from error
        except (SafetensorError, AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise CheckpointError(f"{path} is damaged: train without --resume") from error


def _logged_step(step: dict[str, Any], auroc: Any) -> LoggedStep:
    """A step from a checkpoint.

    Raises:
        TypeError: it isn't one of numbers.
    """
    row = LoggedStep(Step(**step), auroc)
    found = {name: type(value) for name, value in step.items()}
    if found != get_type_hints(Step) or type(auroc) not in (float, NoneType):
        raise TypeError("step")
    return row


def _difference(name: str, found: Any, wanted: Any) -> str:
    """`--steps` for a field of the configuration, else what else is another."""
    if name != "config":
        return name.removesuffix("_sha256")
    changed = [key for key in wanted if found.get(key) != wanted[key]]
    return ", ".join(f"--{key.replace('_', '-')}" for key in changed)
