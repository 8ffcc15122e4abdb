"""The golden ONNX file with other metadata: models that see images otherwise, or decide otherwise."""

from __future__ import annotations

import json
import lzma
from pathlib import Path

import onnx


def write_variant(path: Path, **changes: object) -> Path:
    """Write the model, of 32 x 32 pixels, with entries of its metadata or of its configuration replaced; the path."""
    model = onnx.load_from_string(lzma.decompress(Path(__file__).with_name("padim.onnx.xz").read_bytes()))
    header = json.loads(model.metadata_props[0].value)
    for name, value in changes.items():
        (header if name in header else header["config"])[name] = value
    onnx.helper.set_model_props(model, {"padim": json.dumps(header)})
    onnx.save(model, path)
    return path
