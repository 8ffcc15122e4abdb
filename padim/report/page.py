"""One self-contained HTML page of an evaluation: figures, curves, and every image with what was found in it."""

from __future__ import annotations

import base64
import dataclasses
import html
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from padim.calibration import Thresholds
from padim.data.items import GOOD
from padim.detectors.scores import Scorer
from padim.evaluation.category import Evaluation, ImageResult
from padim.evaluation.metrics import Curve, Floats, Metrics, pro_curve, seen_pixels
from padim.report.colours import ColourScale
from padim.report.figures import as_svg, embedding_figure, histogram_figure, pro_figure, roc_figure, save_figure
from padim.report.overlay import outline
from padim.storage.files import write_text

# Class of a card -> what it says.
_VERDICTS = {
    "missed": "missed defect",
    "false-alarm": "false alarm",
    "found": "found defect",
    "passed": "passed as normal",
    "undecided": "no threshold",
}
_CALIBRATED = (
    "Sorted by how wrong the verdict is. Both thresholds were calibrated on normal images of the training set; the"
    " largest F1 in the table has seen the answers."
)
_F1 = (
    "Sorted by how wrong the verdict is. Both thresholds are those of the largest F1 on these very images: they have"
    " seen the answers."
)
_NO_THRESHOLD = "Without normal and defective images there is no threshold; sorted by score."
_THUMBNAIL = 256  # pixels


def report_page(
    title: str,
    summary: Mapping[str, str],
    figures: Mapping[str, str],
    results: Sequence[ImageResult],
    threshold: float | None,
    pixel_threshold: float | None,
    scale: ColourScale,
    note: str,
) -> str:
    """The page as text.

    Args:
        title: its heading.
        summary: names and values of the table at the top.
        figures: captions and SVG elements.
        results: the scored images, which must carry their pixels; the most wrong ones are shown first.
        threshold: image score from which an image is called anomalous, where there is one.
        pixel_threshold: distance from which a pixel is, for the predicted contours.
        scale: the colours of all heatmaps.
        note: what the reader has to know about the thresholds.
    """
    ordered = sorted(results, key=lambda result: -_wrongness(result, threshold))
    defects = sorted({str(result.item.defect) for result in results})
    verdicts = [key for key in _VERDICTS if any(_verdict(result, threshold) == key for result in results)]
    rows = (f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>" for name, value in summary.items())
    pictures = (f"<figure><figcaption>{html.escape(name)}</figcaption>{svg}</figure>" for name, svg in figures.items())
    page = Template(Path(__file__).with_name("page.html").read_text(encoding="utf-8"))
    return page.substitute(
        title=html.escape(title),
        summary=f"<table>{''.join(rows)}</table>",
        figures="\n".join(pictures),
        note=html.escape(note),
        defects="".join(f"<option>{html.escape(defect)}</option>" for defect in defects),
        verdicts="".join(f'<option value="{key}">{_VERDICTS[key]}</option>' for key in verdicts),
        cards="\n".join(_card(result, threshold, pixel_threshold, scale) for result in ordered),
    )


def _wrongness(result: ImageResult, threshold: float | None) -> float:
    """How far a score lies on the wrong side of the threshold; the score itself where there is none."""
    if not result.found:
        return -math.inf if result.item.anomalous else math.inf
    if threshold is None:
        return result.score
    return threshold - result.score if result.item.anomalous else result.score - threshold


def _verdict(result: ImageResult, threshold: float | None) -> str:
    flagged = Thresholds(threshold).is_anomalous(result.score, found=result.found)
    if flagged is None:
        return "undecided"
    if result.item.anomalous:
        return "found" if flagged else "missed"
    return "false-alarm" if flagged else "passed"


def _card(result: ImageResult, threshold: float | None, pixel_threshold: float | None, scale: ColourScale) -> str:
    verdict = _verdict(result, threshold)
    defect = html.escape(str(result.item.defect))
    name = html.escape("/".join(result.item.path.parts[-2:]))
    assert result.image is not None  # the evaluation was asked to keep it
    image = Image.fromarray(result.image)
    pictures = [(image, name)]
    if result.anomaly_map is not None:
        heatmap = Image.blend(image, Image.fromarray(scale.colours(result.anomaly_map)), 0.6)
        predicted = None if pixel_threshold is None else result.anomaly_map >= pixel_threshold
        contours = outline(image, result.mask, predicted)
        pictures = [(contours, f"{name} with contours"), (heatmap, f"{name} under its heatmap")]
    thumbnails = "".join(
        f'<img loading="lazy" width="{picture.width}" height="{picture.height}" alt="{alt}" src="{_data_uri(picture)}">'
        for picture, alt in pictures
    )
    kind = "normal" if result.item.defect == GOOD else defect
    return (
        f'<article class="card {verdict}" data-defect="{defect}" data-verdict="{verdict}">'
        f"<p><b>{name}</b><br>{kind}, score {result.score:.3f}: {_VERDICTS[verdict]}{_pose(result)}</p>"
        f"{thumbnails}</article>"
    )


def _pose(result: ImageResult) -> str:
    """How the part lies, where the model has looked for that."""
    if result.part is None:
        return ""
    found = "" if result.found else "no part found: "
    return f"<br>{found}{result.part.pose.angle:.1f} degrees, correlation {result.part.correlation:.2f}"


def _data_uri(picture: Image.Image) -> str:
    picture = picture.copy()
    picture.thumbnail((_THUMBNAIL, _THUMBNAIL))
    data = io.BytesIO()
    picture.save(data, format="WEBP", quality=80)
    return f"data:image/webp;base64,{base64.b64encode(data.getvalue()).decode()}"


def write_report(folder: Path, evaluation: Evaluation, scorer: Scorer) -> None:
    """Write `report.html` into a folder, and its figures as PNG and SVG into `report/` there.

    Args:
        folder: where to.
        evaluation: what was found, whose images carry their pixels.
        scorer: what was evaluated.
    """
    metrics, thresholds, results = evaluation.metrics, evaluation.thresholds, evaluation.images
    scale = ColourScale.about(thresholds.threshold, scorer.dimensions)
    calibrated = thresholds.threshold is not None
    figures = _figures(metrics, results, thresholds.threshold, scorer.training_embeddings())
    note = _CALIBRATED if calibrated else _F1 if metrics.image_f1_threshold is not None else _NO_THRESHOLD
    if any(result.anomaly_map is not None for result in results):
        colours = f"Heatmaps from black, a distance of {scale.low:g}, to yellow, {scale.high:.1f} and above."
        if scorer.alignment:
            colours = f"{colours[:-1]}; grey is what was not seen of the aligned parts."
        note = f"{colours} Contours: ground truth white, prediction cyan. {note}"
    for name in ("per-region overlap", "ROC curves", "image scores", "embeddings"):
        if name in figures:
            save_figure(folder / "report", name.replace(" ", "-"), figures[name])
        else:  # one that an earlier evaluation left
            for suffix in ("png", "svg"):
                (folder / "report" / f"{name.replace(' ', '-')}.{suffix}").unlink(missing_ok=True)
    summary = {name: _number(value) for name, value in dataclasses.asdict(metrics).items()}
    page = report_page(
        evaluation.category,
        {"images": str(len(results))} | {name.replace("_", " "): value for name, value in summary.items()},
        {name: as_svg(figure) for name, figure in figures.items()},
        results,
        thresholds.threshold if calibrated else metrics.image_f1_threshold,
        thresholds.pixel_threshold if calibrated else metrics.pixel_f1_threshold,
        scale,
        f"{note} {evaluation.remark[0].upper()}{evaluation.remark[1:]}." if evaluation.remark else note,
    )
    write_text(folder / "report.html", page)


def _figures(
    metrics: Metrics, results: Sequence[ImageResult], calibrated: float | None, training_embeddings: Floats | None
) -> dict[str, Figure]:
    """What can be drawn, by name."""
    labels = np.array([result.item.anomalous for result in results])
    scores = np.array([result.score for result in results])
    masked = [result for result in results if result.mask is not None and result.anomaly_map is not None]
    masks, maps = np.array([result.mask for result in masked]), np.array([result.anomaly_map for result in masked])
    curves, figures = {}, {}
    if metrics.image_auroc is not None:
        curves["images"] = Curve.of(labels, scores)
    if metrics.pixel_auroc is not None:
        curves["pixels"] = Curve.of(*seen_pixels(masks, maps))
        figures["per-region overlap"] = pro_figure(pro_curve(masks, maps))
    if curves:
        figures["ROC curves"] = roc_figure(curves)
    thresholds = {
        "calibrated": calibrated,
        "largest F1 on these images": metrics.image_f1_threshold,
        "Youden's index on these images": metrics.image_youden_threshold,
    }
    lines = {name: threshold for name, threshold in thresholds.items() if threshold is not None}
    figures["image scores"] = histogram_figure(scores[~labels].tolist(), scores[labels].tolist(), lines)
    if training_embeddings is not None:
        tested = np.array([result.embedding for result in results])
        kinds = {"training": training_embeddings, "good": tested[~labels], "defective": tested[labels]}
        figures["embeddings"] = embedding_figure({name: points for name, points in kinds.items() if len(points)})
    return figures


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
