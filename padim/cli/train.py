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
    Batches,
    Parser,
    add_config_options,
    add_data_option,
    add_folder_options,
    add_machine_options,
    add_output_option,
    add_rate_option,
    add_report_option,
    category_from,
    command,
    config_from,
    given_fields,
    in_own_folders,
    peak_memory,
    pick_device,
    positive,
    threshold_summary,
)
from padim.cli.eval import evaluate_category, read_test_images, table
from padim.config import FALSE_ALARM_RATE, BaseConfig
from padim.errors import PadimError
from padim.system.machine import available_memory_bytes

if TYPE_CHECKING:
    import argparse

    from torch import Tensor

    from padim.data.items import Category
    from padim.data.loader import ImageLoader, Sample
    from padim.detectors.contract import Detector, Plan

log = logging.getLogger(__name__)


def parser() -> Parser:
    """The command's options."""
    result = Parser(prog="padim-train", description="Learn what the normal images of a category look like.")
    result.add_argument(
        "--category", nargs="+", default=[], metavar="NAME", help="categories to train, or all for every one there is"
    )
    add_data_option(result)
    add_folder_options(result, train=True)
    add_output_option(result)
    result.add_argument(
        "--weights", type=Path, metavar="FILE", help="backbone weights, .pth or .safetensors (default: download)"
    )
    result.add_argument(
        "--no-embed-backbone", action="store_true", help="leave the backbone's weights out of the model file"
    )
    result.add_argument(
        "--keep-moments", action="store_true", help="let the model file carry what --update takes, which doubles it"
    )
    result.add_argument(
        "--update",
        type=Path,
        metavar="FILE",
        help="model with moments that takes in the images; the file stays, the result is written like a new model",
    )
    result.add_argument(
        "--storage",
        choices=("fp32", "fp16"),
        default="fp32",
        help="large tensors of the model file; fp16 halves them and costs digits (default: fp32)",
    )
    add_rate_option(result, f"{FALSE_ALARM_RATE}, or that of the updated model")
    result.add_argument(
        "--no-calibration",
        action="store_true",
        help="don't look for a threshold, which can take a second pass; an update keeps its model's",
    )
    add_machine_options(result)
    result.add_argument("--eval", action="store_true", help="evaluate each model as padim-eval does, in the same run")
    add_report_option(result)
    result.add_argument(
        "--dry-run",
        action="store_true",
        help="print the memory to expect on the CPU and the model's size, and stop",
    )
    steps = result.add_argument_group("training of many steps")
    steps.add_argument(
        "--show-augmentations", type=positive, metavar="N", help="write a sheet of N augmented images and stop"
    )
    steps.add_argument(
        "--checkpoint-steps", type=positive, default=50, metavar="K", help="steps between checkpoints (default: 50)"
    )
    steps.add_argument("--resume", action="store_true", help="go on from the checkpoint beside the model")
    result.add_argument("--json", action="store_true", help="print the summary as JSON, one object a category")
    result.add_argument("--print-config", action="store_true", help="print the resolved configuration and stop")
    add_config_options(result)
    return result


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    options = parser().parse_args(arguments)
    config = _updated_config(options) if options.update else config_from(options)
    if options.print_config:
        print(config.to_toml(), end="")
        return 0
    options.eval = options.eval or options.report
    names = _names(options)

    if options.dry_run or options.show_augmentations:
        return _look(names, config, options)

    from padim.system.distributed import connected, local_device

    device = local_device(pick_device(options.device))
    with connected(device):
        return _train_all(names, config, device, options)


def _look(names: Sequence[str], config: BaseConfig, options: argparse.Namespace) -> int:
    """Say what training every category will take, or show what it sees; returns the exit code."""
    look = _estimated if options.dry_run else _show_augmentations
    failed = 0
    for name in names:
        try:
            print(look(category_from(options, name), config, options), flush=True)
        except PadimError as error:  # the other categories are looked at all the same
            log.error("%s: %s", name, error)
            failed += 1
    return USER_ERROR if failed else 0


def _train_all(names: Sequence[str], config: BaseConfig, device: str, options: argparse.Namespace) -> int:
    """Train every category, and evaluate it if asked for; returns the exit code."""
    from padim.detectors.registry import detector
    from padim.system.distributed import processes, rank

    kind = detector(config.method)
    kind.check(_plan(options))
    categories = _categories(names, options)
    weights = kind.initial_weights(config, options.weights) if categories and not options.update else None
    figures: list[dict[str, Any]] = []
    failed = len(names) - len(categories)
    for name, category in categories.items():
        try:
            tests = read_test_images(category, config, options) if options.eval and rank() == 0 else None
            model, summary = _train(category, config, weights, device, options, tests)
            if rank() > 0:  # the first process has all that there is to say
                continue
            print(json.dumps(summary) if options.json else _readable(summary), flush=True)
            if tests:
                figures.append(evaluate_category(model, name, tests, options))
                if options.json:
                    print(json.dumps(figures[-1]), flush=True)
        except PadimError as error:  # the other categories are trained all the same
            if processes() > 1:  # unless the other processes wait for this one
                raise
            log.error("%s: %s", name, error)
            failed += 1
    if figures and not options.json:
        print(table(figures))
    return USER_ERROR if failed else 0


def _categories(names: Sequence[str], options: argparse.Namespace) -> dict[str, Category]:
    """The categories that there are, by their names."""
    from padim.system.distributed import processes

    found = {}
    for name in names:
        try:
            found[name] = category_from(options, name)
        except PadimError as error:
            if processes() > 1:
                raise
            log.error("%s: %s", name, error)
    return found


def _plan(options: argparse.Namespace) -> Plan:
    """What the options ask of a fit and of its file."""
    from padim.detectors.contract import Plan

    return Plan(
        calibrate=not options.no_calibration,
        more=options.update is not None,
        keep_moments=options.keep_moments,
        resume=options.resume,
        embed_backbone=not options.no_embed_backbone,
        storage=options.storage,
    )


def _updated_config(options: argparse.Namespace) -> BaseConfig:
    """The configuration of the model that is updated.

    Raises:
        PadimError: the options ask for another one, or name several categories.
    """
    from padim.detectors.registry import model_config
    from padim.storage.modelfile import has_moments

    given = given_fields(options)
    if given or options.config or options.preset or options.method:
        raise PadimError(f"--update keeps the configuration of {options.update}: leave the options of another one away")
    if len(options.category) > 1 or "all" in options.category:
        raise PadimError("--update is for one model: name one category")
    config = model_config(options.update)
    if config.method == "padim" and not has_moments(options.update):
        raise PadimError(f"{options.update} can't take in more images: it was trained without --keep-moments")
    return config


def _names(options: argparse.Namespace) -> list[str]:
    """The categories to train."""
    from padim.data.items import real
    from padim.data.layouts import categories

    given = list(dict.fromkeys(options.category))
    if in_own_folders(options):
        if not options.normal or len(given) > 1 or "all" in given:
            raise PadimError("images of your own: pass --normal DIR, and --category NAME for one name at most")
        if not options.eval and (options.test or options.defect or options.masks):
            raise PadimError("--test, --defect and --masks are for --eval: pass that too")
        return given or [real(options.normal).name]
    if not given:
        raise PadimError("which category? Pass --category NAME, --category all, or --normal DIR for your own images")
    there = categories(options.data)
    return there if "all" in given else given


def _train(
    category: Category,
    config: BaseConfig,
    weights: Mapping[str, Tensor] | None,
    device: str,
    options: argparse.Namespace,
    tests: ImageLoader | None,
) -> tuple[Detector, dict[str, Any]]:
    """Fit, save, and write the summary beside the model; gives both. `tests` are read next, as early as possible."""
    from padim.data.layouts import EXPECTED
    from padim.data.loader import ImageLoader
    from padim.data.transform import Transform
    from padim.detectors.contract import TrainingOptions
    from padim.detectors.registry import detector, load
    from padim.evaluation.evaluate import evaluate_model
    from padim.storage.files import check_writable, write_json
    from padim.system.distributed import rank, share, total

    items = category.train
    if not items:
        raise PadimError(f"no training images: {EXPECTED}")
    folder = options.output / category.name
    check_writable(folder)
    start = time.perf_counter()
    loader = ImageLoader(share(items), Transform.of(config), workers=options.workers, strict=options.strict)
    loader.follower = tests
    loader.start()
    if options.update:
        model = load(options.update, weights=options.weights, device=device)
    else:
        model = detector(config.method)(config, weights=weights, device=device)
    earlier = model.about.images
    seen: list[Sample] = []  # the test images, read when they are first asked for

    def test() -> float:
        if tests and not seen:
            seen.extend(tests)
        auroc = evaluate_model(model, seen, config.batch_size)[0].image_auroc
        if auroc is None:
            raise PadimError("--select best-on-test needs normal and defective test images")
        return auroc

    model.fit(
        Batches(loader, config.batch_size, category.name, quiet=rank() > 0),
        category.name,
        calibrate=not options.no_calibration,
        false_alarm_rate=options.false_alarm_rate,
        training=TrainingOptions(
            folder,
            options.checkpoint_steps,
            options.resume,
            options.workers,
            options.keep_moments,
            test if tests else None,
        ),
        more=options.update is not None,
    )
    skipped = total(loader.skipped)
    if rank() > 0:
        return model, {}
    if model.history:
        from padim.report.figures import save_figure, training_figure

        save_figure(folder, "training", training_figure(model.history))
    path = folder / "model.safetensors"
    model.save(path, embed_backbone=not options.no_embed_backbone, storage=options.storage)
    seconds = time.perf_counter() - start
    summary = {
        "category": category.name,
        "model": str(path),
        "images": model.about.images,
        "skipped": skipped,
        **threshold_summary(model),
        **model.facts,
        "seconds": round(seconds, 3),
        "images_per_second": round((model.about.images - earlier) / seconds, 2),
        **peak_memory(model.device),
        "model_bytes": path.stat().st_size,
        "device": device,
    }
    write_json(folder / "train.json", summary | {"config": config.to_dict()})
    if tests and options.storage != "fp32":  # which rounds: what is evaluated is what was written
        model = load(path, weights=options.weights, device=device)
    return model, summary


def _estimated(category: Category, config: BaseConfig, options: argparse.Namespace) -> str:
    """What training a category will take."""
    from padim.detectors.registry import detector

    kind, plan = detector(config.method), _plan(options)
    kind.check(plan)
    estimate = kind.estimate(config, len(category.train), plan)
    images = {"category": category.name, "images": len(category.train)}
    sizes = {"memory": estimate.memory, "model": estimate.model} | estimate.parts
    if options.json:
        return json.dumps(images | {f"{name}_bytes": size for name, size in sizes.items()})
    megabytes = ", ".join(f"{name.replace('_', ' ')} {size / 1e6:.1f} MB" for name, size in sizes.items())
    warning = ", more memory than is free" if estimate.memory > available_memory_bytes() else ""
    return f"{category.name}: {len(category.train)} images, {megabytes}{warning}"


def _show_augmentations(category: Category, config: BaseConfig, options: argparse.Namespace) -> Path:
    """Write a sheet of training images as the detector sees them, a row each; gives its path."""
    from PIL import Image

    from padim.data.loader import ImageLoader
    from padim.data.transform import Transform
    from padim.detectors.registry import detector
    from padim.report.contact import save_contact_sheet

    items = category.train[: options.show_augmentations]
    loader = ImageLoader(items, Transform.of(config), workers=options.workers, strict=options.strict)
    kind = detector(config.method)
    rows = [kind.augmented(Image.fromarray(sample.image), config, number) for number, sample in enumerate(loader)]
    if not rows:
        raise PadimError("there is no training image to show")
    path: Path = options.output / category.name / "augmentations.png"
    save_contact_sheet(path, rows)
    return path


def _readable(summary: Mapping[str, Any]) -> str:
    skipped = f", {summary['skipped']} skipped" if summary["skipped"] else ""
    return (
        f"{summary['category']}: {summary['images']} images{skipped} in {summary['seconds']:.1f} s"
        f" ({summary['images_per_second']:.1f} images/s), peak memory {summary['peak_memory_bytes'] / 1e6:.0f} MB,"
        f" {summary['model']} ({summary['model_bytes'] / 1e6:.0f} MB)"
        + (f", threshold {summary['threshold']:.4f}" if summary["threshold"] is not None else ", no threshold")
    )


if __name__ == "__main__":
    sys.exit(main())
