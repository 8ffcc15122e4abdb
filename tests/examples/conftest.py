"""What the tests of the examples share: a small exported model, and others that differ in how they see images."""

from __future__ import annotations

import json
import lzma
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

GOLDEN = Path(__file__).parents[1] / "golden/padim.onnx.xz"


@pytest.fixture
def exported(tmp_path: Path) -> Callable[..., Path]:
    """Write a model of 32 x 32 pixels whose metadata has other values: exported(resize=[40], about={...})."""

    def write(**changes: object) -> Path:
        model = onnx.load_from_string(lzma.decompress(GOLDEN.read_bytes()))
        header = json.loads(model.metadata_props[0].value)
        for name, value in changes.items():
            (header if name in header else header["config"])[name] = value
        onnx.helper.set_model_props(model, {"padim": json.dumps(header)})
        path = tmp_path / f"model{len([*tmp_path.glob('*.onnx')])}.onnx"
        onnx.save(model, path)
        return path

    return write
