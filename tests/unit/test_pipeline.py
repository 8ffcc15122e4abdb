"""The three functions that commands and programs call, as programs call them."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from conftest import SMALL

from padim import (
    CutPaste,
    CutPasteConfig,
    FitOptions,
    PadimError,
    evaluate_category,
    find_category,
    plain_category,
    predict,
    train_category,
)
from padim.data.items import Item
from padim.detectors.registry import load
from padim.pipeline.timing import Stopwatch


@pytest.fixture(scope="module")
def trained(data_root, random_weights, tmp_path_factory):
    output = tmp_path_factory.mktemp("runs")
    options = FitOptions(keep_moments=True, false_alarm_rate=0.2)
    category = find_category(str(data_root), "texture")
    return train_category(category, SMALL, str(output), options=options, weights=random_weights)


def test_texts_are_as_good_as_paths(trained, data_root):
    texture = data_root / "texture"
    folders = {"normal": texture / "train/good", "test": texture / "test", "masks": texture / "ground_truth"}
    by_text = plain_category("texture", **{name: str(folder) for name, folder in folders.items()})
    assert by_text == plain_category("texture", **folders)
    updated = train_category(by_text, SMALL, update_from=str(trained.path))
    assert (updated.fit.images, updated.added, updated.path) == (16, 8, None)
    assert load(str(trained.path)).provenance == trained.detector.provenance


def test_one_input_or_several(trained, data_root):
    folder = data_root / "texture/test/stain"
    paths = sorted(folder.iterdir())
    expected = [prediction.summary() for prediction in predict(trained.detector, paths)]
    assert [line["path"] for line in expected] == [*map(str, paths)]
    for images in (folder, str(folder), [str(path) for path in paths], [Item(path) for path in paths]):
        assert [prediction.summary() for prediction in predict(trained.detector, images)] == expected
    (one,) = predict(trained.detector, Item(paths[0]))
    assert one.score == pytest.approx(expected[0]["score"], rel=1e-5)
    with pytest.raises(PadimError, match="no image or folder nowhere"):
        next(predict(trained.detector, "nowhere"))


def test_what_cannot_be_read_comes_last_with_its_problem(trained, data_root, tmp_path):
    (tmp_path / "0.png").write_bytes(b"")
    os.symlink(data_root / "texture/test/good/000.png", tmp_path / "1.png")
    good, bad = predict(trained.detector, tmp_path)
    assert (good.path.name, good.problem, good.sample.original) == ("1.png", None, None)
    assert (bad.path.name, bad.score, bad.verdict) == ("0.png", None, None)
    assert "can't read the image" in str(bad.problem)


def test_nothing_is_written_without_a_folder(trained, data_root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    evaluation = evaluate_category(trained.detector, find_category(data_root, "texture"), report=True)
    assert evaluation.report is None
    assert 0 <= evaluation.metrics.image_auroc <= 1
    scores = [image.score >= trained.thresholds.threshold for image in evaluation.images if image.item.anomalous]
    assert evaluation.flagged(anomalous=True) == pytest.approx(sum(scores) / len(scores))
    assert list(tmp_path.iterdir()) == []


def test_the_stages_of_padim_are_timed_apart_and_of_other_models_together(trained):
    height, width = trained.detector.config.image_size
    with Stopwatch(trained.detector) as stopwatch:
        expected = trained.detector.score_pixels(np.zeros((2, height, width, 3), dtype=np.uint8))
        found = stopwatch.score_pixels(np.zeros((2, height, width, 3), dtype=np.uint8))
    assert np.array_equal(found.images, expected.images)
    assert list(stopwatch.milliseconds) == ["network", "gaussians"]
    assert min(stopwatch.milliseconds.values()) > 0
    assert not trained.detector.backbone._forward_hooks  # later calls are not timed
    detector = CutPaste(CutPasteConfig(resize=(32, 32), initial="random", steps=0))
    detector.fit([torch.zeros(3, 3, 32, 32, dtype=torch.uint8)])
    with Stopwatch(detector) as stopwatch:
        stopwatch.score_pixels(np.zeros((1, 32, 32, 3), dtype=np.uint8))
    assert list(stopwatch.milliseconds) == ["graph"]
