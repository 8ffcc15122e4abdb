"""The one way that distances become colours."""

from __future__ import annotations

import math
from dataclasses import dataclass

import matplotlib
import numpy as np
from numpy.typing import NDArray

COLOUR_MAP = "inferno"  # perceptually uniform, and readable by the colour-blind

# Of what a model has not seen.
GREY = (160, 160, 160)


@dataclass(frozen=True)
class ColourScale:
    """Distances from `low` to `high` mapped to colours; what lies outside takes the end's colour."""

    low: float
    high: float

    @classmethod
    def about(cls, threshold: float | None, dimensions: int) -> ColourScale:
        """The threshold in the middle; without one, what normal features of so many dimensions seldom reach."""
        # Distances of d normal features are about the root of d; four times that is far out.
        high = 4 * math.sqrt(dimensions) if threshold is None else 2 * threshold
        return cls(0, max(high, 1e-3))  # images that never vary have no distances

    def colours(self, values: NDArray[np.floating]) -> NDArray[np.uint8]:
        """RGB `[..., 3]` of distances `[...]`; grey where they are NaN."""
        table = (matplotlib.colormaps[COLOUR_MAP](np.arange(256))[:, :3] * 255).round().astype(np.uint8)
        position = (values - self.low) / (self.high - self.low)
        entries = np.nan_to_num(position.clip(0, 1) * 255).round().astype(np.uint8)
        colours: NDArray[np.uint8] = table.take(entries, axis=0)
        colours[np.isnan(values)] = GREY
        return colours
