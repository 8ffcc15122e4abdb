"""Tiles that cover an image, and maps of tiles that become one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import factors_of, fitted

from padim import Config, Padim, PadimError
from padim.estimate import estimate
from padim.tiles import Tiling

PATCH = 4
TILED = Config(resize=(96, 128), crop=(), channels=12, tile=(64,), tile_overlap=32, sigma=0)  # 2 x 3 tiles
PLACES = [(top, left) for top in (0, 32) for left in (0, 32, 64)]


@st.composite
def tilings(draw):
    patches = [draw(st.integers(2, 9)) for _ in range(2)]
    sizes = [PATCH * (own + draw(st.integers(0, 20))) for own in patches]
    overlap = draw(st.integers(0, PATCH * min(patches) // 2))
    return Tiling.of(tuple(sizes), tuple(PATCH * own for own in patches), tuple(patches), overlap)


@given(tilings())
def test_tiles_cover_the_image_and_overlap_as_asked(tiling):
    for side in (tiling.rows, tiling.columns):
        starts = PATCH * np.array(side.starts)
        assert starts[0] == 0
        assert starts[-1] + side.tile == side.pixels
        assert (np.diff(starts) > 0).all()
        assert (np.diff(starts) <= side.tile - side.overlap).all()


@given(tilings())
def test_the_tiles_of_a_map_join_to_that_map(tiling):
    maps = torch.rand(2, tiling.rows.pixels // PATCH, tiling.columns.pixels // PATCH, dtype=torch.float64)
    cut = torch.stack(
        [
            maps[:, top : top + tiling.rows.cells, left : left + tiling.columns.cells]
            for top in tiling.rows.starts
            for left in tiling.columns.starts
        ],
        dim=1,
    )
    beside = tiling.side_by_side(cut.flatten(0, 1)).numpy()
    found = tiling.rows.joining() @ beside @ tiling.columns.joining().T
    np.testing.assert_allclose(found, maps.numpy(), rtol=1e-12)
    assert len(tiling) == cut.shape[1]


def test_a_mean_of_tiles_trusts_each_least_at_its_edge():
    rows = Tiling.of((20, 12), (12, 12), (3, 3), 4).rows.joining()
    assert rows[2].tolist() == [0, 0, 0.5, 0.5, 0, 0]  # both tiles have it at an edge
    wide = Tiling.of((24, 16), (16, 16), (4, 4), 8).rows.joining()
    assert wide[2].tolist() == [0, 0, 2 / 3, 0, 1 / 3, 0, 0, 0]
    assert wide[3].tolist() == [0, 0, 0, 1 / 3, 0, 2 / 3, 0, 0]


def images_like(count, seed):
    return torch.randint(0, 256, (count, 3, 96, 128), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def tile_of(images, place):
    return images[:, :, place[0] : place[0] + 64, place[1] : place[1] + 64]


def grid_of(model, images):
    """Distances on the grid of patches `[n, 16, 16]` that a model of a single tile has."""
    features = model.features(images)
    return model.pyramid.to_map(model.gaussian.squared_distances(features).sqrt())


def blended(grids):
    """Distances of the tiles on the image's grid `[n, 24, 32]`, weighted by the patches to a tile's edge."""
    inward = np.minimum(np.arange(1, 17), np.arange(16, 0, -1))
    weight = np.outer(inward, inward)
    total, weights = np.zeros((len(grids[0]), 24, 32)), np.zeros((24, 32))
    for (top, left), grid in zip(PLACES, grids):
        part = np.s_[top // 4 : top // 4 + 16, left // 4 : left // 4 + 16]
        total[(slice(None), *part)] += grid.double().numpy() * weight
        weights[part] += weight
    return total / weights


@pytest.mark.parametrize("tile_model", ["shared", "position"])
def test_tiles_are_scored_as_images_of_their_own(random_weights, tmp_path, tile_model):
    train, test = images_like(8, 1), images_like(3, 2)
    config = replace(TILED, tile_model=tile_model)
    model = fitted(Padim(config, weights=random_weights), train.split(3), keep_moments=True)
    small = replace(TILED, resize=(64, 64), tile=())

    def model_of(images):
        return fitted(Padim(small, weights=random_weights), [images], calibrate=False)

    if tile_model == "shared":
        everywhere = model_of(torch.cat([tile_of(train, place) for place in PLACES]))
        grids = [grid_of(everywhere, tile_of(test, place)) for place in PLACES]
    else:
        grids = [grid_of(model_of(tile_of(train, place)), tile_of(test, place)) for place in PLACES]
    maps = model.score(test).maps
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(blended(grids))[:, None], size=(96, 128), mode="bilinear", align_corners=False
    )[:, 0]
    np.testing.assert_allclose(maps, expected, rtol=1e-4)
    assert model.provenance.images == len(model.calibration.scores) == 8

    model.save(tmp_path / "model")
    again = Padim.load(tmp_path / "model")
    assert torch.equal(again.score(test).maps, maps)
    fitted(again, [test], update=True)
    whole = fitted(Padim(config, weights=random_weights), [train, test])
    torch.testing.assert_close(again.score(test).maps, whole.score(test).maps, rtol=1e-4, atol=0)
    assert again.provenance.images == 11

    estimated = estimate(config, 8)
    held = sum(block.nbytes for block in factors_of(whole.gaussian))
    assert estimated.parts["factors"] == held
    assert estimated.parts["features_of_an_image"] == sum(level.nbytes for level in model.features(test[:1]))


def test_the_tiles_of_one_image_are_too_few(random_weights):
    with pytest.raises(PadimError, match="at least two training images, there is 1"):
        fitted(Padim(TILED, weights=random_weights), [images_like(1, 1)])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tile": (160,)}, "larger than the image of 96 x 128"),
        ({"resize": (98, 128)}, "instead of 98 take 96 or 100"),
        ({"tile_overlap": 33}, "tile_overlap: 33 of 64 pixels is too much, take at most 32"),
        ({"tile": (64, 64, 64)}, "out of range"),
        ({"tile": (70, 64)}, "take 64 or 80"),
    ],
    ids=str,
)
def test_tiles_that_dont_fit(random_weights, change, message):
    with pytest.raises(PadimError, match=message):
        Padim(replace(TILED, **change), weights=random_weights)
