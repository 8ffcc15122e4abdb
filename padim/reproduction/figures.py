"""Figures of an experiment's table: the ROC curves of all categories, and their AUROC beside the published ones."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from padim.report.figures import BLUE, ORANGE
from padim.reproduction.rows import METRICS, Results, TableRow

# Metric -> the curves of a run that it is the area under.
_CURVES = {"image": "images", "pixel": "pixels"}


def table_figures(rows: Sequence[TableRow], results: Results) -> dict[str, Figure]:
    """What can be drawn of the rows and the results of an experiment, by name."""
    rows = [row for row in rows if not row.is_mean]
    metrics = [metric for metric in _CURVES if any(row.cells[metric].mean is not None for row in rows)]
    if not metrics:
        return {}
    curves = Figure(figsize=(6 * len(metrics), 6), layout="constrained")
    areas = Figure(figsize=(max(5.0, 2 + 0.5 * len(rows)), 3 * len(metrics)), layout="constrained")
    for axis, metric in zip(curves.subplots(1, len(metrics), squeeze=False)[0], metrics, strict=True):
        _draw_curves(axis, rows, results, metric)
    for axis, metric in zip(areas.subplots(len(metrics), squeeze=False)[:, 0], metrics, strict=True):
        _draw_areas(axis, rows, metric)
    areas.legend(*axis.get_legend_handles_labels(), loc="outside upper left", ncols=2, frameon=False)
    return {"roc": curves, "auroc": areas}


def _draw_curves(axis: Axes, rows: Sequence[TableRow], results: Results, metric: str) -> None:
    """A thin line for every category and seed."""
    colours = matplotlib.colormaps["tab20"].colors  # type: ignore[attr-defined]
    means = []
    for number, row in enumerate(row for row in rows if row.cells[metric].mean is not None):
        means.append(row.cells[metric].mean or 0.0)
        for seed, figures in enumerate(results[row.name]):
            label = None if seed else f"{_plain(row.label)} {means[-1]:.3f}"
            curve = figures["curves"].get(_CURVES[metric], [[], []])
            axis.plot(*curve, color=colours[number % len(colours)], linewidth=0.8, label=label)
    axis.set(xlabel="false-positive rate", ylabel="recall", xlim=(-0.01, 1), ylim=(0, 1.01), aspect="equal")
    axis.set_title(METRICS[metric].heading)
    axis.grid(alpha=0.3)
    axis.legend(title=f"mean {statistics.mean(means):.3f}", loc="lower right", fontsize="small")


def _draw_areas(axis: Axes, rows: Sequence[TableRow], metric: str) -> None:
    """A mark per category, with its standard deviation over the seeds, and one for the published figure."""
    places, cells = range(len(rows)), [row.cells[metric] for row in rows]
    means = [math.nan if cell.mean is None else cell.mean for cell in cells]
    published = [math.nan if cell.published is None else cell.published for cell in cells]
    axis.errorbar(places, means, [cell.deviation or 0.0 for cell in cells], fmt="o", color=BLUE, label="here")
    if not all(map(math.isnan, published)):
        axis.plot(places, published, "D", color=ORANGE, fillstyle="none", markersize=8, label="published")
    axis.set_xticks(places, [_plain(row.label) for row in rows], rotation=45, ha="right", rotation_mode="anchor")
    axis.set(ylabel=METRICS[metric].heading, ylim=(None, 1.01))
    axis.margins(y=0.15)
    axis.grid(alpha=0.3)


def _plain(label: str) -> str:
    """A label that matplotlib can draw, and takes neither for mathematics nor, for its first character, as private."""
    escaped = label.encode(errors="replace").decode().replace("$", r"\$")
    return f" {escaped}" if escaped.startswith("_") else escaped
