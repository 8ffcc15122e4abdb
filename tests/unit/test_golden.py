"""Files that an earlier version wrote are read and score as they did: reader and writer can't drift together.

`tests/golden` holds what commit 6601d94 wrote from `tests/golden/recipe.py`, and what it scored then. Large files
are compressed with xz.
"""

from __future__ import annotations

import json
import lzma
from pathlib import Path

import numpy as np
import pytest
import torch
from golden.recipe import images, weights
from oracles import fitted

from padim import CutPaste, Padim
from padim.deploy.runtime import Runtime

GOLDEN = Path(__file__).parents[1] / "golden"
SCORES = json.loads((GOLDEN / "scores.json").read_text())


def unpacked(name, folder):
    (folder / name).write_bytes(lzma.decompress((GOLDEN / f"{name}.xz").read_bytes()))
    return folder / name


def batch(pixels):
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


@pytest.fixture
def model(tmp_path):
    torch.save(weights(), tmp_path / "weights.pth")
    return Padim.load(GOLDEN / "padim.safetensors", weights=tmp_path / "weights.pth")


def test_a_model_file(model):
    scores = model.score(batch(images(3, seed=2)))
    np.testing.assert_allclose(scores.images, SCORES["padim"]["scores"], rtol=1e-4)
    np.testing.assert_allclose(scores.maps[:, 16, ::4], SCORES["padim"]["row"], rtol=1e-4)
    assert (model.provenance.category, model.provenance.images, model.provenance.false_alarm_rate) == ("golden", 9, 0.2)
    assert model.calibration.threshold(0.2) == pytest.approx(SCORES["padim"]["threshold"], rel=1e-6)
    assert model.calibration.pixel_threshold(0.2) == pytest.approx(SCORES["padim"]["pixel_threshold"], rel=1e-6)


def test_a_model_file_that_takes_in_more_images(model):
    fitted(model, [batch(images(5, seed=3))], update=True)
    scores = model.score(batch(images(3, seed=2)))
    np.testing.assert_allclose(scores.images, SCORES["padim"]["updated"], rtol=1e-4)


def test_an_onnx_file(tmp_path):
    runtime = Runtime.load(unpacked("padim.onnx", tmp_path))
    scores = runtime.score_pixels(images(3, seed=2))
    np.testing.assert_allclose(scores.images, SCORES["padim"]["scores"], rtol=1e-4)
    np.testing.assert_allclose(scores.maps[:, 16, ::4], SCORES["padim"]["row"], rtol=1e-4)
    assert runtime.calibration.threshold(0.2) == pytest.approx(SCORES["padim"]["threshold"], rel=1e-6)


def test_a_model_file_of_cutpaste(tmp_path):
    detector = CutPaste.load(unpacked("cutpaste.safetensors", tmp_path))
    scores = detector.score(batch(images(3, seed=2)))
    np.testing.assert_allclose(scores.images, SCORES["cutpaste"]["scores"], rtol=1e-4)
    assert detector.calibration.threshold(0.2) == pytest.approx(SCORES["cutpaste"]["threshold"], rel=1e-6)
