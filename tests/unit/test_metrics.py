"""Every figure against its definition, worked out threshold by threshold."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from padim.evaluation.metrics import Curve, measure, pro_curve


def regions_of(mask):
    """8-connected regions of one mask, as sets of pixels, found by flood fill."""
    left, regions = set(zip(*np.nonzero(mask))), []
    while left:
        region, border = set(), [left.pop()]
        while border:
            y, x = border.pop()
            region.add((y, x))
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= near
            border += near
        regions.append(region)
    return regions


def aupro_by_definition(masks, maps, limit=0.3):
    fpr, pro = [0.0], [0.0]
    regions = [(image, region) for image, mask in enumerate(masks) for region in regions_of(mask)]
    for threshold in np.unique(maps)[::-1]:
        found = maps >= threshold
        fpr.append(found[~masks].mean())
        pro.append(np.mean([np.mean([found[image][pixel] for pixel in region]) for image, region in regions]))
    area = 0.0
    for (f0, p0), (f1, p1) in zip(zip(fpr, pro), zip(fpr[1:], pro[1:])):
        if f0 >= limit:
            break
        if f1 > limit:
            f1, p1 = limit, p0 + (p1 - p0) * (limit - f0) / (f1 - f0)
        area += (f1 - f0) * (p0 + p1) / 2
    return area / limit


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 40), st.sampled_from([0.05, 0.3, 1.0]))
def test_aupro_is_its_definition(seed, levels, limit):
    random = np.random.default_rng(seed)
    masks = random.random((3, 7, 6)) < 0.3
    masks[0, 0, 0], masks[0, 6, 5] = True, False
    maps = random.integers(0, levels, masks.shape) / 7  # many equal values
    assert pro_curve(masks, maps).area(limit) == pytest.approx(aupro_by_definition(masks, maps, limit), abs=1e-12)


def test_regions_that_touch_at_a_corner_are_one():
    masks = np.zeros((1, 10, 10), dtype=bool)
    masks[0, 0, 0] = masks[0, 1, 1] = masks[0, 2, 2] = True
    maps = np.zeros((1, 10, 10))
    maps[0, 0, 0] = 1  # a third of one region; three regions would have one of them whole and two not at all
    maps[0, 9, 9] = 1
    masks[0, 5, 5] = True  # never found
    # from (0, 0) to (1/96, 1/6) at the first threshold, and from there straight to (1, 1)
    first, at_limit = 1 / 96, 1 / 6 + 5 / 6 * (0.3 - 1 / 96) / (1 - 1 / 96)
    expected = (first * (0 + 1 / 6) / 2 + (0.3 - first) * (1 / 6 + at_limit) / 2) / 0.3
    assert pro_curve(masks, maps).area(0.3) == pytest.approx(expected)


def test_a_perfect_map_has_aupro_1():
    masks = np.zeros((2, 8, 8), dtype=bool)
    masks[0, 2:4, 2:6] = masks[1, 7, 7] = True
    assert pro_curve(masks, masks.astype(float)).area(0.3) == pytest.approx(1)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 12))
def test_auroc_is_the_share_of_pairs_in_order(seed, levels):
    random = np.random.default_rng(seed)
    labels = np.append(random.random(30) < 0.4, [True, False])
    scores = random.integers(0, levels, 32)
    pairs = [(p > n) + (p == n) / 2 for p in scores[labels] for n in scores[~labels]]
    assert Curve.of(labels, scores).area() == pytest.approx(np.mean(pairs))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 12))
def test_f1_max_is_the_best_over_all_thresholds(seed, levels):
    random = np.random.default_rng(seed)
    labels = np.append(random.random(30) < 0.4, [True, False])
    scores = random.integers(0, levels, 32).astype(float)
    best, threshold = Curve.of(labels, scores).f1_max()
    assert best == pytest.approx(max(f1_score(labels, scores >= value) for value in scores))
    assert f1_score(labels, scores >= threshold) == pytest.approx(best)


def test_average_precision_is_the_sum_over_recall_steps():
    labels = np.array([True, False, True, True, False])
    scores = np.array([5.0, 4.0, 3.0, 2.0, 1.0])
    assert Curve.of(labels, scores).average_precision() == pytest.approx((1 + 2 / 3 + 3 / 4) / 3)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 12))
def test_figures_are_scikit_learns(seed, levels):
    random = np.random.default_rng(seed)
    labels = np.append(random.random(30) < 0.4, [True, False])
    scores = random.integers(0, levels, 32) / 3
    curve = Curve.of(labels, scores)
    assert curve.area() == pytest.approx(roc_auc_score(labels, scores))
    assert curve.average_precision() == pytest.approx(average_precision_score(labels, scores))


def test_figures_that_are_not_defined_are_none():
    maps = np.random.default_rng(0).random((2, 4, 4))
    nothing = measure(np.array([False, False]), np.array([1.0, 2.0]), np.zeros((2, 4, 4), bool), maps)
    assert set(vars(nothing).values()) == {None}
    no_masks = measure(np.array([False, True]), np.array([1.0, 2.0]), np.zeros((0, 4, 4), bool), maps[:0])
    assert (no_masks.image_auroc, no_masks.pixel_auroc, no_masks.aupro) == (1.0, None, None)


@pytest.mark.parametrize("entries", [40, 100_000])
def test_few_points_of_a_curve_have_its_area_and_both_ends(entries):
    rng = np.random.default_rng(entries)
    labels = rng.random(entries) < 0.1
    scores = rng.normal(size=entries) + 1.5 * labels
    curve = Curve.of(labels, scores)
    rate, recall = curve.thinned_points(200)
    assert len(rate) == len(recall) <= 200
    assert [rate[0], recall[0], rate[-1], recall[-1]] == [0, 0, 1, 1]
    every_rate, every_recall = curve.points()
    drawn = np.interp(every_rate + every_recall, rate + recall, recall)
    assert np.abs(drawn - every_recall).max() < 2 / 199
    assert np.trapezoid(recall, rate) == pytest.approx(roc_auc_score(labels, scores), abs=1e-3)


def test_auc_of_the_whole_pro_curve_of_one_region_is_the_pixel_auroc():
    random = np.random.default_rng(1)
    masks = np.zeros((1, 12, 12), dtype=bool)
    masks[0, 3:7, 4:9] = True
    maps = random.random((1, 12, 12)) + 0.5 * masks
    assert pro_curve(masks, maps).area() == pytest.approx(Curve.of(masks, maps).area())
