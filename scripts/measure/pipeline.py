"""How fast padim-predict works through a folder, beside the rate that each of its stages has alone.

    python scripts/measure/pipeline.py IMAGES --model FILE [--count 1000] [--repeats 3] [--jpeg SIDE]

The script takes that many photos, the same ones again under other names if there are fewer, as they are or, with
`--jpeg`, as square JPEG files of that side. It measures reading, scoring and pictures, each on the threads that it has
in the command, and then the command, without and with pictures, all in turn. It prints a JSON object of medians: images
per second, the milliseconds of CPU time that an image takes, and what share the command reaches of the slowest stage's
rate, and of what the cores allow when all stages share them, which is less on a machine with few of them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from itertools import cycle, islice
from pathlib import Path

import numpy as np

from padim.cli.options import scorer_from
from padim.cli.predict import main as padim_predict
from padim.cli.predict import parser
from padim.cli.results import Files
from padim.data.images import read_image
from padim.data.items import Item, collect_images
from padim.data.loader import ImageLoader
from padim.data.transform import Transform
from padim.pipeline.predict import predict
from padim.report.colours import ColourScale
from padim.report.pictures import Pictures
from padim.system.machine import cores


def main() -> None:
    options = _parser().parse_args()
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        photos = scratch / "photos"
        photos.mkdir()
        sources = [*collect_images([options.images])]
        for number, source in enumerate(islice(cycle(sources), options.count)):
            if options.jpeg:
                read_image(source).resize((options.jpeg,) * 2).save(photos / f"{number:05}.jpg", quality=90)
            else:
                (photos / f"{number:05}{source.suffix}").symlink_to(source.resolve())
        works = _works(options, photos, scratch / "out")
        runs: dict[str, list[tuple[float, float]]] = {name: [] for name in works}
        for _ in range(options.repeats):
            for name, work in works.items():
                runs[name].append(_taken(work))
    rate = {name: options.count / statistics.median(wall for wall, _ in taken) for name, taken in runs.items()}
    busy = {name: 1e3 * statistics.median(cpu for _, cpu in taken) / options.count for name, taken in runs.items()}
    found: dict[str, object] = {"cores": cores(), "images": options.count, "images per second": _rounded(rate)}
    found["milliseconds of CPU per image"] = _rounded(busy)
    for command, stages in {"command": ["read", "score"], "command, pictures": ["read", "score", "pictures"]}.items():
        slowest, allowed = min(rate[stage] for stage in stages), 1e3 * cores() / sum(busy[stage] for stage in stages)
        found[f"{command}: share of the slowest stage"] = round(rate[command] / slowest, 3)
        found[f"{command}: share of what the cores allow"] = round(rate[command] / min(slowest, allowed), 3)
    print(json.dumps(found, indent=2))


def _parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("images", type=Path)
    result.add_argument("--model", type=Path, required=True)
    result.add_argument("--count", type=int, default=1000)
    result.add_argument("--repeats", type=int, default=3)
    result.add_argument("--jpeg", type=int, metavar="SIDE")
    return result


def _works(options: argparse.Namespace, photos: Path, out: Path) -> dict[str, Callable[[], object]]:
    """The stages and the command by name."""
    arguments = [str(photos), "--model", str(options.model), "--device", "cpu"]
    given = parser().parse_args(arguments)
    scorer = scorer_from(given, given.model)
    items = [Item(path) for path in collect_images([photos])]
    transform, size = Transform.of(scorer.config), scorer.config.batch_size
    predictions = [*predict(scorer, items[:32], keep_originals=True)]
    batch = np.stack([prediction.sample.image for prediction in predictions[:size] if prediction.sample])
    scale = ColourScale.about(predictions[0].thresholds.threshold, scorer.dimensions)
    files = Files(Pictures(out, scale), None, lambda path: Path(path.name), threads=given.workers)

    def read() -> None:
        for _ in ImageLoader(items, transform, workers=given.workers, keep_originals=True):
            pass

    def draw() -> None:
        for _ in files.lines(prediction for prediction in islice(cycle(predictions), len(items))):
            pass

    return {
        "read": read,
        "score": lambda: [scorer.score_pixels(batch) for _ in range(math.ceil(len(items) / size))],
        "pictures": draw,
        "command": lambda: _silently(arguments),
        "command, pictures": lambda: _silently([*arguments, "--out", str(out)]),
    }


def _silently(arguments: list[str]) -> None:
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        assert padim_predict(arguments) == 0


def _taken(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds of wall and CPU time."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def _rounded(values: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 2) for name, value in values.items()}


if __name__ == "__main__":
    main()
