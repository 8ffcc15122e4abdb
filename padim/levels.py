"""What the modules of a network give: feature maps, or the tokens of a vision transformer, which become maps."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn
from torchvision.models import SwinTransformer

from padim.errors import PadimError


@dataclass(frozen=True)
class ToMaps:
    """From what a module gives to maps `[n, c, h, w]`.

    Attributes:
        size: height and width of the images in pixels.
        patch: side of a vision transformer's patches in pixels; 0 for other networks.
        channels_last: whether the network has maps as `[n, h, w, c]`.
    """

    size: tuple[int, int]
    patch: int
    channels_last: bool

    @classmethod
    def of(cls, network: nn.Module, size: tuple[int, int]) -> Self:
        """What suits a network's modules, for images of a size.

        Raises:
            PadimError: the images don't divide into the patches.
        """
        embedding: Any = getattr(
            network, "patch_embed", None
        )  # timm's; torchvision's transformer knows the side itself
        patch = embedding.feat_ratio() if hasattr(embedding, "feat_ratio") else getattr(network, "patch_size", 0)
        if patch and any(side % patch for side in size):
            raise PadimError(
                f"images or tiles of {size[0]} x {size[1]} pixels don't divide into patches of {patch} x {patch}:"
                f" take multiples of {patch}"
            )
        return cls(size, patch, isinstance(network, SwinTransformer) or getattr(network, "output_fmt", "") == "NHWC")

    def __call__(self, features: Any) -> Tensor | None:
        """Features, or tokens `[n, p + h * w, c]` without the first p, as maps; None for anything else."""
        height, width = self.size
        if isinstance(features, Tensor) and features.ndim == 3 and self.patch:
            rows, columns = height // self.patch, width // self.patch
            tokens = features[:, -rows * columns :]
            return torch.unflatten(tokens.mT, 2, (rows, columns))
        if isinstance(features, Tensor) and features.ndim == 4:
            maps: Tensor = features.movedim(3, 1) if self.channels_last else features
            rows, columns = maps.shape[2:]
            if abs(rows * width - columns * height) <= 2 * max(self.size):  # as in the images, but for a cell or two
                return maps
        return None


def stage_ends(network: nn.Module, to_maps: ToMaps, images: Tensor) -> list[str]:
    """In each part of a network, the last module with maps of a size, and that size, for images `[1, 3, h, w]`."""
    ends: dict[tuple[str, int, int], str] = {}

    def note(name: str, _module: nn.Module, _inputs: Any, output: Any) -> None:
        maps = to_maps(output)
        if maps is not None and min(maps.shape[2:]) > 1:
            ends[name.partition(".")[0], maps.shape[2], maps.shape[3]] = name

    for name, module in network.named_modules():
        sequence = isinstance(module, nn.Sequential) and "." not in name  # which ends with the last module in it
        if name and name.count(".") < 2 and not sequence:
            module.register_forward_hook(partial(note, name))
    network(images)
    return [f"{name} ({rows} x {columns})" for (_, rows, columns), name in ends.items()]
