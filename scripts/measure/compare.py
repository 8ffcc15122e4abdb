"""How far two models with anomaly maps, of the same protocol, differ on some images.

    python scripts/measure/compare.py runs/bottle/model.safetensors runs/bottle/model.onnx ROOT/bottle/test

Each model is a file that padim-train or padim-export wrote. The script prints one JSON object; differences are
relative to the largest distance that the first model measures in the image.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from padim import PadimError, predict
from padim.cli.options import pick_device
from padim.deploy.runtime import load_scorer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs=2, type=Path, metavar="MODEL")
    parser.add_argument("images", type=Path, metavar="FOLDER")
    options = parser.parse_args()
    try:
        print(json.dumps(differences(options.models, options.images)))
    except PadimError as error:
        sys.exit(str(error))


def differences(models: list[Path], images: Path) -> dict[str, float]:
    """The largest differences between two models on the images of a folder, and the number of different verdicts."""
    device = pick_device("auto")
    scorers = [load_scorer(path, device="cpu" if path.suffix == ".onnx" else device) for path in models]
    if not all(scorer.has_maps for scorer in scorers):
        raise PadimError("a model scores whole images and has no maps to compare")
    maps, scores, verdicts = [], [], []
    for one, other in zip(*(predict(scorer, [images]) for scorer in scorers), strict=True):
        assert one.path == other.path
        if one.problem or other.problem:
            continue
        largest = one.anomaly_map.max()
        maps.append(float(np.abs(one.anomaly_map - other.anomaly_map).max() / largest))
        scores.append(float(abs(one.score - other.score) / largest))
        verdicts.append(one.verdict != other.verdict)
    if not scores:
        raise PadimError("there is no image that both models have scored")
    found = {"map_difference": max(maps), "score_difference": max(scores)}
    return {"images": len(scores), **found, "other_verdicts": sum(verdicts)}


if __name__ == "__main__":
    main()
