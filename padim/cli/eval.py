"""padim-eval: how well trained models find the defects of their test images."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
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
    scorer_from,
)
from padim.errors import PadimError

if TYPE_CHECKING:
    from padim.data.items import Category

log = logging.getLogger(__name__)


def parser(prog: str = "padim-eval") -> Parser:
    """The command's options."""
    result = Parser(
        prog=prog, description="Score the test images of categories with their trained models and print the figures."
    )
    result.add_argument(
        "--category", nargs="+", default=[], metavar="NAME", help="categories (default: all trained ones)"
    )
    result.add_argument(
        "--model",
        nargs="+",
        default=[],
        type=Path,
        metavar="FILE",
        help="models of padim-train or padim-export, instead of those in --output",
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
    models = _models(options)
    options.detailed = options.verbose or len(models) == 1
    results: list[dict[str, Any]] = []
    failures, cropped = Failures(), False
    with progress_bars() as progress:
        for path, named in models.items():
            with failures.caught(named or str(path)):
                model = scorer_from(options, path)
                name = named or model.provenance.category
                category = _category(options, name, path.parent)
                check_tests(category, options)
                earlier = {result["category"] for result in results}
                results += evaluated(model, category, options, progress, options.batch_size, path.parent)
                if name in earlier:
                    log.warning("%s: the files in %s are those of %s now", name, options.output / name, path)
                cropped = cropped or warn_of_crop(model.config, category.name, category.test)
    if results and not options.json:
        print(evaluation_tables(results, detailed=options.detailed))
    return USER_ERROR if failures.count else 0


def _models(options: argparse.Namespace) -> dict[Path, str | None]:
    """The model files, and the categories that they are evaluated on; None for the one that a model names itself.

    Raises:
        PadimError: there is none, or the options contradict each other.
    """
    names = [name for name in dict.fromkeys(options.category) if name != "all"]
    everything = not names or "all" in options.category
    if options.model:
        if len(set(options.category)) > 1 or (names and len(options.model) > 1):
            raise PadimError("--model: several models are evaluated on their own categories, one on --category NAME")
        models = dict.fromkeys(options.model, None if everything else names[0])
    else:
        there = sorted(options.output.glob("*/model.safetensors")) if everything else []
        models = {path: path.parent.name for path in there}
        models |= {options.output / name / "model.safetensors": name for name in names}
    if not models:
        raise PadimError(f"no trained model under {options.output}: run padim-train first, or pass --output DIR")
    if in_own_folders(options) and len(models) > 1:
        trained = ", ".join(path.parent.name for path in models)
        raise PadimError(f"--test and --defect are for one model: pass --category with one of {trained}")
    return models


def _category(options: argparse.Namespace, name: str, folder: Path) -> Category:
    """The test images: in the folders that the options name, or that the model was trained with, or in a data set.

    Args:
        options: of the command.
        name: of the category.
        folder: of the model.
    """
    from padim.pipeline.remembered import own_category

    own = None if in_own_folders(options) or options.data else own_category(folder, name)
    if own is None or (not own.test and (default_data() / name).is_dir()):
        return category_from(options, name)
    return own


if __name__ == "__main__":
    sys.exit(main())
