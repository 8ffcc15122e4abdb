from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from conftest import SMALL
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import fitted

from padim import Padim, PadimError, fitting
from padim.calibration import PIXEL_RATES, Calibration, Tally
from padim.data.transform import Box
from padim.evaluation.regions import anomalous_regions


def of_scores(scores):
    return Calibration(np.array(sorted(scores), dtype=np.float32), np.ones(len(PIXEL_RATES), dtype=np.float32))


@settings(max_examples=50, deadline=None)
@given(st.integers(3, 300), st.floats(0.004, 0.5), st.integers(0, 1000))
def test_a_threshold_flags_no_more_than_its_share_of_exchangeable_scores(n, rate, seed):
    """Leave each of n + 1 scores out in turn: at most the share `rate` of them reaches the others' threshold."""
    scores = torch.from_numpy(np.random.default_rng(seed).gamma(3, size=n + 1)).float()
    if rate * (n + 1) < 1:
        with pytest.raises(PadimError, match=f"the model has {n}"):
            of_scores(scores[:n].tolist()).threshold(rate)
        return
    flagged = 0
    for i in range(n + 1):
        rest = torch.cat([scores[:i], scores[i + 1 :]])
        flagged += scores[i].item() >= of_scores(rest.tolist()).threshold(rate)
    assert flagged <= rate * (n + 1) + 1e-6
    assert flagged >= math.floor(rate * (n + 1) + 1e-9)  # and wastes nothing


@pytest.mark.parametrize("n", [3, 8, 99, 100, 199, 209, 299, 333, 2500, 99_999])
def test_the_rate_that_is_advised_is_taken(n):
    calibration = of_scores(range(n))
    with pytest.raises(PadimError) as raised:
        calibration.threshold(1 / (n + 2))
    rate = float(str(raised.value).split(": ask for ")[1].removesuffix(" or more"))
    assert 1 / (n + 1) <= rate < 1.01 / (n + 1)
    assert calibration.threshold(rate) > n - 1


def test_the_rate_of_a_score_counts_itself():
    calibration = of_scores([1.0, 2.0, 3.0, 4.0])
    assert [calibration.p_value(score) for score in (0.5, 2.0, 2.5, 9.0)] == [1.0, 0.8, 0.6, 0.2]
    assert calibration.smallest_rate() == 0.2


def test_pixels_are_quantiles_of_all_maps():
    maps = torch.rand(6, 50, 40, generator=torch.Generator().manual_seed(0)) * 20
    tally = Tally()
    assert tally.calibration() is None
    tally.add(maps[:4].numpy())
    tally.add(maps[4:].numpy())
    calibration = tally.calibration()
    assert np.array_equal(calibration.scores, maps.amax(dim=(1, 2)).sort().values)
    for rate in (0.5, 0.1, 0.01, 0.001):
        threshold = calibration.pixel_threshold(rate)
        exact, next_step = np.quantile(maps.numpy(), [1 - rate, 1 - rate / 10**0.01])
        assert exact * 0.999 <= threshold <= next_step * 1.005
        assert (maps >= threshold).float().mean() <= rate * 1.001
    assert calibration.pixel_threshold(1e-9) >= maps.max() * 0.999


def test_joined_calibrations_are_of_the_images_of_both():
    generator = torch.Generator().manual_seed(0)
    groups = [torch.rand(20, 30, 30, generator=generator) * 10, torch.rand(5, 30, 30, generator=generator) * 15 + 2]
    calibrations = []
    for maps in groups:
        tally = Tally()
        tally.add(maps.numpy())
        calibrations.append(tally.calibration())
    joined = calibrations[0].joined(calibrations[1])
    everything = torch.cat(groups)
    assert np.array_equal(joined.scores, everything.amax(dim=(1, 2)).sort().values)
    for rate in (0.5, 0.1, 0.01, 0.001):
        threshold = joined.pixel_threshold(rate)
        assert threshold == pytest.approx(np.quantile(everything.numpy(), 1 - rate), rel=0.03)
        assert (everything >= threshold).float().mean() <= rate * 1.01
    without = Calibration(calibrations[0].scores, None)
    assert without.joined(calibrations[1]).pixels is None


@pytest.fixture(scope="module")
def images():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (13, 3, 64, 64), dtype=torch.uint8, generator=generator)


@pytest.mark.slow
def test_scores_are_those_of_models_that_have_not_seen_the_image(random_weights, images):
    found = fitted(Padim(SMALL, weights=random_weights), [images[:5], images[5:]]).calibration.scores
    expected = []
    for i in range(len(images)):
        rest = torch.cat([images[:i], images[i + 1 :]])
        other = fitted(Padim(SMALL, weights=random_weights), [rest], calibrate=False)
        assert other.calibration is None
        expected.append(other.score(images[i : i + 1]).images.item())
    np.testing.assert_allclose(found, sorted(expected), rtol=0.01)


class Twice:
    """Batches that count how often they are gone through."""

    def __init__(self, batches):
        self.batches, self.passes = batches, 0

    def __iter__(self):
        self.passes += 1
        return iter(self.batches)


@pytest.mark.slow
def test_what_is_too_much_to_keep_is_read_again(random_weights, images, monkeypatch):
    kept, again = Twice(images.split(4)), Twice(images.split(4))
    expected = fitted(Padim(SMALL, weights=random_weights), kept).calibration
    monkeypatch.setattr(fitting, "KEPT_IMAGES", 3)
    found = fitted(Padim(SMALL, weights=random_weights), again).calibration
    assert (kept.passes, again.passes) == (1, 2)
    np.testing.assert_allclose(found.scores, expected.scores)
    np.testing.assert_allclose(found.pixels, expected.pixels)
    once = fitted(Padim(SMALL, weights=random_weights), iter(images.split(4)))
    assert once.calibration is None
    assert fitted(Padim(SMALL, weights=random_weights), [images[:2]]).calibration is None


def test_the_model_file_carries_the_calibration(random_weights, images, tmp_path):
    saved = fitted(Padim(SMALL, weights=random_weights), [images], false_alarm_rate=0.2)
    saved.save(tmp_path / "model.safetensors")
    loaded = Padim.load(tmp_path / "model.safetensors")
    assert loaded.provenance.false_alarm_rate == 0.2
    assert np.array_equal(loaded.calibration.scores, saved.calibration.scores)
    assert np.array_equal(loaded.calibration.pixels, saved.calibration.pixels)


def test_regions_are_boxes_in_pixels_of_the_original():
    anomaly_map = np.zeros((20, 40), dtype=np.float32)
    anomaly_map[2:5, 10:16] = 3
    anomaly_map[5, 16] = 4  # touches at a corner
    anomaly_map[18:, 38:] = 9
    regions = anomalous_regions(anomaly_map, 2.5, Box(100, 50, 180, 110))
    assert regions == [
        (Box(176, 104, 180, 110), 4 * 6, 9.0),
        (Box(120, 56, 134, 68), 19 * 6, 4.0),
    ]
    assert anomalous_regions(anomaly_map, 10, Box(0, 0, 40, 20)) == []
