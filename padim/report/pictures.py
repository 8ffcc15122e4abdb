"""The pictures of one scored image: its heatmap, and more where it is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from padim.data.loader import Sample
from padim.data.transform import Box
from padim.poses.alignment import PartPose
from padim.report.colours import ColourScale
from padim.report.overlay import save_overlay


@dataclass(frozen=True)
class Pictures:
    """What is drawn of every image.

    Attributes:
        folder: where the pictures go.
        scale: the colours of all of them.
        pixel_threshold: distance from which a pixel is anomalous, for contours.
        panel: whether to put image, heatmap, ground truth and contours side by side, too.
        raw: `npy` or `png16` to keep the distances, too.
    """

    folder: Path
    scale: ColourScale
    pixel_threshold: float | None
    panel: bool = False
    raw: str | None = None

    def write(
        self,
        name: Path,
        sample: Sample,
        anomaly_map: NDArray[np.float32],
        seen: Box,
        part: PartPose | None = None,
    ) -> dict[str, str]:
        """Write the pictures of a sample under a name below the folder; gives their kinds and paths.

        Args:
            name: below the folder, without a suffix.
            sample: the image, with its original.
            anomaly_map: `[h, w]`.
            seen: the part of the original that the map covers.
            part: how the part lies in it, from a model that aligns them.

        Raises:
            PadimError: one of them can't be written.
        """
        assert sample.original is not None  # the loader was asked to keep it
        stem = self.folder / name
        files = {"heatmap": stem.with_name(f"{stem.name}_heatmap.png")}
        save_overlay(files["heatmap"], sample.original, anomaly_map, seen, self.scale)
        if self.panel:
            from padim.report.panel import save_panel

            files["panel"] = stem.with_name(f"{stem.name}_panel.png")
            save_panel(
                files["panel"],
                Image.fromarray(sample.image),
                anomaly_map,
                sample.mask,
                self.pixel_threshold,
                self.scale,
                part,
            )
        if self.raw:
            from padim.report.raw import save_npy, save_png16

            files["raw"] = stem.with_name(f"{stem.name}_map{'.npy' if self.raw == 'npy' else '.png'}")
            if self.raw == "npy":
                save_npy(files["raw"], anomaly_map)
            else:
                save_png16(files["raw"], anomaly_map, self.scale)
        return {kind: str(path) for kind, path in files.items()}
