"""padim-predict: score images with a trained model and draw where they deviate."""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from padim.cli.common import (
    USER_ERROR,
    Parser,
    add_machine_options,
    add_rate_option,
    add_scoring_options,
    command,
    finite,
    pick_device,
    progress,
    threshold_summary,
)
from padim.errors import ImageError, PadimError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from padim.data.items import Item
    from padim.data.loader import ImageLoader, Sample
    from padim.data.transform import Transform
    from padim.deploy.runtime import Runtime, Scores
    from padim.deploy.stream import Record, Stamp, Watch
    from padim.detectors.contract import Detector
    from padim.report.pictures import Pictures

log = logging.getLogger(__name__)

# Images that are taken on at a time while watching, so that a long queue is neither held nor waited for.
_AT_ONCE = 64


def parser() -> Parser:
    """The command's options."""
    result = Parser(
        prog="padim-predict",
        description="Score images, write a heatmap of each, and print one JSON line an image.",
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
    return result


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    options = parser().parse_args(arguments)
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
    from padim.data.items import Item, collect_images
    from padim.data.layouts import find_mask

    names = collect_images(options.inputs, exclude=options.out)
    items = [Item(path, mask=find_mask(path) if options.panel else None) for path in names]
    predictor = _predictor(options)
    loader = predictor.loader(items)
    scored, failed = 0, 0
    for line in predictor.lines(progress(loader, len(items), "predict"), names):
        print(json.dumps(line), flush=True)
        scored += 1
        if "error" in line:
            log.error("%s", line["error"])
            failed += 1
    if not scored:
        raise PadimError("none of the images could be read")
    if loader.skipped:
        log.warning("%d of %d images were skipped", loader.skipped, len(items))
    return USER_ERROR if failed else 0


def _watch(options: argparse.Namespace) -> int:
    """Score what appears in a folder, a line each."""
    from padim.data.loader import batched
    from padim.deploy.stream import Record, Watch
    from padim.system.signals import stop_requests

    settle = 1.0 if options.settle is None else options.settle
    watch = Watch(options.watch, settle, options.out)
    predictor = _predictor(options)
    path = options.record or (options.out or options.watch) / "watched.jsonl"
    with Record(path) as record, stop_requests() as stop:
        if record:
            print(f"{len(record)} images are in {path} and not scored again", file=sys.stderr)
        stream = _Stream(predictor, watch, record, stop)
        while not stop.is_set():
            start = time.monotonic()
            if not options.watch.is_dir():
                log.warning("the folder %s is not there: waiting for it", options.watch)
                while not options.watch.is_dir() and not stop.wait(settle + 0.05):
                    pass
            finished = watch.finished(record)
            # A folder of many files takes long to look through: not more than a tenth of the time.
            pause = max(settle / 2, 0.05, 9 * (time.monotonic() - start))
            for stamps in batched(finished.items(), _AT_ONCE):
                stream.score(dict(stamps))
            if not finished:
                stop.wait(pause)
    return 0


@dataclass(frozen=True)
class _Stream:
    """Images as they appear: each has a line, which is recorded once it is printed."""

    predictor: _Predictor
    watch: Watch
    record: Record
    stop: threading.Event
    postponed: set[Path] = field(default_factory=set)

    def score(self, stamps: Mapping[Path, Stamp]) -> None:
        """Score finished images, or as many as there is time for before it is to stop."""
        from padim.data.items import Item

        if self.stop.is_set():
            return
        loader = self.predictor.loader([Item(path) for path in stamps])
        with closing(self.predictor.lines(loader, {path: Path(self.watch.name(path)) for path in stamps})) as lines:
            for line in lines:
                self._say(line, stamps[Path(line["path"])])
                if self.stop.is_set():
                    break
        for path, error in loader.failures.items():
            if error.may_pass:
                self._postpone(path, error)
            else:
                self._say({"path": str(path), "verdict": None, "error": str(error)}, stamps[path])

    def _say(self, line: dict[str, Any], stamp: Stamp) -> None:
        line |= {"name": self.watch.name(Path(line["path"]))} | stamp._asdict()
        print(json.dumps(line), flush=True)
        self.record.add(line)

    def _postpone(self, path: Path, error: ImageError) -> None:
        self.watch.postpone(path)
        if path not in self.postponed:
            log.warning("will be tried again: %s", error)
            self.postponed.add(path)


@dataclass(frozen=True)
class _Predictor:
    """A model with all that its lines and pictures take."""

    score: Callable[[NDArray[np.uint8]], Scores]
    transform: Transform
    verdict: Mapping[str, float | None]
    pictures: Pictures | None
    batch_size: int
    workers: int
    strict: bool

    def loader(self, items: Sequence[Item]) -> ImageLoader:
        """What reads the images."""
        from padim.data.loader import ImageLoader

        return ImageLoader(items, self.transform, workers=self.workers, strict=self.strict, keep_originals=True)

    def lines(self, samples: Iterable[Sample], names: Mapping[Path, Path]) -> Generator[dict[str, Any]]:
        """What is said of each sample, once its pictures are written under its name."""
        from padim.data.loader import batched

        for batch in batched(samples, self.batch_size):
            yield from self._lines(batch, names)

    def _lines(self, batch: Sequence[Sample], names: Mapping[Path, Path]) -> Iterator[dict[str, Any]]:
        import numpy as np

        try:
            scores, maps = self.score(np.stack([sample.image for sample in batch]))
        except PadimError as error:
            if len(batch) == 1:
                yield {"path": str(batch[0].item.path), "verdict": None, "error": str(error)}
            else:  # which of them is to blame is seen one by one, and costs the others nothing
                for sample in batch:
                    yield from self._lines([sample], names)
            return
        for index, sample in enumerate(batch):
            anomaly_map = None if maps is None else maps[index]
            line = self._line(sample, float(scores[index]), anomaly_map)
            if self.pictures and anomaly_map is not None:
                try:
                    line |= self.pictures.write(names[sample.item.path], sample, anomaly_map)
                except PadimError as error:  # the verdict holds, and the other images are scored all the same
                    line["error"] = str(error)
            yield line

    def _line(self, sample: Sample, score: float, anomaly_map: NDArray[np.float32] | None) -> dict[str, Any]:
        """The verdict on a sample; regions are those of an anomalous one."""
        from padim.evaluation.regions import anomalous_regions

        assert sample.original is not None  # the loader keeps it
        threshold, pixel_threshold = self.verdict["threshold"], self.verdict["pixel_threshold"]
        anomalous = threshold is not None and score >= threshold
        line = {
            "path": str(sample.item.path),
            "verdict": None if threshold is None else "anomalous" if anomalous else "normal",
            "score": score,
            "threshold": threshold,
            "false_alarm_rate": self.verdict["false_alarm_rate"],
        }
        if anomaly_map is None:
            return line
        seen = self.transform.seen(*sample.original.size)
        regions = anomalous_regions(anomaly_map, pixel_threshold, seen) if anomalous and pixel_threshold else []
        return line | {"regions": [region._asdict() for region in regions], "seen": seen}


def _predictor(options: argparse.Namespace) -> _Predictor:
    from padim.data.transform import Transform
    from padim.storage.files import check_writable

    model, score = _load(options)
    if options.out and not model.has_maps:
        raise PadimError(f"{options.model} scores whole images and has no maps to draw: leave --out away")
    if options.out:
        check_writable(options.out)
    transform = Transform.of(dataclasses.replace(model.config, rotation=0.0))
    verdict = _verdict(options, model)
    pictures = None
    if options.out:
        from padim.report.colours import ColourScale
        from padim.report.pictures import Pictures

        about = ColourScale.about(verdict["threshold"], model.dimensions)
        scale = ColourScale(*options.range) if options.range else about
        pictures = Pictures(options.out, scale, transform, verdict["pixel_threshold"], options.panel, options.raw)
    batch_size = options.batch_size or model.config.batch_size
    return _Predictor(score, transform, verdict, pictures, batch_size, options.workers, options.strict)


def _load(options: argparse.Namespace) -> tuple[Detector | Runtime, Callable[[NDArray[np.uint8]], Scores]]:
    """The model, and how it scores images `[n, h, w, 3]`. Exported models do without torch."""
    from padim.deploy.runtime import Runtime, Scores

    if options.model.suffix.lower() == ".onnx":
        if options.weights or options.precision or options.device != "auto":
            raise PadimError("--weights, --precision and --device are for models of padim-train")
        runtime = Runtime.load(options.model)
        return runtime, runtime.score

    import torch

    from padim.detectors.registry import load

    model = load(
        options.model, weights=options.weights, device=pick_device(options.device), precision=options.precision
    )

    def score(pixels: NDArray[np.uint8]) -> Scores:
        scores = model.score(torch.from_numpy(pixels).permute(0, 3, 1, 2))
        return Scores(scores.images.cpu().numpy(), None if scores.maps is None else scores.maps.cpu().numpy())

    return model, score


def _seconds(text: str) -> float:
    seconds = finite(text)
    if not 0 <= seconds <= 3600:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 3600")
    return seconds


def _verdict(options: argparse.Namespace, model: Detector | Runtime) -> dict[str, float | None]:
    """Thresholds for images and pixels, and the expected false-alarm rate."""
    if options.threshold is None:
        return threshold_summary(model, options.false_alarm_rate)
    rate = model.calibration.false_alarm_rate(options.threshold) if model.calibration else None
    return {"threshold": options.threshold, "false_alarm_rate": rate, "pixel_threshold": options.threshold}


if __name__ == "__main__":
    sys.exit(main())
