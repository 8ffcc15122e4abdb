"""What a call leaves in its folder: tables and figures of every experiment, and a comparison of all."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

from padim.report.figures import save_figure
from padim.reproduction.figures import table_figures
from padim.reproduction.formats import as_csv, as_html, as_latex, as_markdown
from padim.reproduction.tables import ExperimentTable, PrintedTable, compact_table, comparison, full_table
from padim.storage.files import write_json, write_text

log = logging.getLogger(__name__)


def write_tables(folder: Path, tables: Sequence[ExperimentTable]) -> None:
    """Write `FOLDER/EXPERIMENT/table.*`, `roc.*` and `auroc.*`, and `FOLDER/table.*` with the comparison of all.

    That is over the categories that all experiments have.

    Raises:
        PadimError: a file can't be written.
    """
    for table in tables:
        own = folder / table.experiment.name
        _write(own, [table], [full_table(table)], [compact_table(table)])
        figures = table_figures(table.rows, table.results)
        for name, figure in figures.items():
            save_figure(own, name, figure)
        _remove(own / f"{name}.{suffix}" for name in {"roc", "auroc"} - figures.keys() for suffix in ("svg", "png"))
    names = [set(table.results) for table in tables]
    common, every = set.intersection(*names), set.union(*names)
    if common < every:
        log.warning("left out of the comparison, since an experiment lacks them: %s", ", ".join(sorted(every - common)))
    if common:
        shared = [table.over(common) for table in tables]
        _write(folder, shared, comparison(shared), comparison(shared))
    else:
        _remove(folder / f"table.{suffix}" for suffix in ("json", "csv", "md", "html", "tex"))
    references = Path(__file__).with_name("references.bib")
    write_text(folder / references.name, references.read_text(encoding="utf-8"))


def _remove(files: Iterable[Path]) -> None:
    """Remove what an earlier call has left, where this one has nothing to write."""
    for file in files:
        file.unlink(missing_ok=True)


def _write(
    folder: Path, tables: Sequence[ExperimentTable], wide: Sequence[PrintedTable], narrow: Sequence[PrintedTable]
) -> None:
    """Write tables in every format, of which LaTeX has the narrow ones."""
    write_json(folder / "table.json", [table.summary() for table in tables])
    write_text(folder / "table.csv", as_csv(tables))
    write_text(folder / "table.md", as_markdown(wide, tables))
    write_text(folder / "table.html", as_html(wide, tables))
    write_text(folder / "table.tex", as_latex(narrow, tables))
