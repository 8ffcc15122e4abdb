"""An image with its anomaly map laid over it, pixel for pixel, and a colour bar."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import scipy.ndimage
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from padim.data.transform import Box
from padim.evaluation.regions import anomalous_pixels
from padim.report.colours import GREY, ColourScale

if TYPE_CHECKING:
    from padim.pipeline.predict import Prediction


_OPACITY = 0.5

# Of a picture: drawing it takes some 40 bytes per pixel.
_MOST_PIXELS = 12_000_000


def overlay(image: Image.Image, anomaly_map: NDArray[np.floating], seen: Box, scale: ColourScale) -> Image.Image:
    """The image at its own size, or a whole fraction of it if it is very large, under its heatmap.

    Args:
        image: RGB, any size.
        anomaly_map: `[h, w]`, covering the part of the image that the network has seen; NaN becomes grey.
        seen: that part, in pixels of the image; it is framed where it is not the whole image, and the rest is grey.
        scale: the colours.
    """
    by = reduction(image.size)
    if by > 1:
        image, seen = image.reduce(by), reduced(seen, by)
    result = Image.blend(image, Image.new("RGB", image.size, GREY), _OPACITY)
    part = image.crop(seen)
    result.paste(heatmap(part, anomaly_map, scale), seen[:2])
    if part.size != image.size:
        ImageDraw.Draw(result).rectangle((seen.left - 1, seen.top - 1, seen.right, seen.bottom), outline=GREY)
    _draw_colour_bar(result, scale)
    return result


def reduction(size: tuple[int, int]) -> int:
    """What the sides of an image of a width and height are divided by, so that pictures of it fit into memory."""
    return math.ceil(math.sqrt(size[0] * size[1] / _MOST_PIXELS))


def reduced(box: Box, by: int) -> Box:
    """A part of an image whose sides are divided by a number; never empty."""
    left, top, right, bottom = box.left // by, box.top // by, -(-box.right // by), -(-box.bottom // by)
    return Box(left, top, right, bottom)


def heatmap(image: Image.Image, anomaly_map: NDArray[np.floating], scale: ColourScale) -> Image.Image:
    """An image under the colours of an anomaly map `[h, w]` that covers all of it."""
    stretched = Image.fromarray(anomaly_map.astype(np.float32)).resize(image.size, Image.Resampling.BILINEAR)
    return Image.blend(image, Image.fromarray(scale.colours(np.asarray(stretched))), _OPACITY)


def predicted_mask(prediction: Prediction, size: tuple[int, int]) -> NDArray[np.bool_] | None:
    """Where what the model sees of an image is anomalous, in so many pixels across and down: `[down, across]`.

    None for an image that is not anomalous, and where nothing tells from where on a pixel is.
    """
    a_map, pixel, peak = prediction.anomaly_map, prediction.thresholds.pixel_threshold, prediction.thresholds.threshold
    if prediction.verdict != "anomalous" or a_map is None or pixel is None or peak is None:
        return None
    others = (a_map >= pixel) & ~anomalous_pixels(a_map, pixel, peak)
    kept = Image.fromarray(np.where(others, np.float32(0), np.nan_to_num(a_map)))
    reached: NDArray[np.bool_] = np.asarray(kept.resize(size, Image.Resampling.BILINEAR)) >= pixel
    return reached


def outline(image: Image.Image, truth: NDArray[np.bool_] | None, predicted: NDArray[np.bool_] | None) -> Image.Image:
    """The image with the borders of two masks `[h, w]`: ground truth white, prediction cyan."""
    pixels = np.array(image)
    for mask, colour in ((truth, (255, 255, 255)), (predicted, (0, 255, 255))):
        if mask is not None:
            pixels[border(mask)] = colour
    return Image.fromarray(pixels)


def border(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The pixels on both sides of the edge of a mask `[h, w]`."""
    edge: NDArray[np.bool_] = scipy.ndimage.binary_dilation(mask) & ~scipy.ndimage.binary_erosion(mask, border_value=1)
    return edge


def _draw_colour_bar(image: Image.Image, scale: ColourScale) -> None:
    """A bar at the right edge, half the image's height, with the distances of its ends and its middle."""
    width, height = max(2, image.width // 50), max(2, image.height // 2)
    right, top = image.width - width // 2, (image.height - height) // 2
    ramp = scale.colours(np.linspace(scale.high, scale.low, height))
    bar = Image.fromarray(np.repeat(ramp[:, None], width, axis=1))
    image.paste(bar, (right - width, top))
    draw = ImageDraw.Draw(image)
    draw.rectangle((right - width - 1, top - 1, right, top + height), outline="white")
    font = ImageFont.load_default(max(8, image.height // 50))
    for value, at in ((scale.high, 0.0), ((scale.low + scale.high) / 2, 0.5), (scale.low, 1.0)):
        where = (right - width * 1.5, top + at * height)
        draw.text(where, f"{value:.3g}", font=font, anchor="rm", fill="white", stroke_width=1, stroke_fill="black")
