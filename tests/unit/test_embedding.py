from __future__ import annotations

import random

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from padim import PadimError
from padim.embedding import draw_channels, embedding_concat, split_by_level
from padim.pyramid import Pyramid

steps = st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3)), min_size=1, max_size=4)


def grids_of(steps):
    grids = [steps[0]]
    for down, across in steps[1:]:
        grids.append((grids[-1][0] * down, grids[-1][1] * across))
    return tuple(grids)


def test_embedding_concat_repeats_the_coarse_levels():
    levels = [torch.rand(2, 3, 8, 12), torch.rand(2, 5, 4, 6), torch.rand(2, 4, 2, 3)]
    expected = torch.cat([F.interpolate(level, (8, 12), mode="nearest") for level in levels], dim=1)
    assert torch.equal(embedding_concat(levels), expected)


def test_channels_are_drawn_as_the_reference_draws_them():
    random.seed(1024)  # the reference seeds the global generator
    assert draw_channels(448, 100, 1024) == random.sample(range(448), 100)


def test_all_channels_can_be_kept():
    assert draw_channels(5, 0, 1) == [0, 1, 2, 3, 4]


def test_more_channels_than_there_are():
    with pytest.raises(PadimError, match="--channels 449 is more than the 448"):
        draw_channels(448, 449, 1)


def test_channels_are_split_by_level_in_drawn_order():
    assert split_by_level([7, 0, 3, 2, 5], [3, 2, 4]) == [[0, 2], [0], [2, 0]]


@given(steps, st.integers(1, 3))
def test_the_finest_level_comes_back_as_it_went_in(steps, n):
    pyramid = Pyramid(grids_of(steps))
    maps = torch.rand(n, 1, *pyramid.grids[-1])
    cells = pyramid.to_cells(len(steps) - 1, maps)
    assert torch.equal(pyramid.to_map(cells[:, 0]), maps[:, 0])


@given(steps)
def test_what_lies_in_a_coarse_cell_is_contiguous_at_every_level(steps):
    pyramid = Pyramid(grids_of(steps))
    height, width = pyramid.grids[0]
    number = torch.arange(height * width).view(1, 1, height, width)  # of the coarsest cell
    for level, (h, w) in enumerate(pyramid.grids):
        repeated = number.repeat_interleave(h // height, dim=2).repeat_interleave(w // width, dim=3)
        inside = h * w // (height * width)
        expected = torch.arange(height * width).repeat_interleave(inside)
        assert torch.equal(pyramid.to_cells(level, repeated)[:, 0, 0], expected)


def test_grids_have_to_nest():
    with pytest.raises(PadimError, match="grids of 13 and 6 patches along 128 pixels don't nest: take other layers"):
        Pyramid.of_images((128, 128), [(13, 13), (6, 6)])
    with pytest.raises(PadimError, match="2 x 2 grid does not nest in a 5 x 4 grid"):
        Pyramid(((2, 2), (5, 4)))
