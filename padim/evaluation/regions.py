"""Where in an image the anomalous regions lie."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy.ndimage
from numpy.typing import NDArray

from padim.calibration import shortest
from padim.data.transform import Box
from padim.evaluation.metrics import EIGHT_CONNECTED


class Region(NamedTuple):
    """A connected region above the pixel threshold, in pixels of the original image.

    Attributes:
        box: left, top, right, bottom; right and bottom are outside.
        area: how many pixels it covers.
        peak: the largest distance in it.
    """

    box: Box
    area: int
    peak: float


def anomalous_regions(anomaly_map: NDArray[np.floating], threshold: float, seen: Box) -> list[Region]:
    """The 8-connected regions of a map that reach a threshold, the one with the highest peak first.

    Args:
        anomaly_map: `[h, w]`.
        threshold: distance from which a pixel counts.
        seen: the part of the original image that the map covers, in its pixels.
    """
    labels, count = scipy.ndimage.label(anomaly_map >= threshold, structure=EIGHT_CONNECTED)
    x, y = (seen.right - seen.left) / anomaly_map.shape[1], (seen.bottom - seen.top) / anomaly_map.shape[0]
    areas = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    peaks = scipy.ndimage.maximum(anomaly_map, labels, range(1, count + 1))
    regions = [
        Region(
            Box(
                seen.left + round(columns.start * x),
                seen.top + round(rows.start * y),
                seen.left + round(columns.stop * x),
                seen.top + round(rows.stop * y),
            ),
            round(float(area) * x * y),
            shortest(np.float32(peak)),
        )
        for (rows, columns), area, peak in zip(scipy.ndimage.find_objects(labels), areas, peaks, strict=True)
    ]
    return sorted(regions, key=lambda region: -region.peak)
