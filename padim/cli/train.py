"""padim-train: fit one model per category."""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from padim.cli.command import USER_ERROR, Failures, Parser, command, progress_bars
from padim.cli.evaluating import check_tests, evaluated, evaluation_tables, warn_of_crop
from padim.cli.options import (
    AUTO,
    add_data_option,
    add_folder_options,
    add_machine_options,
    add_output_option,
    add_rate_option,
    add_report_option,
    add_strict_option,
    add_verbose_option,
    category_from,
    default_data,
    in_own_folders,
    own_name,
    pick_device,
    positive,
    precision_on,
)
from padim.cli.protocol import (
    add_align_option,
    add_field_options,
    add_size_option,
    add_source_options,
    asks_for_size,
    config_from,
    given_fields,
    method_of,
)
from padim.cli.training import say_size, say_summary
from padim.config import FALSE_ALARM_RATE, BaseConfig, Config
from padim.cutpaste.config import CutPasteConfig
from padim.detectors.options import FitOptions
from padim.detectors.registry import CONFIGURATIONS
from padim.errors import PadimError, printable
from padim.system.signals import end_with

if TYPE_CHECKING:
    from padim.data.items import Category
    from padim.system.progress import OnProgress

log = logging.getLogger(__name__)


def parser(prog: str = "padim-train", method: str = Config.method) -> Parser:
    """The command's options: those of every day first, and those of one method only."""
    others = ", ".join(f"{prog} --method {other} --help" for other in CONFIGURATIONS if other != method)
    result = Parser(
        prog=prog,
        usage=f"{prog} (--category NAME ... | --normal DIR) [options]",
        description="Learn what the normal images of a category look like.",
        epilog=f"These are the options of the method {method}; those of another one: {others}",
    )
    result.add_argument(
        "--category", nargs="+", default=[], metavar="NAME", help="categories to train, or all for every one there is"
    )
    add_data_option(result)
    add_output_option(result)
    add_source_options(result)
    add_size_option(result)
    add_align_option(result)
    result.add_argument(
        "--weights", type=Path, metavar="FILE", help="backbone weights, .pth or .safetensors (default: download)"
    )
    add_rate_option(result, f"{FALSE_ALARM_RATE}, or that of the updated model")
    result.add_argument("--eval", action="store_true", help="evaluate each model as padim-eval does, in the same run")
    add_report_option(result, "implies --eval; ")
    add_strict_option(result)
    add_verbose_option(result)
    result.add_argument(
        "--json", action="store_true", help="print the summary as JSON, one object per category, and one per evaluation"
    )
    add_folder_options(result, train=True)
    _add_look_options(result, method)
    add_machine_options(result.add_argument_group("the machine: these change the speed, and neither model nor figures"))
    _add_fit_options(result.add_argument_group("the fit and the model file"), method)
    add_field_options(result, method)
    return result


def _add_look_options(parser: Parser, method: str) -> None:
    group = parser.add_argument_group("a look before the training, which then does not begin")
    group.add_argument(
        "--dry-run", action="store_true", help="print the memory to expect on the CPU and the model's size"
    )
    group.add_argument("--print-config", action="store_true", help="print the resolved configuration")
    group.set_defaults(show_augmentations=None)
    if method == CutPasteConfig.method:
        group.add_argument(
            "--show-augmentations", type=positive, metavar="N", help="write a sheet of N augmented images"
        )


def _add_fit_options(group: argparse._ActionsContainer, method: str) -> None:
    """The options of a fit, without those that the method refuses."""
    refused = CONFIGURATIONS[method].refused
    group.set_defaults(embed_backbone=True, keep_moments=False, update=None, ignore=None, resume=False)
    group.set_defaults(checkpoint_steps=FitOptions.checkpoint_steps)
    if "embed_backbone" not in refused:
        group.add_argument(
            "--no-embed-backbone",
            dest="embed_backbone",
            action="store_false",
            help="omit the backbone's weights from the model file",
        )
    if "update" not in refused:
        group.add_argument(
            "--keep-moments",
            action="store_true",
            help="let the model file carry the sums that --update needs, which nearly doubles it",
        )
        group.add_argument(
            "--update",
            type=Path,
            metavar="FILE",
            help="model with moments that takes in the images; the result is written like a new model",
        )
    if "ignore" not in refused:
        group.add_argument(
            "--ignore",
            type=Path,
            metavar="MASK",
            help="picture of the size of the training images; fit and scores ignore the pixels above 0 in it",
        )
    if "resume" not in refused:
        group.add_argument(
            "--checkpoint-steps", type=positive, metavar="K", help="steps between checkpoints (default: %(default)s)"
        )
        group.add_argument("--resume", action="store_true", help="go on from the checkpoint beside the model")
    group.add_argument(
        "--storage",
        choices=("fp32", "fp16"),
        default="fp32",
        help="large tensors of the model file; fp16 halves them and costs digits (default: fp32)",
    )
    group.add_argument(
        "--no-calibration",
        dest="calibrate",
        action="store_false",
        help="don't look for a threshold, which can take a second pass; an update keeps its model's",
    )


@command
def main(arguments: Sequence[str] | None = None, prog: str = "padim-train") -> int:
    """Run the command; returns its exit code."""
    if "TORCHELASTIC_RUN_ID" in os.environ:  # of torchrun, which may be killed while its processes import torch
        end_with(os.getppid())
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # which must not wait until other processes have answered
    options = _parsed(sys.argv[1:] if arguments is None else arguments, prog)
    options.eval = options.eval or options.report
    config = _config(options)
    looks = options.print_config or options.dry_run or options.show_augmentations
    if options.align == AUTO and looks:
        raise PadimError("--align auto is decided by a training: to look ahead, take none, shift or rotate")
    if options.ignore and options.align not in (None, "none"):
        raise PadimError("--ignore and --align exclude each other: pixels to ignore lie where the camera sees them")
    if options.print_config:
        print(config.to_toml(), end="")
        return 0
    names = _names(options)
    options.detailed = options.verbose or len(names) == 1
    if options.dry_run:
        return _each(names, lambda name: _estimated(category_from(options, name), config, options))
    if options.show_augmentations:
        return _each(names, lambda name: str(_augmentations(category_from(options, name), config, options)))
    return _train(names, config, options)


def _train(names: Sequence[str], config: BaseConfig, options: argparse.Namespace) -> int:
    """Train the categories, and evaluate them if need be; returns the exit code."""
    from padim.detectors.registry import detector_class
    from padim.pipeline.train import train_category
    from padim.system.distributed import connected, local_device, processes, rank
    from padim.weights import weights_from

    device = local_device(pick_device(options.device))
    fit_options = _fit_options(options)
    detector_class(config.method).check(fit_options)
    evaluations: list[dict[str, Any]] = []
    cropped = False
    with connected(device), progress_bars(quiet=rank() > 0) as progress:
        failures = Failures(fatal=processes() > 1)  # where the other processes would wait for this one
        categories = _categories(names, options, failures)
        starts = config.pretrained if categories and not options.update else None
        weights = weights_from(options.weights, starts) if starts else options.weights  # once for all categories
        for name, category in categories.items():
            with failures.caught(name):
                if options.eval:
                    check_tests(category, options)
                aligned = _aligned(category, config, options, progress) if options.align == AUTO else config
                if rank() == 0:
                    say_size(category, aligned, options)
                trained = train_category(
                    category,
                    aligned,
                    options.output,
                    options=fit_options,
                    weights=weights,
                    device=device,
                    strict=options.strict,
                    update_from=options.update,
                    tests=category.test if options.eval else (),
                    progress=progress,
                )
                if rank() > 0:  # the first process has all that there is to say
                    continue
                say_summary(trained.summary(), options)
                cropped = cropped or warn_of_crop(aligned, name, category.train)
                if options.eval:
                    evaluations += evaluated(trained.detector, category, options, progress)
    if evaluations and not options.json:
        print(evaluation_tables(evaluations, detailed=options.detailed))
    return USER_ERROR if failures.count else 0


def _parsed(arguments: Sequence[str], prog: str) -> argparse.Namespace:
    """The options of a command line, whose method decides which there are.

    Raises:
        PadimError: an option is one of another method.
    """
    method = method_of(arguments)
    options, unknown = parser(prog, method).parse_known_args(arguments)
    for word in (word.split("=")[0] for word in unknown):
        reason = CONFIGURATIONS[method].refused.get(word.removeprefix("--no-").strip("-").replace("-", "_"))
        if reason:
            raise PadimError(f"{word}: {reason}")
        for other in CONFIGURATIONS:
            if word in parser(prog, other)._option_string_actions:
                raise PadimError(f"{word} is an option of the method {other}, and this is {method}")
    if unknown:
        parser(prog, method).error(f"unrecognized arguments: {' '.join(unknown)}")
    return options


def _fit_options(options: argparse.Namespace) -> FitOptions:
    """What the options ask of a fit and of its file."""
    return FitOptions(
        false_alarm_rate=options.false_alarm_rate,
        calibrate=options.calibrate,
        ignore=options.ignore,
        keep_moments=options.keep_moments,
        update=options.update is not None,
        embed_backbone=options.embed_backbone,
        storage=options.storage,
        checkpoint_steps=options.checkpoint_steps,
        resume=options.resume,
        workers=options.workers,
    )


def _config(options: argparse.Namespace) -> BaseConfig:
    """The configuration that the options ask for; images of one's own keep their proportions, unless they say else."""
    if options.precision == AUTO:
        options.precision = precision_on(pick_device(options.device), AUTO)
    if options.update:
        return _updated_config(options)
    config = config_from(options)
    if not options.normal or asks_for_size(options):
        return config
    from padim.data.layouts import plain_category
    from padim.pipeline.size import in_own_proportions

    (name,) = _names(options)
    return in_own_proportions(config, plain_category(name, options.normal).train)


def _updated_config(options: argparse.Namespace) -> BaseConfig:
    """The configuration of the model that is updated.

    Raises:
        PadimError: the options ask for another one, or name several categories.
    """
    from padim.detectors.registry import model_config
    from padim.storage.modelfile import has_moments

    given = given_fields(options, options.method or Config.method)
    if options.ignore:
        raise PadimError(f"--update keeps the pixels that {options.update} ignores: omit --ignore")
    if given or options.config or options.preset or options.method or options.align:
        raise PadimError(f"--update keeps the configuration of {options.update}: omit the options of another one")
    if len(options.category) > 1 or "all" in options.category:
        raise PadimError("--update is for one model: name one category")
    config = model_config(options.update)
    if config.method == Config.method and not has_moments(options.update):
        raise PadimError(f"{options.update} can't take in more images: it was trained without --keep-moments")
    return config


def _names(options: argparse.Namespace) -> list[str]:
    """The categories to train.

    Raises:
        PadimError: there is none, or the options contradict each other.
    """
    from padim.data.layouts import categories

    given = list(dict.fromkeys(options.category))
    if in_own_folders(options):
        name = own_name(options)
        if not options.eval and (options.test or options.defect or options.masks):
            raise PadimError("--test, --defect and --masks are for --eval: pass that too")
        return [name]
    if not given:
        raise PadimError("which category? Pass --category NAME, --category all, or --normal DIR for your own images")
    there = categories(options.data or default_data()) if "all" in given else []
    return [*dict.fromkeys([*there, *(name for name in given if name != "all")])]


def _categories(names: Sequence[str], options: argparse.Namespace, failures: Failures) -> dict[str, Category]:
    """The categories that there are, by their names."""
    found = {}
    for name in names:
        with failures.caught(name):
            found[name] = category_from(options, name)
    return found


def _aligned(category: Category, config: BaseConfig, options: argparse.Namespace, progress: OnProgress) -> BaseConfig:
    """The configuration with the alignment that the training images suggest, which is said on stderr."""
    from padim.pipeline.align import choose_alignment
    from padim.poses.spread import describe
    from padim.system.distributed import rank

    chosen, spread = choose_alignment(category, config, workers=options.workers, progress=progress)
    if rank() == 0:
        print(printable(f"{category.name}: {describe(spread)}"), file=sys.stderr)
    return chosen


def _each(names: Sequence[str], look: Callable[[str], str]) -> int:
    """Print what there is to say of each category; returns the exit code."""
    failures = Failures()
    for name in names:
        with failures.caught(name):
            print(printable(look(name)), flush=True)
    return USER_ERROR if failures.count else 0


def _estimated(category: Category, config: BaseConfig, options: argparse.Namespace) -> str:
    """What training a category will take."""
    from padim.detectors.registry import detector_class
    from padim.estimate import estimate
    from padim.system.machine import available_memory_bytes

    fit_options = _fit_options(options)
    detector_class(config.method).check(fit_options)
    found = estimate(config, len(category.train), fit_options)
    images = {"category": category.name, "images": len(category.train)}
    sizes = {"memory": found.memory, "model": found.model} | found.parts
    if options.json:
        return json.dumps(images | {f"{name}_bytes": size for name, size in sizes.items()})
    megabytes = ", ".join(f"{name.replace('_', ' ')} {size / 1e6:.1f} MB" for name, size in sizes.items())
    warning = ", more memory than is free" if found.memory > available_memory_bytes() else ""
    return f"{category.name}: {len(category.train)} images, {megabytes}{warning}"


def _augmentations(category: Category, config: BaseConfig, options: argparse.Namespace) -> Path:
    """Write a sheet of training images as CutPaste sees them, a row each; gives its path."""
    from PIL import Image

    from padim.cutpaste.augment import augmented
    from padim.data.loader import ImageLoader
    from padim.data.transform import Transform
    from padim.report.contact import save_contact_sheet

    assert isinstance(config, CutPasteConfig)  # only that method has the option
    items = category.train[: options.show_augmentations]
    loader = ImageLoader(items, Transform.of(config), workers=options.workers, strict=options.strict)
    rows = [augmented(Image.fromarray(sample.image), config, number) for number, sample in enumerate(loader)]
    if not rows:
        raise PadimError("there is no training image to show")
    path: Path = options.output / category.name / "augmentations.png"
    save_contact_sheet(path, rows)
    return path


if __name__ == "__main__":
    sys.exit(main())
