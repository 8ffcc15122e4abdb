"""padim-data: look at a data set."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from padim.cli.command import USER_ERROR, Failures, Parser, command, progress_bars
from padim.cli.options import add_workers_option
from padim.cli.tables import aligned

if TYPE_CHECKING:
    from padim.data.check import CategoryReport

PROBLEMS = 1


def parser(prog: str = "padim-data") -> Parser:
    """The command's options."""
    result = Parser(prog=prog, description="Look at a data set.")
    actions = result.add_subparsers(required=True, metavar="ACTION", parser_class=Parser, help="what to do")
    check = actions.add_parser(
        "check",
        help="read every image and mask; compare MVTec AD with its published counts",
        description="Read every image and mask of the categories under ROOT, and compare those of MVTec AD"
        " with the published counts. Exit code 1 if something is wrong.",
    )
    check.add_argument("root", type=Path, metavar="ROOT", help="folder of the categories")
    check.add_argument("--category", nargs="+", metavar="NAME", help="categories (default: all there are)")
    add_workers_option(check)
    check.add_argument("--json", action="store_true", help="print one JSON object per category instead of the table")
    return result


@command
def main(arguments: Sequence[str] | None = None, prog: str = "padim-data") -> int:
    """Run the command; returns its exit code."""
    options = parser(prog).parse_args(arguments)

    from padim.data.check import check_category, published
    from padim.data.layouts import categories, find_category

    there = categories(options.root)
    names = list(dict.fromkeys(options.category or there))
    failures, reports = Failures(), []
    with progress_bars() as progress:
        for name in names:
            with failures.caught(name):
                category = find_category(options.root, name)
                reports.append(check_category(options.root, category, options.workers, progress))
                if options.json:
                    print(json.dumps(dataclasses.asdict(reports[-1])), flush=True)
    if not options.json:
        print(_table(reports))
        missing = sorted(set(published()) - set(names))
        if not options.category and len(missing) < len(published()):
            print(f"not there: {', '.join(missing)}" if missing else "all categories of MVTec AD are there")
        for report in reports:
            for problem in report.problems:
                print(" ".join(problem.splitlines()))
            if report.advice:
                print(f"{report.category}: {report.advice}")
    if failures.count:
        return USER_ERROR
    return PROBLEMS if any(report.problems for report in reports) else 0


def _table(reports: Sequence[CategoryReport]) -> str:
    rows = [["category", "train", "good", "defective", "masks", "size", "problems"]]
    for report in reports:
        good = report.test.get("good", 0)
        defective = sum(report.test.values()) - good
        sizes = report.sizes.keys()
        rows.append(
            [
                report.category,
                *map(str, (report.train, good, defective, sum(report.masks.values()))),
                next(iter(sizes)) if len(sizes) == 1 else f"{len(sizes)} sizes" if sizes else "-",
                str(len(report.problems)),
            ]
        )
    return aligned(rows)


if __name__ == "__main__":
    sys.exit(main())
