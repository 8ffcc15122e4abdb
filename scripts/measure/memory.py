"""Peak memory and time of padim-train for few and for many images: memory should stay the same, time should be linear.

    python scripts/measure/memory.py [--images 200 5000] [--size 64]

For each number of images, the script makes a synthetic category of 64 x 64 pixels with 1000 different images at most,
and trains a ResNet18 with random weights on it in a process of its own. It prints one JSON object per number.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import torchvision


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[200, 5000], metavar="N")
    parser.add_argument("--size", type=int, default=64, metavar="N", help="side that the network sees")
    options = parser.parse_args()
    for count in options.images:
        with tempfile.TemporaryDirectory() as name:
            print(json.dumps(_train(Path(name), count, options.size)), flush=True)


def _train(folder: Path, count: int, side: int) -> dict[str, float]:
    """The summary that padim-train prints for a category of `count` images."""
    torch.save(torchvision.models.resnet18().state_dict(), folder / "weights.pth")
    size = ["--size", "64", "--train", str(min(count, 1000)), "--good", "0", "--defective", "0", "--category", "many"]
    _run("synth", str(folder / "data"), *size)
    different = sorted((folder / "data/many/train/good").iterdir())
    for number in range(len(different), count):
        os.link(different[number % len(different)], different[0].with_name(f"{number}.png"))
    protocol = ["--size", str(side), "--weights", str(folder / "weights.pth"), "--device", "cpu"]
    where = ["--data", str(folder / "data"), "--output", str(folder / "runs"), "--category", "many"]
    summary = json.loads(_run("train", *where, *protocol, "--json"))
    return {key: summary[key] for key in ("images", "seconds", "images_per_second", "peak_memory_bytes")}


def _run(command: str, *arguments: str) -> str:
    """What a command prints, run in a process of its own."""
    process = [sys.executable, "-m", f"padim.cli.{command}", *arguments]
    return subprocess.run(process, check=True, text=True, stdout=subprocess.PIPE).stdout


if __name__ == "__main__":
    main()
