"""A backbone as feature extractor: images in, the feature maps of the chosen layers out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from padim.errors import PadimError, first_line
from padim.networks import IMAGENET, Source, source_of
from padim.stages import Stages
from padim.system.device import autocast
from padim.weights import StateDict, constants, is_counter, matching


class Normalisation(nn.Module):
    """Pixels into what a network expects that was trained on images of such a mean and standard deviation."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float] = IMAGENET[0], std: Sequence[float] = IMAGENET[1]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """RGB images `[n, 3, h, w]`, uint8 or float in 0..1, with the mean at 0 and the standard deviation at 1."""
        images = images.float() if images.is_floating_point() else images / 255
        return (images - self.mean) / self.std


class Backbone(nn.Module):
    """Images in, feature maps of the chosen layers out; nothing past the last of them is computed.

    Attributes:
        shapes: channels, height and width of every level, in the order of the layers.
    """

    shapes: list[tuple[int, int, int]]

    def __init__(self, name: str, layers: Sequence[str], image_size: tuple[int, int], precision: str = "fp32") -> None:
        """A backbone for images of one size (height, width), still without weights: see `load_weights`.

        Raises:
            PadimError: there is no such network or layer, the package that it comes from isn't installed, the images
                don't suit it, or the layers are not in the order from fine to coarse.
        """
        super().__init__()
        self.name, self.layers, self.precision = name, tuple(layers), precision
        self.network: nn.Module
        self._fold: Callable[[Any], nn.Module]
        self._to_maps: Callable[[Any], Any] = _unchanged
        self._constants: dict[str, Tensor] = {}
        source = source_of(name)
        try:
            self._build(source, image_size)
        except PadimError:
            raise
        except Exception as error:  # of torch.fx, or of the network, which may take images of one size only
            size = f"{image_size[0]} x {image_size[1]} pixels"
            raise PadimError(f"{name} can't be traced for images or tiles of {size}: {first_line(error)}") from error
        for (fine, first), (coarse, second) in pairwise(zip(self.shapes, layers, strict=True)):
            if fine[1] * fine[2] < coarse[1] * coarse[2]:
                grids = f"{second} has {coarse[1]} x {coarse[2]} cells, {first} only {fine[1]} x {fine[2]}"
                raise PadimError(f"layers: the finest comes first, and {grids}: name {second} before {first}")
        self.normalise = Normalisation(*source.statistics)
        self._memory_format = torch.channels_last
        self._weights: dict[str, Tensor] = {}
        self.eval()

    def _build(self, source: Source, size: tuple[int, int]) -> None:
        """Make of the network what leads to the layers, and find out what shapes they have."""
        network = _built(source).eval()
        if isinstance(network, Stages):
            network.cut(self.layers[-1])
            self.shapes = [network.shape(layer, size) for layer in self.layers]
            self.network, self._fold = network.requires_grad_(False), Stages.folded
            return
        from padim.tracing import folded, trace  # slow to import

        traced = trace(network, source, self.name, self.layers, size)
        self.network, self._fold = traced.network, folded
        self.shapes, self._to_maps, self._constants = traced.shapes, traced.to_maps, traced.constants

    def forward(self, images: Tensor) -> list[Tensor]:
        """Feature maps `[n, c_l, h_l, w_l]`, float32, of RGB images `[n, 3, h, w]`: uint8, or float in 0..1."""
        images = self.normalise(images).contiguous(memory_format=self._memory_format)
        with autocast(images.device, self.precision):
            levels = self.network(images)
        return [self._to_maps(levels[layer]).float() for layer in self.layers]

    def weights(self) -> dict[str, Tensor]:
        """The weights up to the last used layer as they were loaded, in the keys of the architecture's own library."""
        return dict(self._weights)

    def load_weights(self, weights: StateDict, device: torch.device | str = "cpu") -> None:
        """Take the needed weights out of a state dict, which may hold more; once, since BatchNorm is folded in then.

        The network moves to a device with them.

        Raises:
            PadimError: a needed key is missing, has another shape or holds values that are not finite.
        """
        state = {key: value for key, value in self.network.state_dict().items() if key not in self._constants}
        taken = matching(weights, {key: value for key, value in state.items() if not is_counter(key)}, self.name)
        self._weights = {key: value.clone() for key, value in taken.items()}
        counters = {key: torch.zeros((), dtype=torch.int64) for key in state if is_counter(key)}
        self.network.load_state_dict(taken | counters, strict=False, assign=True)
        for key, value in self._constants.items():
            module, _, name = key.rpartition(".")
            setattr(self.network.get_submodule(module), name, value)
        if torch.device(device).type == "cuda" and self.precision == "fp32":  # cuDNN would turn it back and forth
            self._memory_format = torch.contiguous_format
        self.network = self._fold(self.network)
        self.network.to(device).to(memory_format=self._memory_format)


def _built(source: Source) -> nn.Module:
    """The network, without values where all that it takes are weights."""
    with suppress(RuntimeError), torch.device("meta"):  # RegNet computes its widths with tensors, which need values
        network = source.build()
        if not constants(network, network):
            return network
    with torch.random.fork_rng(devices=[]):
        return source.build()


def _unchanged(maps: Tensor) -> Tensor:
    return maps
