"""The pictures of one scored image: its heatmap, and more where it is asked for."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from padim.report.colours import ColourScale
from padim.report.overlay import drawn_on, overlay, predicted_mask
from padim.report.panel import panel
from padim.report.raw import save_npy, save_png16
from padim.storage.files import atomic_write

if TYPE_CHECKING:
    from padim.pipeline.predict import Prediction


@dataclass(frozen=True)
class Pictures:
    """What is drawn of every image.

    Attributes:
        folder: where the pictures go.
        scale: the colours of all of them.
        panel: whether to put image, heatmap, masks and contours side by side, too.
        mask: whether to write where the image is anomalous, too.
        raw: `npy` or `png16` to keep the distances, too.
        heatmap: the file of the heatmap, where there is a single image; else it is named like the image.
    """

    folder: Path
    scale: ColourScale
    panel: bool = False
    mask: bool = False
    raw: str | None = None
    heatmap: Path | None = None

    def write(self, name: Path, prediction: Prediction) -> dict[str, str]:
        """Write the pictures of an image under a name below the folder; gives their kinds and paths.

        Args:
            name: below the folder, without a suffix.
            prediction: of an image with its original, from a model with maps.

        Raises:
            PadimError: one of them can't be written.
        """
        stem = self.heatmap.with_suffix("") if self.heatmap else self.folder / name
        files = {"heatmap": self.heatmap or stem.with_name(f"{stem.name}_heatmap.png")}
        _save(files["heatmap"], overlay(prediction, self.scale))
        if self.panel:
            files["panel"] = stem.with_name(f"{stem.name}_panel.png")
            _save(files["panel"], panel(prediction.path.name, prediction, self.scale))
        if self.mask:
            files["mask"] = stem.with_name(f"{stem.name}_mask.png")
            _save(files["mask"], _mask(prediction))
        a_map = drawn_on(prediction).anomaly_map
        if self.raw == "npy":
            files["raw"] = stem.with_name(f"{stem.name}_map.npy")
            save_npy(files["raw"], a_map)
        elif self.raw:
            files["raw"] = stem.with_name(f"{stem.name}_map.png")
            save_png16(files["raw"], a_map, self.scale)
        return {kind: str(path) for kind, path in files.items()}


def _mask(prediction: Prediction) -> Image.Image:
    """White where an image is anomalous, black elsewhere and all over a normal image; at the size of the file's."""
    image, seen, _ = drawn_on(prediction)
    mask = Image.new("L", image.size)
    part = predicted_mask(prediction, (seen.right - seen.left, seen.bottom - seen.top))
    if part is not None:
        mask.paste(Image.fromarray(part).convert("L"), seen[:2])
    assert prediction.sample is not None
    return mask.resize(prediction.sample.size, Image.Resampling.NEAREST)


def _save(path: Path, picture: Image.Image) -> None:
    """Write a picture in the format that its name says."""
    kind = Image.registered_extensions()[path.suffix.lower()]
    with atomic_write(path) as temporary:
        # For photos under smooth colours, runs alone make smaller files than level 1 does, in less time.
        picture.save(temporary, format=kind, compress_type=zlib.Z_RLE)
