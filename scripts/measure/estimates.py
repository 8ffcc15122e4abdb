"""The memory and the model file that padim-train --dry-run estimates, beside those of the training itself.

    python scripts/measure/estimates.py [--only NAME ...]

The script fits synthetic images with random weights and prints a table in Markdown: peak memory and size of the model
file, each as estimated and as measured.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import torchvision

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
    """The summary that padim-train prints for so many images."""
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
    inputs = ["--category", "object", "--data", str(data), "--weights", str(weights)]
    where = ["--output", str(folder / "runs"), "--device", "cpu", "--json"]
    command = [sys.executable, "-m", "padim.cli.train", *inputs, *where, *shlex.split(options)]
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
    found: dict[str, Any] = json.loads(printed)
    return found


def row(folder: Path, name: str) -> str:
    """A line of the table."""
    images, options = CASES[name]
    estimate, run = (train(folder, images, f"{options} {look}") for look in ("--dry-run", ""))
    cells = [name, str(images)]
    for before, after in (("memory_bytes", "peak_memory_bytes"), ("model_bytes", "model_bytes")):
        said, took = estimate[before] / 1e6, run[after] / 1e6
        cells += [f"{said:.0f} MB", f"{took:.0f} MB", f"{round(100 * (said / took - 1)):+d} %"]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=CASES, default=[*CASES], metavar="NAME")
    options = parser.parse_args()
    headings = ["image size", "images", "memory, estimated", "measured", "", "model, estimated", "measured", ""]
    print(f"| {' | '.join(headings)} |\n|{' --- |' * len(headings)}")
    with tempfile.TemporaryDirectory() as folder:
        for name in options.only:
            print(row(Path(folder), name), flush=True)


if __name__ == "__main__":
    main()
