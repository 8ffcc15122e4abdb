"""What the commands share: options, errors, progress, measurements."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import io
import logging
import math
import os
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from padim.config import PRECISIONS, BaseConfig, Config, kinds, preset_path
from padim.detectors.registry import CONFIGURATIONS, read_config
from padim.errors import PadimError
from padim.system.machine import cores, peak_memory_bytes

if TYPE_CHECKING:
    import torch

    from padim.data.items import Category
    from padim.data.loader import ImageLoader, Sample
    from padim.deploy.runtime import Runtime
    from padim.detectors.contract import Detector

log = logging.getLogger(__name__)

USER_ERROR = 2
INTERRUPTED = 130
BROKEN_PIPE = 141


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(USER_ERROR, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


class OneLine(logging.Formatter):
    """Messages in one line, even where a file name has several."""

    def format(self, record: logging.LogRecord) -> str:
        return " ".join(super().format(record).splitlines())


class Command(Protocol):
    """A command's entry point: arguments, by default those of the process, in; exit code out."""

    def __call__(self, arguments: Sequence[str] | None = None) -> int: ...


def command(run: Command) -> Command:
    """Make a function of command-line arguments a command: exit codes, and errors in one line on stderr."""

    @functools.wraps(run)
    def main(arguments: Sequence[str] | None = None) -> int:
        warnings.filterwarnings("ignore", module="PIL")  # what is wrong with an image is said by us
        handler = logging.StreamHandler()
        handler.setFormatter(OneLine("%(levelname)s: %(message)s"))
        logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")  # file names may be anything
        try:
            return run(arguments)
        except PadimError as error:
            log.error("%s", error)
            return USER_ERROR
        except (MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
            log.error("out of memory: take a smaller --batch-size, smaller images or fewer --channels")
            return USER_ERROR
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return INTERRUPTED
        except BrokenPipeError:  # whoever read the results has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return BROKEN_PIPE
        except OSError as error:  # a full disk behind stdout, say
            log.error("%s", error)
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return USER_ERROR

    return main


def _is_out_of_memory(error: Exception) -> bool:
    """Whether Python, torch on a GPU or torch on the CPU ran out of memory; the last has no class of its own."""
    kinds = {"MemoryError", "_ArrayMemoryError", "OutOfMemoryError"}
    return type(error).__name__ in kinds or "can't allocate memory" in str(error)


def add_data_option(parser: argparse.ArgumentParser) -> None:
    """`--data ROOT`."""
    parser.add_argument(
        "--data",
        type=Path,
        default=Path(os.environ.get("PADIM_DATA", "data/mvtec")),
        metavar="ROOT",
        help="folder of the categories (default: the variable PADIM_DATA, or data/mvtec)",
    )


def add_folder_options(parser: argparse.ArgumentParser, *, train: bool) -> None:
    """`--normal`, `--test`, `--defect` and `--masks`: folders of any layout, for one category."""
    group = parser.add_argument_group("images in folders of your own, searched recursively, instead of --data")
    if train:
        group.add_argument("--normal", type=Path, metavar="DIR", help="normal images to learn from")
    group.add_argument(
        "--test", type=Path, metavar="DIR", help="normal images to test on, or a folder good and one a defect type"
    )
    group.add_argument("--defect", type=Path, metavar="DIR", help="defective images to test on")
    group.add_argument(
        "--masks", type=Path, metavar="DIR", help="ground truth of the defective images, named like them"
    )


def category_from(options: argparse.Namespace, name: str) -> Category:
    """The category of a name that the options describe."""
    from padim.data.layouts import find_category, plain_category

    if in_own_folders(options):
        normal = getattr(options, "normal", None)
        return plain_category(name, normal, options.test, options.defect, options.masks)
    return find_category(options.data, name)


def in_own_folders(options: argparse.Namespace) -> bool:
    """Whether the options name folders of images rather than a data root."""
    return any(getattr(options, name, None) for name in ("normal", "test", "defect", "masks"))


def add_output_option(parser: argparse.ArgumentParser) -> None:
    """`--output DIR`."""
    parser.add_argument(
        "--output", type=Path, default=Path("runs"), metavar="DIR", help="folder of the models (default: runs)"
    )


def add_rate_option(parser: argparse._ActionsContainer, default: str) -> None:
    """`--false-alarm-rate R`."""
    parser.add_argument(
        "--false-alarm-rate",
        type=_rate,
        metavar="R",
        help=f"share of fresh normal images that may be called anomalous, in 0..1 (default: {default})",
    )


def add_report_option(parser: argparse.ArgumentParser) -> None:
    """`--report`."""
    parser.add_argument(
        "--report", action="store_true", help="write an HTML page with curves and every image beside the evaluation"
    )


def add_machine_options(parser: argparse.ArgumentParser) -> None:
    """What changes the speed, and neither model nor figures."""
    parser.add_argument(
        "--device",
        default="auto",
        metavar="NAME",
        help="where to compute: cpu, cuda, cuda:1, mps (default: auto, a GPU where there is one)",
    )
    add_workers_option(parser)
    parser.add_argument("--strict", action="store_true", help="stop at the first unreadable image or mask")


def add_workers_option(parser: argparse.ArgumentParser) -> None:
    """`--workers N`."""
    parser.add_argument(
        "--workers",
        type=positive,
        default=min(8, cores()),
        metavar="N",
        help="threads that read images (default: one a core, at most 8)",
    )


def add_scoring_options(parser: argparse.ArgumentParser) -> None:
    """What a fitted model can be run with."""
    parser.add_argument(
        "--weights", type=Path, metavar="FILE", help="backbone weights, for models saved without (default: download)"
    )
    parser.add_argument(
        "--precision", choices=PRECISIONS, help="arithmetic of the backbone (default: as the model was trained)"
    )
    parser.add_argument("--batch-size", type=positive, metavar="N", help="images at a time (default: as trained)")


def add_config_options(parser: argparse.ArgumentParser) -> None:
    """`--method`, `--config`, `--preset`, and an option for every field of any method's configuration."""
    parser.add_argument(
        "--method",
        choices=tuple(CONFIGURATIONS),
        help="detector to train (default: that of the configuration, or padim)",
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--config", type=Path, metavar="FILE", help="configuration, a TOML file")
    source.add_argument("--preset", metavar="NAME", help="a configuration that comes along (default: pytorch-r18)")
    parser.add_argument(
        "--size",
        type=positive,
        nargs="+",
        metavar="N",
        help="side, or height and width: --resize to it, without --crop",
    )
    known: set[str] = set()
    groups = {"of all methods": BaseConfig} | {f"of {method}": kind for method, kind in CONFIGURATIONS.items()}
    for title, kind in groups.items():
        group = parser.add_argument_group(f"fields of the configuration, over those of the file: {title}")
        for field in dataclasses.fields(kind):
            if field.name not in known:
                _add_field(group, field, *kinds(kind)[field.name])
                known.add(field.name)


def _add_field(group: argparse._ActionsContainer, field: dataclasses.Field[Any], kind: type, several: bool) -> None:
    defaults = {}
    for method, config in CONFIGURATIONS.items():
        if field.name in config.__dataclass_fields__:
            value: Any = config.__dataclass_fields__[field.name].default
            defaults[method] = (" ".join(map(str, value)) or "nothing") if several else str(value)
    same = len(set(defaults.values())) == 1
    shown = (
        next(iter(defaults.values())) if same else ", ".join(f"{value} for {name}" for name, value in defaults.items())
    )
    choices = field.metadata["choices"] or None
    group.add_argument(
        f"--{field.name.replace('_', '-')}",
        type=kind,
        nargs="*" if several else None,
        choices=choices,
        metavar=None if choices and not several else "N" if kind is int else kind.__name__.upper(),
        help=f"{field.metadata['help']} (default: {shown})",
    )


def given_fields(options: argparse.Namespace) -> dict[str, Any]:
    """The fields of any configuration that the options have values for.

    Raises:
        PadimError: two options set the same field.
    """
    fields = {field.name for kind in CONFIGURATIONS.values() for field in dataclasses.fields(kind)}
    given = {name: getattr(options, name) for name in sorted(fields) if getattr(options, name) is not None}
    if not options.size:
        return given
    if len(options.size) > 2 or "resize" in given or "crop" in given:
        raise PadimError("--size: give a side, or height and width, and neither --resize nor --crop")
    return given | {"resize": (options.size[0], options.size[-1]), "crop": ()}


def config_from(options: argparse.Namespace) -> BaseConfig:
    """The configuration that the options ask for: command line over file over default.

    Raises:
        PadimError: a value is not valid, or for another method.
    """
    path = preset_path(options.preset) if options.preset else options.config
    config = read_config(path) if path else CONFIGURATIONS[options.method or Config.method]()
    if options.method not in (None, config.method):
        raise PadimError(f"--method {options.method}: {path} is a configuration of {config.method}")
    given = given_fields(options)
    for name in given:
        if name not in config.__dataclass_fields__:
            raise PadimError(f"--{name.replace('_', '-')} is no option of the method {config.method}")
    return dataclasses.replace(config, **given)


def pick_device(name: str) -> str:
    """The device that an option names; `auto` is the best that there is.

    On the CPU, torch gets half of the cores: the other half decodes and resizes in the meantime.

    Raises:
        PadimError: the device isn't there.
    """
    import torch

    from padim.system.device import find_device

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if find_device(name).type == "cpu":
        torch.set_num_threads(max(1, cores() // 2))
    return name


def progress(samples: Iterable[Sample], total: int, what: str, *, quiet: bool = False) -> Iterator[Sample]:
    """The samples, with a progress bar on stderr where that is a terminal, unless it is to be quiet."""
    from tqdm import tqdm
    from tqdm.contrib.logging import logging_redirect_tqdm

    with logging_redirect_tqdm():
        yield from tqdm(samples, desc=what, total=total, unit="image", disable=quiet or None)


class Batches:
    """The images of a loader in batches `[n, 3, h, w]`, with a progress bar; can be gone through again."""

    def __init__(self, loader: ImageLoader, size: int, what: str, *, quiet: bool = False) -> None:
        self.loader, self.size, self.what, self.quiet = loader, size, what, quiet
        self.passes = 0

    def __iter__(self) -> Iterator[torch.Tensor]:
        from padim.data.loader import batched, stack

        self.passes += 1
        what = self.what if self.passes == 1 else f"{self.what}, calibration"
        for batch in batched(progress(self.loader, len(self.loader), what, quiet=self.quiet), self.size):
            yield stack(batch)


def threshold_summary(model: Detector | Runtime, rate: float | None = None) -> dict[str, float | None]:
    """The calibrated threshold of a model for a false-alarm rate, by default its own.

    Without a calibration, or where its images are too few for the rate, the threshold is None; that
    is an error only for a rate that was asked for.

    Raises:
        PadimError: the model can't vouch for the rate that was asked for.
    """
    wanted = rate or model.false_alarm_rate
    nothing: dict[str, float | None] = {"threshold": None, "false_alarm_rate": None, "pixel_threshold": None}
    if model.calibration is None:
        if rate:
            raise PadimError(
                "the model has no calibration: train it with three images or more, without --no-calibration"
            )
        return nothing
    if rate is None:  # what few images can vouch for is better than nothing
        wanted = max(wanted, model.calibration.smallest_rate())
    threshold = model.calibration.threshold(wanted)
    pixel_threshold = model.calibration.pixel_threshold(wanted)
    return {"threshold": threshold, "false_alarm_rate": wanted, "pixel_threshold": pixel_threshold}


def peak_memory(device: torch.device) -> dict[str, int]:
    """The most memory in bytes that this process has had so far, and on a GPU if it computes there."""
    import torch

    if device.type != "cuda":
        return {"peak_memory_bytes": peak_memory_bytes()}
    return {
        "peak_memory_bytes": peak_memory_bytes(),
        "device_peak_memory_bytes": torch.cuda.max_memory_allocated(device),
    }


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """A table as text: the first column flush left, the others flush right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = (cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))
        lines.append("  ".join([first.ljust(widths[0]), *cells]))
    return "\n".join(lines)


def finite(text: str) -> float:
    """A number from the command line, neither infinite nor NaN."""
    number = float(text)
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"{text} is not a finite number")
    return number


def _rate(text: str) -> float:
    rate = finite(text)
    if not 0 < rate < 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return rate


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
    return number
