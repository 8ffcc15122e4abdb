"""Image, heatmap, ground truth and contours side by side."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from padim.poses.alignment import PartPose
from padim.report.colours import COLOUR_MAP, ColourScale
from padim.storage.files import atomic_write


def save_panel(
    path: Path,
    image: Image.Image,
    anomaly_map: NDArray[np.floating],
    mask: NDArray[np.bool_] | None,
    threshold: float | None,
    scale: ColourScale,
    part: PartPose | None = None,
) -> None:
    """Write a PNG of four pictures in a row.

    Args:
        path: where to.
        image: RGB `w x h`, as the model has seen it.
        anomaly_map: `[h, w]`.
        mask: ground truth `[h, w]`, where there is one.
        threshold: distance at which a pixel counts as a defect, where there is one.
        scale: the colours.
        part: how the part lies in the image, from a model that aligns them; drawn as the frame of the reference.
    """
    figure = Figure(figsize=(14, 3.5), layout="constrained")
    names = ("image", "anomaly map", "ground truth", "contours: truth white, prediction cyan")
    axes = figure.subplots(1, 4)
    for axis, name in zip(axes, names, strict=True):
        axis.set_title(name, fontsize=9)
        axis.set_axis_off()
        axis.imshow(image)
    if part is not None:
        _draw_pose(axes[0], part, image.width, image.height)
    axes[1].imshow(scale.colours(anomaly_map))
    if mask is None:
        axes[2].text(0.5, 0.5, "none", transform=axes[2].transAxes, ha="center", va="center", color="white")
    else:
        axes[2].imshow(mask, cmap="gray", vmin=0, vmax=1)
        if mask.any():
            axes[3].contour(mask, [0.5], colors="white", linewidths=1)
    seen = anomaly_map[~np.isnan(anomaly_map)]
    if threshold is not None and seen.size and seen.min() < threshold <= seen.max():
        axes[3].contour(anomaly_map, [threshold], colors="cyan", linewidths=1)
    colours = ScalarMappable(Normalize(scale.low, scale.high), COLOUR_MAP)
    figure.colorbar(colours, ax=axes, label="distance", shrink=0.8)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100)


def _draw_pose(axis: Axes, part: PartPose, width: int, height: int) -> None:
    """The border of the reference's frame where it lies in an image, and a line from its middle to its upper side."""
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1], [-1, -1]]) * (width / 2, height / 2)
    upwards = np.array([[0, 0], [0, -height / 2]])
    for points in (corners, upwards):
        x, y = (points @ part.pose.rotation.T + part.pose.shift + (width / 2, height / 2)).T - 0.5
        axis.plot(x, y, color="lime" if part.found else "red", linewidth=1)
    axis.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    found = "" if part.found else ", not found"
    axis.set_title(f"image: {part.pose.angle:.1f} degrees, correlation {part.correlation:.2f}{found}", fontsize=9)
