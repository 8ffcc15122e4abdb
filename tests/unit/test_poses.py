"""Poses of parts: against a plain search, against known poses, and the outcome for images of every kind."""

from __future__ import annotations

import json

import numpy as np
import pytest
import scipy.ndimage
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from padim.data.synth import draw_pose, synthesize
from padim.poses.alignment import MARGIN, Alignment, covered, into_frame, out_of_frame
from padim.poses.grid import cells_per_pixel, grey, shrunk
from padim.poses.plain import find_plainly
from padim.poses.pose import Pose, moved, outside
from padim.poses.reference import build_reference, left_out
from padim.poses.search import Template
from padim.poses.spread import find_spread

poses = st.builds(Pose, st.floats(-179, 179), st.tuples(st.floats(-40, 40), st.floats(-40, 40)))


# Movements


def matrix(pose):
    """The movement as a matrix for points (x, y, 1), from its definition."""
    angle = np.deg2rad(pose.angle)
    x, y = pose.shift
    return np.array([[np.cos(angle), np.sin(angle), x], [-np.sin(angle), np.cos(angle), y], [0, 0, 1]])


@given(poses, poses)
def test_movements_compose_and_invert_as_their_matrices(one, other):
    np.testing.assert_allclose(matrix(one.after(other)), matrix(one) @ matrix(other), atol=1e-9)
    np.testing.assert_allclose(matrix(one.inverse()), np.linalg.inv(matrix(one)), atol=1e-9)


@settings(max_examples=30, deadline=None)
@given(poses, st.integers(20, 50), st.integers(20, 50))
def test_pixels_move_as_points_do(pose, height, width):
    """Pillow's pixels against SciPy's, whose points are `(row, column)` from the first pixel's centre."""
    picture = np.random.default_rng(0).random((height, width), dtype=np.float32)
    found = np.asarray(moved(Image.fromarray(picture), pose, Image.Resampling.BILINEAR, fill=np.nan))
    rows, columns = np.mgrid[:height, :width]
    x, y = columns + 0.5 - width / 2, rows + 0.5 - height / 2
    at_x, at_y, _ = np.einsum("ij,jhw->ihw", matrix(pose), np.stack([x, y, np.ones_like(x)]))
    expected = scipy.ndimage.map_coordinates(
        picture, [at_y + height / 2 - 0.5, at_x + width / 2 - 0.5], order=1, mode="nearest"
    )
    inside = ~outside(pose, height, width)
    np.testing.assert_array_equal(inside, (np.abs(at_x) <= width / 2) & (np.abs(at_y) <= height / 2))
    clear = (np.abs(at_x) < width / 2 - 1) & (np.abs(at_y) < height / 2 - 1)
    np.testing.assert_allclose(found[clear], expected[clear], atol=1e-4)
    assert inside.all() or np.isnan(found[~inside]).mean() > 0.9


def test_a_map_comes_back_to_where_the_image_was():
    image = np.zeros((96, 128, 3), dtype=np.uint8)
    image[30:50, 60:90] = 255
    pose = Pose(37.0, (9.0, -6.0))
    frame = into_frame(image, pose)
    back = out_of_frame(frame[..., 0].astype(np.float32), pose)
    seen = ~np.isnan(back)
    assert 0.5 < seen.mean() < 1
    assert np.abs(back[seen] - image[..., 0][seen]).mean() < 3


def test_nothing_moves_at_the_pose_of_the_reference():
    image = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    assert np.array_equal(into_frame(image, Pose()), image)
    assert covered(Pose(), 40, 56).all()


# Parts of known shape and pose


def drawn(
    shape,
    pose=Pose(),
    *,
    size=(128, 128),
    seed=0,
    light=1.0,
    defect=None,
    invert=False,
    tint=(1, 1, 1),
    table=0.01,
    others=(),
):
    """A bright part on a dark table at each of some poses, with noise and a hole for a defect `(x, y, radius)`."""
    random, (height, width) = np.random.default_rng(seed), size
    image = 0.2 + scipy.ndimage.gaussian_filter(random.normal(0, 12 * table, size), 6)
    for one in (pose, *others):
        x, y = np.meshgrid(np.arange(width) + 0.5 - width / 2, np.arange(height) + 0.5 - height / 2)
        x, y, _ = np.einsum("ij,jhw->ihw", np.linalg.inv(matrix(one)), np.stack([x, y, np.ones_like(x)])) / 128
        body, mark = {
            "long": ((np.abs(x) < 0.34) & (np.abs(y) < 0.09 - 0.06 * x), np.hypot(x + 0.25, y) < 0.05),
            "square": (np.maximum(np.abs(x), np.abs(y)) < 0.22, np.hypot(x + 0.13, y + 0.12) < 0.05),
            "nearly symmetric": ((np.abs(x) < 0.3) & (np.abs(y) < 0.1), np.hypot(x + 0.24, y - 0.05) < 0.03),
            "round": (np.hypot(x, y) < 0.3, np.zeros(size, dtype=bool)),
        }[shape]
        hole = mark if defect is None else mark | (np.hypot(x - defect[0], y - defect[1]) < defect[2])
        image = np.where(body, np.where(hole, 0.25, 0.65), image)
    image = (image * light + random.normal(0, 0.01, size)).clip(0, 1)
    image = 1 - image if invert else image
    return (image[..., None] * np.array(tint) * 255).round().clip(0, 255).astype(np.uint8)


def poses_drawn(count, seed=0, turn=180.0, shift=12.0):
    random = np.random.default_rng(seed)
    return [Pose(random.uniform(-turn, turn), tuple(random.uniform(-shift, shift, 2))) for _ in range(count)]


def aligned_to(images, *, turns=True):
    """An alignment to the mean of images, as a fit makes it."""
    template, kept, _ = build_reference([grey(image) for image in images], turns=turns)
    matches = [template.find(grey(image)) for image in images]
    correlations = np.array([left_out(match.correlation, template.values, kept) for match in matches], np.float32)
    field, zeros = np.ones(images[0].shape[:2], dtype=bool), np.zeros(len(images), dtype=np.float32)
    return Alignment(template.values, template.turns, field, zeros, np.stack([zeros, zeros], axis=1), correlations)


def errors(alignment, images, truths, symmetry=360):
    """Degrees and pixels between the poses that are found and the true ones, up to one pose of the reference."""
    found = [alignment.find(image) for image in images]
    apart = [part.pose.inverse().after(truth) for part, truth in zip(found, truths)]
    angles = np.array([pose.angle for pose in apart])
    turns = (angles[:, None] - angles + symmetry / 2) % symmetry - symmetry / 2
    middle = int(np.abs(turns).mean(axis=1).argmin())
    # The reference's middle need not be the part's: only where both are turned alike do shifts compare.
    places = [np.array(pose.shift) for pose in apart]
    far = [np.linalg.norm(place - places[middle]) for place in places]
    return np.abs(turns[:, middle]), np.array(far), found


VARIANTS = {
    "long": ("long", {}, 360),
    "square": ("square", {}, 360),
    "nearly symmetric": ("nearly symmetric", {}, 360),
    "dark on light": ("long", {"invert": True}, 360),
    "coloured": ("long", {"tint": (0.9, 0.5, 0.2)}, 360),
    "not square": ("long", {"size": (128, 192)}, 360),
    "on a grainy table": ("long", {"table": 0.04}, 360),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_parts_of_any_kind_are_found_where_they_lie(name):
    shape, look, symmetry = VARIANTS[name]
    truths = poses_drawn(40)
    images = [drawn(shape, pose, seed=n, light=0.8 + n % 5 / 10, **look) for n, pose in enumerate(truths)]
    alignment = aligned_to(images[:20])
    degrees, pixels, found = errors(alignment, images, truths, symmetry)
    assert degrees.max() < 1
    assert pixels.max() < 0.7
    assert all(part.found for part in found)


def test_a_round_part_is_found_at_its_place_and_some_angle():
    truths = poses_drawn(20)
    images = [drawn("round", pose, seed=n) for n, pose in enumerate(truths)]
    alignment = aligned_to(images)
    found = [alignment.find(image) for image in images]
    weights = alignment.reference**2 / (alignment.reference**2).sum()
    middle = np.array([weights.sum(axis=0) @ (np.arange(128) - 63.5), weights.sum(axis=1) @ (np.arange(128) - 63.5)])
    places = [part.pose.rotation @ middle + part.pose.shift for part in found]
    np.testing.assert_allclose(places, [pose.shift for pose in truths], atol=0.8)
    assert min(part.correlation for part in found) > 0.95


@pytest.mark.slow
def test_synthetic_plates_are_found_within_a_degree_and_a_pixel():
    """Normal and defective ones, at all angles, under light that changes by 20 %, with stains on a tenth of each."""
    truths = [draw_pose("plate", "rotate", 256, 256, (n,)) for n in range(140)]
    images, random = [], np.random.default_rng(0)
    for number, pose in enumerate(truths):
        image = synthesize("plate", 256, 256, "good", (number,), pose)[0].astype(np.float64)
        if number % 2:
            x, y = np.meshgrid(np.arange(256) - 127.5, np.arange(256) - 127.5)
            x, y, _ = np.einsum("ij,jhw->ihw", np.linalg.inv(matrix(pose)), np.stack([x, y, np.ones_like(x)]))
            image[np.hypot(x - random.uniform(-60, 60), y - random.uniform(-8, 8)) < 17.5] = 60
        images.append((image * random.uniform(0.8, 1.2)).clip(0, 255).astype(np.uint8))
    degrees, pixels, _ = errors(aligned_to(images[:80:2]), images, truths)
    assert np.mean((degrees < 1) & (pixels < 1)) >= 0.99


@pytest.mark.parametrize("shape", ["long", "square", "nearly symmetric"])
def test_the_fast_search_agrees_with_the_plain_one(shape):
    """On a grid of 32 x 32: no angle in steps of 3 degrees and no shift of whole cells correlates much better."""
    template = shrunk(grey(drawn(shape)), 4)
    for number, pose in enumerate(poses_drawn(4, seed=1)):
        picture = shrunk(grey(drawn(shape, pose, seed=number + 1)), 4)
        plainly, rough = find_plainly(picture, template, np.arange(-180, 180, 3))
        fast = Template(template, turns=True).find(picture)
        assert fast.correlation > plainly - 0.02
        apart = fast.pose.inverse().after(rough)
        assert abs(apart.angle) < 6
        assert np.hypot(*apart.shift) < 1.5


def test_the_fast_search_agrees_with_the_plain_one_where_nothing_turns():
    template = shrunk(grey(drawn("long")), 4)
    picture = shrunk(grey(drawn("long", Pose(0.0, (14.0, -9.0)), seed=1)), 4)
    plainly, rough = find_plainly(picture, template, [0.0])
    fast = Template(template, turns=False).find(picture)
    assert fast.correlation > plainly - 0.02
    assert fast.pose.angle == 0
    np.testing.assert_allclose(fast.pose.shift, rough.shift, atol=0.7)
    np.testing.assert_allclose(fast.pose.shift, (3.5, -2.25), atol=0.15)


# Images without the part, or with half of it


def test_images_without_their_part_have_no_pose():
    images = [drawn("long", pose, seed=n) for n, pose in enumerate(poses_drawn(30))]
    alignment = aligned_to(images)
    strange = {
        "no part": drawn("long", Pose(0.0, (400.0, 0.0)), seed=50),
        "half outside": drawn("long", Pose(0.0, (64.0, 0.0)), seed=51),
        "another part": drawn("square", seed=52),
        "two parts": drawn("long", Pose(20.0, (0.0, -32.0)), seed=53, others=[Pose(100.0, (0.0, 30.0))]),
        "black": np.zeros((128, 128, 3), dtype=np.uint8),
        "noise": np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8),
    }
    for name, image in strange.items():
        part = alignment.find(image)
        assert not part.found, name
        assert np.isfinite([part.pose.angle, *part.pose.shift, part.correlation]).all(), name
    fresh = [drawn("long", pose, seed=n + 100) for n, pose in enumerate(poses_drawn(30, seed=9))]
    assert all(alignment.find(image).found for image in fresh)


def test_a_pose_is_hardly_ever_missed_where_correlations_thin_out_exponentially():
    random = np.random.default_rng(0)
    alignment = aligned_to([drawn("long", seed=n) for n in range(4)])
    missed = []
    for _ in range(40):
        scale = 2.5 - random.exponential(0.2, 300)
        one = Alignment(
            alignment.reference, True, alignment.field, *[np.zeros(0)] * 2, np.tanh(scale[:200]).astype(np.float32)
        )
        missed.append(np.mean(np.tanh(scale[200:]) < one.least))
    assert np.mean(missed) < 0.003


# The reference


def sharpness(picture):
    return float(np.hypot(*np.gradient(picture / np.linalg.norm(picture))).max())


@pytest.mark.parametrize("shape", ["long", "round", "nearly symmetric"])
def test_the_reference_is_sharp_even_of_parts_without_an_angle(shape):
    images = [drawn(shape, pose, seed=n) for n, pose in enumerate(poses_drawn(24))]
    reference = build_reference([grey(image) for image in images], turns=True)
    assert reference.kept >= 12
    assert reference.template.turns == (shape != "round")
    assert sharpness(reference.template.values) > 0.5 * sharpness(grey(images[0]))


@pytest.mark.parametrize("wrong", [[0], [0, 7]], ids=["a bad first one", "two bad ones"])
def test_bad_images_have_no_part_in_the_reference(wrong):
    truths = poses_drawn(24)
    images = [drawn("long", pose, seed=n) for n, pose in enumerate(truths)]
    for number in wrong:
        images[number] = drawn("square", Pose(10.0 * number), seed=number)
    alignment = aligned_to(images)
    good = [number for number in range(24) if number not in wrong]
    degrees, pixels, found = errors(alignment, [images[n] for n in good], [truths[n] for n in good])
    assert degrees.max() < 1
    assert pixels.max() < 0.7
    assert all(part.found for part in found)
    assert not alignment.find(images[wrong[0]]).found


def test_the_part_lies_in_the_frame_where_it_lies_on_average():
    """In the corner, that is, where it always lies there: the frame then covers what the images cover."""
    corner = [Pose(pose.angle, (25 + pose.shift[0], -20 + pose.shift[1])) for pose in poses_drawn(20, turn=8, shift=3)]
    images = [drawn("square", pose, seed=n) for n, pose in enumerate(corner)]
    alignment = aligned_to(images)
    shifts = np.array([alignment.find(image).pose.shift for image in images])
    assert np.abs(shifts.mean(axis=0)).max() < 3
    assert np.abs(shifts).max() < 8


def test_a_correlation_without_the_picture_is_that_with_the_mean_of_the_others():
    random = np.random.default_rng(0)
    pictures = random.normal(size=(7, 8, 8)) + 2 * random.normal(size=(8, 8))
    pictures /= np.linalg.norm(pictures, axis=(1, 2), keepdims=True)
    mean = pictures.mean(axis=0)
    for number, picture in enumerate(pictures):
        others = np.delete(pictures, number, axis=0).mean(axis=0)
        expected = (picture * others).sum() / np.linalg.norm(others)
        found = left_out((picture * mean).sum() / np.linalg.norm(mean), mean, 7)
        assert found == pytest.approx(expected, abs=1e-9)


# The field, and what is kept


@settings(max_examples=20, deadline=None)
@given(poses)
def test_what_an_image_covers_keeps_clear_of_its_border(pose):
    inside = ~outside(pose, 60, 80)
    seen = covered(pose, 60, 80)
    beyond = scipy.ndimage.distance_transform_cdt(inside, "chessboard") if not inside.all() else np.full((60, 80), 99)
    np.testing.assert_array_equal(seen, beyond > MARGIN)


def test_an_alignment_survives_json():
    images = [drawn("long", pose, seed=n) for n, pose in enumerate(poses_drawn(6))]
    one = aligned_to(images)
    one.field[:5] = False
    other = Alignment.from_dict(json.loads(json.dumps(one.to_dict())), 128, 128)
    assert one.find(images[0]) == other.find(images[0])
    np.testing.assert_array_equal(one.field, other.field)
    assert one.least == other.least
    values = one.to_dict()
    for name, bad in (("reference", "AAAA"), ("field", ""), ("angles", [1.0]), ("correlations", [float("nan")] * 6)):
        with pytest.raises(ValueError, match=r"poses|buffer|reshape|array"):
            Alignment.from_dict(values | {name: bad}, 128, 128)


def test_the_grid_has_one_scale_and_the_centre_of_its_image():
    """Else angles would bend, and turns move what lies in the middle."""
    for height, width in ((256, 256), (256, 352), (224, 480), (100, 90), (30, 20)):
        image = np.zeros((height, width, 3), dtype=np.uint8)
        image[height // 2 - 3 : height // 2 + 3, width // 2 - 3 : width // 2 + 3] = 200
        picture = grey(image)
        assert picture.shape[0] % 4 == picture.shape[1] % 4 == 0
        rows, columns = picture.shape
        middle = picture.sum(axis=1) @ np.arange(rows), picture.sum(axis=0) @ np.arange(columns)
        even = np.array([height % 2, width % 2]) * 0.5 * cells_per_pixel(height, width)
        expected = np.array([rows, columns]) / 2 - 0.5 - even
        np.testing.assert_allclose(np.array(middle) / picture.sum(), expected, atol=0.02)


# What pays


def wave(number):
    random = np.random.default_rng(number)
    x, y = np.meshgrid(np.arange(128), np.arange(128))
    image = 120 + 60 * np.sin(x / 3 + random.uniform(0, 6)) * np.sin(y / 3 + random.uniform(0, 6))
    return np.repeat(image[..., None], 3, axis=2).astype(np.uint8)


@pytest.mark.parametrize(
    ("shape", "turn", "shift", "expected"),
    [
        ("long", 180, 12, "rotate"),
        ("long", 20, 2, "rotate"),
        ("long", 0, 12, "shift"),
        ("long", 1, 1, "none"),
        ("round", 180, 12, "shift"),
        ("round", 180, 0, "none"),
        ("square", 180, 0, "rotate"),
    ],
)
def test_aligning_pays_where_poses_spread(shape, turn, shift, expected):
    images = [drawn(shape, pose, seed=n) for n, pose in enumerate(poses_drawn(24, turn=turn, shift=shift))]
    assert find_spread([grey(image) for image in images]).align == expected


def test_aligning_does_not_pay_for_textures_nor_for_few_images():
    assert find_spread([grey(wave(number)) for number in range(24)]).align == "none"
    assert find_spread([grey(drawn("long", pose)) for pose in poses_drawn(3)]).align == "none"
