"""Models that align: the frame in fits, scores, files, exports and metrics."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from conftest import SMALL
from oracles import fitted
from safetensors import safe_open
from safetensors.torch import save_file
from sklearn.metrics import average_precision_score, roc_auc_score

from padim import CutPaste, CutPasteConfig, FitOptions, Padim, PadimError, Runtime, fitting
from padim.calibration import Tally
from padim.data.synth import draw_pose, synthesize
from padim.data.transform import Box
from padim.deploy.export import export_onnx
from padim.detectors import frame
from padim.detectors.batches import as_images, as_pixels
from padim.evaluation.metrics import Curve, measure
from padim.evaluation.regions import anomalous_regions

ALIGNED = dataclasses.replace(SMALL, align="rotate")


def plates(count, split=0, align="rotate", defect="good", size=64):
    """Images `[n, h, w, 3]` of plates in any pose."""
    seeds = [(split, number) for number in range(count)]
    poses = [draw_pose("plate", align, size, size, seed) for seed in seeds]
    return np.stack([synthesize("plate", size, size, defect, *drawn)[0] for drawn in zip(seeds, poses)])


def batches(pixels, size=4):
    return as_images(pixels).split(size)


@pytest.fixture(scope="module")
def aligned(random_weights):
    return fitted(Padim(ALIGNED, weights=random_weights), batches(plates(24)))


def test_a_turned_image_scores_the_same_and_its_map_turns_along(aligned):
    """By right angles no pixel is interpolated, so that only the poses and the frame could make a difference."""
    images = plates(5, split=1, defect="stain")
    expected = aligned.score_pixels(images)
    for quarters in (1, 2, 3):
        found = aligned.score_pixels(np.ascontiguousarray(np.rot90(images, quarters, axes=(1, 2))))
        np.testing.assert_allclose(found.images, expected.images, rtol=0.05)
        back = np.rot90(found.maps, -quarters, axes=(1, 2))
        both = ~np.isnan(back) & ~np.isnan(expected.maps)
        assert both.mean() > 0.3
        assert np.corrcoef(back[both], expected.maps[both])[0, 1] > 0.97
        turned = np.array([new.pose.angle - old.pose.angle for new, old in zip(found.parts, expected.parts)])
        np.testing.assert_allclose((turned - 90 * quarters + 180) % 360 - 180, 0, atol=1)


def test_defects_stand_out_from_aligned_plates(random_weights, aligned):
    """As the plates lie, the spread of poses is all that a model sees."""
    as_they_lie = fitted(Padim(SMALL, weights=random_weights), batches(plates(24)))

    def auroc(detector):
        scores = [detector.score_pixels(plates(20, 2 + bad, defect=("good", "stain")[bad])).images for bad in (0, 1)]
        return roc_auc_score([0] * 20 + [1] * 20, np.concatenate(scores))

    assert auroc(aligned) > 0.75
    assert auroc(aligned) > auroc(as_they_lie) + 0.1


def test_what_does_not_count_is_nan_in_the_map_and_not_in_the_score(aligned):
    scores = aligned.score_pixels(plates(6, split=1))
    raw = aligned.score(as_images(plates(6, split=1)))
    np.testing.assert_array_equal(raw.maps.numpy(), scores.maps)
    assert np.isfinite(scores.images).all()
    for image, anomaly_map, part in zip(scores.images, scores.maps, scores.parts):
        assert 0.1 < np.isnan(anomaly_map).mean() < 0.8
        assert np.nanmax(anomaly_map) <= image * 1.001  # moved back, a peak may be cut
        assert np.nanmax(anomaly_map) > image * 0.8
        assert part.found


def test_the_field_is_what_nearly_all_images_cover(aligned):
    alignment = aligned.alignment
    assert alignment.angles.shape == alignment.correlations.shape == (24,)
    assert 0.4 < alignment.field.mean() < 0.95
    assert alignment.field[24:40, 24:40].all()
    assert not alignment.field[0, 0]
    assert np.ptp(alignment.angles) > 180
    assert alignment.correlations.min() > 0.8


def test_a_model_file_scores_as_the_model(aligned, tmp_path):
    images = plates(4, split=1, defect="stain")
    aligned.save(tmp_path / "model.safetensors")
    loaded = Padim.load(tmp_path / "model.safetensors")
    expected, found = aligned.score_pixels(images), loaded.score_pixels(images)
    np.testing.assert_array_equal(found.maps, expected.maps)
    assert found.parts == expected.parts
    assert loaded.calibration.threshold(0.1) == aligned.calibration.threshold(0.1)


@pytest.mark.parametrize("kind", ["padim", "cutpaste"])
def test_an_exported_model_finds_the_same_poses_and_scores(kind, aligned, random_weights, tmp_path):
    detector = aligned
    if kind == "cutpaste":
        config = CutPasteConfig(resize=(64, 64), align="rotate", steps=0, initial="random")
        detector = fitted(CutPaste(config, weights=random_weights), batches(plates(12)))
    exported = export_onnx(detector, tmp_path / "model.onnx")
    assert exported.largest_difference < 1e-3
    images = plates(6, split=1, defect="stain")
    expected, found = detector.score_pixels(images), Runtime.load(tmp_path / "model.onnx").score_pixels(images)
    assert found.parts == expected.parts
    np.testing.assert_allclose(found.images, expected.images, rtol=1e-3)
    if expected.maps is not None:
        np.testing.assert_allclose(found.maps, expected.maps, rtol=1e-3)


def test_a_damaged_alignment_is_refused(aligned, tmp_path):
    """Values that no fit gives, of any size, would else end in errors of NumPy."""
    aligned.save(tmp_path / "model.safetensors")
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        header, tensors = json.loads(file.metadata()["padim"]), {key: file.get_tensor(key) for key in file.keys()}
    del header["sha256"]
    metadata = {"padim": json.dumps(header)}
    bad = {"reference": 1e30, "correlations": 5.0, "angles": 1e9}
    for name, value in bad.items():
        changed = tensors | {f"pose.{name}": torch.full_like(tensors[f"pose.{name}"], value)}
        save_file(changed, tmp_path / "bad.safetensors", metadata)
        with pytest.raises(PadimError, match=r"bad\.safetensors: a damaged model"):
            Padim.load(tmp_path / "bad.safetensors")
    for name in ("reference", "turns", "field", "angles", "shifts", "correlations"):
        save_file(
            {key: tensors[key] for key in tensors if key != f"pose.{name}"}, tmp_path / "bad.safetensors", metadata
        )
        with pytest.raises(PadimError, match=r"bad\.safetensors: a damaged model"):
            Padim.load(tmp_path / "bad.safetensors")


def test_no_images_have_no_scores(aligned):
    assert aligned.score_pixels(np.zeros((0, 64, 64, 3), dtype=np.uint8)).images.shape == (0,)


def test_images_with_nothing_in_common_are_an_error(random_weights, monkeypatch):
    monkeypatch.setattr(frame, "covered", lambda pose, height, width: np.zeros((height, width), dtype=bool))
    with pytest.raises(PadimError, match="nothing in common: train with another --align than rotate"):
        fitted(Padim(ALIGNED, weights=random_weights), batches(plates(6)))


def test_a_second_pass_calibrates_as_kept_features_do(random_weights, aligned, monkeypatch):
    monkeypatch.setattr(fitting, "KEPT_IMAGES", 0)
    again = fitted(Padim(ALIGNED, weights=random_weights), batches(plates(24)))
    np.testing.assert_allclose(again.calibration.scores, aligned.calibration.scores, rtol=1e-5)


def test_images_that_wait_for_the_reference_are_few(random_weights, monkeypatch):
    """The model then is that of a reference from fewer images, and every image is in it once."""
    monkeypatch.setattr(frame, "HELD_BYTES", 1)  # fewer than eight would be too few, however large
    waiting, longest = [], 0

    def watched():
        nonlocal longest
        for batch in batches(plates(24)):
            waiting.append(batch)
            longest = max(longest, len(waiting))
            yield batch

    moved = frame.CommonFrame(ALIGNED)
    count = 0
    for batch in moved.images(watched()):
        count += len(batch)
        waiting.clear()
    assert (count, longest) == (24, 2)
    assert moved.finish().correlations.shape == (24,)


def test_an_update_keeps_the_frame(random_weights):
    detector = fitted(Padim(ALIGNED, weights=random_weights), batches(plates(12)), keep_moments=True)
    before = detector.alignment
    fitted(detector, batches(plates(5, split=4)), update=True)
    assert detector.alignment is before
    assert (detector.provenance.images, len(detector.calibration.scores)) == (17, 17)


def test_shifted_parts_are_not_turned(random_weights):
    config = dataclasses.replace(SMALL, align="shift")
    detector = fitted(Padim(config, weights=random_weights), batches(plates(12, align="shift")))
    assert (detector.alignment.angles == 0).all()
    parts = detector.score_pixels(plates(6, split=1, align="shift")).parts
    poses = [draw_pose("plate", "shift", 64, 64, (1, number)) for number in range(6)]
    apart = np.array([part.pose.shift for part in parts]) - [pose.shift for pose in poses]
    np.testing.assert_allclose(apart, np.broadcast_to(np.median(apart, axis=0), apart.shape), atol=0.5)


@pytest.mark.slow
def test_thresholds_of_aligned_models_flag_their_share(random_weights):
    """5 % are asked for: of 600 fresh plates, 2 to 8 % are called anomalous, by score or pose."""
    flagged = []
    for split in range(3):  # a single fit strays as far by chance alone
        detector = fitted(Padim(ALIGNED, weights=random_weights), batches(plates(150, split=10 + split)))
        threshold = detector.calibration.threshold(0.05)
        fresh = detector.score_pixels(plates(200, split=20 + split))
        flagged += [*((fresh.images >= threshold) | [not part.found for part in fresh.parts])]
    assert 0.02 <= np.mean(flagged) <= 0.08


def test_images_of_another_size_are_refused(aligned):
    for images in (np.zeros((1, 32, 64, 3), dtype=np.uint8), np.zeros((2, 96, 96, 3), dtype=np.uint8)):
        with pytest.raises(PadimError, match=r"images have shape .* expected \[n, 3, 64, 64\]"):
            aligned.score_pixels(images)
        with pytest.raises(PadimError, match=r"images have shape .* expected \[n, 3, 64, 64\]"):
            aligned.score(as_images(images))
        with pytest.raises(PadimError, match=r"images have shape .* expected \[n, 3, 64, 64\]"):
            Padim(ALIGNED, weights=aligned.backbone.weights()).fit([as_images(images)], FitOptions())


def test_floats_are_aligned_as_the_pixels_that_they_stand_for(aligned):
    images = as_images(plates(2, split=1))
    np.testing.assert_array_equal(as_pixels(images / 255), as_pixels(images))
    np.testing.assert_array_equal(aligned.score(images / 255).images, aligned.score(images).images)


# NaN counts for nothing


def with_holes(seed=0):
    random = np.random.default_rng(seed)
    masks = np.zeros((4, 30, 40), dtype=bool)
    masks[1:, 5:12, 8:20] = True
    masks[2, 20:25, 30:39] = True
    maps = random.gamma(3, size=masks.shape).astype(np.float32) + masks
    maps[:, :, 15:22] = np.nan
    maps[2, 20:25] = np.nan  # a whole region
    return masks, maps


def test_pixel_metrics_are_those_of_the_pixels_that_were_seen():
    masks, maps = with_holes()
    seen = ~np.isnan(maps)
    found = measure(np.array([False, True, True, True]), np.arange(4.0), masks, maps)
    assert found.pixel_auroc == pytest.approx(roc_auc_score(masks[seen], maps[seen]))
    assert found.pixel_ap == pytest.approx(average_precision_score(masks[seen], maps[seen]))
    # Where whole columns are missing, AUPRO is that of the images without them, but for the region that is gone.
    columns = [*range(15), *range(22, 40)]
    cut_masks, cut_maps = masks[:, :, columns], maps[:, :, columns]
    cut_masks[2, 20:25] = False
    shown = np.where(np.isnan(cut_maps), 0, cut_maps)
    shown[2, 20:25] = -1  # normal pixels that no threshold reaches
    without = measure(np.array([False, True, True, True]), np.arange(4.0), cut_masks, shown)
    normal = (~cut_masks).sum()
    assert found.aupro == pytest.approx(without.aupro, rel=2 * 5 * len(columns) / normal)


def test_calibrations_count_the_pixels_that_were_seen():
    _, maps = with_holes()
    one, other = Tally(), Tally()
    one.add(maps)
    for each in maps:
        other.add(each[~np.isnan(each)].reshape(1, 1, -1))
    np.testing.assert_array_equal(one.counts, other.counts)
    np.testing.assert_array_equal(one.scores(), other.scores())


def test_regions_end_where_nothing_was_seen():
    masks, maps = with_holes()
    regions = anomalous_regions(np.where(masks[1], 9, np.where(np.isnan(maps[1]), np.nan, 0)), 5, Box(0, 0, 40, 30))
    assert [region.area for region in regions] == [7 * 12]
    cut = np.where(masks[1], 9.0, 0.0)
    cut[np.isnan(maps[1])] = np.nan
    assert [region.box for region in anomalous_regions(cut, 5, Box(0, 0, 40, 30))] == [Box(8, 5, 15, 12)]


def test_curves_need_no_nan():
    masks, maps = with_holes()
    seen = ~np.isnan(maps)
    assert Curve.of(masks[seen], maps[seen]).area() == pytest.approx(roc_auc_score(masks[seen], maps[seen]))
