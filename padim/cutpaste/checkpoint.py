"""What a training leaves in its folder while it runs: a log of its steps, and checkpoints to go on from."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import json
from collections.abc import Iterable, Mapping
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
        """Write `training.csv` anew, whole or not at all: a line per step so far.

        Raises:
            PadimError: it can't be written.
        """
        if self.folder is not None:
            header = [*(column.name for column in dataclasses.fields(Step)), "test_auroc"]
            write_text(self.folder / LOG, _csv([header, *map(_cells, self.steps)]))

    def add(self, row: LoggedStep) -> None:
        """Add a step, and its line to `training.csv` at once.

        A line that is cut short when the process is killed is gone after the next `write_log`.

        Raises:
            PadimError: it can't be written.
        """
        self.steps.append(row)
        if self.folder is None:
            return
        path = self.folder / LOG
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(_csv([_cells(row)]))
        except OSError as error:
            raise PadimError(f"can't write {path}: {error.strerror or error}") from error

    def write(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Write a checkpoint of a state, whole or not at all.

        Raises:
            PadimError: it can't be written.
        """
        if self.folder is None:
            return
        rows = [(dataclasses.asdict(row.step), row.test_auroc) for row in self.steps]
        header = {"run": self.run, "values": dict(values), "rows": rows}
        tensorfile.write(self.folder / CHECKPOINT, tensors, "padim-checkpoint", header)

    def read(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Take the log of the checkpoint over; gives its tensors and values, or None where there is no checkpoint.

        Raises:
            CheckpointError: it is damaged, it is that of another training, or it has more steps than are asked for.
            PadimError: it can't be read.
        """
        path = self.path
        if path is None or not path.exists():
            return None
        try:
            tensors, metadata = tensorfile.read(path)
            header = json.loads(metadata["padim-checkpoint"])
            tensorfile.verify(tensors, header)
            self.steps = [_logged_step(step, auroc) for step, auroc in header["rows"]]
            done = len(self.steps)
            if [row.step.step for row in self.steps] != [*range(1, done + 1)] or header["values"]["step"] != done:
                raise ValueError("rows")
            if problem := _problem(header["run"], self.run, done):
                raise CheckpointError(f"{path} {problem}: train without --resume")
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


def _cells(row: LoggedStep) -> list[float | None]:
    return [*dataclasses.astuple(row.step), row.test_auroc]


def _csv(rows: Iterable[Iterable[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _problem(found: Mapping[str, Any], wanted: Mapping[str, Any], done: int) -> str:
    """What keeps a training from going on where that of a checkpoint was after so many steps, if anything.

    Another number of steps does so only if the learning rate depends on it, or if more are done already.
    """
    old, new = found["config"], wanted["config"]
    changed = [f"--{name.replace('_', '-')}" for name in new if old.get(name) != new[name]]
    changed += [name for name in ("images", "weights") if found[f"{name}_sha256"] != wanted[f"{name}_sha256"]]
    if changed not in ([], ["--steps"]):
        return f"is of a training with another {', '.join(changed)}"
    if done > new["steps"]:
        return f"has made {done} steps already, more than --steps {new['steps']}"
    if changed and not new["cosine_steps"]:
        return f"lets the learning rate fall over {old['steps']} steps (--cosine-steps 0), not over {new['steps']}"
    return ""
