"""Residual networks (He et al. 2016, arXiv 1512.03385), so that no library of networks has to be imported for them.

Keys, shapes and arithmetic are those of torchvision's, whose bottlenecks have their stride in the 3 x 3 convolution.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from padim.stages import Stages

# The stages, and the channels of their 3 x 3 convolutions in the plain network.
_STAGES = {"layer1": 64, "layer2": 128, "layer3": 256, "layer4": 512}


def resnet18() -> Stages:
    """The network with 18 layers, with random weights."""
    return _ResNet((2, 2, 2, 2))


def wide_resnet50_2() -> Stages:
    """The network with 50 layers and bottlenecks of twice the width (Zagoruyko et al. 2016, arXiv 1605.07146)."""
    return _ResNet((3, 4, 6, 3), bottleneck=2)


class _ResNet(Stages):
    def __init__(self, depths: Sequence[int], bottleneck: int = 0) -> None:
        """A network of so many blocks per stage, plain ones or bottlenecks so many times as wide as usual."""
        widths = {name: 4 * width if bottleneck else width for name, width in _STAGES.items()}
        super().__init__({name: [name] for name in _STAGES}, widths)
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
        given = 64
        for (name, width), depth in zip(_STAGES.items(), depths, strict=True):
            stage, inner, out = nn.Sequential(), bottleneck * width, widths[name]
            for stride in (1 if name == "layer1" else 2, *[1] * (depth - 1)):
                narrow = [(given, inner, 1, 1), (inner, inner, 3, stride), (inner, out, 1, 1)]
                stage.append(_Block(narrow if bottleneck else [(given, out, 3, stride), (out, out, 3, 1)]))
                given = out
            self.add_module(name, stage)

    def stem(self, images: Tensor) -> Tensor:
        return F.max_pool2d(F.relu(self.bn1(self.conv1(images)), inplace=True), 3, 2, 1)


class _Block(nn.Module):
    """Convolutions, and the sum of their result and what they were given."""

    def __init__(self, convolutions: Sequence[tuple[int, int, int, int]]) -> None:
        """Convolutions from so many channels to so many, of a side and with a stride."""
        super().__init__()
        for number, (before, after, side, stride) in enumerate(convolutions, 1):
            self.add_module(f"conv{number}", nn.Conv2d(before, after, side, stride, side // 2, bias=False))
            self.add_module(f"bn{number}", nn.BatchNorm2d(after))
        self.count, given, out = len(convolutions), convolutions[0][0], convolutions[-1][1]
        stride = max(convolution[3] for convolution in convolutions)
        if stride > 1 or given != out:
            self.downsample = nn.Sequential(nn.Conv2d(given, out, 1, stride, bias=False), nn.BatchNorm2d(out))
        else:
            self.downsample = nn.Sequential()

    def forward(self, given: Tensor) -> Tensor:
        maps = given
        for number in range(1, self.count + 1):
            maps = self.get_submodule(f"bn{number}")(self.get_submodule(f"conv{number}")(maps))
            if number < self.count:
                maps = F.relu(maps, inplace=True)
        return F.relu(maps.add_(self.downsample(given)), inplace=True)
