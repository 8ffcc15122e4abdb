"""An image with its anomaly map laid over it, pixel for pixel, and a colour bar."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

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


class Canvas(NamedTuple):
    """What pictures of a prediction are drawn on.

    Attributes:
        image: RGB, of the size of the file's image or a whole fraction of it.
        seen: the part of it that the network has seen, in its own pixels.
        anomaly_map: `[h, w]`, covering that part.
    """

    image: Image.Image
    seen: Box
    anomaly_map: NDArray[np.float32]


def overlay(prediction: Prediction, scale: ColourScale) -> Image.Image:
    """The image under its heatmap; what the network has not seen is grey, and the border between them framed.

    Args:
        prediction: of an image with its original, from a model with maps.
        scale: the colours.
    """
    image, seen, a_map = drawn_on(prediction)
    result = Image.blend(image, Image.new("RGB", image.size, GREY), _OPACITY)
    part = image.crop(seen)
    result.paste(heatmap(part, a_map, scale), seen[:2])
    if part.size != image.size:
        ImageDraw.Draw(result).rectangle((seen.left - 1, seen.top - 1, seen.right, seen.bottom), outline=GREY)
    _draw_colour_bar(result, scale)
    return result


def drawn_on(prediction: Prediction) -> Canvas:
    """What pictures of a prediction are drawn on, which has its original, from a model with maps."""
    sample, seen, a_map = prediction.sample, prediction.seen, prediction.anomaly_map
    assert sample is not None
    assert sample.original is not None
    assert seen is not None
    assert a_map is not None
    image = sample.original
    by = round(max(sample.size) / max(image.size))  # it may have been read, or kept, at a fraction of its size
    left, top, right, bottom = seen.left // by, seen.top // by, -(-seen.right // by), -(-seen.bottom // by)
    return Canvas(image, Box(left, top, right, bottom), a_map)


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
