"""padim-data: look at a data set."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from padim.cli.command import USER_ERROR, Failures, Parser, command, progress_bars
from padim.cli.options import add_folder_options, add_workers_option, category_from, in_own_folders, own_name
from padim.cli.tables import aligned
from padim.errors import PadimError, printable

if TYPE_CHECKING:
    from padim.data.check import CategoryReport
    from padim.system.progress import OnProgress

PROBLEMS = 1

# How many remarks of one kind are printed.
MOST = 5


def parser(prog: str = "padim-data") -> Parser:
    """The command's options."""
    result = Parser(prog=prog, description="Look at a data set.")
    actions = result.add_subparsers(required=True, metavar="ACTION", parser_class=Parser, help="what to do")
    check = actions.add_parser(
        "check",
        usage=f"{prog} check (ROOT | --normal DIR) [options]",
        help="read every image and mask; compare MVTec AD with its published counts",
        description="Read every image and mask of the categories under ROOT, or of folders of your own. Report what"
        " is unreadable, duplicate or empty, and which proportions and exposures are unusual; compare the categories"
        " of MVTec AD with the published counts. Exit code 1 if something is wrong, 0 if there are only remarks.",
    )
    # Its name is that of the option --data of other commands, for `category_from`.
    check.add_argument("data", nargs="?", type=Path, metavar="ROOT", help="folder of the categories")
    check.add_argument(
        "--category",
        nargs="+",
        default=[],
        metavar="NAME",
        help="categories (default: all there are), or the name of your own (default: that of the folder)",
    )
    add_folder_options(check, train=True, instead="ROOT")
    add_workers_option(check)
    check.add_argument("--json", action="store_true", help="print one JSON object per category instead of the table")
    return result


@command
def main(arguments: Sequence[str] | None = None, prog: str = "padim-data") -> int:
    """Run the command; returns its exit code."""
    options = parser(prog).parse_args(arguments)

    names = _names(options)
    failures, reports = Failures(), []
    with progress_bars() as progress:
        for name in names:
            with failures.caught(name):
                reports.append(_report(name, options, progress))
                if options.json:
                    print(json.dumps(dataclasses.asdict(reports[-1])), flush=True)
    if reports and not options.json:
        print(_table(reports))
        if options.data and not options.category:
            _print_missing(names)
        for report in reports:
            for line in _lines(report):
                print(printable(" ".join(line.splitlines())))
    if failures.count:
        return USER_ERROR
    return PROBLEMS if any(report.problems for report in reports) else 0


def _names(options: argparse.Namespace) -> list[str]:
    """The categories to check.

    Raises:
        PadimError: there is none, or the options contradict each other.
    """
    from padim.data.layouts import categories

    if not in_own_folders(options):
        if not options.data:
            raise PadimError("which images? Pass ROOT, the folder of the categories, or --normal DIR for your own")
        there = categories(options.data)
        return list(dict.fromkeys(options.category)) or there
    if options.data:
        raise PadimError(f"pass either the data folder {options.data} or folders of your own with --normal, not both")
    return [own_name(options)]


def _report(name: str, options: argparse.Namespace, progress: OnProgress) -> CategoryReport:
    from padim.data.check import check_category, check_folders

    category = category_from(options, name)
    if in_own_folders(options):
        return check_folders(category, options.workers, progress)
    return check_category(options.data, category, options.workers, progress)


def _print_missing(names: Sequence[str]) -> None:
    """Print which categories of MVTec AD are not there, if some are."""
    from padim.data.check import published

    missing = sorted(set(published()) - set(names))
    if len(missing) < len(published()):
        print(f"not there: {', '.join(missing)}" if missing else "all categories of MVTec AD are there")


def _lines(report: CategoryReport) -> Iterator[str]:
    """What is to be read of a category below the table."""
    yield from report.problems
    for remarks in report.remarks.values():
        yield from (f"remark: {remark}" for remark in remarks[:MOST])
        if len(remarks) > MOST:
            yield f"remark: and {len(remarks) - MOST} more"
    if report.advice:
        yield f"{report.category}: {report.advice}"


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
