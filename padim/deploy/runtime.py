"""Scoring with an exported model: NumPy, Pillow and ONNX Runtime, without torch."""

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
from padim.detectors.registry import configuration, load
from padim.detectors.scores import NumpyScores, Scorer, Scores, score_aligned
from padim.errors import PadimError, first_line
from padim.storage.files import utf8_path
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
        session: ONNX Runtime's.
        config: the protocol that it was fitted with.
        provenance: where it comes from.
        dimensions: of the space of the distances.
        calibration: what normal images score, where that is known.
        alignment: the common frame that images are moved into, if the model has one.
        ignored: the pixels `[h, w]` that scores do not depend on, if there are some.
    """

    session: Any
    config: BaseConfig
    provenance: Provenance
    dimensions: int
    calibration: Calibration | None
    alignment: Alignment | None
    ignored: NDArray[np.bool_] | None

    @classmethod
    def load(cls, path: Path | str, threads: int = 0) -> Runtime:
        """A model from the file that `padim-export` wrote; 0 threads are as many as there are cores.

        Raises:
            PadimError: the file can't be read, is damaged, or is something else; or ONNX Runtime is missing.
        """
        try:
            import onnxruntime
        except ImportError as error:
            raise PadimError("exported models need ONNX Runtime: pip install onnxruntime") from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4  # errors are raised, and said once
        try:
            Path(path).open("rb").close()
            providers = ["CPUExecutionProvider"]  # nor to be said on stdout, as trying again would be
            with utf8_path(Path(path)) as opened:
                session = onnxruntime.InferenceSession(opened, options, providers=providers, enable_fallback=False)
            header = session.get_modelmeta().custom_metadata_map.get("padim")
        except OSError as error:
            raise PadimError(f"can't read the model {path}: {error.strerror or error}") from error
        except Exception as error:  # its classes are not public
            raise PadimError(
                f"{path} is damaged, not an ONNX model, or without the .data file that was written beside it"
            ) from error
        if header is None:
            raise PadimError(f"{path} is not a padim model: export one with padim-export")
        try:
            runtime = cls(session, **_parsed(json.loads(header)))
            sizes = {value.name: value.shape[2:] for value in session.get_inputs()}
            if sizes != {"images": list(runtime.config.image_size)}:
                raise ValueError("image size")
            if "scores" not in [value.name for value in session.get_outputs()]:
                raise ValueError("scores")
            return runtime
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError, RecursionError) as error:
            raise PadimError(f"{path} is a damaged model: its metadata can't be understood") from error

    @property
    def has_maps(self) -> bool:
        """Whether there are anomaly maps, or image scores only."""
        return any(output.name == "maps" for output in self.session.get_outputs())

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
            found = dict(zip(names, self.session.run(names, {"images": pixels.transpose(0, 3, 1, 2)}), strict=True))
            usable = all(found[name].shape == shapes[name] and np.isfinite(found[name]).all() for name in names)
        except Exception as error:  # its classes are not public
            raise PadimError(f"the model can't score these images: {first_line(error)}") from error
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
    path: Path | str, *, weights: Weights | None = None, device: str = "cpu", precision: str | None = None
) -> Scorer:
    """A model from any file: an exported one, which takes no torch, where the suffix is `.onnx`, else a detector.

    Raises:
        PadimError: as `Runtime.load`, or as `padim.detectors.registry.load`.
    """
    if Path(path).suffix.lower() == ".onnx":
        return Runtime.load(path)
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
