"""Fits that leave something out: the images that score highest, or pixels of all images."""

from __future__ import annotations

import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import SMALL
from oracles import factors_of, fitted

from padim import CutPaste, CutPasteConfig, Padim, PadimError, fitting
from padim.calibration import outlying
from padim.deploy.export import export_onnx
from padim.deploy.runtime import Runtime
from padim.detectors.options import FitOptions
from padim.fitting import TrainingFeatures


def images_like(n, seed, size=(64, 64)):
    scene = torch.randint(0, 200, (1, 3, *size), generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    return (scene + torch.randint(0, 56, (n, 3, *size), generator=generator)).to(torch.uint8)


@pytest.fixture(scope="module")
def with_strangers():
    """Twenty images, of which numbers 4 and 13 are of something else."""
    images = images_like(20, seed=1)
    images[4], images[13] = 255 - images[4], images[13].flip(1)
    return images


# Trimming


@pytest.mark.parametrize("changes", [{}, {"tile": (32,), "tile_overlap": 0}])
def test_a_trimmed_fit_is_one_without_the_highest(with_strangers, random_weights, changes, monkeypatch):
    config = replace(SMALL, **changes)
    trimmed = Padim(replace(config, trim=0.1), weights=random_weights)
    found = trimmed.fit(with_strangers.split(8))
    assert (found.images, found.trimmed, trimmed.provenance.images) == (18, [4, 13], 18)
    assert sorted(np.argsort(-found.scores)[:2]) == [4, 13]
    others = with_strangers[[number for number in range(20) if number not in (4, 13)]]
    plain = fitted(Padim(config, weights=random_weights), others.split(8))
    scale = max(float(factor.abs().max()) for factor in factors_of(plain.gaussian))
    for factor, expected in zip(factors_of(trimmed.gaussian), factors_of(plain.gaussian), strict=True):
        torch.testing.assert_close(factor, expected, rtol=1e-3, atol=1e-4 * scale)
    np.testing.assert_allclose(trimmed.calibration.scores, plain.calibration.scores, rtol=1e-3)
    fresh = images_like(3, seed=9)
    torch.testing.assert_close(trimmed.score(fresh).maps, plain.score(fresh).maps, rtol=1e-3, atol=1e-3)

    monkeypatch.setattr(fitting, "KEPT_IMAGES", 3)  # so that the images are read once more for every step
    again = Padim(replace(config, trim=0.1), weights=random_weights)
    assert again.fit(with_strangers.split(8)).trimmed == [4, 13]
    np.testing.assert_allclose(again.calibration.scores, trimmed.calibration.scores, rtol=1e-5)
    with pytest.raises(PadimError, match="can't be gone through again"):
        again.fit(iter(with_strangers.split(8)))


def test_trimming_needs_no_calibration_and_leaves_two_images(with_strangers, random_weights):
    model = Padim(replace(SMALL, trim=0.1), weights=random_weights)
    assert model.fit([with_strangers], FitOptions(calibrate=False)).trimmed == [4, 13]
    assert model.calibration is None
    with pytest.raises(PadimError, match="1 of 3 training images would be left, at least 3"):
        Padim(replace(SMALL, trim=0.5), weights=random_weights).fit([with_strangers[:3]])
    with pytest.raises(PadimError, match="2 of 3 training images would be left"):
        Padim(replace(SMALL, trim=0.1), weights=random_weights).fit([with_strangers[:3]])
    with pytest.raises(PadimError, match=r"trim: 0\.6 is out of range"):
        replace(SMALL, trim=0.6)


def test_an_update_trims_the_new_images(with_strangers, random_weights):
    config = replace(SMALL, trim=0.1)
    model = Padim(config, weights=random_weights)
    model.fit([images_like(20, seed=2)], FitOptions(keep_moments=True))
    assert model.provenance.images == 18
    found = model.fit([with_strangers], FitOptions(update=True))
    assert (found.trimmed, model.provenance.images, model.moments.count) == ([4, 13], 36, 36)


def test_scores_far_above_the_others_are_named():
    random = np.random.default_rng(0)
    scores = random.lognormal(2, 0.2, 200).astype(np.float32)
    assert outlying(scores) == []
    scores[[7, 100]] = 30, 40
    assert outlying(scores) == [100, 7]
    assert outlying(np.full(20, 3, dtype=np.float32)) == []
    assert outlying(np.zeros(20, dtype=np.float32)) == []
    assert outlying(scores[5:12]) == []  # too few to tell
    assert outlying(np.empty(0, dtype=np.float32)) == []


# Pixels that are ignored


@pytest.fixture(scope="module")
def mask():
    marked = np.zeros((64, 64), dtype=bool)
    marked[20:44, 8:40] = True
    return marked


@pytest.fixture(scope="module")
def blind(random_weights, mask):
    model = Padim(SMALL, weights=random_weights)
    model.ignore(mask)
    return fitted(model, images_like(12, seed=1).split(4))


def scribbled(images, mask):
    """The images with something else under the mask."""
    other = torch.randint(0, 256, images.shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(5))
    return torch.where(torch.from_numpy(mask), other, images)


def test_nothing_depends_on_ignored_pixels(blind, random_weights, mask):
    other = Padim(SMALL, weights=random_weights)
    other.ignore(mask)
    fitted(other, scribbled(images_like(12, seed=1), mask).split(4))
    assert np.array_equal(other.calibration.scores, blind.calibration.scores)
    assert np.array_equal(other.calibration.pixels, blind.calibration.pixels)
    fresh = images_like(3, seed=2)
    expected = blind.score(fresh)
    for images in (scribbled(fresh, mask), scribbled(fresh, mask) / 255):
        found = other.score(images)
        torch.testing.assert_close(
            found.images, expected.images, rtol=0 if images.dtype == torch.uint8 else 1e-5, atol=0
        )
        torch.testing.assert_close(found.maps, expected.maps, equal_nan=True)
    assert np.array_equal(expected.maps.isnan().numpy(), np.broadcast_to(mask, (3, 64, 64)))
    seen = np.where(mask, -np.inf, expected.maps.numpy())
    np.testing.assert_array_equal(expected.images.numpy(), seen.max(axis=(1, 2)))


def test_what_is_not_ignored_is_seen(blind, random_weights):
    fresh = images_like(1, seed=2)
    defective = fresh.clone()
    defective[:, :, 50:60, 50:60] = 255
    assert blind.score(defective).images > 1.2 * blind.score(fresh).images


def test_model_files_and_exports_carry_the_mask(blind, mask, tmp_path):
    blind.save(tmp_path / "model.safetensors")
    loaded = Padim.load(tmp_path / "model.safetensors")
    assert np.array_equal(loaded.ignored.numpy(), mask)
    fresh = images_like(2, seed=3)
    torch.testing.assert_close(loaded.score(fresh).maps, blind.score(fresh).maps, equal_nan=True)
    pytest.importorskip("onnxscript")
    export_onnx(loaded, tmp_path / "model.onnx")
    runtime = Runtime.load(tmp_path / "model.onnx")
    found = runtime.score_pixels(scribbled(fresh, mask).permute(0, 2, 3, 1).numpy())
    np.testing.assert_allclose(found.maps, blind.score(fresh).maps.numpy(), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(found.images, blind.score(fresh).images.numpy(), rtol=1e-4)


def test_masks_that_make_no_sense_are_refused(random_weights, mask):
    model = Padim(SMALL, weights=random_weights)
    for useless in (np.zeros((64, 64), dtype=bool), np.ones((64, 64), dtype=bool), mask[:32]):
        with pytest.raises(PadimError, match="marks nothing or everything"):
            model.ignore(useless)
    for detector in (
        Padim(replace(SMALL, align="shift"), weights=random_weights),
        CutPaste(CutPasteConfig(resize=(64, 64), initial="random")),
    ):
        with pytest.raises(
            PadimError, match="only a method with anomaly maps can ignore pixels, and only where images are not moved"
        ):
            detector.ignore(mask)


class Features(list):
    """A list that knows when it is gone."""

    __hash__ = object.__hash__


@pytest.mark.parametrize(("announced", "most"), [(0, 3), (3, 3), (4, 1)])
def test_features_wait_in_memory_only_where_all_can(announced, most, monkeypatch):
    """Of up to three images; of four images that are announced, none waits for the fourth."""
    monkeypatch.setattr(fitting, "KEPT_IMAGES", 3)
    alive, counts = weakref.WeakSet(), []

    def read():
        for number in range(announced or 4):
            features = Features([torch.full((1, 1, 1), float(number))])
            alive.add(features)
            yield features

    features = TrainingFeatures(read, 1, keep=True, repeatable=True, announced=announced)
    for group in features:
        counts.append(len(alive))
        del group
    assert max(counts) == most
    assert [float(group[0]) for group in features] == [*map(float, range(announced or 4))]
