"""How good the calibrated thresholds are: against refitting without the image, and on fresh normal images.

    python scripts/measure/calibration.py --data ROOT --weights FILE

The script prints Markdown. The first table needs MVTec AD's bottle and grid and ResNet18, the second one neither.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import numpy as np
import torch
from numerics import gaussian_of

from padim import Config, Padim
from padim.config import preset_path
from padim.data.layouts import find_category
from padim.data.loader import ImageLoader, as_tensor, batched
from padim.data.synth import SCENES, synthesize
from padim.data.transform import Transform
from padim.detectors.registry import read_config

REFITTED = 12  # images for which the model is fitted again without them


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    options = parser.parse_args()
    print("| images | mean error | largest error | in-sample, share of the truth |\n| --- | --- | --- | --- |")
    for category, count in (("bottle", 209), ("bottle", 60), ("grid", 25)):
        mean, largest, in_sample = refitting(options, category, count)
        print(f"| {category}, {count} | {mean:.1e} | {largest:.1e} | {in_sample:.2f} |")
    print("\n| images | rate asked for | calibrated | in-sample quantile |\n| --- | --- | --- | --- |")
    for kind in SCENES:
        for rate, calibrated, in_sample in fresh_images(kind):
            print(f"| {kind} | {rate:.2f} | {calibrated:.3f} | {in_sample:.3f} |")


@torch.no_grad()
def refitting(options: argparse.Namespace, category: str, count: int) -> tuple[float, float, float]:
    """The mean and the largest relative error of squared leave-one-out distances, and in-sample distances over them."""
    config = Config()
    model = Padim(config, weights=options.weights)
    items = find_category(options.data, category).train[:count]
    samples = ImageLoader(items, Transform.of(config), workers=2)
    batches = [model.features(as_tensor(batch)) for batch in batched(samples, config.batch_size)]
    features = [torch.cat(level, dim=2) for level in zip(*batches, strict=True)]
    gaussian = gaussian_of([features])
    closed = gaussian.leave_one_out_distances(features, count, config.epsilon)
    in_sample = gaussian.squared_distances(features)
    errors, shares = [], []
    for left_out in range(0, count, max(1, count // REFITTED)):
        kept = [number for number in range(count) if number != left_out]
        alone = [level[:, :, left_out : left_out + 1].double() for level in features]
        others = [level[:, :, kept].double() for level in features]
        truth = gaussian_of([others]).squared_distances(alone)[:, 0]
        errors.append((closed[:, left_out] - truth).abs() / truth)
        shares.append(in_sample[:, left_out] / truth)
    found = torch.cat(errors)
    return found.mean().item(), found.max().item(), torch.cat(shares).mean().item()


def fresh_images(kind: str, train: int = 100, fresh: int = 300) -> list[tuple[float, float, float]]:
    """Several rates, each with the share of fresh normal images that calibrated and in-sample thresholds flag."""
    config = dataclasses.replace(read_config(preset_path("demo")), resize=(224, 224), crop=())
    images = [
        torch.stack([torch.from_numpy(synthesize(kind, 224, 224, "good", (split, n))[0]) for n in range(count)])
        for split, count in enumerate((train, fresh))
    ]
    known, unknown = (part.permute(0, 3, 1, 2).split(config.batch_size) for part in images)
    model = Padim(config)
    model.fit(known)
    assert model.calibration is not None
    in_sample = torch.cat([model.score(batch).images for batch in known]).sort().values
    scores = torch.cat([model.score(batch).images for batch in unknown])
    rows = []
    for rate in (0.02, 0.05, 0.1, 0.2):
        naive = in_sample[train - int(np.floor(rate * (train + 1)))]
        shares = [(scores >= limit).float().mean().item() for limit in (model.calibration.threshold(rate), naive)]
        rows.append((rate, *shares))
    return rows


if __name__ == "__main__":
    main()
