"""padim-predict: score images with a trained model and draw where they deviate."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from padim.cli.command import USER_ERROR, Parser, command, progress_bars
from padim.cli.options import (
    add_machine_options,
    add_rate_option,
    add_scoring_options,
    add_strict_option,
    finite,
    pick_device,
)
from padim.errors import ImageError, PadimError

if TYPE_CHECKING:
    from padim.calibration import Thresholds
    from padim.data.items import Item
    from padim.detectors.scores import Scorer
    from padim.pipeline.predict import Prediction
    from padim.report.pictures import Pictures
    from padim.system.progress import OnProgress

    Predict = Callable[[Sequence[Item], OnProgress], Generator[Prediction]]

log = logging.getLogger(__name__)


def parser(prog: str = "padim-predict") -> Parser:
    """The command's options."""
    result = Parser(
        prog=prog,
        description="Score images, write a heatmap of each, and print one JSON line per image.",
    )
    result.add_argument("inputs", nargs="*", type=Path, metavar="IMAGE_OR_FOLDER", help="images; folders recursively")
    result.add_argument(
        "--model", type=Path, required=True, metavar="FILE", help="what padim-train or padim-export wrote"
    )
    result.add_argument("--out", type=Path, metavar="DIR", help="folder of the pictures (default: no pictures)")
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
        "--panel", action="store_true", help="also write image, heatmap, ground truth and contours side by side"
    )
    result.add_argument(
        "--raw",
        choices=("npy", "png16"),
        help="also write the distances: float32, or 16-bit grey with 65535 at the upper end of the colours",
    )
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
    if not options.out and (options.panel or options.raw or options.range):
        raise PadimError("--panel, --raw and --range are for pictures: say where with --out DIR")
    return _watch(options) if options.watch else _predict(options)


def _predict(options: argparse.Namespace) -> int:
    """Score the images that are named."""
    from padim.data.items import Item, collect_images
    from padim.data.layouts import find_mask

    names = collect_images(options.inputs, exclude=options.out)
    items = [Item(path, mask=find_mask(path) if options.panel else None) for path in names]
    predict, pictures = _prepared(options)
    scored, failed, skipped = 0, 0, 0
    with progress_bars() as progress:
        for prediction in predict(items, progress):
            if isinstance(prediction.problem, ImageError):  # which was said when it was read
                skipped += 1
                continue
            line = _line(prediction, pictures, names[prediction.path])
            print(json.dumps(line), flush=True)
            scored += 1
            if "error" in line:
                log.error("%s", line["error"])
                failed += 1
    if not scored:
        raise PadimError("none of the images could be read")
    if skipped:
        log.warning("%d of %d images were skipped", skipped, len(items))
    return USER_ERROR if failed else 0


def _watch(options: argparse.Namespace) -> int:
    """Score what appears in a folder, until Ctrl-C or SIGTERM."""
    from padim.deploy.stream import Record, Watch, follow
    from padim.system.progress import silent
    from padim.system.signals import stop_requests

    watch = Watch(options.watch, 1.0 if options.settle is None else options.settle, options.out)
    predict, pictures = _prepared(options)
    path = options.record or (options.out or options.watch) / "watched.jsonl"
    with Record(path) as record, stop_requests() as stop:
        if record:
            print(f"{len(record)} images are in {path} and not scored again", file=sys.stderr)
        for prediction, stamp in follow(watch, record, lambda items: predict(items, silent), stop):
            name = watch.name(prediction.path)
            line = _line(prediction, pictures, Path(name)) | {"name": name} | stamp._asdict()
            print(json.dumps(line), flush=True)
            record.add(line)
    return 0


def _line(prediction: Prediction, pictures: Pictures | None, name: Path) -> dict[str, Any]:
    """What is said of an image, once its pictures are written under its name."""
    line = prediction.summary()
    sample, anomaly_map, seen = prediction.sample, prediction.anomaly_map, prediction.seen
    if pictures and sample and anomaly_map is not None and seen:
        try:
            line |= pictures.write(name, sample, anomaly_map, seen, prediction.part)
        except PadimError as error:  # the verdict holds, and the other images are scored all the same
            line["error"] = str(error)
    return line


def _prepared(options: argparse.Namespace) -> tuple[Predict, Pictures | None]:
    """What predicts, and what draws, as the options ask for."""
    from padim.pipeline.predict import predict

    scorer = _scorer(options)
    thresholds = _thresholds(options, scorer)
    pictures = _pictures(options, scorer, thresholds)

    def predicted(items: Sequence[Item], progress: OnProgress) -> Generator[Prediction]:
        return predict(
            scorer,
            items,
            thresholds=thresholds,
            batch_size=options.batch_size,
            workers=options.workers,
            strict=options.strict,
            keep_originals=pictures is not None,
            progress=progress,
        )

    return predicted, pictures


def _scorer(options: argparse.Namespace) -> Scorer:
    """The model. Exported ones need no torch."""
    from padim.deploy.runtime import load_scorer

    if options.model.suffix.lower() != ".onnx":
        device = pick_device(options.device)
        return load_scorer(options.model, weights=options.weights, device=device, precision=options.precision)
    if options.weights or options.precision or options.device != "auto":
        raise PadimError("--weights, --precision and --device are for models of padim-train")
    return load_scorer(options.model)


def _thresholds(options: argparse.Namespace, scorer: Scorer) -> Thresholds:
    from padim.calibration import Thresholds

    if options.threshold is not None:
        return Thresholds.fixed(scorer.calibration, options.threshold)
    return Thresholds.calibrated(scorer.calibration, scorer.provenance.false_alarm_rate, options.false_alarm_rate)


def _pictures(options: argparse.Namespace, scorer: Scorer, thresholds: Thresholds) -> Pictures | None:
    """What draws into the folder of `--out`, if there is to be one."""
    if not options.out:
        return None
    from padim.report.colours import ColourScale
    from padim.report.pictures import Pictures
    from padim.storage.files import check_writable

    if not scorer.has_maps:
        raise PadimError(f"{options.model} scores whole images and has no maps to draw: omit --out")
    check_writable(options.out)
    scale = ColourScale.about(thresholds.threshold, scorer.dimensions)
    return Pictures(
        options.out,
        ColourScale(*options.range) if options.range else scale,
        thresholds.pixel_threshold,
        options.panel,
        options.raw,
    )


def _seconds(text: str) -> float:
    seconds = finite(text)
    if not 0 <= seconds <= 3600:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 3600")
    return seconds


if __name__ == "__main__":
    sys.exit(main())
