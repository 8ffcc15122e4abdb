"""From the feature maps of several levels to one embedding per position, of which a random subset is kept.

`embedding_concat` is the plain form, which repeats the coarse levels at every fine position; the model itself keeps
every level on its own grid (`padim.pyramid`) and never builds that tensor.
Shapes: n images, c channels of a level, d of them selected, h x w positions of a grid; levels l, finest first.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from padim.errors import PadimError


def embedding_concat(levels: Sequence[Tensor]) -> Tensor:
    """Join maps `[n, c_l, h_l, w_l]`, finest first, into `[n, sum c_l, h_1, w_1]` by nearest repetition."""
    height, width = levels[0].shape[2:]
    return torch.cat(
        [
            level.repeat_interleave(height // level.shape[2], dim=2).repeat_interleave(width // level.shape[3], dim=3)
            for level in levels
        ],
        dim=1,
    )


def draw_channels(total: int, count: int, seed: int) -> list[int]:
    """`count` different channels of `total`, drawn as the reference does it; 0 keeps all, in order.

    Raises:
        PadimError: more channels are asked for than there are.
    """
    if count > total:
        raise PadimError(f"--channels {count} is more than the {total} channels of the chosen layers")
    if count == 0:
        return list(range(total))
    return random.Random(seed).sample(range(total), count)


def split_by_level(channels: Sequence[int], widths: Sequence[int]) -> list[list[int]]:
    """Channels of the concatenated embedding -> channels within each level, given the levels' widths."""
    starts = [sum(widths[:level]) for level in range(len(widths))]
    return [
        [channel - start for channel in channels if start <= channel < start + width]
        for start, width in zip(starts, widths, strict=True)
    ]


class ChannelSelection(nn.Module):
    """The channels that are kept of each level.

    Attributes:
        channels: the kept ones of the concatenated embedding, in the order of the draw.
        counts: how many of them fall on each level.
    """

    def __init__(self, channels: Sequence[int], widths: Sequence[int]) -> None:
        """A selection from levels of so many channels each."""
        super().__init__()
        self.channels = [*channels]
        by_level = split_by_level(channels, widths)
        self.counts = [len(level) for level in by_level]
        for number, level in enumerate(by_level):
            self.register_buffer(f"level_{number}", torch.tensor(level, dtype=torch.int64), persistent=False)

    def forward(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """Maps `[n, c_l, h_l, w_l]` -> `[n, d_l, h_l, w_l]`."""
        return [level.index_select(1, self.get_buffer(f"level_{number}")) for number, level in enumerate(levels)]
