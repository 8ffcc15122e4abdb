"""Scoring with an exported model: NumPy, Pillow and an engine, without torch."""

from __future__ import annotations

import json
import math
from base64 import b64decode
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from padim.calibration import PIXEL_RATES, Calibration
from padim.config import BaseConfig
from padim.data.transform import Transform
from padim.deploy.engines import Session, open_session
from padim.detectors.registry import configuration, load
from padim.detectors.scores import NumpyScores, Scorer, Scores, score_aligned
from padim.errors import PadimError, first_line, not_understood
from padim.storage.provenance import Provenance

if TYPE_CHECKING:
    from padim.poses.alignment import Alignment
    from padim.weights import Weights

# The version of the metadata of an exported model.
EXPORT_VERSION = 1


@dataclass(frozen=True)
class Runtime:
    """An exported model.

    Attributes:
        session: its graph.
        config: the protocol that it was fitted with.
        provenance: where it comes from.
        dimensions: of the space of the distances.
        calibration: what normal images score, where that is known.
        alignment: the common frame that images are moved into, if the model has one.
        ignored: the pixels `[h, w]` that scores do not depend on, if there are some.
    """

    session: Session
    config: BaseConfig
    provenance: Provenance
    dimensions: int
    calibration: Calibration | None
    alignment: Alignment | None
    ignored: NDArray[np.bool_] | None

    @classmethod
    def load(
        cls,
        path: Path | str,
        threads: int = 0,
        *,
        engine: str = "onnxruntime",
        device: str = "cpu",
        precision: str = "fp32",
    ) -> Runtime:
        """A model from the file that `padim-export` wrote.

        On Linux, the memory of the whole process is bounded meanwhile: load models before other threads ask for
        gigabytes.

        Args:
            path: the file.
            threads: on the CPU; 0 are as many as there are cores.
            engine: `onnxruntime` or `openvino`.
            device: where to compute, in the terms of `open_session`.
            precision: of the arithmetic, likewise.

        Raises:
            PadimError: the file can't be read, is damaged, or is something else; or the engine, the device or the
                precision is not to be had here.
        """
        session = open_session(Path(path), engine=engine, device=device, precision=precision, threads=threads)
        if session.header is None:
            raise PadimError(f"{path} is not a padim model: export one with padim-export")
        try:
            runtime = cls(session, **_parsed(json.loads(session.header)))
            if session.sizes != {"images": list(runtime.config.image_size)}:
                raise ValueError("image size")
            if "scores" not in session.outputs:
                raise ValueError("scores")
            return runtime
        except PadimError as error:
            raise not_understood(path, error) from error
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError, RecursionError) as error:
            raise not_understood(path, "its metadata can't be understood") from error

    @property
    def has_maps(self) -> bool:
        """Whether there are anomaly maps, or image scores only."""
        return "maps" in self.session.outputs

    @property
    def transform(self) -> Transform:
        """How images are resized and cropped."""
        return Transform.of(self.config)

    def training_embeddings(self) -> NDArray[np.float32] | None:
        """None: an exported model has none."""
        return None

    def score_pixels(self, pixels: NDArray[np.uint8]) -> Scores[NDArray[np.float32]]:
        """Image scores `[n]`, and anomaly maps `[n, h, w]` if it has them, of resized and cropped RGB `[n, h, w, 3]`.

        Raises:
            PadimError: the images have another size, a score is not finite, or the graph is damaged.
        """
        return score_aligned(self.alignment, pixels, self.score_in_frame)

    def score_in_frame(self, pixels: NDArray[np.uint8]) -> NumpyScores:
        """The scores of images that are moved already, if the model does that."""
        if pixels.shape[1:] != (*self.config.image_size, 3):
            expected = f"[n, {self.config.image_size[0]}, {self.config.image_size[1]}, 3]"
            raise PadimError(f"images have shape {list(pixels.shape)}, expected {expected}")
        shapes = {"scores": pixels.shape[:1], "maps": pixels.shape[:3]}
        names = [name for name in shapes if name == "scores" or self.has_maps]
        try:
            found = dict(zip(self.session.outputs, self.session.run(pixels.transpose(0, 3, 1, 2)), strict=True))
            usable = all(found[name].shape == shapes[name] and np.isfinite(found[name]).all() for name in names)
        except Exception as error:  # its classes are not public
            no_memory = "bfc_arena" in str(error)
            reason = "they take more memory than is free" if no_memory else first_line(error)
            raise PadimError(f"the model can't score these images: {reason}") from error
        if not usable:
            raise PadimError("the scores are not finite, or not one per image: export the model again")
        maps = found.get("maps")
        if maps is not None and self.ignored is not None:
            maps = np.where(self.ignored, np.float32(np.nan), maps)
        return Scores(found["scores"], maps)

    def score_image(self, image: Image.Image) -> Scores[NDArray[np.float32]]:
        """The score `[1]` and the map `[1, h, w]` of one RGB image of any size."""
        return self.score_pixels(np.asarray(self.transform.image(image))[None])


def load_scorer(
    path: Path | str,
    *,
    weights: Weights | None = None,
    engine: str | None = None,
    device: str = "cpu",
    precision: str | None = None,
) -> Scorer:
    """A model from any file: an exported one, which takes no torch, where the suffix is `.onnx`, else a detector.

    Raises:
        PadimError: as `Runtime.load`, or as `padim.detectors.registry.load`; or an exported model has `weights`, or
            a detector an `engine`.
    """
    if Path(path).suffix.lower() == ".onnx":
        if weights is not None:
            raise PadimError("--weights is for models of padim-train: an exported one has its own")
        return Runtime.load(path, engine=engine or "onnxruntime", device=device, precision=precision or "fp32")
    if engine is not None:
        raise PadimError("--engine is for exported models, of padim-export")
    return load(path, weights=weights, device=device, precision=precision)


def _parsed(header: dict[str, Any]) -> dict[str, Any]:
    """The metadata's parts.

    Raises:
        KeyError, TypeError, ValueError: they are not what they should be.
        PadimError: another version, or a configuration that isn't valid.
    """
    if header["version"] != EXPORT_VERSION:
        raise PadimError(f"an export of version {header['version']}, this program reads version {EXPORT_VERSION}")
    calibration = header["calibration"]
    if calibration is not None:
        scores = np.array(calibration["scores"], dtype=np.float32)
        pixels = None if calibration["pixels"] is None else np.array(calibration["pixels"], dtype=np.float32)
        known = scores if pixels is None else np.append(scores, pixels)
        if scores.ndim != 1 or not len(scores) or not np.isfinite(known).all():
            raise ValueError("calibration")
        if pixels is not None and pixels.shape != PIXEL_RATES.shape:
            raise ValueError("pixels")
        calibration = Calibration(scores, pixels)
    config = configuration(header["config"]).from_dict(header["config"])
    alignment = None
    if config.align != "none":
        from padim.poses.alignment import Alignment  # which takes SciPy

        alignment = Alignment.from_dict(header["alignment"], *config.image_size)
    ignored = header.get("ignored")  # exports of earlier versions have none
    if ignored is not None:
        ignored = np.unpackbits(np.frombuffer(b64decode(ignored), dtype=np.uint8))[: math.prod(config.image_size)]
        ignored = ignored.reshape(config.image_size).astype(bool)
    dimensions = int(header["dimensions"])
    if not 0 < dimensions < 2**31:
        raise ValueError("dimensions")
    return {
        "config": config,
        "provenance": Provenance(**header["about"]),
        "dimensions": dimensions,
        "calibration": calibration,
        "alignment": alignment,
        "ignored": ignored,
    }
