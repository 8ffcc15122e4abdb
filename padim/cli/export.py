"""padim-export: one ONNX file of a trained model."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from padim.cli.command import Parser, command
from padim.errors import PadimError


def parser(prog: str = "padim-export") -> Parser:
    """The command's options."""
    result = Parser(
        prog=prog,
        description="Write a trained model as one ONNX file, from images to maps and scores, after ONNX Runtime has"
        " been found to agree with it.",
    )
    result.add_argument("--model", type=Path, required=True, metavar="FILE", help="model that padim-train wrote")
    result.add_argument("--format", choices=("onnx",), default="onnx", help="(default: onnx)")
    result.add_argument(
        "--storage",
        choices=("fp32", "fp16"),
        default="fp32",
        help="large tensors of the file; fp16 halves it and costs digits, the arithmetic stays (default: fp32)",
    )
    result.add_argument("--out", type=Path, metavar="FILE", help="where to (default: model.onnx beside the model)")
    result.add_argument(
        "--weights", type=Path, metavar="FILE", help="backbone weights, for models saved without (default: download)"
    )
    return result


@command
def main(arguments: Sequence[str] | None = None, prog: str = "padim-export") -> int:
    """Run the command; returns its exit code."""
    options = parser(prog).parse_args(arguments)

    from padim.deploy.export import export_onnx
    from padim.detectors.registry import load

    path = options.out or options.model.with_suffix(".onnx")
    if path.suffix.lower() != ".onnx":
        raise PadimError(f"--out {path}: padim-predict knows exported models by the suffix .onnx")
    model = load(options.model, weights=options.weights, precision="fp32")
    exported = export_onnx(model, path, options.storage)
    total = sum(file.stat().st_size for file in exported.files)
    print(json.dumps({"model": str(path), "bytes": total, "largest_difference": exported.largest_difference}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
