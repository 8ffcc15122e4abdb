"""padim-data: look at a data set."""

from __future__ import annotations

import dataclasses
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from padim.cli.common import USER_ERROR, Parser, add_workers_option, aligned, command
from padim.errors import PadimError

if TYPE_CHECKING:
    from padim.data.check import Report

log = logging.getLogger(__name__)

PROBLEMS = 1


def parser() -> Parser:
    """The command's options."""
    result = Parser(prog="padim-data", description="Look at a data set.")
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
    check.add_argument("--json", action="store_true", help="print one JSON object a category instead of the table")
    return result


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    options = parser().parse_args(arguments)

    from tqdm import tqdm

    from padim.data.check import check_category, check_items, published
    from padim.data.layouts import categories, find_category

    there = categories(options.root)
    names = list(dict.fromkeys(options.category or there))
    failed = False
    reports = []
    for name in names:
        try:
            category = find_category(options.root, name)
        except PadimError as error:  # the other categories are checked all the same
            log.error("%s", error)
            failed = True
            continue
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
            print(f"not there: {', '.join(missing)}" if missing else "all categories of MVTec AD are there")
        for report in reports:
            for problem in report.problems:
                print(" ".join(problem.splitlines()))
    if failed:
        return USER_ERROR
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
                next(iter(sizes)) if len(sizes) == 1 else f"{len(sizes)} sizes" if sizes else "-",
                str(len(report.problems)),
            ]
        )
    return aligned(rows)


if __name__ == "__main__":
    sys.exit(main())
