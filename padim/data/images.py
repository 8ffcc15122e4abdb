"""Reading image files: what Pillow can, as 8-bit RGB, and nothing that a hostile file could exploit."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, features

from padim.errors import ImageError, first_line

# EPS, PDF and the like are left out: reading them starts other programs. Not every Pillow has AVIF.
FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF", "PPM", "JPEG2000", "TGA") + (
    ("AVIF",) if "avif" in features.get_supported() else ()
)

# Beyond this, an image whose shorter side is resized to the usual 256 pixels could fill the memory.
MAX_ASPECT = 100

# Of an image that pictures are drawn on: drawing takes some 40 bytes per pixel.
_MOST_PIXELS = 12_000_000


def read_image(path: Path) -> Image.Image:
    """An image in mode RGB, upright as its EXIF says; transparency is dropped, 16 bits become 8.

    Raises:
        ImageError: the file can't be read, is damaged, is a decompression bomb in Pillow's terms
            (over 179 million pixels), more than 100 times as long as wide, or has 32 bits per channel.
    """
    return read_with_size(path)[0]


def read_with_size(path: Path, least: int | None = None) -> tuple[Image.Image, tuple[int, int]]:
    """The same, and the width and height that it has in the file.

    With `least`, a JPEG is decoded at a half, a quarter or an eighth of its size, where no side gets shorter than that.

    Raises:
        ImageError: as `read_image`.
    """
    image, size = _open(path, least)
    return _in_rgb(path, image), size


def _in_rgb(path: Path, image: Image.Image) -> Image.Image:
    if image.mode == "F" or (image.mode == "I" and not 255 < np.asarray(image).max() < 65536):
        raise ImageError(f"{path}: 32-bit images have no fixed range: save it with 8 or 16 bits")
    if image.mode.startswith("I"):  # 16-bit grey: Pillow's own conversion would clip it
        grey = (np.asarray(image) >> 8).clip(0, 255).astype(np.uint8)
        return Image.fromarray(grey).convert("RGB")
    if "transparency" in image.info:
        image = image.convert("RGBA")
    return image if image.mode == "RGB" else image.convert("RGB")  # which would copy it


def read_mask(path: Path, frame: int | None = None) -> Image.Image:
    """A mask in mode L: 255 where the file has anything above 0 in any colour channel, else 0.

    With `frame`, the file is an `.npy` of masks `[frames, h, w]`.

    Raises:
        ImageError: as `read_image`.
    """
    mask = _open(path)[0] if frame is None else _one_of(path, frame)
    if mask.mode in ("I;16", "I", "F"):
        mask = Image.fromarray(np.asarray(mask) > 0)
    elif mask.mode not in ("1", "L"):
        mask = Image.fromarray(np.asarray(mask.convert("RGB")).max(axis=2))
    return mask.convert("L").point([0] + [255] * 255)


def read_size(path: Path) -> tuple[int, int]:
    """Width and height of an image, upright as its EXIF says, from the beginning of the file alone.

    Raises:
        ImageError: the file can't be read.
    """
    with _opened(path) as image:
        return _upright_size(image)


def drawable(image: Image.Image) -> Image.Image:
    """The image, or a whole fraction of its size, so that pictures of it fit into memory."""
    by = math.ceil(math.sqrt(image.width * image.height / _MOST_PIXELS))
    return image.reduce(by) if by > 1 else image


def _upright_size(image: Image.Image) -> tuple[int, int]:
    turned = image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
    return (image.height, image.width) if turned else image.size


def _open(path: Path, least: int | None = None) -> tuple[Image.Image, tuple[int, int]]:
    with _opened(path) as image:
        size = _upright_size(image)
        if least is not None:
            image.draft(None, (least, least))
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        return image, size


def _one_of(path: Path, frame: int) -> Image.Image:
    try:
        return Image.fromarray(np.load(path, mmap_mode="r", allow_pickle=False)[frame] > 0)
    except Exception as error:  # a damaged file can fail anywhere
        raise ImageError(f"can't read mask {frame} in {path}: {first_line(error)}") from error


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """An image whose pixels are not read yet; what is wrong with it within becomes an ImageError."""
    if not os.path.isfile(path) and os.path.exists(path):  # a pipe would be waited for; any name has an answer
        raise ImageError(f"{path} is not a regular file")
    try:
        with Image.open(path, formats=FORMATS) as image:
            if max(image.size) > MAX_ASPECT * min(image.size):
                raise ValueError(f"{image.width} x {image.height} pixels are too long and narrow to resize")
            yield image
    except Exception as error:  # a damaged file can fail anywhere in Pillow's readers
        raise ImageError(f"can't read the image {path}: {first_line(error)}") from error
