"""The one way that distances become colours."""

from __future__ import annotations

from dataclasses import dataclass

import matplotlib
import numpy as np
from numpy.typing import NDArray

COLOUR_MAP = "inferno"  # perceptually uniform, and readable by the colour-blind


@dataclass(frozen=True)
class ColourScale:
    """Distances from `low` to `high` mapped to colours; what lies outside takes the end's colour."""

    low: float
    high: float

    @classmethod
    def of_model(cls, normal_distance: float) -> ColourScale:
        """The scale of a model, whose fresh normal images have about a distance where they deviate most."""
        return cls(0, 3 * normal_distance)  # which they seldom reach

    def colours(self, values: NDArray[np.floating]) -> NDArray[np.uint8]:
        """RGB `[..., 3]` of distances `[...]`."""
        table = (matplotlib.colormaps[COLOUR_MAP](np.arange(256))[:, :3] * 255).round().astype(np.uint8)
        position = (values - self.low) / (self.high - self.low)
        return table[(position.clip(0, 1) * 255).round().astype(np.uint8)]
