"""Image, heatmap, masks and contours side by side."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from padim.poses.alignment import PartPose
from padim.report.colours import ColourScale
from padim.report.overlay import drawn_on, heatmap, outline, predicted_mask

if TYPE_CHECKING:
    from padim.pipeline.predict import Prediction

# The longest side of each picture, the space around it and the height of a line of text, in pixels.
_SIDE, _SPACE, _LINE = 320, 8, 20


def panel(title: str, prediction: Prediction, scale: ColourScale) -> Image.Image:
    """A row of what there is of five pictures, each with a caption, under the title and the verdict.

    They show the part of the image that the model sees, in its own proportions. Contours of the prediction are those
    of the verdict: a normal image has none.

    Args:
        title: a name of the image.
        prediction: of an image with its original, from a model with maps.
        scale: the colours.
    """
    pictures, heading = _pictures(prediction, scale), f"{title}: {_verdict(prediction)}"
    font = ImageFont.load_default(13)
    widths = [max(picture.width, math.ceil(font.getlength(caption))) for caption, picture in pictures.items()]
    height = 2 * _LINE + 2 * _SPACE + next(iter(pictures.values())).height
    width = max(sum(widths) + _SPACE * len(widths), math.ceil(font.getlength(heading)) + _SPACE) + _SPACE
    row = Image.new("RGB", (width, height), "white")
    draw, left = ImageDraw.Draw(row), _SPACE
    draw.text((left, _SPACE // 2), heading, font=font, fill="black")
    for (caption, picture), taken in zip(pictures.items(), widths, strict=True):
        draw.text((left, _LINE + _SPACE // 2), caption, font=font, fill="dimgrey")
        row.paste(picture, (left, 2 * _LINE + _SPACE))
        left += taken + _SPACE
    return row


def _verdict(prediction: Prediction) -> str:
    threshold = prediction.thresholds.threshold
    if threshold is None:
        return f"score {prediction.score:.4g}, no threshold"
    return f"{prediction.verdict}, score {prediction.score:.4g}, threshold {threshold:.4g}"


def _pictures(prediction: Prediction, scale: ColourScale) -> dict[str, Image.Image]:
    """The pictures by their captions, of one size."""
    original, seen, a_map = drawn_on(prediction)
    mask = prediction.sample.mask if prediction.sample else None
    width, height = seen.right - seen.left, seen.bottom - seen.top
    larger = _SIDE / max(width, height)
    size = max(1, round(width * larger)), max(1, round(height * larger))
    image = original.resize(size, Image.Resampling.BILINEAR, box=seen, reducing_gap=3.0)
    truth = None if mask is None else np.asarray(Image.fromarray(mask).resize(size))
    predicted = predicted_mask(prediction, size)
    pictures = {"image": image, "anomaly map": heatmap(image, a_map, scale)}
    if prediction.part is not None:
        pose = prediction.part
        found = "" if pose.found else ", not found"
        caption = f"{pose.pose.angle:.1f} degrees, correlation {pose.correlation:.2f}{found}"
        pictures = {caption: _with_pose(image, pose, a_map.shape), "anomaly map": pictures["anomaly map"]}
    if truth is not None:
        pictures["ground truth"] = Image.fromarray(truth).convert("RGB")
    if predicted is not None:
        pictures["predicted mask"] = Image.fromarray(predicted).convert("RGB")
    named = {"truth white": truth, "prediction cyan": predicted}
    if any(mask is not None for mask in named.values()):
        caption = ", ".join(name for name, mask in named.items() if mask is not None)
        pictures[f"contours: {caption}"] = outline(image, truth, predicted)
    return pictures


def _with_pose(image: Image.Image, part: PartPose, shape: tuple[int, ...]) -> Image.Image:
    """The border of the reference's frame where it lies in an image, and a line from its middle to its upper side."""
    height, width = shape
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1], [-1, -1]]) * (width / 2, height / 2)
    upwards = np.array([[0, 0], [0, -height / 2]])
    drawn, scale = image.copy(), (image.width / width, image.height / height)
    for points in (corners, upwards):
        placed = (points @ part.pose.rotation.T + part.pose.shift + (width / 2, height / 2)) * scale
        ImageDraw.Draw(drawn).line([*map(tuple, placed.tolist())], fill="lime" if part.found else "red", width=2)
    return drawn
