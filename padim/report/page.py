"""One self-contained HTML page of an evaluation: what its threshold means, figures, and every image with its map."""

from __future__ import annotations

import html
import importlib.metadata
import math
import platform
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import date
from pathlib import Path
from string import Template

import numpy as np

from padim.calibration import Calibration, Thresholds
from padim.config import BaseConfig, Config
from padim.data.items import GOOD
from padim.detectors.scores import Scorer
from padim.evaluation.category import Evaluation, ImageResult
from padim.evaluation.metrics import PRO_LIMIT
from padim.evaluation.operating import count_flagged, split
from padim.report.cards import VERDICTS, card, wrongness
from padim.report.colours import ColourScale
from padim.report.figures import FIGURES, as_svg, evaluation_figures, save_figure, score_span
from padim.storage.files import write_text
from padim.version import __version__

_METRICS = {
    "image_auroc": "image AUROC",
    "image_f1_max": "largest image F1",
    "image_f1_threshold": "threshold of the largest image F1",
    "image_youden_threshold": "threshold of Youden's index",
    "pixel_auroc": "pixel AUROC",
    "aupro": f"AUPRO {PRO_LIMIT}",
    "pixel_ap": "pixel AP",
    "pixel_f1_max": "largest pixel F1",
    "pixel_f1_threshold": "threshold of the largest pixel F1",
}
_ALIGN = {"none": "compared as they lie", "shift": "moved into one frame", "rotate": "turned and moved into one frame"}


def write_report(folder: Path, evaluation: Evaluation, scorer: Scorer, unusual: Sequence[ImageResult] = ()) -> None:
    """Write `report.html` into a folder, and its figures as PNG and SVG into `report/` there.

    Args:
        folder: where to.
        evaluation: what was found, whose images carry their pixels; it may have no images.
        scorer: what was evaluated.
        unusual: training images that score higher than the rest, most extreme first, with their pixels; the scores
            are those of the images while they were left out of the fit.
    """
    drawings = _drawings(folder / "report", evaluation, scorer)
    scale = ColourScale.about(evaluation.thresholds.threshold, scorer.dimensions)
    values = _about(evaluation, scorer) | {"unusual": "\n".join(card(result, scale) for result in unusual)}
    if not evaluation.images and not unusual:
        values["ordinary"] = "No training image scores far more than the rest."
    if evaluation.images:
        values |= (
            _results(evaluation, scorer.calibration, getattr(scorer.config, "trim", 0.0))
            | _scores(evaluation)
            | _metrics(evaluation, drawings)
        )
        values |= _images(evaluation, scale) | _legend(evaluation, scale, scorer)
    page = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    write_text(folder / "report.html", Template(_filled(page, values)).substitute(values))


def _filled(page: str, values: Mapping[str, str]) -> str:
    """The page without the parts, from `<!-- name -->` to `<!-- /name -->`, for whose name there is no value."""
    part = r"<!-- (\w+) -->(.*?)<!-- /\1 -->"
    return re.sub(part, lambda found: _filled(found[2], values) if values.get(found[1]) else "", page, flags=re.DOTALL)


def _drawings(folder: Path, evaluation: Evaluation, scorer: Scorer) -> dict[str, str]:
    """The figures as SVG elements, by name; they are also written into a folder."""
    figures = evaluation_figures(evaluation, scorer.training_embeddings()) if evaluation.images else {}
    for name in FIGURES:
        if name in figures:
            save_figure(folder, name.replace(" ", "-"), figures[name])
        else:  # one that an earlier evaluation left
            for suffix in ("png", "svg"):
                (folder / f"{name.replace(' ', '-')}.{suffix}").unlink(missing_ok=True)
    return {name: as_svg(figure) for name, figure in figures.items()}


def _thresholds(evaluation: Evaluation) -> Thresholds:
    """The calibrated thresholds, or those of the largest F1 where there are none."""
    if evaluation.thresholds.threshold is not None:
        return evaluation.thresholds
    return Thresholds(evaluation.metrics.image_f1_threshold, None, evaluation.metrics.pixel_f1_threshold)


def _results(evaluation: Evaluation, calibration: Calibration | None, trim: float) -> dict[str, str]:
    """What an engineer asks first."""
    threshold, rate = _thresholds(evaluation).threshold, evaluation.thresholds.false_alarm_rate
    heading, note = "Results", "There is no threshold: that takes a calibration, or both good and defective images."
    if rate is not None and calibration is not None:
        heading = f"At a false-alarm rate of {rate * 100:.3g}%"
        note = (
            f"At most {rate * 100:.3g}% of fresh good parts are expected to reach the threshold. It comes from"
            f" {len(calibration.scores)} training images, each left out of the fit for its own score."
        )
        if trim:
            note += (
                f" More are, if good ones were among the {trim:.1%} of the training images that the fit has left out."
            )
    elif threshold is not None:
        heading = "At the largest F1"
        note = "The model has no calibration. This threshold was chosen on the test images: it has seen the answers."
    tiles = {} if threshold is None else {"calibrated threshold" if rate else "threshold": f"{threshold:.3f}"}
    for label, images in zip(("good parts rejected", "defects found"), split(evaluation.images), strict=True):
        if threshold is not None and images:
            tiles[f"of {len(images)} {label}"] = _percent(count_flagged(images, threshold) / len(images))
    return {"heading": heading, "note": note, "tiles": _terms(tiles), "rates": _rates(evaluation)}


def _rates(evaluation: Evaluation) -> str:
    """What other false-alarm rates mean, as rows of a table."""
    rows = []
    for point in evaluation.points:
        rate = f"{point.false_alarm_rate * 100:g}%"
        if point.threshold is None:
            needed = math.ceil(1 / point.false_alarm_rate) - 1
            rows.append(f'<tr><td>{rate}</td><td colspan="3">takes {needed} training images</td></tr>')
        else:
            button = f'<button data-threshold="{point.threshold!r}">{rate}</button>'
            shares = ("-" if share is None else _percent(share) for share in (point.false_alarms, point.defects_found))
            rows.append(_row(button, f"{point.threshold:.3f}", *shares))
    return "\n".join(rows)


def _scores(evaluation: Evaluation) -> dict[str, str]:
    """The slider's ends and counts, the defect types, and advice."""
    threshold, (low, high) = _thresholds(evaluation).threshold, score_span(evaluation)
    rejected, found = (_counted(images, threshold) for images in split(evaluation.images))
    rows = []
    for defect in evaluation.defects:
        name = html.escape(defect.name)
        outside = f"<br><small>{defect.outside} outside what the model sees</small>" if defect.outside else ""
        images = [result for result in evaluation.images if result.item.defect == defect.name]
        share = f'<span data-share="{name}">{_counted(images, threshold)}</span>'
        rows.append(_row(name + outside, str(defect.images), share, _number(defect.image_auroc)))
    said = [*evaluation.advice, *([evaluation.remark] if evaluation.remark else [])]
    advice = "".join(f"<li>{html.escape(text[0].upper() + text[1:])}.</li>" for text in said)
    ends = {"least": repr(low), "most": repr(high), "threshold": "" if threshold is None else repr(threshold)}
    return ends | {"rejected": rejected, "found": found, "types": "\n".join(rows), "advice": advice}


def _metrics(evaluation: Evaluation, drawings: Mapping[str, str]) -> dict[str, str]:
    """The metrics that are defined, and the figures."""
    values = ((name, getattr(evaluation.metrics, key)) for key, name in _METRICS.items())
    figures = {name: f"<figure><figcaption>{name}</figcaption>{drawing}</figure>" for name, drawing in drawings.items()}
    histogram = figures.pop("image scores")
    rows = [_row(name, _number(value)) for name, value in values if value is not None]
    return {"metrics": "\n".join(rows), "histogram": histogram, "curves": "\n".join(figures.values())}


def _images(evaluation: Evaluation, scale: ColourScale) -> dict[str, str]:
    """Every test image, the most wrong ones first, and what they can be filtered by."""
    thresholds = _thresholds(evaluation)
    ordered = sorted(evaluation.images, key=lambda result: -wrongness(result, thresholds.threshold))
    defects = sorted({html.escape(result.item.defect or GOOD) for result in evaluation.images})
    verdicts = {key: said for key, said in VERDICTS.items() if thresholds.threshold is None or key != "undecided"}
    return {
        "order": "sorted by score" if thresholds.threshold is None else "sorted by how wrong the verdict is",
        "defects": "".join(f'<option value="{defect}">{defect}</option>' for defect in defects),
        "verdicts": "".join(f'<option value="{key}">{said}</option>' for key, said in verdicts.items()),
        "cards": "\n".join(card(result, scale, thresholds) for result in ordered),
    }


def _legend(evaluation: Evaluation, scale: ColourScale, scorer: Scorer) -> dict[str, str]:
    """What the colours of the cards mean."""
    maps = any(result.anomaly_map is not None for result in evaluation.images)
    masks = any(result.mask is not None and result.mask.any() for result in evaluation.images)
    predicted = maps and _thresholds(evaluation).pixel_threshold is not None
    grey = scorer.alignment is not None or scorer.ignored is not None
    colours = scale.colours(np.linspace(scale.low, scale.high, 9)).tolist()
    return {
        "truth": "ground truth" if masks else "",
        "prediction": "prediction, where the verdict is anomalous" if predicted else "",
        "ramp": ", ".join(f"rgb({red} {green} {blue})" for red, green, blue in colours) if maps else "",
        "coldest": f"{scale.low:g}",
        "hottest": f"{scale.high:.1f}",
        "grey": "; grey is what is ignored or was not seen" if grey else "",
    }


def _about(evaluation: Evaluation, scorer: Scorer) -> dict[str, str]:
    """Where the figures come from."""
    provenance = scorer.provenance
    good, defective = map(len, split(evaluation.images))
    unmasked = f", {evaluation.unmasked} defective ones without a mask" if evaluation.unmasked else ""
    facts = {
        "Date": date.today().isoformat(),
        "Model": f"{provenance.category or evaluation.category}, fitted to {provenance.images} training images",
        "Test images": f"{good} good and {defective} defective; {evaluation.skipped} skipped{unmasked}",
        **_settings(scorer.config),
        **({} if scorer.ignored is None else {"Ignored": f"{np.mean(scorer.ignored.tolist()):.1%} of the pixels"}),
        "Versions": _versions(provenance.padim_version),
        "SHA-256 of the initial weights": provenance.weights_sha256,
    }
    return {
        "title": html.escape(evaluation.category),
        "about": _terms(facts),
        "settings": html.escape(scorer.config.to_toml()),
    }


def _settings(config: BaseConfig) -> dict[str, str]:
    """The main settings in plain words."""
    height, width = config.image_size
    resized = " x ".join(map(str, reversed(config.resize)))
    cut = f", cut to the central {width} x {height}" if config.crop else ""
    side = "the shorter side " if len(config.resize) == 1 else ""
    settings = {"Method": ", ".join(filter(None, (config.method, getattr(config, "backbone", None))))}
    if isinstance(config, Config):
        settings["Features"] = f"{config.channels or 'all'} channels of {', '.join(config.layers)}"
    return settings | {"Images": f"{side}resized to {resized} pixels{cut}", "Parts": _ALIGN[config.align]}


def _versions(trained: str) -> str:
    """The versions of what has computed the figures."""
    versions = {"padim": __version__, "Python": platform.python_version()}
    for name in ("numpy", "torch"):
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return f"trained with padim {trained}; now " + ", ".join(f"{name} {number}" for name, number in versions.items())


def _counted(images: Sequence[ImageResult], threshold: float | None) -> str:
    """How many images are anomalous, in the words of the page's script."""
    if not images or threshold is None:
        return "-"
    count = count_flagged(images, threshold)
    return f"{count} of {len(images)} ({_percent(count / len(images))})"


def _percent(share: float) -> str:
    return f"{math.floor(1000 * share + 0.5) / 10:.1f}%"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _terms(values: Mapping[str, str]) -> str:
    """The entries of a list of terms."""
    return "".join(
        f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd></div>" for name, value in values.items()
    )


def _row(*cells: str) -> str:
    """A row of a table, whose cells are HTML."""
    return f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
