"""The size of what the network sees, and masks over the training images."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from conftest import SMALL
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from padim import Config, CutPasteConfig, PadimError
from padim.data.images import read_image, read_size
from padim.data.items import Item
from padim.data.loader import ImageLoader
from padim.data.transform import Transform
from padim.errors import ImageError
from padim.pipeline.size import describe_crop, describe_size, ignored_pixels, in_own_proportions


def photos(folder, *sizes):
    items = []
    for number, size in enumerate(sizes):
        Image.new("RGB", size, "grey").save(folder / f"{number}.png")
        items.append(Item(folder / f"{number}.png", "good"))
    return items


@given(st.integers(60, 4000), st.integers(60, 4000))
def test_whole_images_keep_their_proportions(width, height):
    items = [Item(f"{width} x {height}", "good")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("padim.pipeline.size.read_size", lambda path: (width, height))
        for config in (Config(), Config(layers=("layer4",)), CutPasteConfig()):
            found = in_own_proportions(config, items)
            rows, columns = found.image_size
            stride = 16 if config == Config() else 32
            assert (rows % stride, columns % stride, found.crop) == (0, 0, ())
            if 1 / 5 < width / height < 5:
                assert rows / columns == pytest.approx(height / width, rel=0.07)
                assert 256**2 / 2 <= rows * columns <= 2 * 256**2
                assert describe_crop(found, items) is None


def test_several_sizes_are_said(tmp_path):
    items = photos(tmp_path, (320, 160), (320, 160), (640, 320))
    config = in_own_proportions(SMALL, items)
    assert config.image_size == (176, 352)
    assert describe_size(config, items).startswith("images of 2 sizes, mostly 320 x 160 pixels are seen whole, resized")
    (tmp_path / "0.png").write_bytes(b"bad")
    assert in_own_proportions(SMALL, items[:1]) == SMALL  # the training will say that nothing can be read


def test_a_protocol_that_crops_much_is_told(tmp_path):
    default = Config()
    assert "sees 77% of the images" in describe_crop(default, photos(tmp_path, (512, 512)))
    assert "sees 38% of the images" in describe_crop(default, photos(tmp_path, (600, 300)))
    assert "with --size 176 352 sees" in describe_crop(default, photos(tmp_path, (600, 300)))
    assert describe_crop(replace(default, crop=(240,)), photos(tmp_path, (300, 300))) is None


def test_sizes_are_those_of_upright_images(tmp_path):
    image = Image.new("RGB", (30, 20))
    exif = image.getexif()
    for orientation in range(1, 9):
        exif[0x0112] = orientation
        image.save(tmp_path / "photo.jpg", exif=exif)
        assert read_size(tmp_path / "photo.jpg") == read_image(tmp_path / "photo.jpg").size
    (tmp_path / "photo.jpg").write_bytes(b"bad")
    with pytest.raises(ImageError, match=r"photo\.jpg"):
        read_size(tmp_path / "photo.jpg")


@pytest.mark.parametrize(
    ("size", "interpolation"), [((200, 120), "lanczos"), ((200, 120), "bilinear"), ((48, 40), "bicubic")]
)
def test_resized_images_depend_on_marked_pixels_only_where_they_are_ignored(tmp_path, size, interpolation):
    random = np.random.default_rng(0)
    marks = np.zeros(size[::-1], dtype=np.uint8)
    marks[15:27, 20:33] = 200
    Image.fromarray(marks).save(tmp_path / "mask.png")
    transform = Transform.of(replace(SMALL, resize=(64, 96), crop=(), interpolation=interpolation))
    ignored = ignored_pixels(tmp_path / "mask.png", photos(tmp_path, size), transform)
    assert 0 < ignored.mean() < 0.5
    plain = random.integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    for _ in range(3):
        other = np.where(marks[..., None] > 0, random.integers(0, 256, plain.shape, dtype=np.uint8), plain)
        one, two = (np.asarray(transform.image(Image.fromarray(pixels))) for pixels in (plain, other))
        changed = (one != two).any(axis=2)
        assert changed.any()
        assert not (changed & ~ignored).any()


def test_masks_of_another_size_are_refused(tmp_path):
    Image.new("L", (30, 60), 255).save(tmp_path / "mask.png")
    with pytest.raises(PadimError, match=r"mask\.png is 30 x 60 pixels, the training images are 60 x 30"):
        ignored_pixels(tmp_path / "mask.png", photos(tmp_path, (60, 30), (60, 30), (90, 90)), Transform.of(SMALL))


# Defects that are not seen


@pytest.mark.parametrize(
    ("where", "outside"),
    [((5, 5, 20, 20), True), ((95, 45, 100, 50), False), ((100, 50, 101, 51), False), (None, False)],
)
def test_defects_outside_of_the_crop_are_known(tmp_path, where, outside):
    """Images of 200 x 100 pixels, of which the middle is seen; one pixel in it is lost in the resize, yet was seen."""
    Image.new("RGB", (200, 100)).save(tmp_path / "image.png")
    mask = Image.new("L", (200, 100))
    if where:
        mask.paste(255, where)
    mask.save(tmp_path / "mask.png")
    item = Item(tmp_path / "image.png", "scratch", tmp_path / "mask.png")
    (sample,) = ImageLoader([item], Transform.of(replace(SMALL, resize=(32,), crop=(32,))), workers=1)
    assert sample.outside == outside
