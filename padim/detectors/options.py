"""What a fit is asked for, and what it found. Cheap to import, so that commands and pipeline need no torch for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """How a fit is run and what its file carries, beside the protocol: every such choice stands here, once.

    Attributes:
        category: a name that the model will carry.
        false_alarm_rate: the share of fresh normal images that the model's verdict may flag, by default 1 %, or what
            it was before an update.
        calibrate: whether thresholds are wanted.
        keep_moments: whether the model is to carry what an update takes.
        ignore: a mask of the size of the training images; fit and scores do not depend on the pixels that it marks.
        update: whether to learn from these images and the earlier ones together.
        embed_backbone: whether the file carries the backbone's weights, so that it scores anywhere.
        storage: `fp32`, or `fp16` for half as many bytes in the large tensors, which costs digits.
        folder: where the log and the checkpoints of a fit of many steps go; None for neither.
        checkpoint_steps: steps from one checkpoint to the next.
        resume: whether to go on from the checkpoint in the folder.
        workers: threads that prepare images.
    """

    category: str = ""
    false_alarm_rate: float | None = None
    calibrate: bool = True
    keep_moments: bool = False
    ignore: Path | None = None
    update: bool = False
    embed_backbone: bool = True
    storage: str = "fp32"
    folder: Path | None = None
    checkpoint_steps: int = 50
    resume: bool = False
    workers: int = 1


@dataclass(frozen=True)
class FitResult:
    """What a fit found.

    Attributes:
        images: how many images the detector knows now.
        scores: what each training image scores if it is left out of the fit, `[images]`, where that was computed;
            those that were trimmed are among them.
        trimmed: the positions of those that the fit has left out in the end.
        figures: what else there is to know, by name.
        history: what was measured at each step, by name, of a fit of many steps.
    """

    images: int
    scores: NDArray[np.float32] | None = None
    trimmed: Sequence[int] = ()
    figures: Mapping[str, float] = field(default_factory=dict)
    history: Sequence[Mapping[str, float | None]] = ()
