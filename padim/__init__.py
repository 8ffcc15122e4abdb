"""PaDiM: anomaly detection and localization in images, from normal images alone (Defard et al. 2020).

A map, in reading order; `docs/architecture.md` has a line per file.

    config, errors                          the configurations, and the errors that users can correct
    data                                    image files to pixels
    backbones, weights, extractor           pixels to feature maps; resnet, lite0, and networks of libraries
    embedding, pyramid                      feature maps to features
    gaussian                                features to distances
    tiles, scoring, calibration             distances to anomaly maps, image scores and thresholds
    detectors, model, cutpaste              what a detector is, PaDiM, and the second one
    pipeline, estimate                      what commands and programs call
    evaluation, report, reproduction        metrics; pages and pictures; tables beside published figures
    storage, deploy, system                 files; exported models and streams; the machine
    cli                                     the commands
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from padim.config import Config
from padim.cutpaste.config import CutPasteConfig
from padim.detectors.options import FitOptions
from padim.errors import PadimError
from padim.version import __version__

if TYPE_CHECKING:
    from padim.cutpaste.model import CutPaste
    from padim.data.layouts import find_category, plain_category
    from padim.deploy.runtime import Runtime
    from padim.detectors.scores import Scores
    from padim.model import Padim
    from padim.pipeline.evaluate import evaluate_category
    from padim.pipeline.predict import predict
    from padim.pipeline.train import train_category

__all__ = [
    "Config",
    "CutPaste",
    "CutPasteConfig",
    "FitOptions",
    "Padim",
    "PadimError",
    "Runtime",
    "Scores",
    "__version__",
    "evaluate_category",
    "find_category",
    "plain_category",
    "predict",
    "train_category",
]

# What takes long to import is imported when it is first asked for, so that commands answer at once.
_LAZY = {
    "CutPaste": "padim.cutpaste.model",
    "Padim": "padim.model",
    "Runtime": "padim.deploy.runtime",
    "Scores": "padim.detectors.scores",
    "evaluate_category": "padim.pipeline.evaluate",
    "find_category": "padim.data.layouts",
    "plain_category": "padim.data.layouts",
    "predict": "padim.pipeline.predict",
    "train_category": "padim.pipeline.train",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
