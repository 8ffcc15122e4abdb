"""The cards of the HTML report: an image, its anomaly map, and what was found in it."""

from __future__ import annotations

import base64
import html
import io
import math

import numpy as np
from PIL import Image

from padim.calibration import Thresholds
from padim.data.items import GOOD
from padim.evaluation.category import ImageResult
from padim.evaluation.metrics import Bools
from padim.evaluation.regions import anomalous_pixels
from padim.report.colours import ColourScale
from padim.report.overlay import border

# Class of a card -> what it says.
VERDICTS = {
    "missed": "missed defect",
    "false-alarm": "false alarm",
    "found": "found defect",
    "passed": "passed as normal",
    "undecided": "no threshold",
}

_TRUTH, _PREDICTION = (255, 255, 255), (0, 255, 255)
_LONGEST = 512  # pixels of a picture's longer side
_OBLONG = 1.5  # width by height from which image and map stand below each other


def wrongness(result: ImageResult, threshold: float | None) -> float:
    """How far a score lies on the wrong side of the threshold; the score itself where there is none."""
    if not result.found:
        return -math.inf if result.item.anomalous else math.inf
    if threshold is None:
        return result.score
    return threshold - result.score if result.item.anomalous else result.score - threshold


def card(result: ImageResult, scale: ColourScale, thresholds: Thresholds | None = None) -> str:
    """An image with its map as HTML; the script of the page reads the score and more from its attributes.

    Args:
        result: the scored image, which must carry its pixels.
        scale: the colours of the map.
        thresholds: what is anomalous; None for a training image, which gets no verdict.
    """
    verdict = _verdict(result, thresholds) if thresholds else ""
    pictures = _pictures(result, scale, thresholds or Thresholds())
    tags = {kind: _tag(kind, uri, result) for kind, uri in pictures.items()}
    views = [tags.pop("map", ""), "".join(tags.values())][::-1]
    defect = html.escape(result.item.defect or GOOD)
    ratio = (result.seen.right - result.seen.left) / (result.seen.bottom - result.seen.top)
    shape = " oblong" if ratio >= _OBLONG else ""
    return (
        f'<article class="card {verdict}{shape}" style="--ratio:{ratio:.4f}" data-defect="{defect}"'
        f' data-score="{result.score!r}"{"" if result.found else " data-lost"}>'
        f"<button>{''.join(f'<span class=view>{view}</span>' for view in views if view)}</button>"
        f'<div class="about">{_facts(result, verdict)}</div></article>'
    )


def _verdict(result: ImageResult, thresholds: Thresholds) -> str:
    """One of `VERDICTS`."""
    flagged = thresholds.is_anomalous(result.score, found=result.found)
    if flagged is None:
        return "undecided"
    if result.item.anomalous:
        return "found" if flagged else "missed"
    return "false-alarm" if flagged else "passed"


def _facts(result: ImageResult, verdict: str) -> str:
    """What there is to say of an image, in paragraphs."""
    score = f"score {result.score:.3f}"
    if verdict:
        kind = html.escape(str(result.item.defect)) if result.item.anomalous else "normal"
        score = f'<b class="verdict">{VERDICTS[verdict]}</b> {kind}, {score}'
    facts = [f"<b>{_name(result)}</b>", score]
    if result.part is not None:
        lost = "" if result.found else "no part found: "
        facts.append(f"{lost}{result.part.pose.angle:.1f} degrees, correlation {result.part.correlation:.2f}")
    if result.outside:
        facts.append("the defect lies outside what the model sees")
    return "".join(f"<p>{fact}</p>" for fact in facts)


def _name(result: ImageResult) -> str:
    return html.escape("/".join(result.item.path.parts[-2:]))


def _tag(kind: str, uri: str, result: ImageResult) -> str:
    alt = _name(result) if kind == "image" else ""
    return f'<img class="{kind}" loading="lazy" alt="{alt}" src="{uri}">'


def _pictures(result: ImageResult, scale: ColourScale, thresholds: Thresholds) -> dict[str, str]:
    """The pictures that there are of an image, by kind, each to be laid over the first one."""
    assert result.image is not None  # the evaluation was asked to keep it
    pictures = {"image": _data_uri(Image.fromarray(result.image))}
    if result.anomaly_map is not None:
        pictures["map"] = _data_uri(Image.fromarray(scale.colours(result.anomaly_map)))
    if result.mask is not None and result.mask.any():
        pictures["mask"] = _layer(result.mask, _TRUTH)
        pictures["truth"] = _layer(border(result.mask), _TRUTH)
    pixel, peak = thresholds.pixel_threshold, thresholds.threshold
    if result.anomaly_map is not None and pixel is not None and peak is not None:
        # The slider may make an image anomalous: then its highest region shows.
        predicted = anomalous_pixels(result.anomaly_map, pixel, min(peak, result.score))
        if predicted.any():
            pictures["predicted"] = _layer(border(predicted), _PREDICTION)
    return pictures


def _layer(pixels: Bools, colour: tuple[int, int, int]) -> str:
    """Pixels in a colour, with nothing in between."""
    picture = np.zeros((*pixels.shape, 4), dtype=np.uint8)
    picture[pixels] = (*colour, 255)
    return _data_uri(Image.fromarray(picture), lossless=True)


def _data_uri(picture: Image.Image, *, lossless: bool = False) -> str:
    picture.thumbnail((_LONGEST, _LONGEST))
    data = io.BytesIO()
    picture.save(data, format="WEBP", quality=80, lossless=lossless)
    return f"data:image/webp;base64,{base64.b64encode(data.getvalue()).decode()}"
