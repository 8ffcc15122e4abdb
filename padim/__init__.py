"""PaDiM: anomaly detection and localization in images, from normal images alone (Defard et al. 2020)."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from padim.config import Config
from padim.cutpaste.config import CutPasteConfig
from padim.errors import PadimError

if TYPE_CHECKING:
    from padim.cutpaste.model import CutPaste
    from padim.detectors.contract import Scores
    from padim.model import Padim

__version__ = "0.1.0"
_LAZY = {"CutPaste": "padim.cutpaste.model", "Padim": "padim.model", "Scores": "padim.detectors.contract"}
__all__ = ["Config", "CutPaste", "CutPasteConfig", "Padim", "PadimError", "Scores"]


def __getattr__(name: str) -> Any:
    """Load what needs torch when it is first asked for, so that commands answer at once."""
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
