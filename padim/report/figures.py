"""Curves and histograms of an evaluation."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from padim.evaluation.category import Evaluation, masks_and_maps, roc_curves
from padim.evaluation.metrics import PRO_LIMIT, Curve, Floats, pro_curve
from padim.storage.files import atomic_write, write_text

# What `evaluation_figures` may give.
FIGURES = ("image scores", "ROC curves", "per-region overlap", "embeddings")

# Of the palette of Okabe and Ito, which colour-blind people can tell apart.
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#666666"

_MOST_POINTS = 500  # of a curve: the eye misses none of its corners


def score_span(evaluation: Evaluation) -> tuple[float, float]:
    """From where to where the scores of the test images and all thresholds lie."""
    thresholds = [*_thresholds(evaluation).values(), *(point.threshold or 0.0 for point in evaluation.points)]
    values = [*thresholds, *(result.score for result in evaluation.images), 0.0]
    return min(values), max(values) * 1.02 + 1e-9


def evaluation_figures(evaluation: Evaluation, training_embeddings: Floats | None) -> dict[str, Figure]:
    """What can be drawn of an evaluation's test images, by name."""
    metrics, results = evaluation.metrics, evaluation.images
    labels = np.array([result.item.anomalous for result in results])
    scores = np.array([result.score for result in results])
    good, defective = scores[~labels].tolist(), scores[labels].tolist()
    figures = {"image scores": histogram_figure(good, defective, _thresholds(evaluation), score_span(evaluation))}
    curves = roc_curves(results)
    if curves:
        figures["ROC curves"] = roc_figure(curves)
    if metrics.aupro is not None:
        figures["per-region overlap"] = pro_figure(pro_curve(*masks_and_maps(results)))
    if training_embeddings is not None:
        tested = np.array([result.embedding for result in results])
        kinds = {"training": training_embeddings, "good": tested[~labels], "defective": tested[labels]}
        figures["embeddings"] = embedding_figure({name: points for name, points in kinds.items() if len(points)})
    return figures


def roc_figure(curves: Mapping[str, Curve]) -> Figure:
    """ROC curves, each with its area."""
    figure, axis = _square("false-positive rate", "recall")
    for (name, curve), colour in zip(curves.items(), (BLUE, ORANGE), strict=False):
        axis.plot(*curve.thinned_points(_MOST_POINTS), color=colour, label=f"{name}, area {curve.area():.4f}")
    axis.legend(loc="lower right")
    return figure


def pro_figure(curve: Curve) -> Figure:
    """The per-region overlap curve, and the part of it that AUPRO measures."""
    figure, axis = _square("false-positive rate of the pixels", "mean overlap with the defects")
    axis.plot(*curve.thinned_points(_MOST_POINTS), color=BLUE, label=f"AUPRO {PRO_LIMIT}: {curve.area(PRO_LIMIT):.4f}")
    axis.axvspan(0, PRO_LIMIT, color=GREY, alpha=0.15, linewidth=0)
    axis.legend(loc="lower right")
    return figure


def histogram_figure(
    good: Sequence[float], defective: Sequence[float], thresholds: Mapping[str, float], span: tuple[float, float]
) -> Figure:
    """How the image scores are distributed between two ends, with lines where the thresholds are.

    In the SVG, the area of the plot has the id `plot`, and the line of the first threshold the id `threshold`.
    """
    figure = Figure(figsize=(6, 3.4), layout="constrained")
    axis = figure.subplots()
    axis.patch.set_gid("plot")
    bins = np.linspace(*span, 51).tolist()
    axis.hist(good, bins, color=BLUE, alpha=0.7, label=f"good ({len(good)})")
    axis.hist(defective, bins, color=ORANGE, alpha=0.7, label=f"defective ({len(defective)})", hatch="//")
    for (name, value), style in zip(thresholds.items(), ("--", ":", "-."), strict=False):
        axis.axvline(value, color=GREY, linestyle=style, label=f"{name}: {value:.2f}")
    for line in axis.lines[:1]:
        line.set_gid("threshold")
    axis.set(xlabel="image score", ylabel="images", xlim=span)
    figure.legend(loc="outside upper left", ncols=2, frameon=False)
    return figure


def training_figure(history: Sequence[Mapping[str, float | None]]) -> Figure:
    """Loss and accuracy of every step, and the AUROC on the test images where it was looked at."""
    figure = Figure(figsize=(8, 6), layout="constrained")
    top, bottom = figure.subplots(2, sharex=True)
    steps = [row["step"] for row in history]
    top.plot(steps, [row["loss"] for row in history], color=BLUE)
    top.set(ylabel="loss", yscale="log")
    bottom.plot(steps, [row["accuracy"] for row in history], color=BLUE, label="accuracy of the classes")
    tested = [(row["step"], row["test_auroc"]) for row in history if row["test_auroc"] is not None]
    if tested:
        bottom.plot(*zip(*tested, strict=True), color=ORANGE, marker=".", label="image AUROC on the test images")
    bottom.set(xlabel="step", ylim=(0, 1.02))
    bottom.legend(loc="lower right")
    return figure


def embedding_figure(embeddings: Mapping[str, np.ndarray]) -> Figure:
    """Embeddings `[n, d]` of kinds of images in the plane, neighbours staying neighbours (t-SNE)."""
    from sklearn.manifold import TSNE

    points = np.concatenate(list(embeddings.values()))
    perplexity = min(30.0, (len(points) - 1) / 3)
    plane = TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(points)
    figure = Figure(figsize=(6, 5), layout="constrained")
    axis = figure.subplots()
    start = 0
    for (name, kind), colour, marker in zip(embeddings.items(), (GREY, BLUE, ORANGE), ".ox", strict=False):
        part = plane[start : start + len(kind)]
        axis.scatter(part[:, 0], part[:, 1], c=colour, marker=marker, s=18, label=f"{name} ({len(kind)})")
        start += len(kind)
    axis.set(xticks=[], yticks=[])
    axis.legend()
    return figure


def as_svg(figure: Figure) -> str:
    """The figure as an SVG element; the same figure gives the same text."""
    text = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "padim", "svg.fonttype": "none"}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()[text.getvalue().index("<svg") :]


def save_figure(folder: Path, name: str, figure: Figure) -> None:
    """Write a figure as PNG and SVG."""
    write_text(folder / f"{name}.svg", as_svg(figure))
    with atomic_write(folder / f"{name}.png") as temporary:
        figure.savefig(temporary, format="png", dpi=150)


def _thresholds(evaluation: Evaluation) -> dict[str, float]:
    """The thresholds of the image score, by name; the one for verdicts comes first."""
    thresholds = {
        "calibrated": evaluation.thresholds.threshold,
        "largest F1 on these images": evaluation.metrics.image_f1_threshold,
        "Youden's index on these images": evaluation.metrics.image_youden_threshold,
    }
    return {name: threshold for name, threshold in thresholds.items() if threshold is not None}


def _square(x: str, y: str) -> tuple[Figure, matplotlib.axes.Axes]:
    figure = Figure(figsize=(5, 5), layout="constrained")
    axis = figure.subplots()
    axis.set(xlabel=x, ylabel=y, xlim=(0, 1), ylim=(0, 1.01), aspect="equal")
    axis.grid(alpha=0.3)
    return figure, axis
