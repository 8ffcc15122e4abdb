"""Shared factors and streamed moments against NumPy and SciPy in float64, one position at a time."""

from __future__ import annotations

import doctest

import numpy as np
import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import mahalanobis

from padim import PadimError
from padim.embedding import embedding_concat
from padim.gaussian import blocks, dense, moments, shared
from padim.gaussian.moments import Moments, rebatch
from padim.gaussian.shared import Gaussian
from padim.pyramid import Pyramid

# Grids and channels of each level, coarse to fine.
CASES = {
    "one level": ([(6, 4)], [7]),
    "two levels": ([(3, 2), (6, 4)], [5, 4]),
    "three levels": ([(2, 2), (4, 4), (8, 8)], [9, 5, 3]),
    "four levels": ([(1, 2), (2, 4), (4, 8), (8, 16)], [6, 5, 4, 3]),
    "steps of three, and by one side only": ([(2, 1), (6, 1), (6, 4)], [4, 3, 5]),
    "two levels on one grid": ([(2, 2), (2, 2), (8, 8)], [4, 4, 4]),
    "a level without channels": ([(2, 2), (4, 4), (8, 8)], [6, 0, 4]),
    "a finest level without channels": ([(2, 2), (4, 4)], [6, 0]),
}
EPSILON = 0.01


def feature_maps(grids, channels, n, seed=0):
    """Correlated features far from zero, `[n, d_l, h_l, w_l]` a level, coarse to fine."""
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(n, 1, 1, 1, generator=generator)
    maps = []
    for level, ((height, width), d) in enumerate(zip(grids, channels)):
        mean = 5 + torch.randn(1, d, height, width, generator=torch.Generator().manual_seed(level))
        mix = torch.randn(d, d, generator=torch.Generator().manual_seed(100 + level)) / max(d, 1) ** 0.5
        noise = torch.randn(n, d, height, width, generator=generator)
        maps.append(mean + torch.einsum("de,nehw->ndhw", mix, noise) + common / 2)
    return maps


def in_cells(pyramid, maps):
    return [pyramid.to_cells(level, x) for level, x in enumerate(maps)]


def moments_of(pyramid, maps, batch):
    starts = range(0, len(maps[0]), batch)
    return oracles.moments_of(in_cells(pyramid, [x[start : start + batch] for x in maps]) for start in starts)


def oracle(train, test):
    """Distances as the paper writes them: numpy.cov and scipy's mahalanobis at every position."""
    train, test = (embedding_concat(maps[::-1]).double().numpy() for maps in (train, test))
    d, height, width = train.shape[1:]
    result = np.empty((len(test), height, width))
    for y in range(height):
        for x in range(width):
            covariance = np.cov(train[:, :, y, x], rowvar=False).reshape(d, d) + EPSILON * np.eye(d)
            inverse, mean = np.linalg.inv(covariance), train[:, :, y, x].mean(axis=0)
            result[:, y, x] = [mahalanobis(image[:, y, x], mean, inverse) for image in test]
    return result


def relative_error(found, expected):
    return np.max(np.abs(found - expected) / expected)


@pytest.mark.parametrize("n", [2, 5, 60], ids=lambda n: f"{n} images")
@pytest.mark.parametrize(("grids", "channels"), CASES.values(), ids=CASES.keys())
def test_distances_are_those_of_the_plain_form_in_float64(grids, channels, n):
    pyramid = Pyramid(tuple(grids))
    train, test = feature_maps(grids, channels, n), feature_maps(grids, channels, 3, seed=1)
    expected = oracle(train, test)

    model = Gaussian.fit(moments_of(pyramid, train, batch=4), EPSILON)
    found = pyramid.to_map(model.squared_distances(in_cells(pyramid, test))).sqrt().numpy()

    assert relative_error(found, expected) < 1e-4


def test_the_dense_form_is_the_plain_form():
    grids, channels = CASES["three levels"]
    train, test = feature_maps(grids, channels, 30), feature_maps(grids, channels, 3, seed=1)
    model = dense.fit(embedding_concat(train[::-1]).double(), EPSILON)
    found = dense.squared_distances(model, embedding_concat(test[::-1]).double()).sqrt().numpy()
    assert relative_error(found, oracle(train, test)) < 1e-9


@pytest.mark.parametrize("module", [dense, blocks, moments, shared])
def test_the_examples_in_the_text_hold(module):
    failed, tried = doctest.testmod(module, extraglobs={"torch": torch})
    assert failed == 0
    assert tried > 0 or module in (blocks, moments)


def test_merged_moments_are_those_of_all_images():
    grids, channels = CASES["three levels"]
    pyramid = Pyramid(tuple(grids))
    train, test = feature_maps(grids, channels, 25), feature_maps(grids, channels, 3, seed=1)
    parts = [in_cells(pyramid, [x[part] for x in train]) for part in (slice(0, 3), slice(3, 4), slice(4, 25))]
    total = Moments.about([level.mean(dim=2, keepdim=True) for level in parts[0]])
    for part in parts:
        partial = Moments.about(total.shift)
        partial.add(part)
        total.merge(partial)
    assert total.count == 25

    model = Gaussian.fit(total, EPSILON)
    found = pyramid.to_map(model.squared_distances(in_cells(pyramid, test))).sqrt().numpy()

    assert relative_error(found, oracle(train, test)) < 1e-4


def test_moments_about_different_shifts_are_not_merged():
    a, b = (Moments.about([torch.full((1, 2, 1), value)]) for value in (0.0, 1.0))
    with pytest.raises(PadimError, match="different shifts"):
        a.merge(b)


@given(st.lists(st.integers(0, 40), max_size=8))
def test_rebatching_joins_batches_in_their_order(sizes):
    images = torch.arange(sum(sizes)).float().expand(2, 3, -1)
    groups = list(rebatch([part, part[:, :1]] for part in images.split(sizes, dim=2)))
    assert all(group[0].shape[2] >= 32 for group in groups[:-1])
    if sizes:
        assert torch.equal(torch.cat([group[0] for group in groups], dim=2), images)
        assert torch.equal(torch.cat([group[1] for group in groups], dim=2), images[:, :1])


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 12), st.integers(0, 100))
def test_the_batch_size_does_not_matter(batch, seed):
    grids, channels = CASES["two levels"]
    pyramid = Pyramid(tuple(grids))
    train = feature_maps(grids, channels, 12, seed)
    test = in_cells(pyramid, feature_maps(grids, channels, 2, seed + 1))
    one, several = (
        Gaussian.fit(moments_of(pyramid, train, size), EPSILON).squared_distances(test) for size in (12, batch)
    )
    torch.testing.assert_close(several, one, rtol=1e-4, atol=1e-4)


def test_the_size_of_the_chunks_does_not_matter(monkeypatch):
    grids, channels = CASES["three levels"]
    pyramid = Pyramid(tuple(grids))
    train, test = feature_maps(grids, channels, 12), in_cells(pyramid, feature_maps(grids, channels, 2, 1))
    whole = Gaussian.fit(moments_of(pyramid, train, 4), EPSILON).squared_distances(test)
    monkeypatch.setattr(shared, "_CHUNK_FLOATS", 1)
    cell_by_cell = Gaussian.fit(moments_of(pyramid, train, 4), EPSILON).squared_distances(test)
    torch.testing.assert_close(cell_by_cell, whole)


def test_features_far_from_zero_lose_no_digits():
    grids, channels = CASES["two levels"]
    pyramid = Pyramid(tuple(grids))
    train, test = ([x + 1000 for x in feature_maps(grids, channels, 40, seed)] for seed in (0, 1))
    model = Gaussian.fit(moments_of(pyramid, train, 7), EPSILON)
    found = pyramid.to_map(model.squared_distances(in_cells(pyramid, test))).sqrt().numpy()
    assert relative_error(found, oracle(train, test)) < 1e-3  # float32 holds 1000 to 6e-5


@pytest.mark.parametrize(("grids", "channels"), CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize(("n", "error"), [(60, 0.0005), (20, 0.005)])
def test_leaving_one_out_is_refitting_without_it(grids, channels, n, error):
    pyramid = Pyramid(tuple(grids))
    train = feature_maps(grids, channels, n)
    model = Gaussian.fit(moments_of(pyramid, train, 10), EPSILON)
    closed = model.leave_one_out_distances(in_cells(pyramid, train), n, EPSILON)
    assert model.squared_distances(in_cells(pyramid, train)).mean() < 0.95 * closed.mean()
    for left_out in range(0, n, 5):
        kept = [torch.cat([x[:left_out], x[left_out + 1 :]]).double() for x in train]
        alone = in_cells(pyramid, [x[left_out : left_out + 1].double() for x in train])
        refitted = Gaussian.fit(moments_of(pyramid, kept, 10), EPSILON).squared_distances(alone)[:, 0]
        assert ((closed[:, left_out] - refitted).abs() / refitted).max() < error


@pytest.mark.parametrize("n", [3, 5, 20])
def test_leaving_one_out_of_fewer_images_than_dimensions(n):
    cells = [3 * torch.randn(2, 100, n, generator=torch.Generator().manual_seed(n))]
    closed = Gaussian.fit(oracles.moments_of([cells]), EPSILON).leave_one_out_distances(cells, n, EPSILON)
    x = cells[0].double().numpy()
    for cell in range(2):
        for left_out in range(n):
            kept = np.delete(x[cell], left_out, axis=1)
            inverse = np.linalg.inv(np.cov(kept) + EPSILON * np.eye(100))
            centred = x[cell, :, left_out] - kept.mean(axis=1)
            assert closed[cell, left_out] == pytest.approx(centred @ inverse @ centred, rel=0.15 if n < 10 else 0.01)


def test_one_image_is_too_few():
    moments = oracles.moments_of([[torch.zeros(4, 2, 1)]])
    with pytest.raises(PadimError, match="at least two training images, there is 1"):
        Gaussian.fit(moments, EPSILON)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_features_that_are_not_finite_are_refused_and_change_nothing(bad):
    moments = Moments.about([torch.ones(4, 2, 1)])
    with pytest.raises(PadimError, match="not finite"):
        moments.add([torch.full((4, 2, 3), bad)])
    assert moments.count == 0
    assert torch.equal(moments.second[0][0], torch.zeros(4, 2, 2))


def test_constant_features_need_the_regulariser():
    cells = [torch.ones(4, 2, 5)]
    for epsilon in (EPSILON, 0.0):
        moments = oracles.moments_of([cells])
        if epsilon:
            assert Gaussian.fit(moments, epsilon).squared_distances(cells).abs().max() == 0
        else:
            with pytest.raises(PadimError, match="larger epsilon"):
                Gaussian.fit(moments, epsilon)


def test_an_epsilon_lost_in_roundings_is_refused_where_it_is_needed():
    for n, refused in ((60, True), (200, False)):
        cells = [100 * torch.randn(2, 100, n, generator=torch.Generator().manual_seed(0))]
        moments = oracles.moments_of([cells])
        if refused:
            with pytest.raises(PadimError, match=r"epsilon 0.01 is lost .* more than 100 images"):
                Gaussian.fit(moments, EPSILON)
        else:
            Gaussian.fit(moments, EPSILON)


@pytest.mark.parametrize("widths", [(1, 1, 1), (3, 2, 1)])
def test_variances_beyond_float32_are_refused(widths):
    levels = [1e19 * torch.randn(4**i, d, 20) for i, d in enumerate(widths)]
    with pytest.raises(PadimError, match="too large for float32"):
        Gaussian.fit(oracles.moments_of([levels]), EPSILON)


def tensors(moments, gaussian):
    """Everything that a fit holds, and everything that it leaves."""
    return [*moments.shift, *moments.sums(), *gaussian.mean, *oracles.factors_of(gaussian)]


def test_no_tensor_grows_with_the_number_of_images_or_is_dense():
    grids, channels = CASES["three levels"]
    pyramid, sizes = Pyramid(tuple(grids)), {}
    for n in (5, 400):
        moments = moments_of(pyramid, feature_maps(grids, channels, n), batch=4)
        held = moments.copy()
        sizes[n] = [tensor.shape for tensor in tensors(held, Gaussian.fit(moments, EPSILON))]
    assert sizes[5] == sizes[400]
    model = Gaussian.fit(held, EPSILON)
    floats = sum(block.numel() for block in oracles.factors_of(model))
    cells = [height * width for height, width in grids]
    assert floats == sum(cells[i] * channels[i] * sum(channels[: i + 1]) for i in range(3))
    assert floats < cells[-1] * sum(channels) ** 2 / 3


@pytest.mark.parametrize(("n", "error"), [(40, 0.001), (12, 0.02)])
def test_leaving_one_out_is_the_dense_form_refitted(n, error):
    grids, channels = CASES["three levels"]
    pyramid, train = Pyramid(tuple(grids)), feature_maps(grids, channels, n)
    model = Gaussian.fit(moments_of(pyramid, train, 10), EPSILON)
    found = pyramid.to_map(model.leave_one_out_distances(in_cells(pyramid, train), n, EPSILON)).double().numpy()
    expected = dense.leave_one_out_distances(embedding_concat(train[::-1]).double(), EPSILON).numpy()
    assert relative_error(found, expected) < error
