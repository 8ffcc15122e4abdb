"""Memory of padim-predict --watch while a stream of images passes: it should stay the same.

    python scripts/measure/stream.py [--images 10000]

The script makes a synthetic category, trains a ResNet18 with random weights on it, and lets its test images arrive
again and again under new names, at most 500 ahead of the one that is scored. It prints one JSON object with the memory
of the process, without pages of files, after each tenth of the images.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import torch
import torchvision

AHEAD = 500


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000, metavar="N")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = _model(folder)
        sources = sorted((folder / "data/object/test").rglob("*.png"))
        (folder / "in").mkdir()
        command = [sys.executable, "-m", "padim.cli.predict", "--model", str(model), "--watch", str(folder / "in")]
        process = subprocess.Popen([*command, "--settle", "0.2"], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        memory = psutil.Process(process.pid)
        arrived, start, megabytes = 0, time.perf_counter(), []
        for scored in range(1, options.images + 1):
            while arrived < min(scored + AHEAD, options.images):
                os.link(sources[arrived % len(sources)], folder / "in" / f"{arrived}.png")
                arrived += 1
            process.stdout.readline()
            if scored % (options.images // 10) == 0:
                used = memory.memory_full_info().uss
                megabytes.append(round(used / 1e6, 1))
        seconds = time.perf_counter() - start
        process.terminate()
        rest = process.communicate()[0].splitlines()
    print(
        json.dumps(
            {
                "images": options.images,
                "seconds": round(seconds, 1),
                "megabytes": megabytes,
                "lines_too_many": len(rest),
                "exit_code": process.returncode,
            }
        )
    )


def _model(folder: Path) -> Path:
    """A model of a synthetic category, which stays in the folder."""
    torch.save(torchvision.models.resnet18().state_dict(), folder / "weights.pth")
    _run("synth", str(folder / "data"), "--kind", "object", "--size", "256", "--train", "20")
    where = ["--data", str(folder / "data"), "--output", str(folder / "runs"), "--category", "object"]
    _run("train", *where, "--weights", str(folder / "weights.pth"), "--device", "cpu")
    return folder / "runs/object/model.safetensors"


def _run(command: str, *arguments: str) -> None:
    subprocess.run([sys.executable, "-m", f"padim.cli.{command}", *arguments], check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
