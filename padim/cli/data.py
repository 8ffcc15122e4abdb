"""padim-data: look at a data set."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from padim.cli.common import Parser, add_workers_option, aligned, command

if TYPE_CHECKING:
    from padim.data.check import Report

PROBLEMS = 1


def parser() -> Parser:
    """The command's options."""
    result = Parser(prog="padim-data", description="Look at a data set.")
    actions = result.add_subparsers(required=True, metavar="ACTION", parser_class=Parser)
    check = actions.add_parser(
        "check",
        help="read every image and mask; compare MVTec AD with its published counts",
        description="Read every image and mask of the categories under ROOT, and compare those of MVTec AD"
        " with the published counts. Exit code 1 if something is wrong.",
    )
    check.add_argument("root", type=Path, metavar="ROOT", help="folder of the categories")
    check.add_argument("--category", nargs="+", metavar="NAME", help="categories (default: all there are)")
    add_workers_option(check)
    check.add_argument("--json", action="store_true", help="print one JSON object a category instead of the table")
    return result


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    options = parser().parse_args(arguments)

    from tqdm import tqdm

    from padim.data.check import check_category, check_items, published
    from padim.data.layouts import categories, find_category

    names = options.category or categories(options.root)
    reports = []
    for name in names:
        category = find_category(options.root, name)
        results = check_items(category, options.workers)
        total = len(category.train) + len(category.test)
        shown = tqdm(results, desc=name, total=total, unit="image", disable=None)
        reports.append(check_category(options.root, category, shown))
        if options.json:
            print(json.dumps(dataclasses.asdict(reports[-1])), flush=True)
    if not options.json:
        print(_table(reports))
        missing = sorted(set(published()) - set(names))
        if not options.category and len(missing) < len(published()):
            print(f"not there: {', '.join(missing) or 'nothing, all of MVTec AD is'}")
        for report in reports:
            print(*report.problems, sep="\n", end="\n" if report.problems else "")
    return PROBLEMS if any(report.problems for report in reports) else 0


def _table(reports: Sequence[Report]) -> str:
    rows = [["category", "train", "good", "defective", "masks", "size", "problems"]]
    for report in reports:
        good = report.test.get("good", 0)
        defective = sum(report.test.values()) - good
        sizes = report.sizes.keys()
        rows.append(
            [
                report.category,
                *map(str, (report.train, good, defective, sum(report.masks.values()))),
                next(iter(sizes)) if len(sizes) == 1 else f"{len(sizes)} sizes",
                str(len(report.problems)),
            ]
        )
    return aligned(rows)


if __name__ == "__main__":
    sys.exit(main())
