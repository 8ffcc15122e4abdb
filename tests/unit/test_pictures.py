"""Panels show what there is, in the proportions of the image, and contours of the verdict only."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from padim.calibration import Thresholds
from padim.data.images import drawable
from padim.data.items import Item
from padim.data.loader import Sample
from padim.data.transform import Box
from padim.pipeline.predict import Prediction
from padim.report.colours import ColourScale
from padim.report.overlay import border, drawn_on, overlay
from padim.report.panel import panel
from padim.report.pictures import Pictures

SCALE = ColourScale(0, 20)
CYAN, WHITE = (0, 255, 255), (255, 255, 255)


@pytest.fixture
def prediction(tmp_path):
    """Of an anomalous image of 400 x 100 pixels, which the model sees as 64 x 64."""
    path = tmp_path / "part.png"
    original = Image.new("RGB", (400, 100), (40, 40, 40))
    original.save(path)
    a_map, mask = np.ones((64, 64), dtype=np.float32), np.zeros((64, 64), dtype=bool)
    a_map[20:40, 20:40], mask[25:35, 25:35] = 15, True
    sample = Sample(Item(path, "scratch"), np.asarray(original.resize((64, 64))), mask, False, original.size, original)
    thresholds = Thresholds(10.0, 0.01, 5.0)
    return Prediction(path, thresholds, 15.0, seen=Box(0, 0, 400, 100), anomaly_map=a_map, sample=sample)


def pictures_in(row):
    """How many pictures lie side by side, and the proportions of the first."""
    filled = (np.asarray(row)[-20] != WHITE).any(axis=1)  # a line that crosses all of them
    starts = np.flatnonzero(np.diff(np.r_[False, filled].astype(int)) == 1)
    ends = np.flatnonzero(np.diff(np.r_[filled, False].astype(int)) == -1) + 1
    column = (np.asarray(row)[40:, starts[0] + 3] != WHITE).any(axis=1).sum()
    return len(starts), (ends[0] - starts[0]) / column


def has(row, colour):
    return bool((np.asarray(row.crop((0, 45, *row.size))) == colour).all(axis=2)[:, 8:-8].any())


def test_an_anomalous_image_has_all_pictures_and_contours(prediction):
    row = panel("part.png", prediction, SCALE)
    count, proportions = pictures_in(row)
    assert count == 5
    assert proportions == pytest.approx(4, rel=0.1)
    assert has(row, CYAN)


def test_a_normal_verdict_has_no_contours_of_a_prediction(prediction):
    normal = replace(prediction, thresholds=Thresholds(16.0, 0.01, 5.0))
    assert (normal.anomaly_map >= 5).any()
    row = panel("part.png", normal, SCALE)
    assert pictures_in(row)[0] == 4  # the truth has its contours
    assert not has(row, CYAN)


def test_pictures_that_do_not_exist_leave_no_hole(prediction):
    unmasked = replace(prediction, sample=replace(prediction.sample, mask=None))
    assert pictures_in(panel("part.png", unmasked, SCALE))[0] == 4
    assert pictures_in(panel("part.png", replace(unmasked, thresholds=Thresholds()), SCALE))[0] == 2


def test_a_single_picture_has_the_name_and_format_that_are_asked_for(prediction, tmp_path):
    for name, kind in (("a.png", "PNG"), ("b.jpg", "JPEG"), ("c.webp", "WEBP")):
        written = Pictures(tmp_path, SCALE, panel=True, heatmap=tmp_path / name).write(prediction.path.stem, prediction)
        assert written == {"heatmap": str(tmp_path / name), "panel": str(tmp_path / f"{name[0]}_panel.png")}
        with Image.open(tmp_path / name) as picture:
            assert (picture.format, picture.size) == (kind, (400, 100))


def test_the_predicted_mask_has_the_size_of_the_image(prediction, tmp_path):
    """The map is 15 in a quarter of its sides around the middle; the pixel threshold is 5."""
    pictures = Pictures(tmp_path, SCALE, mask=True)
    with Image.open(pictures.write("part", prediction)["mask"]) as mask:
        assert (mask.mode, mask.size) == ("L", (400, 100))
        assert set(np.unique(mask)) == {0, 255}
        left, top, right, bottom = mask.getbbox()
    assert (left, top) == pytest.approx((20 / 64 * 400, 20 / 64 * 100), abs=4)
    assert (right, bottom) == pytest.approx((40 / 64 * 400, 40 / 64 * 100), abs=4)
    seen = replace(prediction, seen=Box(100, 0, 300, 100))
    with Image.open(pictures.write("part", seen)["mask"]) as mask:
        assert mask.getbbox()[0] == pytest.approx(100 + 20 / 64 * 200, abs=3)
    with Image.open(
        pictures.write("part", replace(prediction, thresholds=Thresholds(16.0, 0.01, 5.0)))["mask"]
    ) as mask:
        assert mask.getbbox() is None


def test_a_very_large_image_is_drawn_smaller_and_its_mask_is_not(prediction, tmp_path, monkeypatch):
    pictures = Pictures(tmp_path, SCALE, mask=True)
    files = pictures.write(tmp_path / "exact", prediction)
    with Image.open(files["mask"]) as mask:
        exact = np.asarray(mask)
    monkeypatch.setattr("padim.data.images._MOST_PIXELS", 10_000)
    sample = replace(prediction.sample, original=drawable(prediction.sample.original))
    files = pictures.write(tmp_path / "reduced", replace(prediction, sample=sample))
    with Image.open(files["heatmap"]) as heatmap, Image.open(files["mask"]) as mask:
        assert heatmap.size == (200, 50)
        mask = np.asarray(mask)
    assert mask.shape == exact.shape
    assert exact.any()
    assert not (mask != exact)[~border(exact > 0)].any()


def test_what_was_decoded_at_reduced_size_is_drawn_at_that_size(prediction, tmp_path):
    """The picture shows the same as that of the whole image, reduced."""
    seen = replace(prediction, seen=Box(100, 0, 300, 100))
    sample = replace(seen.sample, original=seen.sample.original.reduce(2))
    whole, half = overlay(seen, SCALE), overlay(replace(seen, sample=sample), SCALE)
    assert (whole.size, half.size) == ((400, 100), (200, 50))
    expected = np.asarray(whole.reduce(2)).astype(int)[:, :190]  # the bar's width is in whole pixels
    assert abs(np.asarray(half)[:, :190] - expected).mean() < 5
    assert drawn_on(replace(seen, seen=Box(101, 1, 301, 99), sample=sample)).seen == Box(50, 0, 151, 50)
    files = Pictures(tmp_path, SCALE, mask=True, panel=True).write("part", replace(seen, sample=sample))
    with Image.open(files["mask"]) as mask:
        assert mask.size == (400, 100)
        assert mask.getbbox()[0] == pytest.approx(100 + 20 / 64 * 200, abs=3)


@pytest.mark.slow
def test_pictures_of_the_largest_image_fit_into_two_gigabytes(tmp_path, weights_file, data_root):
    from padim.cli.train import main

    where = ["--data", data_root, "--output", tmp_path, "--weights", weights_file, "--device", "cpu"]
    small = ["--category", "texture", "--size", 64, "--channels", 20]
    assert main([*map(str, [*small, *where])]) == 0
    Image.new("RGB", (13_000, 13_000), (120, 90, 200)).save(tmp_path / "large.png")
    code = "from padim.cli.predict import main; from padim.system.machine import peak_memory_bytes; "
    code += "main(); print(peak_memory_bytes())"
    options = ["--model", tmp_path / "texture/model.safetensors", tmp_path / "large.png", "--device", "cpu"]
    pictures = ["--out", tmp_path / "out", "--panel", "--mask", "--threshold", 1]
    command = [sys.executable, "-c", code, *map(str, [*options, *pictures])]
    line, memory = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    assert json.loads(line)["verdict"] == "anomalous"
    assert int(memory) < 2e9
