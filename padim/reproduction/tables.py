"""Tables of results beside published figures, as text, CSV, Markdown and HTML."""

from __future__ import annotations

import csv
import html
import io
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from padim.reproduction import published

# Column of a table -> figure of `padim.evaluation.metrics.Metrics`.
METRICS = {"image": "image_auroc", "pixel": "pixel_auroc", "aupro": "aupro"}

COUNTS = ("images", "skipped", "unmasked")

_NAMES = {"image": "image AUROC", "pixel": "pixel AUROC", "aupro": "AUPRO 0.3"}

_STYLE = """body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem; }
table { border-collapse: collapse; margin-bottom: 2rem; }
th, td { padding: 0.2rem 0.8rem; text-align: right; border-bottom: 1px solid #ddd; font-variant-numeric: tabular-nums; }
th:first-child, td:first-child { text-align: left; }"""


@dataclass(frozen=True)
class Cell:
    """A figure of a table, in 0..1, each None where there is none.

    Attributes:
        mean: over the seeds.
        deviation: standard deviation over the seeds, where there are several.
        published: what was published for it.
        difference: `mean - published`, where both are of the same images.
    """

    mean: float | None
    deviation: float | None
    published: float | None
    difference: float | None


@dataclass(frozen=True)
class TableRow:
    """A category or a group of them in a table.

    Attributes:
        name: what it is called.
        images: how many test images it has; with what could not be used, if anything.
        cells: the figures, by the names of `METRICS`.
    """

    name: str
    images: str
    cells: dict[str, Cell]


def table(experiment: str, results: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[TableRow]:
    """The rows of an experiment, as in the paper: textures, objects, and the groups below.

    Args:
        experiment: its name.
        results: the figures of each category, one entry per seed, equally many for each.
    """
    known = published.GROUPS["all"]
    order = [name for name in known if name in results] + sorted(set(results) - set(known))
    rows = []
    for name in order:
        truth = {metric: published.category_figure(experiment, metric, name) for metric in METRICS}
        cells = {metric: _cell([results[name]], metric, truth[metric], True) for metric in METRICS}
        rows.append(TableRow(name, _images([results[name]]), cells))
    for group, members in published.GROUPS.items():
        there = tuple(name for name in members if name in results)
        if there:
            rows.append(_group_row(experiment, group, there, results))
    if set(results) - set(known):
        every = [results[name] for name in order]
        cells = {metric: _cell(every, metric, None, False) for metric in METRICS}
        rows.append(TableRow(f"mean of these {len(order)}", _images(every), cells))
    return rows


def _group_row(
    experiment: str, group: str, there: tuple[str, ...], results: Mapping[str, Sequence[Mapping[str, Any]]]
) -> TableRow:
    """The mean over the categories of a group that there are, beside what was published for the same ones."""
    whole = len(there) == len(published.GROUPS[group])
    members = [results[name] for name in there]
    cells = {}
    for metric in METRICS:
        same = published.group_figure(experiment, metric, group) if whole else None
        same = same or published.mean_figure(experiment, metric, there)
        shown = same or published.group_figure(experiment, metric, group)
        cells[metric] = _cell(members, metric, shown, same is not None)
    count = "" if whole else f" ({len(there)} of {len(published.GROUPS[group])})"
    return TableRow(f"{group}{count}", _images(members), cells)


def _images(results: Sequence[Sequence[Mapping[str, Any]]]) -> str:
    """`83`, or `80 (3 skipped, 1 without mask)`."""
    first = [seeds[0] for seeds in results]
    counts = {name: sum(figures[name] for figures in first) for name in COUNTS}
    named = {"skipped": counts["skipped"], "without mask": counts["unmasked"]}
    problems = ", ".join(f"{count} {name}" for name, count in named.items() if count)
    return f"{counts['images']} ({problems})" if problems else str(counts["images"])


def _cell(results: Sequence[Sequence[Mapping[str, Any]]], metric: str, truth: float | None, comparable: bool) -> Cell:
    """The mean over categories, then mean and deviation over seeds; none where a category has no figure."""
    figures = [[entry[METRICS[metric]] for entry in seed] for seed in zip(*results, strict=True)]
    if any(figure is None for seed in figures for figure in seed):
        return Cell(None, None, truth, None)
    by_seed = [statistics.mean(seed) for seed in figures]
    mean = statistics.mean(by_seed)
    return Cell(
        mean,
        statistics.stdev(by_seed) if len(by_seed) > 1 else None,
        truth,
        mean - truth if comparable and truth is not None else None,
    )


Tables = Mapping[str, Sequence[TableRow]]


def as_csv(tables: Tables) -> str:
    """One line per category and metric."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["experiment", "category", "images", "metric", "mean", "deviation", "published", "difference"])
    for experiment, rows in tables.items():
        for row in rows:
            for metric, cell in row.cells.items():
                figures = (cell.mean, cell.deviation, cell.published, cell.difference)
                writer.writerow([experiment, row.name, row.images, metric, *(_number(figure) for figure in figures)])
    return text.getvalue()


def as_markdown(tables: Tables) -> str:
    """One table per experiment."""
    parts = []
    for experiment, rows in tables.items():
        lines = [f"## {experiment}", "", *_caption(experiment)]
        header = _header(rows)
        lines += [_line(header), _line(["---"] + ["---:"] * (len(header) - 1))]
        lines += [_line(_entries(row)) for row in rows]
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def as_html(tables: Tables) -> str:
    """One page that needs nothing else."""
    parts = []
    for experiment, rows in tables.items():
        lines = [f"<h2>{html.escape(experiment)}</h2>"]
        lines += [f"<p>{html.escape(line)}</p>" for line in _caption(experiment) if line]
        lines += ["<table>", _html_line("th", _header(rows))]
        lines += [_html_line("td", _entries(row)) for row in rows]
        parts.append("\n".join([*lines, "</table>"]))
    head = f'<meta charset="utf-8"><title>Results</title><style>{_STYLE}</style>'
    body = "\n".join(["<h1>Results beside published figures</h1>", *parts])
    return f'<!doctype html>\n<html lang="en">\n<head>{head}</head>\n<body>\n{body}\n</body>\n</html>\n'


def as_rows(rows: Sequence[TableRow]) -> list[list[str]]:
    """Header and entries as text."""
    return [_header(rows), *(_entries(row) for row in rows)]


def _caption(experiment: str) -> list[str]:
    where = published.source(experiment)
    return [f"Published: {where}.", ""] if where else []


def _header(rows: Sequence[TableRow]) -> list[str]:
    return [
        "category",
        "images",
        *(entry for metric in rows[0].cells for entry in (_NAMES[metric], "published", "difference")),
    ]


def _entries(row: TableRow) -> list[str]:
    return [row.name, row.images, *(entry for cell in row.cells.values() for entry in _cell_entries(cell))]


def _cell_entries(cell: Cell) -> list[str]:
    deviation = f" ± {cell.deviation:.4f}" if cell.deviation is not None else ""
    return [
        "-" if cell.mean is None else f"{cell.mean:.4f}{deviation}",
        "-" if cell.published is None else f"{cell.published:.3f}",
        "-" if cell.difference is None else f"{cell.difference:+.4f}",
    ]


def _number(figure: float | None) -> str:
    return "" if figure is None else f"{figure:.6f}"


def _line(entries: Sequence[str]) -> str:
    return f"| {' | '.join(entries)} |"


def _html_line(tag: str, entries: Sequence[str]) -> str:
    return f"<tr>{''.join(f'<{tag}>{html.escape(entry)}</{tag}>' for entry in entries)}</tr>"
