"""The options that commands share, and what they mean as plain values."""

from __future__ import annotations

import argparse
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from padim.config import PRECISIONS
from padim.errors import PadimError
from padim.system.machine import cores, multiplies_bfloat16

if TYPE_CHECKING:
    from padim.data.items import Category
    from padim.detectors.scores import Scorer


log = logging.getLogger(__name__)

# What options have beside values of their own: the program chooses.
AUTO = "auto"

# Each reads several images ahead.
_MOST_THREADS = 256

_LARGEST = 1e30


def add_data_option(parser: argparse._ActionsContainer) -> None:
    """`--data ROOT`."""
    parser.add_argument(
        "--data",
        type=Path,
        metavar="ROOT",
        help="folder of the categories (default: the variable PADIM_DATA, or data/mvtec)",
    )


def default_data() -> Path:
    """The folder of the categories where none is named."""
    return Path(os.environ.get("PADIM_DATA", "data/mvtec"))


def add_folder_options(parser: argparse.ArgumentParser, *, train: bool, instead: str = "--data") -> None:
    """`--normal`, `--test`, `--defect` and `--masks`: folders of any layout, for one category."""
    group = parser.add_argument_group(f"images in folders of your own, searched recursively, instead of {instead}")
    if train:
        group.add_argument("--normal", type=Path, metavar="DIR", help="normal images to learn from")
    group.add_argument(
        "--test", type=Path, metavar="DIR", help="normal images to test on, or a folder good and one per defect type"
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
    return find_category(options.data or default_data(), name)


def in_own_folders(options: argparse.Namespace) -> bool:
    """Whether the options name folders of images rather than a data root."""
    return any(getattr(options, name, None) for name in ("normal", "test", "defect", "masks"))


def own_name(options: argparse.Namespace) -> str:
    """The name of a category in folders of one's own: the one that is given, or that of the folder of normal images.

    Folders called `good`, `train` or `test` say nothing of it: the one above them does.

    Raises:
        PadimError: the options name several categories, or no folder of normal images.
    """
    from padim.data.items import GOOD, real

    given = list(dict.fromkeys(options.category))
    if not options.normal:
        raise PadimError("--test, --defect and --masks are for images of your own: pass --normal DIR, too")
    if len(given) > 1 or "all" in given:
        raise PadimError("images of your own: pass --category NAME for one name at most")
    folder = real(options.normal)
    own = (name for name in reversed(folder.parts[1:]) if name not in ("train", "test", GOOD))
    return given[0] if given else next(own, folder.name)


def add_output_option(parser: argparse._ActionsContainer) -> None:
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


def add_report_option(parser: argparse._ActionsContainer, implied: str = "") -> None:
    """`--report`."""
    what = "write an HTML page with curves and every image beside the evaluation"
    parser.add_argument("--report", action="store_true", help=f"{implied}{what}")


def add_verbose_option(parser: argparse._ActionsContainer) -> None:
    """`--verbose`."""
    parser.add_argument(
        "--verbose",
        action="store_true",
        help="print what other false-alarm rates mean, and each defect type, for several categories, too",
    )


def add_strict_option(parser: argparse._ActionsContainer) -> None:
    """`--strict`."""
    parser.add_argument("--strict", action="store_true", help="stop at the first unreadable image or mask")


def add_machine_options(parser: argparse._ActionsContainer) -> None:
    """What changes the speed, and neither model nor figures."""
    parser.add_argument(
        "--device",
        default="auto",
        metavar="NAME",
        help="where to compute: cpu, cuda, cuda:1, mps (default: auto, a GPU where there is one)",
    )
    add_workers_option(parser)


def add_workers_option(parser: argparse._ActionsContainer) -> None:
    """`--workers N`."""
    parser.add_argument(
        "--workers",
        type=_threads,
        default=min(8, cores()),
        metavar="N",
        help="threads that read images (default: one per core, at most 8)",
    )


def add_scoring_options(parser: argparse._ActionsContainer) -> None:
    """What a fitted model can be run with."""
    parser.add_argument(
        "--weights", type=Path, metavar="FILE", help="backbone weights, for models saved without (default: download)"
    )
    parser.add_argument(
        "--precision",
        choices=(*PRECISIONS, AUTO),
        help="precision of the backbone (default: as the model was trained), or of an exported model (default: fp32);"
        " auto: the fastest here that ranks images alike",
    )
    parser.add_argument(
        "--engine",
        choices=("onnxruntime", "openvino"),
        help="what computes an exported model (default: onnxruntime); --device is then cpu (the default), cuda,"
        " tensorrt, directml or coreml, and with openvino cpu, gpu or npu",
    )
    parser.add_argument("--batch-size", type=positive, metavar="N", help="images at a time (default: as trained)")


def pick_device(name: str) -> str:
    """The device that an option names; `auto` is the best that there is.

    On the CPU, torch gets half of the cores: the other half decodes and resizes in the meantime.

    Raises:
        PadimError: the device isn't there.
    """
    import torch

    from padim.system.device import best_device, find_device

    if name == AUTO:
        name = best_device()
    if find_device(name).type == "cpu":
        torch.set_num_threads(max(1, cores() // 2))
    return name


def precision_on(device: str, precision: str | None) -> str | None:
    """A precision that an option names; `auto` is `bf16` on CPUs and `tf32` on GPUs that multiply it faster."""
    if precision != AUTO:
        return precision
    if device.startswith("cuda"):
        return "tf32"
    return "bf16" if device == "cpu" and multiplies_bfloat16() else "fp32"


def scorer_from(options: argparse.Namespace, path: Path) -> Scorer:
    """A model from its file. Exported ones need no torch, and compute on the CPU by default.

    Raises:
        PadimError: it can't be read, or an option isn't for it.
    """
    from padim.deploy.runtime import load_scorer

    exported = path.suffix.lower() == ".onnx"
    if exported:
        device = "cpu" if options.device == AUTO else options.device
        precision = options.precision
        if precision == AUTO and device == "cpu" and options.engine != "openvino":  # which has no bf16 there
            precision = "fp32"
        precision = precision_on(device, precision)
    else:
        device = pick_device(options.device)
        precision = precision_on(device, options.precision)
    scorer = load_scorer(path, weights=options.weights, engine=options.engine, device=device, precision=precision)
    if precision and not exported:
        from padim.storage.modelfile import config_values

        fitted = config_values(path).get("precision")
        if precision != fitted:
            log.warning(
                "%s was fitted in %s: in %s, scores move a little and the threshold stays", path, fitted, precision
            )
    return scorer


def finite(text: str) -> float:
    """A number from the command line, neither NaN nor beyond what float32 can be computed with."""
    number = float(text)
    if not abs(number) <= _LARGEST:
        raise argparse.ArgumentTypeError(f"{text} is not a finite number, or above {_LARGEST:g}")
    return number


def _rate(text: str) -> float:
    rate = finite(text)
    if not 0 < rate < 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return rate


def natural(text: str) -> int:
    """A whole number from the command line, 0 or more and such as a computer can count to."""
    number = int(text)
    if not 0 <= number < 2**31:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 0 to {2**31 - 1}")
    return number


def positive(text: str) -> int:
    """The same, above 0."""
    number = natural(text)
    if number == 0:
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
    return number


def _threads(text: str) -> int:
    number = int(text)
    if not 0 < number <= _MOST_THREADS:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 1 to {_MOST_THREADS}")
    return number
