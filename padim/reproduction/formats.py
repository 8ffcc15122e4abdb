"""Tables as CSV, Markdown, HTML and LaTeX."""

from __future__ import annotations

import csv
import html
import io
import re
from collections.abc import Iterable, Sequence
from textwrap import wrap

from padim.reproduction.tables import Entry, ExperimentTable, PrintedTable

_STYLE = """body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem; }
table { border-collapse: collapse; margin-bottom: 2rem; }
th, td { padding: 0.2rem 0.8rem; text-align: right; border-bottom: 1px solid #ddd; font-variant-numeric: tabular-nums; }
th:first-child, td:first-child { text-align: left; }
tr.mean td { background: #f4f4f4; }"""

_LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        "±": r"$\pm$",
        "†": r"\textsuperscript{\dag}",
        **{character: f"\\{character}" for character in "&%$#_{}"},
    }
)


def as_csv(tables: Sequence[ExperimentTable]) -> str:
    """One line per experiment, category and column, with more digits than are printed elsewhere."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = ["experiment", "category", "images", "missing", "metric", "mean", "deviation", "published", "difference"]
    writer.writerow(names)
    for table in tables:
        for row in table.rows:
            for key, cell in row.cells.items():
                figures = (cell.mean, cell.deviation, cell.published, cell.difference)
                numbers = ["" if figure is None else f"{figure:.6f}" for figure in figures]
                writer.writerow([table.experiment.name, row.name, row.images, row.missing, key, *numbers])
    return text.getvalue()


def as_markdown(printed: Sequence[PrintedTable], tables: Sequence[ExperimentTable]) -> str:
    """The printed tables, then what the experiments were made with."""
    lines = []
    for table in printed:
        lines += [f"## {_markdown(table.title)}", ""]
        lines += [f"{_markdown(note)}\n" for note in table.notes]
        lines += [_line(map(_markdown, table.header)), _line(["---", *["---:"] * (len(table.header) - 1)])]
        lines += [_line(map(_markdown_entry, row)) for row in table.rows]
        lines.append("")
    lines += ["## Made with", ""]
    for each in tables:
        lines += [f"{_markdown(each.made_with())}\n", f"```toml\n{each.experiment.config.to_toml()}```\n"]
    return "\n".join(lines)


def as_html(printed: Sequence[PrintedTable], tables: Sequence[ExperimentTable]) -> str:
    """The same on one page that needs nothing else."""
    lines = ["<h1>Results beside published figures</h1>"]
    for table in printed:
        lines += [f"<h2>{html.escape(table.title)}</h2>", *(f"<p>{html.escape(note)}</p>" for note in table.notes)]
        lines += ["<table>", f"<tr>{''.join(f'<th>{html.escape(text)}</th>' for text in table.header)}</tr>"]
        for number, row in enumerate(table.rows, 1):
            mark = ' class="mean"' if number > len(table.rows) - table.means else ""
            lines.append(f"<tr{mark}>{''.join(f'<td>{_html(entry)}</td>' for entry in row)}</tr>")
        lines.append("</table>")
    lines.append("<h2>Made with</h2>")
    for each in tables:
        lines.append(f"<p>{html.escape(each.made_with())}</p>")
        lines.append(f"<pre>{html.escape(each.experiment.config.to_toml())}</pre>")
    head = f'<meta charset="utf-8"><title>Results</title><style>{_STYLE}</style>'
    body = "\n".join(lines)
    return f'<!doctype html>\n<html lang="en">\n<head>{head}</head>\n<body>\n{body}\n</body>\n</html>\n'


def as_latex(printed: Sequence[PrintedTable], tables: Sequence[ExperimentTable]) -> str:
    """A `table` environment each, for a paper that uses booktabs; comments say what the experiments were made with."""
    comments = ["Needs \\usepackage{booktabs}.", ""]
    for each in tables:
        comments += [each.made_with(), *each.experiment.config.to_toml().splitlines(), ""]
    lines = [f"% {' '.join(comment.split())}".rstrip() for comment in comments]
    for table in printed:
        label = re.sub(r"[^a-z0-9]+", "-", table.title.lower()).strip("-")
        rows = [_latex_line(map(_latex_entry, row)) for row in table.rows]
        split = len(rows) - table.means
        lines += [
            r"\begin{table}",
            r"  \centering\small\setlength{\tabcolsep}{4pt}",
            rf"  \caption{{{_latex(' '.join([f'{table.title}.', *table.notes]))}}}",
            rf"  \label{{tab:{label}}}\smallskip",
            rf"  \begin{{tabular}}{{l{'r' * (len(table.header) - 1)}}}",
            r"    \toprule",
            _latex_line(map(_latex_heading, table.header)),
            r"    \midrule",
            *rows[:split],
            *([r"    \midrule"] if table.means else []),
            *rows[split:],
            r"    \bottomrule",
            r"  \end{tabular}",
            r"\end{table}",
            "",
        ]
    return "\n".join(lines)


def _markdown(text: str) -> str:
    """Text in which neither a bar nor the end of a line ends the entry, and no tag or emphasis begins."""
    return html.escape(" ".join(text.splitlines()), quote=False).replace("|", r"\|").replace("*", r"\*")


def _markdown_entry(entry: Entry) -> str:
    text = _markdown(entry.text)
    return (f"**{text}**" if entry.best else text) + entry.behind


def _line(entries: Iterable[str]) -> str:
    return f"| {' | '.join(entries)} |"


def _html(entry: Entry) -> str:
    text = html.escape(entry.text)
    return (f"<b>{text}</b>" if entry.best else text) + entry.behind


def _latex(text: str) -> str:
    return " ".join(text.split()).translate(_LATEX)


def _latex_entry(entry: Entry) -> str:
    text = "--" if entry.text == "-" else _latex(entry.text)
    return (rf"\textbf{{{text}}}" if entry.best else text) + entry.behind


def _latex_heading(text: str) -> str:
    """Word under word, and the parts of long names, which takes less of the width."""
    parts = [part for word in text.split() for part in wrap(word, 14, break_long_words=False)]
    lines = r" \\ ".join(rf"\strut {_latex(part)}" for part in parts)
    return rf"\shortstack[r]{{{lines}}}"


def _latex_line(entries: Iterable[str]) -> str:
    row = " & ".join(entries)
    return f"    {'{}' if row.startswith(('[', '*')) else ''}{row} \\\\"  # or the end of the line before would take it
