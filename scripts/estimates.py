"""What padim-train --dry-run says that training takes, and what it takes.

    python scripts/estimates.py [--only NAME ...] [--repeat 1]

Fits synthetic images with random weights and prints a table in Markdown: peak memory, size of the model file and
seconds, each as estimated and as measured; of several runs, the medians.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import torchvision

from padim.cli.common import positive
from padim.data.synth import write_category

# Training images, and the options of padim-train.
CASES = {
    "224": (72, ""),
    "64": (1500, "--size 64"),
    "512": (72, "--size 512"),
    "768 x 512": (24, "--size 768 512"),
    "1024 x 512": (72, "--size 1024 512"),
    "1024": (24, "--size 1024"),
    "1024, batches of 2": (72, "--size 1024 --batch-size 2"),
    "1024, tiles of 384": (40, "--size 1024 --tile 384"),
    "1024, a model for each tile": (40, "--size 1024 --tile 384 --tile-model position"),
    "WideResNet50-2, d = 550": (72, "--preset pytorch-wr50"),
    "CutPaste, 128": (72, "--method cutpaste --size 128 --training-batch 16 --steps 120"),
}


def train(folder: Path, images: int, options: str) -> dict[str, Any]:
    """What padim-train says of so many images, as JSON."""
    data = folder / f"{images} images"
    if not data.exists():
        different = min(images, 72)
        for _ in write_category(data / "object", "object", 256, 256, train=different, good=0, defective=0, seed=0):
            pass
        files = sorted((data / "object/train/good").iterdir())
        for number in range(different, images):
            files[0].with_name(f"{number}.png").hardlink_to(files[number % different])
    network = "wide_resnet50_2" if "wr50" in options else "resnet18"
    weights = folder / f"{network}.pth"
    if not weights.exists():
        torch.save(torchvision.models.get_model(network).state_dict(), weights)
    where = [
        "--category",
        "object",
        "--data",
        data,
        "--weights",
        weights,
        "--output",
        folder / "runs",
        "--device",
        "cpu",
    ]
    command = [sys.executable, "-m", "padim.cli.train", *map(str, where), *shlex.split(options), "--json"]
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
    found: dict[str, Any] = json.loads(printed)
    return found


def row(folder: Path, name: str, repeat: int) -> str:
    """A line of the table."""
    images, options = CASES[name]
    estimates = [train(folder, images, f"{options} --dry-run") for _ in range(repeat)]
    if any(estimate["seconds"] is None for estimate in estimates):
        return f"| {name} | {images} | more memory than is free |"
    runs = [train(folder, images, options) for _ in range(repeat)]
    cells = [name, str(images)]
    for before, after, unit, of in (
        ("memory_bytes", "peak_memory_bytes", 1e6, "{:.0f} MB"),
        ("model_bytes", "model_bytes", 1e6, "{:.0f} MB"),
        ("seconds", "seconds", 1, "{:.1f} s"),
    ):
        said = statistics.median(estimate[before] / unit for estimate in estimates)
        took = statistics.median(run[after] / unit for run in runs)
        cells += [of.format(said), of.format(took), f"{round(100 * (said / took - 1)):+d} %"]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=CASES, default=[*CASES], metavar="NAME")
    parser.add_argument("--repeat", type=positive, default=1, metavar="N")
    options = parser.parse_args()
    headings = ["image size", "images"]
    for measure in ("memory", "model", "time"):
        headings += [f"{measure}, estimated", "measured", ""]
    print(f"| {' | '.join(headings)} |\n|{' --- |' * len(headings)}")
    with tempfile.TemporaryDirectory() as folder:
        for name in options.only:
            print(row(Path(folder), name, options.repeat), flush=True)


if __name__ == "__main__":
    main()
