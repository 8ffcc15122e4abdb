"""What the golden files were made from: images and weights that are the same on every machine."""

from __future__ import annotations

import numpy as np
import torch
import torchvision
from numpy.typing import NDArray


def images(count: int, seed: int) -> NDArray[np.uint8]:
    """Images `[n, 32, 32, 3]` of one scene under noise."""
    scene = np.random.default_rng(0).integers(0, 200, (1, 32, 32, 3))
    return (scene + np.random.default_rng(seed).integers(0, 56, (count, 32, 32, 3))).astype(np.uint8)


def weights() -> dict[str, torch.Tensor]:
    """A ResNet18 whose convolutions repeat one short pattern, so that a file of them compresses well."""
    with torch.device("meta"):
        shapes = {key: value.shape for key, value in torchvision.models.resnet18().state_dict().items()}
    pattern = np.random.default_rng(0).integers(-8, 9, 997) / 8
    made = {}
    for key, shape in shapes.items():
        if len(shape) > 1:
            scale = 2.0 ** -round(np.log2(np.prod(shape[1:]) ** 0.5))
            values = np.resize(pattern, tuple(shape)) * scale
        else:
            values = np.full(tuple(shape), key.endswith(("weight", "running_var")), dtype=float)
        made[key] = torch.from_numpy(values.astype(np.float32))
    return made
