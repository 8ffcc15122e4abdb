"""Anomaly maps as files for other programs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from padim.report.colours import ColourScale
from padim.storage.files import atomic_write


def save_npy(path: Path, anomaly_map: NDArray[np.floating]) -> None:
    """Distances `[h, w]` as a float32 `.npy` file, NaN where an aligned model has not seen enough."""
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        np.save(file, anomaly_map.astype(np.float32), allow_pickle=False)


def save_png16(path: Path, anomaly_map: NDArray[np.floating], scale: ColourScale) -> None:
    """Distances `[h, w]` as a 16-bit grey PNG: 0 at the lower end of the scale and for NaN, 65535 at the upper."""
    position = (np.nan_to_num(anomaly_map, nan=scale.low) - scale.low) / (scale.high - scale.low)
    grey = (position.clip(0, 1) * 65535).round().astype(np.uint16)
    with atomic_write(path) as temporary:
        Image.fromarray(grey).save(temporary, format="PNG")
