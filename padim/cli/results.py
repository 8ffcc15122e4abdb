"""What padim-predict makes of each prediction: pictures, a line, a row, a place in the folder of its verdict."""

from __future__ import annotations

import csv
import io
import json
import logging
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from padim.deploy.sorting import sort_image
from padim.errors import ImageError, PadimError
from padim.storage.files import check_writable, write_text
from padim.system.ahead import Ahead

if TYPE_CHECKING:
    from padim.pipeline.predict import Prediction
    from padim.report.pictures import Pictures

log = logging.getLogger(__name__)

# What is said of an image, as values for JSON.
Line = dict[str, Any]

# Threads that draw, each of which takes half a gigabyte for a large photo, and images that are drawn or wait for it.
_MOST_THREADS, _AHEAD = 4, 8

# Of a line, what the table of --csv has; there are files of pictures beside it.
_COLUMNS = ("path", "verdict", "score", "p_value", "threshold", "false_alarm_rate", "regions", "error")

# Escape codes of a terminal: red and green.
_COLOURS = {"anomalous": 31, "normal": 32}


class Files:
    """Writes the files of predictions: pictures, and links in the folders of their verdicts."""

    def __init__(
        self, pictures: Pictures | None, sort: Path | None, name: Callable[[Path], Path], *, threads: int
    ) -> None:
        """Pictures, if any, and links below `sort`, if anywhere; `name` gives what the files of an image are called.

        Raises:
            PadimError: no links can be made there.
        """
        self._pictures, self._folder, self._name = pictures, sort, name
        self._threads = min(threads, _MOST_THREADS)
        if sort:
            check_writable(sort)

    def lines(self, predictions: Generator[Prediction]) -> Generator[tuple[Prediction, Line]]:
        """The predictions, each with what is said of it; threads write its files while others are scored."""
        with closing(predictions):
            if not (self._pictures or self._folder):
                yield from ((prediction, self._line(prediction)) for prediction in predictions)
                return
            ahead = Ahead(self._line, predictions, threads=self._threads, count=_AHEAD)
            with closing(iter(ahead)) as begun:
                for prediction, line in begun:
                    yield prediction, line.result()

    def _line(self, prediction: Prediction) -> Line:
        """What is said of an image, once its files are written."""
        line, name, start = prediction.summary(), self._name(prediction.path), time.perf_counter()
        problems = []
        for step in (self._draw, self._sort):
            try:
                line |= step(name, prediction)
            except PadimError as error:  # the verdict holds, and the other images are scored all the same
                problems.append(str(error))
        if problems:
            line["error"] = "; ".join(problems)
        if prediction.milliseconds:
            stages = {**prediction.milliseconds, "pictures": 1e3 * (time.perf_counter() - start)}
            line["milliseconds"] = {stage: round(taken, 2) for stage, taken in stages.items()}
        return line

    def _draw(self, name: Path, prediction: Prediction) -> Line:
        if self._pictures is None or prediction.anomaly_map is None:
            return {}
        return self._pictures.write(name, prediction)

    def _sort(self, name: Path, prediction: Prediction) -> Line:
        path, verdict = prediction.path, prediction.verdict
        if self._folder is None or verdict is None:
            return {}
        return {"sorted": str(sort_image(self._folder, verdict, path, name.with_name(path.name)))}


class Summary:
    """Prints the lines of predictions, and counts them.

    Attributes:
        failed: how many images were scored whose files could not be written, or not scored for no fault of theirs.
    """

    def __init__(self, table: Path | None) -> None:
        """With the file of a table that is to have a row per image, if there is to be one.

        Raises:
            PadimError: it can't be written.
        """
        self._start, self._counts, self._taken = time.perf_counter(), Counter[str](), Counter[str]()
        self._table, self._rows, self.failed = table, list[dict[str, Any]](), 0
        if table:
            check_writable(table.parent)
            if table.is_dir():
                raise PadimError(f"--csv {table} is a folder: name a file")

    def add(self, prediction: Prediction, line: Line) -> None:
        """Print the line of an image, and count it."""
        self._add_row(line)
        if isinstance(prediction.problem, ImageError):
            if prediction.problem.may_pass:  # else it was said when it was read
                log.warning("skipped: %s", prediction.problem)
            self._counts["unreadable"] += 1
            self.failed += prediction.problem.of_machine
            return
        print(coloured(line), flush=True)
        self._counts[line["verdict"] or "scored"] += 1
        self._taken.update(line.get("milliseconds", {}))
        if "error" in line:
            log.error("%s", line["error"])
            self.failed += 1

    def close(self) -> None:
        """Say on stderr how many images there were.

        Raises:
            PadimError: none could be read.
        """
        scored = self._counts.total() - self._counts["unreadable"]
        if not scored:
            raise PadimError("none of the images could be read")
        rate = scored / (time.perf_counter() - self._start)
        anomalous = "" if self._counts["scored"] else f"{self._counts['anomalous']} anomalous, "
        unreadable = f"{self._counts['unreadable']} unreadable, " if self._counts["unreadable"] else ""
        images = "image" if self._counts.total() == 1 else "images"
        print(f"{self._counts.total()} {images}: {anomalous}{unreadable}{rate:.1f} images/s", file=sys.stderr)
        if self._taken:
            stages = (f"{stage} {taken / scored:.1f} ms" for stage, taken in self._taken.items())
            print(f"per image: {', '.join(stages)}", file=sys.stderr)

    def _add_row(self, line: Line) -> None:
        """Keep what the table is to have of a line, if there is to be one."""
        if self._table:
            regions = {"regions": len(line["regions"])} if "regions" in line else {}
            self._rows.append({name: value for name, value in (line | regions).items() if name in _COLUMNS})

    def write_table(self) -> None:
        """Write the rows of what was scored so far, where a table is wanted.

        Raises:
            PadimError: it can't be written.
        """
        if not self._table:
            return
        text = io.StringIO(newline="")
        table = csv.DictWriter(text, _COLUMNS)
        table.writeheader()
        table.writerows(self._rows)
        write_text(self._table, text.getvalue())


def coloured(line: Line) -> str:
    """A line as JSON, with the verdict in colour where it goes to a terminal; see https://no-color.org."""
    text, verdict = json.dumps(line), line["verdict"]
    if verdict is None or not sys.stdout.isatty() or os.environ.get("NO_COLOR"):
        return text
    return text.replace(f'"verdict": "{verdict}"', f'"verdict": "\033[{_COLOURS[verdict]}m{verdict}\033[0m"', 1)
