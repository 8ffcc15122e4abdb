"""The model as one ONNX file: normalisation, backbone, distances, map and image score.

| name     | kind                        | what                                                     |
| -------- | --------------------------- | -------------------------------------------------------- |
| `images` | input, uint8 [n, 3, h, w]   | RGB, resized and cropped as the configuration says       |
| `maps`   | output, float32 [n, h, w]   | anomaly maps, distances                                  |
| `scores` | output, float32 [n]         | image scores                                             |

n is free. The metadata has one entry, `padim`: a JSON object of `version` (1), `config` and `about`
as in the model file, `dimensions`, how many channels were drawn, and `calibration`, the scores and pixel
quantiles of `padim.calibration`, or null.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from padim.errors import PadimError
from padim.files import atomic_write
from padim.model import Padim
from padim.runtime import VERSION, Runtime
from padim.scoring import image_scores

# How far maps of ONNX Runtime may lie from torch's, relative to the largest distance.
TOLERANCE = 1e-3


class _Scorer(nn.Module):
    """A fitted model as a function of images alone."""

    def __init__(self, model: Padim) -> None:
        super().__init__()
        self.backbone = model.backbone
        self.anomaly_map = model.anomaly_map
        self._model = model

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Anomaly maps `[n, h, w]` and image scores `[n]` of uint8 images `[n, 3, h, w]`."""
        maps = self._model.maps(self._model.select(self.backbone(images)))
        return maps, image_scores(maps)


def export_onnx(model: Padim, path: Path) -> float:
    """Write a fitted model as ONNX, whole or not at all, once ONNX Runtime agrees with it.

    Args:
        model: on the CPU.
        path: where to; by convention `model.onnx`.

    Returns:
        The largest difference between the maps of ONNX Runtime and of torch on random images,
        relative to the largest distance.

    Raises:
        PadimError: a package is missing, the file can't be written, or the difference is above `TOLERANCE`.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401 (torch's exporter needs it)
    except ImportError as error:
        raise PadimError("exporting needs more packages: pip install 'padim-toolkit[onnx]'") from error

    height, width = model.config.image_size
    images = torch.randint(0, 256, (2, 3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's remarks are for its authors
        logging.getLogger("onnxscript").setLevel(logging.ERROR)
        program = torch.onnx.export(
            _Scorer(model).eval(),
            (images,),
            dynamo=True,
            input_names=["images"],
            output_names=["maps", "scores"],
            dynamic_shapes={"images": {0: torch.export.Dim("n")}},
            verbose=False,
        )
    assert program is not None
    proto = program.model_proto
    onnx.helper.set_model_props(proto, {"padim": json.dumps(_header(model))})
    with atomic_write(path) as temporary:
        onnx.save(proto, temporary)
        difference = _difference(model, temporary, images)
        if not difference <= TOLERANCE:
            raise PadimError(
                f"ONNX Runtime differs from torch by {difference:.1e}, more than {TOLERANCE:g}: not written"
            )
    return difference


def _header(model: Padim) -> dict[str, object]:
    calibration = model.calibration and {
        "scores": model.calibration.scores.tolist(),
        "pixels": model.calibration.pixels.tolist(),
    }
    about = dataclasses.asdict(model.about)
    return {
        "version": VERSION,
        "config": model.config.to_dict(),
        "about": about,
        "dimensions": model.dimensions,
        "calibration": calibration,
    }


def _difference(model: Padim, path: Path, images: Tensor) -> float:
    """The largest difference of the maps, relative to the largest distance, for batches of one and of several."""
    runtime = Runtime.load(path)
    differences = []
    for batch in (images, images[:1]):
        expected = model.score(batch).maps.numpy()
        found = runtime.score(batch.permute(0, 2, 3, 1).numpy()).maps
        differences.append(float(np.abs(found - expected).max() / expected.max()))
    return max(differences)
