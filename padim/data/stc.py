"""ShanghaiTech Campus: the frames of surveillance cameras, each of which is a category.

ROOT/training/frames/CC_VVV/*.jpg             frames of a normal video of camera CC
ROOT/testing/frames/CC_VVVV/*.jpg             frames of a video to test on
ROOT/testing/test_frame_mask/CC_VVVV.npy      0 or 1 per frame, 1 for an anomalous one
ROOT/testing/test_pixel_mask/CC_VVVV.npy      [frames, h, w], above 0 where the frame is anomalous

The training videos come as AVI files; their frames have to be extracted first.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from padim.data.items import GOOD, Category, Item, images_in
from padim.errors import PadimError

_LABELS = Path("testing", "test_frame_mask")


def is_stc(root: Path) -> bool:
    """Whether a data root has the layout."""
    return (root / _LABELS).is_dir()


def cameras(root: Path) -> set[str]:
    """The cameras that there are normal videos of."""
    return {video.name.split("_")[0] for video in (root / "training/frames").glob("*_*") if video.is_dir()}


def camera(root: Path, name: str) -> Category:
    """The frames of a camera, those of its videos to test on with their labels and masks.

    Raises:
        PadimError: the labels of a video can't be read, or aren't as many as its frames.
    """
    normal, tests = (sorted((root / split / "frames").glob(f"{name}_*")) for split in ("training", "testing"))
    train = [Item(frame, GOOD) for video in normal for frame in images_in(video)]
    return Category(name, train, [item for video in tests for item in _labelled(root, video)])


def _labelled(root: Path, video: Path) -> list[Item]:
    """The frames of a video to test on."""
    frames, labels = images_in(video), _labels(root / _LABELS / f"{video.name}.npy")
    if len(labels) != len(frames):
        raise PadimError(f"{video} has {len(frames)} frames, and {len(labels)} labels in {root / _LABELS}")
    masks = root / "testing/test_pixel_mask" / f"{video.name}.npy"
    return [
        Item(frame, "anomaly", masks, number) if anomalous else Item(frame, GOOD)
        for number, (frame, anomalous) in enumerate(zip(frames, labels > 0, strict=True))
    ]


def _labels(path: Path) -> NDArray[np.integer]:
    try:
        labels: NDArray[np.integer] = np.load(path, allow_pickle=False)
        if labels.ndim != 1 or labels.dtype.kind not in "bui":
            raise ValueError("not one whole number per frame")
    except (OSError, ValueError, EOFError) as error:
        raise PadimError(f"can't read the labels {path}: {error}") from error
    return labels
