"""PaDiM: anomaly detection and localization in images, from normal images alone (Defard et al. 2020)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from padim.config import Config
from padim.errors import PadimError

if TYPE_CHECKING:
    from padim.model import Padim, Scores

__version__ = "0.1.0"
__all__ = ["Config", "Padim", "PadimError", "Scores"]


def __getattr__(name: str) -> Any:
    """Load what needs torch when it is first asked for, so that commands answer at once."""
    if name in ("Padim", "Scores"):
        from padim import model

        return getattr(model, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
