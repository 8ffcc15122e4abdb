"""padim-export: one ONNX file of a trained model."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from padim.cli.command import Parser, command, progress_bars
from padim.cli.options import add_workers_option
from padim.errors import PadimError

if TYPE_CHECKING:
    from padim.config import BaseConfig
    from padim.pipeline.train import LoaderBatches
    from padim.system.progress import OnProgress


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
        choices=("fp32", "fp16", "int8"),
        default="fp32",
        help="large tensors of the file; fp16 halves it and costs digits, the arithmetic stays; with int8 the network"
        " computes in it, faster, and the Gaussians are fitted anew to --images (default: fp32)",
    )
    result.add_argument(
        "--images", type=Path, metavar="DIR", help="for int8: normal images, best those of the training"
    )
    add_workers_option(result)
    result.add_argument(
        "--out", type=Path, metavar="FILE", help="where to (default: model.onnx beside the model, whose place it takes)"
    )
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
    if (options.storage == "int8") != bool(options.images):
        raise PadimError("--storage int8 and --images DIR go together: normal images, best those of the training")
    model = load(options.model, weights=options.weights, precision="fp32")
    with progress_bars() as progress:
        batches = _batches(options, model.config, progress) if options.images else ()
        exported = export_onnx(model, path, options.storage, batches)
    total = sum(file.stat().st_size for file in exported.files)
    figures = {"model": str(path), "bytes": total, "largest_difference": exported.largest_difference}
    print(json.dumps(figures | (exported.agreement._asdict() if exported.agreement else {})))
    return 0


def _batches(options: argparse.Namespace, config: BaseConfig, progress: OnProgress) -> LoaderBatches:
    """The images of a folder, as a model's configuration reads them."""
    from padim.data.items import Item, collect_images
    from padim.data.loader import ImageLoader
    from padim.data.transform import Transform
    from padim.pipeline.train import LoaderBatches

    items = [Item(path) for path in collect_images([options.images])]
    loader = ImageLoader(items, Transform.of(config), workers=options.workers)
    return LoaderBatches(loader, str(options.images), config, progress)


if __name__ == "__main__":
    sys.exit(main())
