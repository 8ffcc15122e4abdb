"""padim-synth: make a synthetic category."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from padim.cli.command import Parser, command
from padim.cli.options import natural
from padim.config import ALIGNMENTS, MAX_SIDE
from padim.errors import PadimError

# Images of a kind that are made at most, a few per second.
_MOST = 1_000_000


def parser(prog: str = "padim-synth") -> Parser:
    """The command's options."""
    result = Parser(
        prog=prog,
        description="Make a synthetic category in MVTec AD's layout, with five defect types and exact masks.",
    )
    result.add_argument("root", type=Path, metavar="ROOT", help="data root; the category becomes a folder of it")
    result.add_argument("--kind", choices=("texture", "object", "plate"), default="texture", help="(default: texture)")
    result.add_argument(
        "--pose",
        choices=ALIGNMENTS,
        default="none",
        help="parts lie shifted, or shifted and turned, as poses.json tells (default: none)",
    )
    result.add_argument("--category", metavar="NAME", help="name of the category (default: the kind)")
    result.add_argument(
        "--size", type=natural, nargs="+", default=[256], metavar="N", help="side, or height and width (default: 256)"
    )
    result.add_argument("--train", type=natural, default=60, metavar="N", help="training images (default: 60)")
    result.add_argument("--good", type=natural, default=20, metavar="N", help="normal test images (default: 20)")
    result.add_argument(
        "--defective", type=natural, default=6, metavar="N", help="test images of each defect type (default: 6)"
    )
    result.add_argument("--seed", type=natural, default=0, metavar="N", help="(default: 0)")
    return result


@command
def main(arguments: Sequence[str] | None = None, prog: str = "padim-synth") -> int:
    """Run the command; returns its exit code."""
    options = parser(prog).parse_args(arguments)
    if len(options.size) > 2 or min(options.size) < 16 or max(options.size) > MAX_SIDE:
        raise PadimError(f"--size: give a side, or height and width, of 16 to {MAX_SIDE} pixels")
    if max(options.train, options.good, options.defective) > _MOST:
        raise PadimError(f"--train, --good and --defective are at most {_MOST}")

    if options.pose != "none" and options.kind == "texture":
        raise PadimError("--pose: a texture fills its images, in any pose; pass --kind plate or object")

    from tqdm import tqdm

    from padim.data.synth import DEFECTS, write_category

    folder = options.root / (options.category or options.kind)
    total = options.train + options.good + len(DEFECTS) * options.defective
    images = write_category(
        folder,
        options.kind,
        options.size[0],
        options.size[-1],
        options.train,
        options.good,
        options.defective,
        options.seed,
        options.pose,
    )
    for _ in tqdm(images, desc=folder.name, total=total, unit="image", disable=None):
        pass
    print(f"{folder}: {total} images")
    return 0


if __name__ == "__main__":
    sys.exit(main())
