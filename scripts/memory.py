"""Peak memory of padim-train on few and on many images: it should be the same.

    python scripts/memory.py [--few 200] [--many 5000]

Makes two synthetic categories of 64 x 64 pixels and trains a ResNet18 with random weights on each, in
a process of its own. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import torchvision


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--few", type=int, default=200, metavar="N")
    parser.add_argument("--many", type=int, default=5000, metavar="N")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        torch.save(torchvision.models.resnet18().state_dict(), folder / "weights.pth")
        few, many = (_train(folder, count) for count in (options.few, options.many))
    print(json.dumps({"few": few, "many": many, "ratio": many["peak_memory_bytes"] / few["peak_memory_bytes"]}))


def _train(folder: Path, count: int) -> dict[str, float]:
    """The summary that padim-train prints for a category of `count` images."""
    size = ["--size", "64", "--train", str(count), "--good", "0", "--defective", "0", "--category", str(count)]
    _run("synth", str(folder / "data"), *size)
    protocol = ["--resize", "64", "--crop", "64", "--weights", str(folder / "weights.pth"), "--device", "cpu"]
    where = ["--data", str(folder / "data"), "--output", str(folder / "runs"), "--category", str(count)]
    summary = json.loads(_run("train", *where, *protocol, "--json"))
    return {key: summary[key] for key in ("images", "seconds", "peak_memory_bytes")}


def _run(command: str, *arguments: str) -> str:
    """What a command prints, run in a process of its own."""
    process = [sys.executable, "-m", f"padim.cli.{command}", *arguments]
    return subprocess.run(process, check=True, text=True, stdout=subprocess.PIPE).stdout


if __name__ == "__main__":
    main()
