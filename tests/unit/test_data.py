from __future__ import annotations

import io
import os
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, features
from torchvision.transforms import InterpolationMode, v2

from padim import Config, PadimError
from padim.config import preset_path
from padim.data.images import read_image, read_mask, read_with_size
from padim.data.items import SUFFIXES, Item, collect_images
from padim.data.layouts import find_category
from padim.data.loader import ImageLoader, as_tensor, batched
from padim.data.transform import Box, Transform
from padim.detectors.registry import read_config
from padim.errors import ImageError


@pytest.fixture
def photo():
    random = np.random.default_rng(0)
    return Image.fromarray(random.integers(0, 256, (90, 123, 3), dtype=np.uint8))


# Which files are images


def test_inputs_are_collected_once_and_named_apart(tmp_path):
    names = ("in/b/1.png", "in/b/1.jpg", "in/a/1.png", "in/none/x.txt", "in/out/9.png", "in/2.bmp")
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    os.symlink(tmp_path / "in", tmp_path / "in/a/loop")
    found = collect_images([tmp_path / "in/2.bmp", tmp_path / "in"], tmp_path / "in/out")
    assert {str(path.relative_to(tmp_path)): str(name) for path, name in found.items()} == {
        "in/2.bmp": "2",
        "in/a/1.png": "a/1",
        "in/b/1.jpg": "b/1.jpg",
        "in/b/1.png": "b/1.png",
    }
    with pytest.raises(PadimError, match=r"no image or folder .*nowhere"):
        collect_images([tmp_path / "nowhere"], tmp_path)
    with pytest.raises(PadimError, match="no images in"):
        collect_images([tmp_path / "in/none"], tmp_path / "in/out")
    for inside in ("in/2.bmp", "in/b", "in"):
        with pytest.raises(PadimError, match=r"in .*/in, where the results go: choose another folder"):
            collect_images([tmp_path / inside], tmp_path / "in")
    (tmp_path / "in/out/link.bmp").symlink_to(tmp_path / "in/2.bmp")  # as results that are sorted have them
    assert [*collect_images([tmp_path / "in/out/link.bmp"], tmp_path / "in/out")] == [tmp_path / "in/out/link.bmp"]


def test_no_name_without_a_suffix_is_another_ones_with_it(tmp_path):
    images = [tmp_path / name for name in ("a.png", "a.jpg", "a.png.png", "b.png")]
    for image in images:
        image.touch()
    assert [*map(str, collect_images(images).values())] == ["a.png", "a.jpg", "a.png.png", "b"]


# Reading them


def saved(image, path, **options):
    image.save(path, **options)
    return path


@pytest.mark.skipif("avif" not in features.get_supported(), reason="this Pillow has no AVIF")
def test_every_suffix_that_is_found_can_be_read(tmp_path):
    image = Image.fromarray(np.full((40, 60, 3), (200, 100, 50), dtype=np.uint8))
    for suffix in sorted(SUFFIXES):
        stored = image.convert("L") if suffix == ".pgm" else image
        found = read_image(saved(stored, tmp_path / f"image{suffix}"))
        assert (found.mode, found.size) == ("RGB", (60, 40))
        np.testing.assert_allclose(np.asarray(found), np.asarray(stored.convert("RGB")), atol=12)


def test_modes_become_rgb(photo, tmp_path):
    grey = photo.convert("L")
    cases = {
        "rgb.png": (photo, photo),
        "grey.png": (grey, grey.convert("RGB")),
        "bits.png": (grey.convert("1"), grey.convert("1").convert("RGB")),
        "palette.png": (photo.quantize(16), photo.quantize(16).convert("RGB")),
        "rgba.png": (photo.convert("RGBA"), photo),
        "grey alpha.png": (photo.convert("LA"), grey.convert("RGB")),
        "photo.bmp": (photo, photo),
        "photo.tif": (photo, photo),
        "photo.webp": (photo, photo),
    }
    for name, (stored, expected) in cases.items():
        path = saved(stored, tmp_path / name, **({"lossless": True} if name.endswith("webp") else {}))
        found = read_image(path)
        assert found.mode == "RGB"
        assert np.array_equal(np.asarray(found), np.asarray(expected)), name


def test_cmyk_and_jpeg(photo, tmp_path):
    smooth = photo.resize((6, 5)).resize((123, 90), Image.Resampling.BICUBIC)
    for mode in ("RGB", "CMYK"):
        path = saved(smooth.convert(mode), tmp_path / f"{mode}.jpg", quality=95)
        difference = np.asarray(read_image(path)).astype(int) - np.asarray(smooth)
        assert abs(difference).mean() < 3, mode


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bits_keep_their_upper_half_instead_of_being_clipped(tmp_path, suffix):
    values = np.arange(0, 65536, 7, dtype=np.uint16)[: 90 * 100].reshape(90, 100)
    found = np.asarray(read_image(saved(Image.fromarray(values), tmp_path / f"deep.{suffix}")))
    assert np.array_equal(found, np.repeat((values // 256)[..., None], 3, axis=2))


def test_exif_rotation_is_undone(photo, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # shot with the camera turned: rotate by 90 degrees clockwise to see it upright
    path = saved(photo, tmp_path / "turned.png", exif=exif)
    expected = np.asarray(photo.transpose(Image.Transpose.ROTATE_270))
    assert np.array_equal(np.asarray(read_image(path)), expected)


@settings(max_examples=40, deadline=None)
@given(size=st.tuples(st.integers(8, 400), st.integers(8, 400)), least=st.integers(1, 300), turned=st.booleans())
def test_a_jpeg_is_decoded_at_the_smallest_fraction_that_is_large_enough(tmp_path_factory, size, least, turned):
    path, exif = tmp_path_factory.mktemp("reduced") / "photo.jpg", Image.Exif()
    exif[0x0112] = 6 if turned else 1
    x, y = np.meshgrid(np.linspace(100, 150, size[0]), np.linspace(150, 100, size[1]))
    saved(Image.fromarray(np.stack([x, y, (x + y) / 2], axis=2).astype(np.uint8)), path, quality=95, exif=exif)
    whole = read_image(path)
    assert whole.size == (size[::-1] if turned else size)
    by = max(by for by in (1, 2, 4, 8) if by == 1 or min(size) // by >= least)
    found, in_file = read_with_size(path, least)
    assert in_file == whole.size
    assert found.size == (-(-whole.width // by), -(-whole.height // by))
    np.testing.assert_allclose(np.asarray(found), np.asarray(whole.reduce(by)), atol=10)
    saved(whole, path.with_suffix(".png"))
    assert read_with_size(path.with_suffix(".png"), least)[0].size == whole.size


@pytest.mark.parametrize(
    "content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n" + bytes(50), b"%!PS-Adobe-3.0 EPSF-3.0\n"]
)
def test_what_is_no_image_is_an_image_error_with_its_path(tmp_path, content):
    (tmp_path / "bad.png").write_bytes(content)
    with pytest.raises(ImageError, match=r"bad\.png"):
        read_image(tmp_path / "bad.png")
    with pytest.raises(ImageError, match="No such file"):
        read_image(tmp_path / "nowhere.png")


@settings(max_examples=40, deadline=None)
@given(data=st.data(), kind=st.sampled_from(["PNG", "JPEG", "BMP", "TIFF", "GIF"]))
def test_damaged_images_never_raise_anything_else(tmp_path_factory, data, kind):
    buffer = io.BytesIO()
    Image.fromarray(np.arange(300, dtype=np.uint8).reshape(10, 10, 3)).save(buffer, kind)
    content = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(1, 5))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("damaged") / "image"
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        assert read_image(path).mode == "RGB"
    except ImageError as error:
        assert str(path) in str(error)


def test_truncated_images_are_refused_not_padded(photo, tmp_path):
    path = saved(photo, tmp_path / "photo.png")
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(ImageError, match="truncated"):
        read_image(path)


def test_decompression_bombs_and_splinters_are_refused(tmp_path, monkeypatch):
    path = saved(Image.new("1", (20_000, 100)), tmp_path / "long.png")
    with pytest.raises(ImageError, match="20000 x 100 pixels are too long"):
        read_image(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ImageError, match="exceeds limit"):
        read_image(path)


def test_floating_point_images_are_refused(tmp_path):
    path = saved(Image.new("F", (8, 8)), tmp_path / "float.tif")
    with pytest.raises(ImageError, match="save it with 8 or 16 bits"):
        read_image(path)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "I;16"])
def test_anything_above_zero_in_a_mask_is_defect(tmp_path, mode):
    values = np.array([[0, 1, 0], [253, 0, 255]], dtype=np.uint8)
    if mode == "RGB":
        stored = Image.fromarray(np.stack([values * 0, values * 0, values], axis=2))  # blue alone
    elif mode == "I;16":
        stored = Image.fromarray(values.astype(np.uint16))
    elif mode == "1":
        stored = Image.fromarray(values > 0)
    else:
        stored = Image.fromarray(values).convert(mode)
    found = np.asarray(read_mask(saved(stored, tmp_path / "mask.png")))
    assert np.array_equal(found, np.where(values > 0, 255, 0))


# Resizing them


@pytest.mark.parametrize("preset", ["pytorch-r18", "paddle-r18", "mindspore-wr50", "anomalib-r18", "paper-r18"])
@pytest.mark.parametrize("size", [(300, 300), (301, 407), (533, 280), (100, 64), (224, 224)], ids=str)
def test_transforms_are_torchvisions(preset, size):
    config = read_config(preset_path(preset))
    resize = list(config.resize) if len(config.resize) == 2 else config.resize[0]
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    mask = Image.fromarray(np.asarray(image)[..., 0] // 128 * 255)
    transform = Transform.of(config)
    for picture, interpolation, found in (
        (image, config.interpolation, transform.image(image)),
        (mask, config.mask_interpolation, transform.mask(mask)),
    ):
        expected = v2.Resize(resize, interpolation=InterpolationMode(interpolation))(picture)
        if config.crop:
            expected = v2.CenterCrop(config.crop[0])(expected)
        assert np.array_equal(np.asarray(found), np.asarray(expected))


def test_masks_of_paddle_are_cast_to_whole_numbers(tmp_path):
    drawn = np.zeros((300, 400), dtype=np.uint8)
    drawn[101:167, 150:233] = 255
    Image.fromarray(drawn).save(tmp_path / "mask.png")
    Image.fromarray(np.stack([drawn] * 3, axis=2)).save(tmp_path / "image.png")
    item, config = Item(tmp_path / "image.png", "hole", tmp_path / "mask.png"), read_config(preset_path("paddle-r18"))
    (sample,) = ImageLoader([item], Transform.of(config), workers=1)
    resized = v2.CenterCrop(224)(v2.Resize(256, interpolation=InterpolationMode.BILINEAR)(Image.fromarray(drawn)))
    assert np.array_equal(sample.mask, (np.asarray(resized) / 255).astype(np.int32) == 1)
    (default,) = ImageLoader([item], Transform.of(replace(config, mask_threshold=1)), workers=1)
    assert default.mask.sum() > sample.mask.sum() > 0


def test_poses_turn_and_crop_image_and_mask_alike_and_come_back(photo):
    transform = Transform.of(replace(Config(), rotation=10.0))
    assert Transform.of(Config()).posed(Path("a/b/c.png")) == Transform.of(Config())
    paths = [Path(f"data/bottle/test/hole/{number}.png") for number in range(200)]
    poses = [transform.posed(path) for path in paths]
    assert poses == [transform.posed(Path("elsewhere") / path) for path in paths]
    assert poses != [replace(transform, seed=1).posed(path) for path in paths]
    angles = np.array([pose.angle for pose in poses])
    places = np.array([pose.place for pose in poses])
    assert -10 <= angles.min() < -9
    assert 9 < angles.max() <= 10
    assert 0 <= places.min() < 0.1
    assert 0.9 < places.max() <= 1
    spot = np.zeros((300, 300), dtype=np.uint8)
    spot[120:170, 140:180] = 255
    image, mask = Image.fromarray(spot).convert("RGB"), Image.fromarray(spot)
    for pose in poses[:5]:
        seen, truth = np.asarray(pose.image(image))[..., 0] > 127, np.asarray(pose.mask(mask)) > 127
        assert seen.shape == truth.shape == (224, 224)
        assert (seen == truth).mean() > 0.99
        assert truth.sum() == pytest.approx(50 * 40 * (256 / 300) ** 2, rel=0.05)


def test_what_the_model_sees_of_an_image():
    transform = Transform.of(Config())
    assert transform.seen(256, 256) == Box(16, 16, 240, 240)
    assert transform.seen(1024, 512) == Box(288, 32, 736, 480)
    assert Transform.of(replace(Config(), resize=(300, 600), crop=())).seen(50, 70) == Box(0, 0, 50, 70)


# Batches of them


def test_samples_come_in_order_with_masks(data_root):
    items = find_category(data_root, "texture").test
    transform = Transform((64,), (48, 48), "lanczos", "nearest")
    loader = ImageLoader(items, transform, workers=3)
    samples = list(loader)
    assert [sample.item for sample in samples] == items
    assert (loader.skipped, loader.unmasked, len(loader)) == (0, 0, len(items))
    for item, sample in zip(items, samples):
        expected = np.asarray(Image.open(item.path))[8:56, 8:56]
        assert np.array_equal(sample.image, expected)
        truth = np.asarray(Image.open(item.mask))[8:56, 8:56] > 0 if item.mask else np.zeros((48, 48), bool)
        assert np.array_equal(sample.mask, truth)
        assert sample.original is None
    batches = [as_tensor(batch) for batch in batched(samples, 5)]
    assert [len(batch) for batch in batches] == [5, 5, 4]
    assert np.array_equal(torch.cat(batches)[3].permute(1, 2, 0), samples[3].image)


def test_a_sample_of_a_reduced_jpeg_has_the_size_and_the_mask_of_the_whole(photo, tmp_path):
    smooth = photo.resize((6, 5)).resize((803, 600), Image.Resampling.BICUBIC)
    image = saved(smooth, tmp_path / "photo.jpg", quality=95)
    mask = Image.new("L", (803, 600))
    mask.paste(255, (200, 300, 400, 500))
    item, config = Item(image, "hole", saved(mask, tmp_path / "mask.png")), Config(resize=(100, 250), crop=())
    (whole,) = ImageLoader([item], Transform.of(config), workers=1, keep_originals=True)
    reduced = replace(config, decode="reduced")
    (sample,) = ImageLoader([item], Transform.of(reduced), workers=1, keep_originals=True, strict=True)
    assert (whole.original.size, sample.original.size) == ((803, 600), (402, 300))
    assert sample.size == whole.size == (803, 600)
    assert np.array_equal(sample.mask, whole.mask)
    assert abs(sample.image.astype(int) - whole.image).mean() < 5


@pytest.fixture
def broken(tmp_path, photo):
    """Items of which one image is damaged, two masks missing, one damaged and one of another shape."""
    good = saved(photo, tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"bad")
    narrow = saved(Image.new("L", (20, 90)), tmp_path / "narrow.png")
    smaller = saved(Image.new("L", (41, 30), 255), tmp_path / "smaller.png")
    return [
        Item(tmp_path / "bad.png", "good"),
        Item(good, "hole", tmp_path / "hole_mask.png"),
        Item(good, "hole", tmp_path / "bad.png"),
        Item(good, "hole", narrow),
        Item(good, "hole", smaller),
        Item(good),
        Item(good, "hole"),
    ]


def test_what_cannot_be_used_is_named_and_counted_and_costs_nothing_else(broken, caplog):
    loader = ImageLoader(broken, Transform.of(Config()), workers=2)
    samples = list(loader)
    assert [sample.item for sample in samples] == broken[1:]
    assert (loader.skipped, loader.unmasked) == (1, 4)
    assert [sample.mask is None for sample in samples] == [True, True, True, False, True, True]
    assert samples[3].mask.all()
    for text in ("bad.png", "hole_mask.png", "narrow.png is 20 x 90"):
        assert text in caplog.text


def test_an_image_that_stops_the_run_costs_none_of_those_before_it(photo, tmp_path):
    good = saved(photo, tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"bad")
    items, batches = [*[Item(good)] * 5, Item(tmp_path / "bad.png"), Item(good)], []
    loader = ImageLoader(items, Transform.of(Config()), workers=2, strict=True)
    with pytest.raises(ImageError, match=r"bad\.png"):
        batches.extend(len(batch) for batch in batched(loader, 3))
    assert batches == [3, 2]
    assert [*batched(range(6), 3)] == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize(("number", "message"), [(0, "bad.png"), (1, "hole_mask.png"), (3, "narrow.png")])
def test_strict_stops_at_the_first_problem(broken, number, message):
    loader = ImageLoader(broken[number:], Transform.of(Config()), workers=2, strict=True)
    with pytest.raises(ImageError, match=message):
        list(loader)


def test_a_loader_that_is_left_early_stops_reading(data_root):
    loader = ImageLoader(
        find_category(data_root, "texture").train, Transform((64,), (64, 64), "nearest", "nearest"), workers=2
    )
    before = threading.active_count()
    iterator = iter(loader)
    next(iterator)
    iterator.close()
    assert threading.active_count() == before
