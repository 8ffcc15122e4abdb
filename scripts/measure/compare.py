"""How far two models with anomaly maps, of the same protocol, differ on some images.

    python scripts/measure/compare.py runs/bottle/model.safetensors runs/bottle/model.onnx ROOT/bottle/test

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
    maps, scores, verdicts = [], [], []
    with tempfile.TemporaryDirectory() as name:
        first, second = (_lines(model, options.images, Path(name, str(i))) for i, model in enumerate(options.models))
        for path in first.keys() & second.keys():
            one, other = first[path], second[path]
            distances = np.load(one["raw"])
            maps.append(float(np.abs(distances - np.load(other["raw"])).max() / distances.max()))
            scores.append(float(abs(one["score"] - other["score"]) / distances.max()))
            verdicts.append(one["verdict"] != other["verdict"])
    if not scores:
        sys.exit("there is no image that both have scored")
    differences = {"map_difference": max(maps), "score_difference": max(scores)}
    print(json.dumps({"images": len(scores), **differences, "other_verdicts": sum(verdicts)}))


def _lines(model: Path, images: Path, out: Path) -> dict[str, dict[str, Any]]:
    """What padim-predict says of each image that it can score, with its maps in a folder."""
    command = [sys.executable, "-m", "padim.cli.predict", "--model", str(model), "--raw", "npy", "--out", str(out)]
    done = subprocess.run([*command, str(images)], text=True, stdout=subprocess.PIPE)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return {line["path"]: line for line in lines if "score" in line}


if __name__ == "__main__":
    main()
