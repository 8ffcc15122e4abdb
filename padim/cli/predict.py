"""padim-predict: score images with a trained model and draw where they deviate."""

from __future__ import annotations

import dataclasses
import json
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from padim.cli.common import (
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
from padim.errors import PadimError

if TYPE_CHECKING:
    import argparse

    import numpy as np
    from numpy.typing import NDArray

    from padim.data.loader import Sample
    from padim.data.transform import Transform
    from padim.model import Padim
    from padim.report.colours import ColourScale
    from padim.runtime import Runtime

log = logging.getLogger(__name__)


def parser() -> Parser:
    """The command's options."""
    result = Parser(
        prog="padim-predict",
        description="Score images, write a heatmap of each, and print one JSON line an image.",
    )
    result.add_argument("inputs", nargs="+", type=Path, metavar="IMAGE_OR_FOLDER", help="images; folders recursively")
    result.add_argument(
        "--model", type=Path, required=True, metavar="FILE", help="what padim-train or padim-export wrote"
    )
    result.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the pictures")
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
    add_scoring_options(result)
    add_machine_options(result)
    return result


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    options = parser().parse_args(arguments)
    if options.range and not options.range[0] < options.range[1]:
        raise PadimError("--range: LOW has to be below HIGH")

    import numpy as np

    from padim.data.items import Item, collect_images
    from padim.data.layouts import find_mask
    from padim.data.loader import ImageLoader, batched
    from padim.data.transform import Transform
    from padim.files import check_writable

    names = collect_images(options.inputs, exclude=options.out)
    check_writable(options.out)
    items = [Item(path, mask=find_mask(path) if options.panel else None) for path in names]
    model, score_pixels = _load(options)
    transform = Transform.of(dataclasses.replace(model.config, rotation=0.0))
    loader = ImageLoader(items, transform, workers=options.workers, strict=options.strict, keep_originals=True)
    verdict = _verdict_options(options, model)
    scale = _colour_scale(options, verdict, model.dimensions)
    samples = progress(loader, len(items), "predict")
    scored = 0
    for batch in batched(samples, options.batch_size or model.config.batch_size):
        scores, maps = score_pixels(np.stack([sample.image for sample in batch]))
        for sample, score, anomaly_map in zip(batch, scores.tolist(), maps, strict=True):
            name = names[sample.item.path]
            files = _write_pictures(options, name, sample, anomaly_map, scale, transform, verdict["pixel_threshold"])
            line = _line(sample, score, anomaly_map, verdict, transform)
            print(json.dumps(line | files), flush=True)
            scored += 1
    if not scored:
        raise PadimError("none of the images could be read")
    if loader.skipped:
        log.warning("%d of %d images were skipped", loader.skipped, len(items))
    return 0


def _load(
    options: argparse.Namespace,
) -> tuple[Padim | Runtime, Callable[[NDArray[np.uint8]], tuple[NDArray[np.float32], NDArray[np.float32]]]]:
    """The model, and how it scores images `[n, h, w, 3]`: image scores `[n]` and maps `[n, h, w]`.

    Exported models do without torch.
    """
    if options.model.suffix == ".onnx":
        from padim.runtime import Runtime

        runtime = Runtime.load(options.model)
        return runtime, runtime.score

    import torch

    from padim.model import Padim

    model = Padim.load(
        options.model, weights=options.weights, device=pick_device(options.device), precision=options.precision
    )

    def score(pixels: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        scores = model.score(torch.from_numpy(pixels).permute(0, 3, 1, 2))
        return scores.images.cpu().numpy(), scores.maps.cpu().numpy()

    return model, score


def _verdict_options(options: argparse.Namespace, model: Padim | Runtime) -> dict[str, float | None]:
    """Thresholds for images and pixels, and the expected false-alarm rate."""
    if options.threshold is None:
        return threshold_summary(model, options.false_alarm_rate)
    rate = model.calibration.false_alarm_rate(options.threshold) if model.calibration else None
    return {"threshold": options.threshold, "false_alarm_rate": rate, "pixel_threshold": options.threshold}


def _colour_scale(options: argparse.Namespace, verdict: dict[str, float | None], dimensions: int) -> ColourScale:
    """One scale for all images of the call, and of every call with the same model and options."""
    from padim.report.colours import ColourScale

    if options.range:
        return ColourScale(*options.range)
    return ColourScale.about(verdict["threshold"], dimensions)


def _write_pictures(
    options: argparse.Namespace,
    name: Path,
    sample: Sample,
    anomaly_map: NDArray[np.float32],
    scale: ColourScale,
    transform: Transform,
    pixel_threshold: float | None,
) -> dict[str, str]:
    """Write what the options ask for; returns the kinds of files and their paths."""
    from padim.report.overlay import save_overlay

    assert sample.original is not None  # the loader keeps it
    stem = options.out / name
    files = {"heatmap": stem.with_name(f"{stem.name}_heatmap.png")}
    save_overlay(files["heatmap"], sample.original, anomaly_map, transform.seen(*sample.original.size), scale)
    if options.panel:
        from padim.report.panel import save_panel

        files["panel"] = stem.with_name(f"{stem.name}_panel.png")
        image = transform.image(sample.original)
        save_panel(files["panel"], image, anomaly_map, sample.mask, pixel_threshold, scale)
    if options.raw:
        from padim.report.raw import save_npy, save_png16

        files["raw"] = stem.with_name(f"{stem.name}_map{'.npy' if options.raw == 'npy' else '.png'}")
        if options.raw == "npy":
            save_npy(files["raw"], anomaly_map)
        else:
            save_png16(files["raw"], anomaly_map, scale)
    return {kind: str(path) for kind, path in files.items()}


def _line(
    sample: Sample,
    score: float,
    anomaly_map: NDArray[np.float32],
    verdict: dict[str, float | None],
    transform: Transform,
) -> dict[str, Any]:
    """What is said of an image; regions are those of an anomalous one."""
    from padim.regions import anomalous_regions

    assert sample.original is not None
    threshold, pixel_threshold = verdict["threshold"], verdict["pixel_threshold"]
    seen = transform.seen(*sample.original.size)
    anomalous = threshold is not None and score >= threshold
    regions = anomalous_regions(anomaly_map, pixel_threshold, seen) if anomalous and pixel_threshold else []
    return {
        "path": str(sample.item.path),
        "verdict": None if threshold is None else "anomalous" if anomalous else "normal",
        "score": score,
        "threshold": threshold,
        "false_alarm_rate": verdict["false_alarm_rate"],
        "regions": [region._asdict() for region in regions],
        "seen": seen,
    }


if __name__ == "__main__":
    sys.exit(main())
