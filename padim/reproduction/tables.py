"""Tables of results beside published figures, as text, CSV, Markdown and HTML."""

from __future__ import annotations

import csv
import html
import io
from collections.abc import Mapping, Sequence

from padim.reproduction.experiments import Cell, TableRow
from padim.reproduction.published import source

_NAMES = {"image": "image AUROC", "pixel": "pixel AUROC", "aupro": "AUPRO 0.3"}

_STYLE = """body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem; }
table { border-collapse: collapse; margin-bottom: 2rem; }
th, td { padding: 0.2rem 0.8rem; text-align: right; border-bottom: 1px solid #ddd; font-variant-numeric: tabular-nums; }
th:first-child, td:first-child { text-align: left; }"""

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
    where = source(experiment)
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
