"""padim-reproduce: many presets on many categories, in tables beside the published figures."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from padim.backbones import ARCHITECTURES
from padim.cli.command import USER_ERROR, Parser, command, progress_bars
from padim.cli.options import add_data_option, default_data, natural, pick_device, positive
from padim.cli.tables import aligned
from padim.config import PRECISIONS
from padim.cutpaste.config import SELECTIONS
from padim.errors import PadimError
from padim.system.machine import cores

if TYPE_CHECKING:
    from padim.data.items import Category
    from padim.reproduction.experiments import Experiment
    from padim.reproduction.rows import Results
    from padim.reproduction.runs import Run
    from padim.reproduction.tables import ExperimentTable

log = logging.getLogger(__name__)


def parser(prog: str = "padim-reproduce") -> Parser:
    """The command's options."""
    result = Parser(
        prog=prog,
        description="Fit and evaluate many configurations on many categories, and print tables like the paper's"
        " beside the published figures. What an earlier call has done is not done again.",
    )
    result.add_argument("--preset", nargs="+", default=[], metavar="NAME", help="presets (default: pytorch-r18)")
    result.add_argument(
        "--config", nargs="+", default=[], type=Path, metavar="FILE", help="configurations of your own, TOML files"
    )
    result.add_argument(
        "--ablation",
        nargs="+",
        default=[],
        metavar="NAME",
        help="comparisons of the paper, align for parts in any pose, or all",
    )
    result.add_argument(
        "--category", nargs="+", default=["all"], metavar="NAME", help="categories (default: all of MVTec AD)"
    )
    add_data_option(result)
    result.add_argument(
        "--output", type=Path, default=Path("results"), metavar="DIR", help="folder of the results (default: results)"
    )
    result.add_argument(
        "--weights",
        nargs="+",
        default=[],
        metavar="[BACKBONE=]FILE",
        help="weights, one file per backbone, as in resnet18=FILE (default: download)",
    )
    group = result.add_argument_group("fields of the configurations, in all experiments that have them")
    group.add_argument("--precision", choices=PRECISIONS, help="arithmetic of the network")
    group.add_argument("--steps", type=natural, metavar="N", help="updates of the weights (CutPaste)")
    group.add_argument(
        "--select",
        choices=SELECTIONS,
        help="step whose weights are taken; best-on-test has seen the test images (CutPaste)",
    )
    result.add_argument("--seeds", type=positive, default=1, metavar="N", help="repeat every random draw N times")
    result.add_argument(
        "--jobs", type=positive, metavar="N", help="processes (default: as many as memory and cores, or GPUs, allow)"
    )
    result.add_argument(
        "--backend",
        choices=("loky", "dask", "ray"),
        default="loky",
        help="what runs the processes; dask and ray know of other machines (default: loky)",
    )
    result.add_argument(
        "--address",
        metavar="HOST:PORT",
        help="scheduler of a Dask or Ray cluster whose machines share their files with this one; --jobs is for each of"
        " them (default: this machine alone)",
    )
    result.add_argument("--device", default="auto", metavar="NAME", help="where to compute (default: auto)")
    result.add_argument("--json", action="store_true", help="print one JSON object per experiment")
    return result


@command
def main(arguments: Sequence[str] | None = None, prog: str = "padim-reproduce") -> int:
    """Run the command; returns its exit code."""
    options = parser(prog).parse_args(arguments)
    options.data = options.data or default_data()
    if options.address and options.backend == "loky":
        raise PadimError("--address is for --backend dask and --backend ray")
    if options.address:  # other machines have other working directories
        options.data, options.output = options.data.absolute(), options.output.absolute()

    from padim.reproduction.output import write_tables
    from padim.reproduction.tables import ExperimentTable
    from padim.storage.files import check_writable
    from padim.weights import digest, weights_from

    experiments = _experiments(options)
    backbones = sorted({name for experiment in experiments if (name := experiment.config.pretrained)})
    files = _weights_files(options.weights, backbones)
    found, missing = _categories(options)
    check_writable(options.output)
    digests = {backbone: digest(weights_from(files.get(backbone), backbone)) for backbone in backbones}
    runs = [_runs(experiment, found, digests, options) for experiment in experiments]
    failed = _execute([run for several in runs for run in several], files, options)
    done = zip(experiments, map(_results, experiments, runs), strict=True)
    tables = [
        ExperimentTable(experiment, digests.get(experiment.config.pretrained or "", ""), results)
        for experiment, results in done
        if results
    ]
    if tables:
        write_tables(options.output, tables)
    _print(tables, options.json)
    return USER_ERROR if failed or missing else 0


def _experiments(options: argparse.Namespace) -> list[Experiment]:
    """What the options name, each once."""
    from padim.reproduction.experiments import PAIRS, ablation, ablations, own, preset, with_options

    names = ablations() if "all" in options.ablation else options.ablation
    compared = [single for name in names for single in PAIRS.get(name, (name,))]
    named = [*map(preset, options.preset), *map(own, options.config), *map(ablation, compared)]
    fields = {name: getattr(options, name) for name in ("precision", "steps", "select")}
    given = {name: value for name, value in fields.items() if value is not None}
    return with_options(named or [preset("pytorch-r18")], given)


def _results(experiment: Experiment, runs: Sequence[Run]) -> Results:
    """The figures of an experiment's runs, for the categories of which as many seeds are done as of any."""
    results: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        figures = run.result()
        if figures is not None:
            results.setdefault(run.category.name, []).append(figures)
    whole = max(map(len, results.values()), default=0)
    partial = sorted(name for name, seeds in results.items() if len(seeds) < whole)
    if 0 < whole < len({run.path.stem.rpartition("-")[2] for run in runs}):
        log.warning("%s: the table is of %d seeds, the others are not done", experiment.name, whole)
    if partial:
        log.warning("%s: left out, since not all of their seeds are done: %s", experiment.name, ", ".join(partial))
    return {name: seeds for name, seeds in results.items() if len(seeds) == whole}


def _categories(options: argparse.Namespace) -> tuple[list[Category], int]:
    """The categories that there are, and how many of those that were named are not."""
    from padim.data.layouts import categories, find_category
    from padim.reproduction.published import GROUPS

    there = categories(options.data)
    given, every = [name for name in options.category if name != "all"], "all" in options.category
    names = dict.fromkeys([*(there if every else ()), *given])
    found = [find_category(options.data, name) for name in names if name in there]
    known = GROUPS["all"] if every and any(name in GROUPS["all"] for name in there) else ()
    missing = [name for name in dict.fromkeys([*known, *given]) if name not in there]
    if not found:
        raise PadimError(f"none of the categories is in {options.data} (there: {', '.join(there)})")
    if missing:
        log.warning("not there: %s", ", ".join(missing))
    return found, sum(name not in there for name in set(given))


def _runs(
    experiment: Experiment, found: Sequence[Category], digests: Mapping[str, str], options: argparse.Namespace
) -> list[Run]:
    """The runs of an experiment: its seeds on every category."""
    from padim.reproduction.runs import Run

    folder, sha256 = options.output / experiment.name, digests.get(experiment.config.pretrained or "", "")
    return [
        Run(experiment.with_seed(seed), category, sha256, folder / f"{category.name}-{seed}.json")
        for category in found
        for seed in range(options.seeds if experiment.seeded else 1)
    ]


def _execute(runs: Sequence[Run], files: Mapping[str, Path], options: argparse.Namespace) -> int:
    """Do what is not done yet; returns how many runs failed."""
    from padim.reproduction.jobs import execute, most_jobs
    from padim.system.progress import Progress

    todo = [run for run in runs if run.result() is None]
    device = pick_device(options.device)
    jobs = min(options.jobs or most_jobs(todo, device, cores()), max(1, len(todo)))
    failed = 0
    outcomes = execute(todo, files, device, cores(), jobs, options.backend, options.address)
    with progress_bars() as progress, closing(outcomes):
        progress(Progress("runs", 0, len(todo), "run"))
        for done, (run, problem) in enumerate(outcomes, 1):
            progress(Progress("runs", done, len(todo), "run"))
            if problem:
                log.error("%s, %s: %s", run.experiment.name, run.category.name, problem)
                failed += 1
    return failed


def _weights_files(entries: Sequence[str], backbones: Sequence[str]) -> dict[str, Path]:
    """`resnet18=FILE`, or `FILE` where there is only one backbone."""
    files = {}
    for entry in entries:
        backbone, _, path = entry.partition("=")
        if backbone not in (*backbones, *ARCHITECTURES):
            backbone, path = (backbones[0] if len(backbones) == 1 else ""), entry
        if not backbone:
            example = next(iter(backbones), "resnet18")
            raise PadimError(f"--weights {entry}: say for which backbone, as in {example}=FILE")
        files[backbone] = Path(path).absolute()
    return files


def _print(tables: Sequence[ExperimentTable], as_json: bool) -> None:
    from padim.reproduction.tables import full_table

    for table in tables:
        if as_json:
            print(json.dumps(table.summary()))
            continue
        text = full_table(table)
        rows = [text.header, *([entry.text for entry in row] for row in text.rows)]
        print("\n".join([text.title, aligned(rows), *text.notes]), end="\n\n")


if __name__ == "__main__":
    sys.exit(main())
