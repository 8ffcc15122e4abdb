"""What padim-train says of a training: what it took, the threshold, and the images that stood out."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from padim.cli.protocol import asks_for_size
from padim.errors import printable

if TYPE_CHECKING:
    from padim.config import BaseConfig
    from padim.data.items import Category

log = logging.getLogger(__name__)

# So many images that stood out are named one by one.
_NAMED = 5

# The share of skipped images from which on they are spoken of.
_MANY_SKIPPED = 0.1


def say_size(category: Category, config: BaseConfig, options: argparse.Namespace) -> None:
    """Say on stderr how images of one's own are resized, unless the options say so."""
    from padim.pipeline.size import describe_size

    if not options.normal or options.update or asks_for_size(options):
        return
    size = describe_size(config, category.train)
    if size:
        print(printable(f"{category.name}: {size}"), file=sys.stderr)


def say_summary(summary: Mapping[str, Any], options: argparse.Namespace) -> None:
    """Print the summary of a training, and say on stderr what a user should look at."""
    name, unusual = summary["category"], summary["unusual"]
    given = summary["images"] + summary["skipped"] + len(summary["trimmed"])
    if summary["skipped"] > _MANY_SKIPPED * given:
        log.warning(
            "%s: %d of %d images were skipped, so the model is that of the others; --strict stops at the first one",
            *(name, summary["skipped"], given),
        )
    _warn_of_rate(summary, options.false_alarm_rate)
    print(json.dumps(summary) if options.json else printable(_readable(summary)), flush=True)
    for image in unusual[:_NAMED]:
        log.warning(
            "%s: %s scores %.4g, far more than the rest: is it really good?", name, image["path"], image["score"]
        )
    if len(unusual) > _NAMED:
        log.warning("%s: and so do %d more, which train.json names", name, len(unusual) - _NAMED)
    if summary["trimmed"]:
        log.warning(
            "%s: if the %d images that were left out are good, up to %.1f %% more of fresh good parts are rejected;"
            " train.json names them",
            *(
                name,
                len(summary["trimmed"]),
                100 * len(summary["trimmed"]) / (summary["images"] + len(summary["trimmed"])),
            ),
        )


def _warn_of_rate(summary: Mapping[str, Any], asked: float | None) -> None:
    """Say that the images are too few for the rate that was asked for, where they are."""
    rate = summary["false_alarm_rate"]
    if asked and rate and rate > asked:
        from padim.calibration import rounded_up  # NumPy is slow to import

        log.warning(
            "%s: %d images support a false-alarm rate of %g and more, which is taken instead of %g",
            *(summary["category"], summary["images"], rounded_up(rate), asked),
        )


def _readable(summary: Mapping[str, Any]) -> str:
    skipped = f", {summary['skipped']} skipped" if summary["skipped"] else ""
    trimmed = f", {len(summary['trimmed'])} left out" if summary["trimmed"] else ""
    threshold = ", no threshold"
    if summary["threshold"] is not None:
        threshold = (
            f", threshold {summary['threshold']:.4f} for a false-alarm rate of {summary['false_alarm_rate']:.3g}"
        )
    poses = ""
    if summary["poses"]:
        low, high = summary["poses"]["angle"]
        far = max(map(abs, summary["poses"]["shift_x"] + summary["poses"]["shift_y"]))
        poses = f", parts at {low:.0f} to {high:.0f} degrees and shifted by up to {far:.0f} pixels"
    return (
        f"{summary['category']}: {summary['images']} images{skipped}{trimmed} in {summary['seconds']:.1f} s"
        f" ({summary['images_per_second']:.1f} images/s), peak memory {summary['peak_memory_bytes'] / 1e6:.0f} MB,"
        f" {summary['model']} ({summary['model_bytes'] / 1e6:.0f} MB){threshold}{poses}"
    )
