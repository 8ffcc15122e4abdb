"""Where in an image the anomalous regions lie."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from padim.calibration import shortest
from padim.data.transform import Box


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


def anomalous_pixels(anomaly_map: NDArray[np.floating], threshold: float, peak: float) -> NDArray[np.bool_]:
    """The pixels of a map `[h, w]` that reach a threshold, in 8-connected regions whose highest one reaches `peak`.

    So a verdict has the regions that make an image anomalous, and not those that normal images have, too.
    """
    labels, peaks = _labelled(anomaly_map, threshold)
    kept: NDArray[np.bool_] = np.append(False, peaks >= peak)[labels]
    return kept


def anomalous_regions(
    anomaly_map: NDArray[np.floating], threshold: float, seen: Box, peak: float = -math.inf
) -> list[Region]:
    """The regions of `anomalous_pixels`, the one with the highest peak first.

    Args:
        anomaly_map: `[h, w]`.
        threshold: distance from which a pixel counts.
        seen: the part of the original image that the map covers, in its pixels.
        peak: the distance that the highest pixel of a region has to reach; any, by default.
    """
    import scipy.ndimage

    labels, peaks = _labelled(anomaly_map, threshold)
    x, y = (seen.right - seen.left) / anomaly_map.shape[1], (seen.bottom - seen.top) / anomaly_map.shape[0]
    areas = np.bincount(labels.ravel(), minlength=len(peaks) + 1)[1:]
    regions = [
        Region(
            Box(
                seen.left + round(columns.start * x),
                seen.top + round(rows.start * y),
                seen.left + round(columns.stop * x),
                seen.top + round(rows.stop * y),
            ),
            round(float(area) * x * y),
            shortest(np.float32(highest)),
        )
        for (rows, columns), area, highest in zip(scipy.ndimage.find_objects(labels), areas, peaks, strict=True)
        if highest >= peak
    ]
    return sorted(regions, key=lambda region: -region.peak)


def connected(mask: NDArray[np.bool_]) -> tuple[NDArray[np.int32], int]:
    """The 8-connected regions of a mask `[h, w]`, numbered from 1, 0 being what is outside, and how many there are."""
    import scipy.ndimage  # which takes a third of a normal image's verdict to import, and that one does without

    labels, count = scipy.ndimage.label(mask, structure=np.ones((3, 3)))
    return labels, count


def _labelled(anomaly_map: NDArray[np.floating], threshold: float) -> tuple[NDArray[np.int32], NDArray[np.floating]]:
    """The connected pixels that reach a threshold, numbered from 1, `[h, w]`, and the peak of each region."""
    labels, count = connected(anomaly_map >= threshold)
    found, peaks = labels > 0, np.full(count, -np.inf, dtype=anomaly_map.dtype)
    np.maximum.at(peaks, labels[found] - 1, anomaly_map[found])  # scipy.ndimage.maximum would sort all pixels
    return labels, peaks
