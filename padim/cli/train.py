"""padim-train: fit one model a category."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from padim.cli.common import (
    USER_ERROR,
    Parser,
    add_config_options,
    add_data_option,
    add_machine_options,
    add_output_option,
    command,
    config_from,
    peak_memory,
    pick_device,
    progress,
    write_json,
)
from padim.cli.eval import evaluate_category, table, test_loader
from padim.config import Config
from padim.errors import PadimError

if TYPE_CHECKING:
    import argparse

    from torch import Tensor

    from padim.model import Padim

log = logging.getLogger(__name__)


def parser() -> Parser:
    """The command's options."""
    result = Parser(prog="padim-train", description="Learn what the normal images of a category look like.")
    result.add_argument(
        "--category", nargs="+", default=[], metavar="NAME", help="categories to train, or all for every one there is"
    )
    add_data_option(result)
    add_output_option(result)
    result.add_argument(
        "--weights", type=Path, metavar="FILE", help="backbone weights, .pth or .safetensors (default: download)"
    )
    result.add_argument(
        "--no-embed-backbone", action="store_true", help="leave the backbone's weights out of the model file"
    )
    result.add_argument(
        "--storage",
        choices=("fp32", "fp16"),
        default="fp32",
        help="numbers of the factors in the model file; fp16 halves them and costs digits (default: fp32)",
    )
    add_machine_options(result)
    result.add_argument("--eval", action="store_true", help="evaluate each model as padim-eval does, in the same run")
    result.add_argument("--json", action="store_true", help="print the summary as JSON, one object a category")
    result.add_argument("--print-config", action="store_true", help="print the resolved configuration and stop")
    add_config_options(result)
    return result


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    options = parser().parse_args(arguments)
    config = config_from(options)
    if options.print_config:
        print(config.to_toml(), end="")
        return 0
    if not options.category:
        raise PadimError("which category? Pass --category NAME, or --category all")

    from padim.backbones import download_weights, read_weights
    from padim.data.items import categories

    there = categories(options.data)
    names = there if "all" in options.category else list(dict.fromkeys(options.category))
    device = pick_device(options.device)
    weights = read_weights(options.weights) if options.weights else download_weights(config.backbone)
    figures: list[dict[str, Any]] = []
    failed = 0
    for name in names:
        try:
            tests = test_loader(name, config, options) if options.eval else None
            model, summary = _train(name, config, weights, device, options)
            print(json.dumps(summary) if options.json else _readable(summary), flush=True)
            if tests:
                figures.append(evaluate_category(model, name, tests, options))
                if options.json:
                    print(json.dumps(figures[-1]), flush=True)
        except PadimError as error:  # the other categories are trained all the same
            log.error("%s: %s", name, error)
            failed += 1
    if figures and not options.json:
        print(table(figures))
    return USER_ERROR if failed else 0


def _train(
    category: str, config: Config, weights: Mapping[str, Tensor], device: str, options: argparse.Namespace
) -> tuple[Padim, dict[str, Any]]:
    """Fit, save, and write the summary beside the model; gives both."""
    from padim.data.items import train_items
    from padim.data.loader import ImageLoader, batched, stack
    from padim.data.transform import Transform
    from padim.files import check_writable
    from padim.model import Padim

    items = train_items(options.data, category)
    folder = options.output / category
    check_writable(folder)
    start = time.perf_counter()
    loader = ImageLoader(items, Transform.of(config), workers=options.workers, strict=options.strict).start()
    model = Padim(config, weights=weights, device=device)
    samples = progress(loader, len(items), category)
    model.fit((stack(batch) for batch in batched(samples, config.batch_size)), category)
    path = folder / "model.safetensors"
    model.save(path, embed_backbone=not options.no_embed_backbone, storage=options.storage)
    seconds = time.perf_counter() - start
    summary = {
        "category": category,
        "model": str(path),
        "images": model.about.images,
        "skipped": loader.skipped,
        "seconds": round(seconds, 3),
        "images_per_second": round(model.about.images / seconds, 2),
        **peak_memory(model.device),
        "model_bytes": path.stat().st_size,
        "device": device,
    }
    write_json(folder / "train.json", summary | {"config": config.to_dict()})
    return model, summary


def _readable(summary: Mapping[str, Any]) -> str:
    skipped = f", {summary['skipped']} skipped" if summary["skipped"] else ""
    return (
        f"{summary['category']}: {summary['images']} images{skipped} in {summary['seconds']:.1f} s"
        f" ({summary['images_per_second']:.1f} images/s), peak memory {summary['peak_memory_bytes'] / 1e6:.0f} MB,"
        f" {summary['model']} ({summary['model_bytes'] / 1e6:.0f} MB)"
    )


if __name__ == "__main__":
    sys.exit(main())
