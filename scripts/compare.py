"""How far two models of the same protocol differ on some images.

    python scripts/compare.py runs/bottle/model.safetensors runs/bottle/model.onnx ROOT/bottle/test

Each is what padim-train or padim-export wrote. Prints one JSON object; differences are relative to the
largest distance of the first model on the image.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs=2, type=Path, metavar="MODEL")
    parser.add_argument("images", type=Path, metavar="FOLDER")
    options = parser.parse_args()
    scores, maps, verdicts = [], [], []
    with tempfile.TemporaryDirectory() as name:
        found = (_predicted(model, options.images, Path(name) / str(i)) for i, model in enumerate(options.models))
        for one, other in zip(*found, strict=True):
            first, second = (np.load(line["raw"]) for line in (one, other))
            maps.append(np.abs(first - second).max() / first.max())
            scores.append(abs(one["score"] - other["score"]) / first.max())
            verdicts.append(one["verdict"] != other["verdict"])
    figures = {"map_difference": float(max(maps)), "score_difference": float(max(scores))}
    print(json.dumps({"images": len(maps), **figures, "other_verdicts": sum(verdicts)}))


def _predicted(model: Path, images: Path, out: Path) -> list[dict[str, Any]]:
    """The lines of padim-predict, which leaves its maps in a folder."""
    command = [sys.executable, "-m", "padim.cli.predict", "--model", str(model), "--raw", "npy", "--out", str(out)]
    done = subprocess.run([*command, str(images)], check=True, text=True, stdout=subprocess.PIPE)
    return [json.loads(line) for line in done.stdout.splitlines()]


if __name__ == "__main__":
    main()
