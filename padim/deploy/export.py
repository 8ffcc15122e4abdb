"""The model as one ONNX file: normalisation, network, distances, map and image score.

| name     | kind                        | what                                                     |
| -------- | --------------------------- | -------------------------------------------------------- |
| `images` | input, uint8 [n, 3, h, w]   | RGB, resized and cropped as the configuration says       |
| `scores` | output, float32 [n]         | image scores                                             |
| `maps`   | output, float32 [n, h, w]   | anomaly maps, from a detector that has them              |

n is free. The metadata has one entry, `padim`: a JSON object of `version` (1), `config` and `about`
as in the model file, `dimensions`, of the space of the distances, `calibration`, the scores and pixel
quantiles of `padim.calibration`, or null, `alignment`, what moves images into the model's frame before they enter
the graph (`padim.poses.alignment`), or null, and `ignored`, the bits of the pixels that scores do not depend on, in
base64, or null; the graph paints these pixels over, and its maps are 0 there. Tensors beyond what one ONNX file can
hold, 2 GiB, lie in a second one beside it, which bears its name, a digest and `.data`.

With storage `int8`, convolutions stand between `QuantizeLinear` and `DequantizeLinear`: see `padim.deploy.quantise`.
"""

from __future__ import annotations

import dataclasses
import json
import re
from base64 import b64encode
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from padim.deploy.graph import check_packages, graph_of, halve
from padim.deploy.runtime import EXPORT_VERSION, Runtime
from padim.detectors.batches import Batches, as_pixels
from padim.detectors.contract import Detector
from padim.detectors.options import FitOptions
from padim.errors import PadimError
from padim.storage.files import atomic_write
from padim.weights import digest

if TYPE_CHECKING:
    from padim.deploy.quantise import Agreement

# How far ONNX Runtime may lie from torch, relative to the largest distance.
TOLERANCE = 1e-3

# Bytes of tensors in one file; protobuf's limit is 2 GiB, and the graph takes some of it.
LARGEST_FILE = 2**31 - 2**24


class Exported(NamedTuple):
    """What was written.

    Attributes:
        files: the ONNX file, and the second one where there is one.
        largest_difference: between the maps, or scores, of ONNX Runtime and of torch on random images, relative to
            the largest distance.
        agreement: of an int8 model with the one in float32.
    """

    files: list[Path]
    largest_difference: float
    agreement: Agreement | None = None


def export_onnx(model: Detector, path: Path, storage: str = "fp32", images: Batches = ()) -> Exported:
    """Write a fitted detector as ONNX, whole or not at all, once ONNX Runtime agrees with it.

    Args:
        model: on the CPU.
        path: where to; by convention `model.onnx`.
        storage: `fp32`, or `fp16` for half as many bytes with the arithmetic in float32, or `int8` for a network that
            computes in int8.
        images: for `int8`, normal images in batches, such as the training images; `padim.deploy.quantise` fits the
            Gaussians anew to them.

    Raises:
        PadimError: a package is missing, the file can't be written, or the difference is above `TOLERANCE`; with
            `int8`, as `padim.deploy.quantise.quantised`.
    """
    check_packages()
    import onnx_ir

    agreement = None
    height, width = model.config.image_size
    noise = torch.randint(0, 256, (2, 3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    if storage == "int8":
        from padim.deploy.quantise import quantised  # which takes these packages

        model, graph, agreement = quantised(model, noise, images)
    else:
        names = ["scores", "maps"][: 1 + model.has_maps]
        graph = graph_of(model, lambda images: model(images)[:2], {"images": noise}, names)
    graph.metadata_props["padim"] = json.dumps(_header(model))
    if storage == "fp16":
        halve(graph)
    tensors = (value.const_value for value in graph.graph.initializers.values())
    beside = None
    if sum(tensor.nbytes for tensor in tensors) > LARGEST_FILE:
        content = digest(model.tensors(FitOptions()))
        beside = path.with_name(f"{path.name}.{storage}-{content[:16]}.data")
    with atomic_write(path) as temporary:
        onnx_ir.save(graph, temporary, format="protobuf", external_data=beside and beside.name)
        difference = _difference(model, temporary, noise)
        if not difference <= TOLERANCE:
            raise PadimError(
                f"ONNX Runtime differs from torch by {difference:.1e}, more than {TOLERANCE:g}: not written;"
                f" {'take --storage fp32' if storage == 'fp16' else 'the versions of torch and onnx may not match'}"
            )
        if beside:
            temporary.with_name(beside.name).replace(beside)
    for old in path.parent.iterdir():  # of what this file replaces
        if old != beside and re.fullmatch(rf"{re.escape(path.name)}\.(fp32|fp16|int8)-[0-9a-f]{{16}}\.data", old.name):
            old.unlink()
    return Exported([path, beside] if beside else [path], difference, agreement)


def _header(model: Detector) -> dict[str, object]:
    calibration = None
    if model.calibration:
        pixels = model.calibration.pixels
        calibration = {
            "scores": model.calibration.scores.tolist(),
            "pixels": None if pixels is None else pixels.tolist(),
        }
    return {
        "version": EXPORT_VERSION,
        "config": model.config.to_dict(),
        "about": dataclasses.asdict(model.provenance),
        "dimensions": model.dimensions,
        "calibration": calibration,
        "alignment": model.alignment and model.alignment.to_dict(),
        "ignored": None if model.ignored is None else _bits(model.ignored),
    }


def _bits(mask: Tensor) -> str:
    return b64encode(np.packbits(mask.cpu().numpy()).tobytes()).decode()


def _difference(model: Detector, path: Path, images: Tensor) -> float:
    """The largest difference, relative to the largest distance, for batches of one and of several."""
    runtime = Runtime.load(path)
    differences = []
    for batch in (images, images[:1]):
        pixels = as_pixels(batch)
        expected, found = model.score_in_frame(pixels), runtime.score_in_frame(pixels)
        for ours, theirs in ((expected.images, found.images), (expected.maps, found.maps)):
            if ours is not None and theirs is not None:
                differences.append(float(np.nanmax(np.abs(theirs - ours)) / np.nanmax(np.abs(ours))))
    return float(np.max(differences))  # NaN if one is
