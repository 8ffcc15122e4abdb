"""padim-predict: score images with a trained model and draw where they deviate."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import sys
from collections.abc import Callable, Collection, Generator, Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

from padim.cli.command import USER_ERROR, Parser, command, progress_bars
from padim.cli.options import (
    add_machine_options,
    add_rate_option,
    add_scoring_options,
    add_strict_option,
    finite,
    scorer_from,
)
from padim.cli.results import Files, Summary, coloured
from padim.data.items import SUFFIXES, real
from padim.errors import PadimError, printable

if TYPE_CHECKING:
    from padim.calibration import Thresholds
    from padim.cli.results import Line
    from padim.data.items import Item
    from padim.detectors.scores import Scorer
    from padim.pipeline.predict import Prediction
    from padim.report.pictures import Pictures
    from padim.system.progress import OnProgress

    Predict = Callable[[Sequence[Item], OnProgress], Generator[tuple[Prediction, Line]]]

log = logging.getLogger(__name__)


def parser(prog: str = "padim-predict") -> Parser:
    """The command's options."""
    result = Parser(
        prog=prog,
        description="Score images, print one JSON line per image, and draw where they deviate.",
    )
    result.add_argument("inputs", nargs="*", type=Path, metavar="IMAGE_OR_FOLDER", help="images; folders recursively")
    result.add_argument(
        "--model", type=Path, required=True, metavar="FILE", help="what padim-train or padim-export wrote"
    )
    result.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="folder of the pictures, or the picture of a single image (default: no pictures)",
    )
    result.add_argument("--sort", type=Path, metavar="DIR", help="link the images into DIR/normal and DIR/anomalous")
    result.add_argument("--csv", type=Path, metavar="FILE", help="also write a table with a row per image")
    threshold = result.add_mutually_exclusive_group()
    add_rate_option(threshold, "as trained")
    threshold.add_argument(
        "--threshold", type=finite, metavar="SCORE", help="scores from here on are anomalous, instead of a rate"
    )
    result.add_argument(
        "--range",
        type=finite,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="distances at the ends of the colours (default: 0 and twice the threshold)",
    )
    result.add_argument(
        "--pixel-threshold",
        type=finite,
        metavar="DISTANCE",
        help="pixels from here on are anomalous, instead of a rate",
    )
    result.add_argument("--mask", action="store_true", help="also write where each image is anomalous, white on black")
    result.add_argument(
        "--panel", action="store_true", help="also write image, heatmap, masks and contours side by side"
    )
    result.add_argument(
        "--raw",
        choices=("npy", "png16"),
        help="also write the distances: float32, or 16-bit grey with 65535 at the upper end of the colours",
    )
    result.add_argument("--timing", action="store_true", help="add to each line what its stages took, in milliseconds")
    stream = result.add_argument_group("a stream of images")
    stream.add_argument(
        "--watch", type=Path, metavar="DIR", help="score images as they appear in a folder, until Ctrl-C or SIGTERM"
    )
    stream.add_argument(
        "--settle",
        type=_seconds,
        metavar="SECONDS",
        help="how long a file has to stay unchanged to be taken as finished (default: 1)",
    )
    stream.add_argument(
        "--record",
        type=Path,
        metavar="FILE",
        help="lines of what is done, which is not done again (default: watched.jsonl in --out, else in --watch)",
    )
    add_scoring_options(result)
    add_machine_options(result)
    add_strict_option(result)
    return result


@command
def main(arguments: Sequence[str] | None = None, prog: str = "padim-predict") -> int:
    """Run the command; returns its exit code."""
    options = parser(prog).parse_args(arguments)
    if options.range and not options.range[0] < options.range[1]:
        raise PadimError("--range: LOW has to be below HIGH")
    if bool(options.inputs) == bool(options.watch):
        raise PadimError("pass images and folders, or --watch DIR")
    if options.watch and options.strict:
        raise PadimError("--strict stops at the first unreadable image, which --watch is not to do")
    if not options.watch and (options.record or options.settle is not None):
        raise PadimError("--record and --settle are for --watch DIR")
    if not options.out and (options.panel or options.mask or options.raw or options.range):
        raise PadimError("--panel, --mask, --raw and --range are for pictures: say where with --out DIR")
    if options.watch and (options.csv or _is_picture(options.out)):
        raise PadimError("a stream never ends: --csv and a picture as --out are for images that are named")
    return _watch(options) if options.watch else _predict(options)


def _predict(options: argparse.Namespace) -> int:
    """Score the images that are named."""
    from padim.data.items import Item, collect_images
    from padim.data.layouts import find_mask

    names = collect_images(options.inputs, *_result_folders(options))
    _check_places(options, names)
    items = [Item(path, mask=find_mask(path) if options.panel else None) for path in names]
    predict, summary = _prepared(options, names.__getitem__), Summary(options.csv)
    try:
        with progress_bars() as progress:
            for prediction, line in predict(items, progress):
                summary.add(prediction, line)
    finally:  # also of what was scored before Ctrl-C
        summary.write_table()
    summary.close()
    return USER_ERROR if summary.failed else 0


def _check_places(options: argparse.Namespace, images: Collection[Path]) -> None:
    """Say where results and what is read would get in each other's way.

    Raises:
        PadimError: a result would take the place of an image or of the model, or pictures that of one another.
    """
    if _is_picture(options.out) and len(images) > 1:
        raise PadimError(f"--out {options.out} names one picture, and there are {len(images)} images: name a folder")
    for folder, place in product(_result_folders(options), options.inputs):
        if place.is_dir() and real(folder).is_relative_to(real(place)):
            log.warning(
                "%s lies in %s: images there are not scored now, and would be without this option", folder, place
            )
    if options.csv and options.csv.suffix.lower() in SUFFIXES:
        raise PadimError(f"--csv {options.csv} names a picture: name the file of the table")
    for option, path in (("--out", options.out if _is_picture(options.out) else None), ("--csv", options.csv)):
        if path and real(path) in map(real, [*images, options.model]):
            raise PadimError(f"{option} {path} is what is read: name another file")


def _result_folders(options: argparse.Namespace) -> list[Path]:
    """The folders of results, whose images are none to score."""
    return [folder for folder in (options.out, options.sort) if folder and not _is_picture(folder)]


def _is_picture(path: Path | None) -> bool:
    """Whether an output is the file of a picture rather than a folder."""
    return path is not None and path.suffix.lower() in SUFFIXES and not path.is_dir()


def _watch(options: argparse.Namespace) -> int:
    """Score what appears in a folder, until Ctrl-C or SIGTERM."""
    from padim.deploy.stream import Record, Watch, follow
    from padim.system.progress import silent
    from padim.system.signals import stop_requests

    watch = Watch(options.watch, 1.0 if options.settle is None else options.settle, *_result_folders(options))
    predict = _prepared(options, lambda path: Path(watch.name(path)))
    path = options.record or (options.out or options.watch) / "watched.jsonl"
    with Record(path) as record, stop_requests() as stop:
        print(printable(f"watching {options.watch} until Ctrl-C or SIGTERM"), file=sys.stderr)
        if record:
            print(printable(f"{len(record)} images are in {path} and not scored again"), file=sys.stderr)
        for prediction, line, stamp in follow(watch, record, lambda items: predict(items, silent), stop):
            line |= {"name": watch.name(prediction.path)} | stamp._asdict()
            print(coloured(line), flush=True)
            if "error" in line and not prediction.problem:  # its files are missing: after a restart it has another go
                log.error("%s", line["error"])
                record.pass_over(line)
            else:
                record.add(line)
    return 0


def _prepared(options: argparse.Namespace, name: Callable[[Path], Path]) -> Predict:
    """What predicts and writes files as the options ask for; `name` gives what those of an image are called."""
    from padim.pipeline.predict import predict

    scorer = scorer_from(options, options.model)
    thresholds = _thresholds(options, scorer)
    if options.mask and thresholds.pixel_threshold is None:
        raise PadimError(f"--mask: {options.model} has no calibration: pass --pixel-threshold DISTANCE")
    if options.sort and thresholds.threshold is None:
        raise PadimError(f"--sort: {options.model} gives no verdicts, it has no calibration: pass --threshold SCORE")
    pictures = _pictures(options, scorer, thresholds)
    files = Files(pictures, options.sort, name, threads=options.workers)

    def predicted(items: Sequence[Item], progress: OnProgress) -> Generator[tuple[Prediction, Line]]:
        predictions = predict(
            scorer,
            items,
            thresholds=thresholds,
            batch_size=options.batch_size,
            workers=options.workers,
            strict=options.strict,
            keep_originals=pictures is not None,
            timing=options.timing,
            progress=progress,
        )
        return files.lines(predictions)

    return predicted


def _thresholds(options: argparse.Namespace, scorer: Scorer) -> Thresholds:
    from padim.calibration import Thresholds

    if options.threshold is not None:
        thresholds = Thresholds.fixed(scorer.calibration, options.threshold)
    else:
        rates = scorer.provenance.false_alarm_rate, options.false_alarm_rate
        thresholds = Thresholds.calibrated(scorer.calibration, *rates)
    if options.pixel_threshold is None:
        return thresholds
    return dataclasses.replace(thresholds, pixel_threshold=options.pixel_threshold)


def _pictures(options: argparse.Namespace, scorer: Scorer, thresholds: Thresholds) -> Pictures | None:
    """What draws into the folder of `--out`, if there is to be one."""
    if not options.out:
        return None
    from padim.report.colours import ColourScale
    from padim.report.pictures import Pictures
    from padim.storage.files import check_writable

    if not scorer.has_maps:
        raise PadimError(f"{options.model} scores whole images and has no maps to draw: omit --out")
    single = options.out if _is_picture(options.out) else None
    folder = options.out.parent if single else options.out
    check_writable(folder)
    scale = ColourScale.about(thresholds.threshold, scorer.dimensions)
    return Pictures(
        folder,
        ColourScale(*options.range) if options.range else scale,
        options.panel,
        options.mask,
        options.raw,
        single,
    )


def _seconds(text: str) -> float:
    seconds = finite(text)
    if not 0 <= seconds <= 3600:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 3600")
    return seconds


if __name__ == "__main__":
    sys.exit(main())
