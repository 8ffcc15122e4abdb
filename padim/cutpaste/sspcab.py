"""The self-supervised predictive convolutional attentive block (Ristea et al. 2022, section 3)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import SqueezeExcitation


class SSPCAB(nn.Module):
    """Predicts every position of a map from the four corners of a window around it, then weighs the channels.

    The window has sides of `2 * (kernel + dilation) + 1`; each corner is `kernel` wide, `dilation`
    lies between it and the centre on either axis, and neither the centre nor anything beside the
    corners is looked at. So the block can only reproduce what its surroundings foretell.
    """

    def __init__(self, channels: int, kernel: int = 1, dilation: int = 1, reduction: int = 8) -> None:
        """A block for maps of so many channels; `reduction` is that of the attention's hidden layer."""
        super().__init__()
        self.reach = kernel + dilation
        self.between = kernel + 2 * dilation + 1  # from the start of a corner to that of the next one
        self.corners = nn.ModuleList(nn.Conv2d(channels, channels, kernel) for _ in range(4))
        self.attention = SqueezeExcitation(channels, max(1, channels // reduction))

    def forward(self, maps: Tensor) -> Tensor:
        """Maps `[n, c, h, w]` -> their prediction, in the same shape."""
        padded = F.pad(maps, [self.reach] * 4)
        height, width = padded.shape[2] - self.between, padded.shape[3] - self.between
        top, bottom = padded[:, :, :height], padded[:, :, self.between :]
        windows = (
            part[..., columns] for part in (top, bottom) for columns in (slice(width), slice(self.between, None))
        )
        predicted = sum(corner(window) for corner, window in zip(self.corners, windows, strict=True))
        weighed: Tensor = self.attention(F.relu(predicted))
        return weighed
