"""A backbone as feature extractor: images in, the feature maps of the chosen layers out."""

from __future__ import annotations

from collections.abc import Sequence
from pkgutil import resolve_name

import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse
from torchvision.models.feature_extraction import create_feature_extractor

from padim.backbones import ARCHITECTURES
from padim.system.device import autocast
from padim.weights import StateDict, is_counter, matching

# Statistics of ImageNet for RGB in 0..1: all the weights here were trained with them.
_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)


class Normalisation(nn.Module):
    """Pixels into what networks trained on ImageNet expect."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(_STD).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """RGB images `[n, 3, h, w]`, uint8 or float in 0..1, with ImageNet's mean at 0 and its deviation at 1."""
        images = images.float() if images.is_floating_point() else images / 255
        return (images - self.mean) / self.std


class Backbone(nn.Module):
    """Images in, feature maps of the chosen layers out; nothing past the last of them is computed.

    Attributes:
        shapes: channels, height and width of every level, in the order of the layers.
    """

    def __init__(self, name: str, layers: Sequence[str], image_size: tuple[int, int], precision: str = "fp32") -> None:
        """A backbone for images of one size (height, width), still without weights: see `load_weights`.

        Raises:
            PadimError: the package that the backbone comes from isn't installed.
        """
        super().__init__()
        architecture = ARCHITECTURES[name]
        with torch.device("meta"):
            network = resolve_name(architecture.build)().eval()
        self.network = create_feature_extractor(
            network,
            {architecture.levels[layer]: layer for layer in layers},
            tracer_kwargs={"leaf_modules": resolve_name(architecture.leaves)() if architecture.leaves else []},
        ).requires_grad_(False)
        levels = self.network(torch.empty(1, 3, *image_size, device="meta")).values()
        self.shapes: list[tuple[int, int, int]] = [tuple(level.shape[1:]) for level in levels]
        self.name = name
        self.precision = precision
        self.normalise = Normalisation()
        self._weights: dict[str, Tensor] = {}
        self.eval()

    def forward(self, images: Tensor) -> list[Tensor]:
        """Feature maps `[n, c_l, h_l, w_l]`, float32, of RGB images `[n, 3, h, w]`: uint8, or float in 0..1."""
        images = self.normalise(images).contiguous(memory_format=torch.channels_last)
        with autocast(images.device, self.precision):
            return [features.float() for features in self.network(images).values()]

    def weights(self) -> dict[str, Tensor]:
        """The weights up to the last used layer as they were loaded, in the keys of the architecture's own library."""
        return dict(self._weights)

    def load_weights(self, weights: StateDict) -> None:
        """Take the needed weights out of a state dict, which may hold more; once, since BatchNorm is folded in then.

        Raises:
            PadimError: a needed key is missing, has another shape or holds values that are not finite.
        """
        wanted = self.network.state_dict()
        taken = matching(weights, {key: value for key, value in wanted.items() if not is_counter(key)}, self.name)
        self._weights = {key: value.clone() for key, value in taken.items()}
        counters = {key: torch.zeros((), dtype=torch.int64) for key in wanted if is_counter(key)}
        self.network.load_state_dict(taken | counters, assign=True)
        self.network = fuse(self.network.eval(), inplace=True, no_trace=True).to(memory_format=torch.channels_last)
