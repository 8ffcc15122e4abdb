"""Tables as they are printed, whatever the format: one of an experiment, and one per metric of several experiments."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from padim.reproduction import published
from padim.reproduction.experiments import Experiment, published_name
from padim.reproduction.rows import COLUMNS, METRICS, Cell, Results, TableRow, table_rows

_DIGITS = 3  # of a comparison, as published figures have
_PARENTHESES = ", in parentheses"
_NOTHING = Cell(None, None, None, None)


@dataclass(frozen=True)
class ExperimentTable:
    """The figures of an experiment, and what they were made with.

    Attributes:
        experiment: which.
        weights_sha256: digest of the backbone's weights; "" without.
        results: the figures of its runs.
    """

    experiment: Experiment
    weights_sha256: str
    results: Results

    @cached_property
    def rows(self) -> list[TableRow]:
        """A row per category and mean."""
        return table_rows(published_name(self.experiment), self.results)

    @property
    def source(self) -> str | None:
        """Where figures of the same protocol were published, if they were."""
        return published.source(published_name(self.experiment))

    @property
    def environment(self) -> dict[str, str]:
        """Versions, machine and date, all of those that the runs had."""
        each = [figures["environment"] for seeds in self.results.values() for figures in seeds]
        return {name: ", ".join(sorted({one.get(name, "") for one in each})) for name in each[0]}

    def over(self, categories: set[str]) -> ExperimentTable:
        """The table of some of the categories."""
        return dataclasses.replace(self, results={name: self.results[name] for name in categories})

    def made_with(self) -> str:
        """`NAME: padim 0.1.0, Python 3.11.2, ..., weights SHA-256 5c106cde...`."""
        what = self.environment | ({"weights SHA-256": self.weights_sha256} if self.weights_sha256 else {})
        return f"{self.experiment.name}: {', '.join(f'{name} {value}' for name, value in what.items())}"

    def summary(self) -> dict[str, Any]:
        """The table as plain values, for JSON."""
        return {
            "experiment": self.experiment.name,
            "published": self.source,
            "remark": self.experiment.config.remark,
            "rows": [dataclasses.asdict(row) for row in self.rows],
            "environment": self.environment,
            "weights_sha256": self.weights_sha256,
            "config": self.experiment.config.to_dict(),
        }


class Entry(NamedTuple):
    """What stands in a row and a column; the best of a row is set in bold, but for what stands behind it."""

    text: str
    behind: str = ""
    best: bool = False


@dataclass(frozen=True)
class PrintedTable:
    """What a format prints.

    Attributes:
        title: what it shows.
        header: what stands above each column.
        rows: the entries of each row.
        means: how many of the last rows are means.
        notes: what has to be known of the figures, in sentences.
    """

    title: str
    header: list[str]
    rows: list[list[Entry]]
    means: int
    notes: list[str]


def full_table(table: ExperimentTable) -> PrintedTable:
    """Metrics beside the published ones and their differences, and costs."""
    header = ["category", "images"]
    rows = [[Entry(row.label), Entry(row.images)] for row in table.rows]
    for key, column in COLUMNS.items():
        beside = _has_published(table, key)
        header += [column.heading, *(("published", "difference") if beside else ())]
        for row, entries in zip(table.rows, rows, strict=True):
            cell = row.cells[key]
            entries.append(Entry(_value(cell, column.digits)))
            if beside:
                entries += [_number(cell.published, ".3f"), _number(cell.difference, "+.4f")]
    return _printed(table.experiment.name, header, rows, [table], COLUMNS)


def compact_table(table: ExperimentTable) -> PrintedTable:
    """The same as wide as a page: without numbers of images and differences, the published figures in parentheses."""
    header = ["category", *(column.heading for column in COLUMNS.values())]
    rows = [
        [Entry(row.label), *(_entry(row.cells[key], column.digits) for key, column in COLUMNS.items())]
        for row in table.rows
    ]
    return _printed(table.experiment.name, header, rows, [table], COLUMNS, _PARENTHESES)


def comparison(tables: Sequence[ExperimentTable]) -> list[PrintedTable]:
    """A table per metric, with a column per experiment and the best of each row in bold.

    Args:
        tables: of the same categories.
    """
    header = ["category", *(table.experiment.name for table in tables)]
    labels = {(row.is_mean, row.name): row.label for table in tables for row in table.rows}
    keys = sorted(labels, key=lambda key: key[0])  # means come last; a category may be called like one
    cells = [{(row.is_mean, row.name): row.cells for row in table.rows} for table in tables]
    found = []
    for metric, column in METRICS.items():
        lines = {key: [each[key][metric] if key in each else _NOTHING for each in cells] for key in keys}
        if any(cell.mean is not None for line in lines.values() for cell in line):
            title = column.heading[0].upper() + column.heading[1:]
            rows = [[Entry(labels[key]), *_best_marked(line)] for key, line in lines.items()]
            found.append(_printed(title, header, rows, tables, [metric], _PARENTHESES))
    return found


def _best_marked(cells: Sequence[Cell]) -> list[Entry]:
    """The entries of a row; the best are those that are printed as the same largest figure, if there is a choice."""
    shown = [-1.0 if cell.mean is None else round(cell.mean, _DIGITS) for cell in cells]
    choice = len([figure for figure in shown if figure >= 0]) > 1
    entries = [_entry(cell, _DIGITS) for cell in cells]
    return [entry._replace(best=choice and one == max(shown)) for entry, one in zip(entries, shown, strict=True)]


def _printed(
    title: str,
    header: list[str],
    rows: list[list[Entry]],
    tables: Sequence[ExperimentTable],
    keys: Collection[str],
    where: str = "",
) -> PrintedTable:
    """With notes: where the published figures of the columns are from, remarks, and what the mark of a label means."""
    named = [(f"{table.experiment.name}: " if len(tables) > 1 else "", table) for table in tables]
    sources = [f"{name}{table.source}" for name, table in named if any(_has_published(table, key) for key in keys)]
    notes = [f"Published{where}: {'; '.join(sources)}."] if sources else []
    experiments = [table.experiment for table in tables]
    notes += [f"{each.name}: {each.config.remark}." for each in experiments if each.config.remark]
    every = [row for table in tables for row in table.rows]
    missing = sorted({f"{row.name} ({row.missing})" for row in every if row.missing})
    notes += [f"† Incomplete, so in no mean beside a published one: {', '.join(missing)}."] if missing else []
    return PrintedTable(title, header, rows, len({row.name for row in every if row.is_mean}), notes)


def _has_published(table: ExperimentTable, key: str) -> bool:
    return any(row.cells[key].published is not None for row in table.rows)


def _entry(cell: Cell, digits: int) -> Entry:
    """`0.996 ± 0.002 (0.998)`, the published figure in parentheses."""
    return Entry(_value(cell, digits), f" ({cell.published:.3f})" if cell.published is not None else "")


def _value(cell: Cell, digits: int) -> str:
    deviation = f" ± {cell.deviation:.{digits}f}" if cell.deviation is not None else ""
    return "-" if cell.mean is None else f"{cell.mean:.{digits}f}{deviation}"


def _number(value: float | None, form: str) -> Entry:
    return Entry("-" if value is None else format(value, form))
