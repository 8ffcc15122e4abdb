"""padim-eval: how well trained models find the defects of their test images."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from padim.cli.command import USER_ERROR, Failures, Parser, command, progress_bars
from padim.cli.evaluating import check_tests, evaluated, evaluation_tables, warn_of_crop
from padim.cli.options import (
    add_data_option,
    add_folder_options,
    add_machine_options,
    add_output_option,
    add_rate_option,
    add_report_option,
    add_scoring_options,
    add_strict_option,
    add_verbose_option,
    category_from,
    default_data,
    in_own_folders,
    pick_device,
)
from padim.errors import PadimError

if TYPE_CHECKING:
    from padim.data.items import Category


def parser(prog: str = "padim-eval") -> Parser:
    """The command's options."""
    result = Parser(
        prog=prog, description="Score the test images of categories with their trained models and print the figures."
    )
    result.add_argument(
        "--category", nargs="+", default=["all"], metavar="NAME", help="categories (default: all trained ones)"
    )
    add_data_option(result)
    add_folder_options(result, train=False)
    add_output_option(result)
    add_scoring_options(result)
    add_machine_options(result)
    add_strict_option(result)
    add_rate_option(result, "as trained")
    add_report_option(result)
    add_verbose_option(result)
    result.add_argument("--json", action="store_true", help="print one JSON object per category instead of the table")
    return result


@command
def main(arguments: Sequence[str] | None = None, prog: str = "padim-eval") -> int:
    """Run the command; returns its exit code."""
    options = parser(prog).parse_args(arguments)
    names = list(dict.fromkeys(options.category))
    if "all" in names:
        names = sorted(path.parent.name for path in options.output.glob("*/model.safetensors"))
        if not names:
            raise PadimError(f"no trained model under {options.output}: run padim-train first, or pass --output DIR")
    if in_own_folders(options) and len(names) > 1:
        raise PadimError(f"--test and --defect are for one model: pass --category with one of {', '.join(names)}")

    options.detailed = options.verbose or len(names) == 1
    from padim.detectors.registry import load

    results: list[dict[str, Any]] = []
    failures, device, cropped = Failures(), pick_device(options.device), False
    with progress_bars() as progress:
        for name in names:
            with failures.caught(name):
                path = options.output / name / "model.safetensors"
                model = load(path, weights=options.weights, device=device, precision=options.precision)
                category = _category(options, name)
                check_tests(category, options)
                results += evaluated(model, category, options, progress, options.batch_size)
                cropped = cropped or warn_of_crop(model.config, category.name, category.test)
    if results and not options.json:
        print(evaluation_tables(results, detailed=options.detailed))
    return USER_ERROR if failures.count else 0


def _category(options: argparse.Namespace, name: str) -> Category:
    """The test images: in the folders that the options name, or that the model was trained with, or in a data set."""
    from padim.pipeline.remembered import own_category

    if in_own_folders(options) or options.data != default_data():
        return category_from(options, name)
    return own_category(options.output / name) or category_from(options, name)


if __name__ == "__main__":
    sys.exit(main())
