"""The stages of the benchmark, each alone: images, backbone, and the Gaussians beside their dense form.

    python scripts/measure/stages.py images --data ROOT --weights FILE
    python scripts/measure/stages.py gaussian {shared,dense} {r18,wr50}
    python scripts/measure/stages.py scoring --weights FILE

The script prints a JSON object of median seconds. `gaussian` takes random features, which cost as much as real ones.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numerics import gaussian_of

from padim import Config, Padim, Runtime
from padim.config import preset_path
from padim.data.images import read_image
from padim.data.layouts import find_category
from padim.data.transform import Transform
from padim.deploy.export import export_onnx
from padim.detectors.batches import as_pixels
from padim.detectors.frame import CommonFrame
from padim.detectors.registry import read_config
from padim.embedding import draw_channels, embedding_concat, split_by_level
from padim.evaluation.metrics import measure
from padim.extractor import Backbone
from padim.gaussian import dense
from padim.gaussian.moments import Moments, rebatch
from padim.gaussian.shared import Gaussian
from padim.poses.alignment import Alignment, into_frame, out_of_frame
from padim.pyramid import Pyramid

# Preset and number of training images of each size.
SIZES = {"r18": ("pytorch-r18", 209), "wr50": ("pytorch-wr50", 60)}


def median_seconds(work: Callable[[], object], runs: int = 5) -> float:
    """Median wall time of some work, after one run to warm up."""
    work()
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def images(options: argparse.Namespace) -> dict[str, float]:
    """Core-seconds of each stage, per image or per category; `unavoidable` is what the first three take for bottle."""
    torch.set_num_threads(1)
    config = Config()
    transform = Transform.of(config)
    bottle = find_category(options.data, "bottle")
    items = bottle.train + bottle.test
    model = Padim(config, weights=options.weights)
    paths = [item.path for item in items[:: len(items) // 32]][:32]
    decoded = [read_image(path) for path in paths]
    pixels = torch.stack([torch.from_numpy(np.array(transform.image(image))).permute(2, 0, 1) for image in decoded])
    batches = pixels.split(config.batch_size)
    model.fit(batches)
    maps = np.random.default_rng(0).random((83, 224, 224), dtype=np.float32)
    masks = np.zeros(maps.shape, dtype=bool)
    masks[20:, 80:120, 90:130] = True
    alignment = _aligned(pixels)
    photos = as_pixels(pixels)
    poses = [alignment.find(photo).pose for photo in photos]
    square, long = torch.randn(2048, 2048), torch.randn(100_000_000)
    other = torch.zeros_like(long)
    with torch.no_grad():
        features = model.features(pixels[:8])
        distances = model.pyramid.to_map(model.gaussian.squared_distances(features).sqrt())
        stages = {
            "decode": median_seconds(lambda: [read_image(path) for path in paths]) / 32,
            "resize": median_seconds(lambda: [transform.image(image) for image in decoded]) / 32,
            "backbone": median_seconds(lambda: [model.backbone(batch) for batch in batches]) / 32,
            "upsample and smooth": median_seconds(lambda: model.anomaly_map(distances)) / 8,
            "find the pose": median_seconds(lambda: [alignment.find(photo) for photo in photos]) / 32,
            "move into the frame": median_seconds(lambda: [*map(into_frame, photos, poses)]) / 32,
            "move the map back": median_seconds(lambda: [out_of_frame(maps[0], pose) for pose in poses]) / 32,
        }
        moments = Moments.about([level.mean(dim=2, keepdim=True) for level in features])
        group = [torch.cat([level] * 4, dim=2) for level in features]
        stages["moments"] = median_seconds(lambda: moments.add(group)) / 32
        copies = [moments.copy() for _ in range(6)]
        stages["factorise"] = median_seconds(lambda: Gaussian.fit(copies.pop(), config.epsilon))
        stages["distances"] = median_seconds(lambda: model.gaussian.squared_distances(features)) / 8
    return stages | {
        "product of 2048 x 2048": median_seconds(lambda: square @ square),
        "copy of 400 MB": median_seconds(lambda: other.copy_(long)),
        "metrics": median_seconds(lambda: measure(masks.any(axis=(1, 2)), maps.max((1, 2)), masks, maps)),
        "unavoidable": sum(stages[name] for name in ("decode", "resize", "backbone")) * len(items),
    }


def _aligned(pixels: torch.Tensor) -> Alignment:
    """An alignment to some images that turns them, whether or not that pays."""
    frame = CommonFrame(Config(align="rotate"))
    for _ in frame.images([pixels]):
        pass
    alignment = frame.finish()
    assert alignment is not None
    return dataclasses.replace(alignment, turns=True)


@torch.no_grad()
def gaussian(options: argparse.Namespace) -> dict[str, float]:
    """Seconds to fit and to score 8 images and one, and the peak of memory beyond the features."""
    torch.set_num_threads(2)
    preset, count = SIZES[options.size]
    config = read_config(preset_path(preset))
    shapes = Backbone(config.backbone, config.layers, config.image_size).shapes
    widths = [shape[0] for shape in shapes]
    drawn = map(len, split_by_level(draw_channels(sum(widths), config.channels, config.seed), widths))
    levels = [torch.randn(count, d, h, w).abs_() for d, (_, h, w) in zip(drawn, shapes, strict=True)]
    one, eight = ([level[:n].contiguous() for level in levels] for n in (1, 8))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    if options.form == "shared":
        pyramid = Pyramid(tuple(shape[1:] for shape in reversed(shapes)))

        def cells(batch: list[torch.Tensor]) -> list[torch.Tensor]:
            return [pyramid.to_cells(i, level) for i, level in enumerate(reversed(batch))]

        def fit() -> Gaussian:
            batches = zip(*(level.split(config.batch_size) for level in levels), strict=True)
            return gaussian_of(rebatch(cells(list(batch)) for batch in batches), config.epsilon)

        def score(model: Gaussian, batch: list[torch.Tensor]) -> torch.Tensor:
            return pyramid.to_map(model.squared_distances(cells(batch)).sqrt())
    else:

        def fit() -> dense.DenseGaussian:
            return dense.fit(embedding_concat(levels), config.epsilon)

        def score(model: dense.DenseGaussian, batch: list[torch.Tensor]) -> torch.Tensor:
            return dense.squared_distances(model, embedding_concat(batch)).sqrt()

    start = time.perf_counter()
    model = fit()
    first = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {
        "fit and factorise, first time": first,  # with the memory's page faults, as in a real run
        "fit and factorise, again": median_seconds(fit, 3),
        "score 8": median_seconds(lambda: score(model, eight)),
        "score 1": median_seconds(lambda: score(model, one)),
        "peak_memory_bytes": peak * 1024,
    }


def scoring(options: argparse.Namespace) -> dict[str, float]:
    """Seconds from resized images to maps, in torch and in ONNX Runtime, for one image and for eight."""
    torch.set_num_threads(os.cpu_count() or 1)
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (16, 224, 224, 3), dtype=np.uint8)
    model = Padim(weights=options.weights)
    model.fit([torch.from_numpy(pixels).permute(0, 3, 1, 2)])
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, "model.onnx")
        export_onnx(model, path)
        runtime = Runtime.load(path)
        found = {}
        for count in (1, 8):
            batch = pixels[:count]
            images = torch.from_numpy(batch).permute(0, 3, 1, 2)
            found[f"torch, {count}"] = median_seconds(lambda images=images: model.score(images), 20)
            found[f"ONNX Runtime, {count}"] = median_seconds(lambda batch=batch: runtime.score_pixels(batch), 20)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    stages = parser.add_subparsers(required=True)
    of_images = stages.add_parser("images")
    of_images.add_argument("--data", type=Path, required=True)
    of_images.add_argument("--weights", type=Path, required=True)
    of_images.set_defaults(stage=images)
    of_scoring = stages.add_parser("scoring")
    of_scoring.add_argument("--weights", type=Path, required=True)
    of_scoring.set_defaults(stage=scoring)
    of_gaussian = stages.add_parser("gaussian")
    of_gaussian.add_argument("form", choices=("shared", "dense"))
    of_gaussian.add_argument("size", choices=SIZES)
    of_gaussian.set_defaults(stage=gaussian)
    options = parser.parse_args()
    print(json.dumps(options.stage(options)))


if __name__ == "__main__":
    main()
