"""Real images, real weights: the figures of the reference implementation, and what large models take."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
import torchvision
from scipy.spatial.distance import mahalanobis
from sklearn.metrics import roc_auc_score

from padim import Config, FitOptions, Padim
from padim.config import preset_path
from padim.data.layouts import find_category
from padim.data.loader import ImageLoader, as_tensor
from padim.data.synth import DEFECTS, draw_pose, synthesize
from padim.data.transform import Transform
from padim.detectors.batches import as_images
from padim.detectors.registry import read_config
from padim.gaussian.moments import Moments
from padim.gaussian.shared import Gaussian

KEYS = ("image_auroc", "pixel_auroc", "pixel_ap", "pixel_f1_max", "image_f1_max")


def command(name, *arguments):
    """The JSON that a command prints, run in a process of its own."""
    process = [sys.executable, "-m", f"padim.cli.{name}", *map(str, arguments)]
    return json.loads(subprocess.run(process, check=True, stdout=subprocess.PIPE).stdout)


def train_and_evaluate(category, data, output, *options):
    where = ("--category", category, "--data", data, "--output", output, "--json")
    return command("train", *where, *options), command("eval", *where)


@pytest.mark.slow
@pytest.mark.parametrize("category", ["bottle", "grid"])
def test_the_reference_figures(category, shared, tmp_path):
    weights = shared / "weights/resnet18-imagenet-layers1to3.pth"
    _, found = train_and_evaluate(
        category, shared / "data/mvtec", tmp_path, "--preset", "pytorch-r18", "--weights", weights
    )
    expected = json.loads((shared / "reference.json").read_text())[category]
    for key in KEYS:
        assert found[key] == pytest.approx(expected[key], abs=0.0005), key
    assert found["aupro"] == pytest.approx(expected["aupro"], abs=0.001)
    assert found["pixel_f1_threshold"] == pytest.approx(expected["pixel_f1_threshold"], abs=0.001)
    assert found["image_f1_threshold"] == pytest.approx(expected["image_f1_threshold"], abs=0.001)
    assert found["images"] == expected["test_good"] + expected["test_defect"]


@torch.inference_mode()
@pytest.mark.parametrize("merged", [False, True], ids=["streamed", "merged from three parts"])
def test_real_distances_are_numpys_and_scipys_in_float64(shared, merged):
    """Grid has 25 images, fewer than the 100 dimensions."""
    config = Config()
    model = Padim(config, weights=shared / "weights/resnet18-imagenet-layers1to3.pth")
    items = find_category(shared / "data/mvtec", "grid").train
    images = as_tensor(list(ImageLoader(items, Transform.of(config), workers=2)))
    parts = [model.features(part) for part in images.split([9, 1, 15])]
    moments = Moments.about([level.mean(dim=2, keepdim=True) for level in parts[0]])
    for part in parts:
        if merged:
            partial = Moments.about(moments.shift)
            partial.add(part)
            moments.merge(partial)
        else:
            moments.add(part)
    test = [level[:, :, :3] + 0.1 for level in parts[2]]
    found = Gaussian.fit(moments, config.epsilon).squared_distances(test).sqrt().numpy()

    cells = len(found)
    embedding, fresh = (
        torch.cat([level.repeat_interleave(cells // len(level), dim=0) for level in levels], dim=1).double().numpy()
        for levels in ([torch.cat(level, dim=2) for level in zip(*parts)], test)
    )
    for cell in range(0, cells, 37):
        inverse = np.linalg.inv(np.cov(embedding[cell]) + config.epsilon * np.eye(100))
        mean = embedding[cell].mean(axis=1)
        expected = [mahalanobis(fresh[cell, :, image], mean, inverse) for image in range(3)]
        np.testing.assert_allclose(found[cell], expected, rtol=1e-4)


@pytest.mark.slow
def test_wide_resnet_with_550_channels_fits_in_4_gib(shared, tmp_path):
    """With 120 images, and room for the features of 280 more at 1.8 MB each: the calibration keeps those of 400."""
    category = tmp_path / "data/bottle"
    for folder, count in (("train/good", 120), ("test/good", 8), ("test/contamination", 8)):
        (category / folder).mkdir(parents=True)
        for path in sorted((shared / "data/mvtec/bottle" / folder).iterdir())[:count]:
            (category / folder / path.name).symlink_to(path)
    (category / "ground_truth").symlink_to(shared / "data/mvtec/bottle/ground_truth")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        torch.save(torchvision.models.wide_resnet50_2().state_dict(), tmp_path / "weights.pth")
    options = ("--preset", "pytorch-wr50", "--weights", tmp_path / "weights.pth", "--device", "cpu")
    for summary in train_and_evaluate("bottle", tmp_path / "data", tmp_path, *options):
        assert 2**30 < summary["peak_memory_bytes"] < 4 * 2**30 - 280 * 1.8e6


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_images(pytestconfig):
    script = pytestconfig.rootpath / "scripts/measure/memory.py"
    printed = subprocess.run([sys.executable, script], check=True, stdout=subprocess.PIPE).stdout
    few, many = map(json.loads, printed.splitlines())
    assert (few["images"], many["images"]) == (200, 5000)
    assert many["peak_memory_bytes"] < 1.05 * few["peak_memory_bytes"]


@pytest.mark.slow
def test_aligned_plates_are_told_apart_as_plates_that_lie_alike(shared):
    """At any angle and shifted, within 0.01 of the image AUROC of the same plates without poses."""
    weights, found = shared / "weights/resnet18-imagenet-layers1to3.pth", {}
    config = read_config(preset_path("aligned-r18"))
    for pose in ("none", "rotate"):

        def plates(split, count, defect="good", pose=pose):
            drawn = [
                (defect, (split, number), draw_pose("plate", pose, 256, 256, (split, number)))
                for number in range(count)
            ]
            return np.stack([synthesize("plate", 256, 256, *one)[0] for one in drawn])

        model = Padim(dataclasses.replace(config, align=pose), weights=weights)
        model.fit(as_images(plates(0, 100)).split(8), FitOptions(calibrate=False))
        defects = [plates(2 + n, 30 if defect == "faint" else 10, defect) for n, defect in enumerate(DEFECTS)]
        groups = [plates(1, 60), *defects]
        scores = np.concatenate([model.score_pixels(group).images for group in groups])
        found[pose] = roc_auc_score(np.arange(130) >= 60, scores)
    assert found["rotate"] > found["none"] - 0.01


@pytest.mark.slow
def test_bottles_that_lie_alike_lose_nothing_by_aligning_them(shared, tmp_path):
    weights = shared / "weights/resnet18-imagenet-layers1to3.pth"
    _, found = train_and_evaluate(
        "bottle", shared / "data/mvtec", tmp_path, "--align", "rotate", "--weights", weights, "--no-calibration"
    )
    assert found["image_auroc"] >= 0.996
    assert found["pixel_auroc"] >= 0.981
