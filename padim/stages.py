"""What the networks that are defined here have in common: a stem, and stages in a row that need no tracing."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Self

from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


class Stages(nn.Module, ABC):
    """A network without its classifier, whose convolutions pad their maps to a whole number of strides.

    Attributes:
        parts: for each level, finest first, the modules from the level before to its end, by their names.
        widths: the channels of each level.
    """

    def __init__(self, parts: Mapping[str, Sequence[str]], widths: Mapping[str, int]) -> None:
        super().__init__()
        self.parts, self.widths = dict(parts), widths

    @abstractmethod
    def stem(self, images: Tensor) -> Tensor:
        """Normalised images `[n, 3, h, w]` to what the first level starts from."""

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """The maps `[n, c_l, h_l, w_l]` of every level, by its name, of normalised images `[n, 3, h, w]`."""
        maps, levels = self.stem(images), {}
        for level, parts in self.parts.items():
            for part in parts:
                maps = self.get_submodule(part)(maps)
            levels[level] = maps
        return levels

    def cut(self, last: str) -> None:
        """Drop all that lies past a level."""
        levels = [*self.parts]
        for level in levels[levels.index(last) + 1 :]:
            for part in reversed(self.parts.pop(level)):
                parent, _, name = part.rpartition(".")
                delattr(self.get_submodule(parent), name)

    def shape(self, level: str, size: tuple[int, int]) -> tuple[int, int, int]:
        """Channels, height and width of a level's maps, for images of a size; the levels have strides 4, 8, 16, 32."""
        stride = 4 * 2 ** [*self.parts].index(level)
        return self.widths[level], -(-size[0] // stride), -(-size[1] // stride)

    def folded(self) -> Self:
        """The network with every BatchNorm, as it is at inference, as a part of the convolution before it."""
        for part in [*self.modules()]:
            for (name, convolution), (other, normalisation) in pairwise([*part.named_children()]):
                if isinstance(convolution, nn.Conv2d) and isinstance(normalisation, nn.BatchNorm2d):
                    setattr(part, name, fuse_conv_bn_eval(convolution, normalisation))
                    setattr(part, other, nn.Identity())
        return self
