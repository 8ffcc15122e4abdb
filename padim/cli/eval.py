"""padim-eval: how well trained models find the defects of their test images."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from padim.cli.command import USER_ERROR, Failures, Parser, command, progress_bars
from padim.cli.evaluating import check_tests, evaluated, evaluation_table
from padim.cli.options import (
    add_data_option,
    add_folder_options,
    add_machine_options,
    add_output_option,
    add_rate_option,
    add_report_option,
    add_scoring_options,
    add_strict_option,
    category_from,
    in_own_folders,
    pick_device,
)
from padim.errors import PadimError


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

    from padim.detectors.registry import load

    results: list[dict[str, Any]] = []
    failures, device = Failures(), pick_device(options.device)
    with progress_bars() as progress:
        for name in names:
            with failures.caught(name):
                path = options.output / name / "model.safetensors"
                model = load(path, weights=options.weights, device=device, precision=options.precision)
                category = category_from(options, name)
                check_tests(category, options)
                results.append(evaluated(model, category, options, progress, options.batch_size))
    if results and not options.json:
        print(evaluation_table(results))
    return USER_ERROR if failures.count else 0


if __name__ == "__main__":
    sys.exit(main())
