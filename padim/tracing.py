"""A network of a library, cut down to what leads to some of its layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse
from torchvision.models.feature_extraction import create_feature_extractor

from padim.errors import PadimError
from padim.levels import ToMaps, stage_ends
from padim.networks import Source
from padim.weights import constants


class Traced(NamedTuple):
    """What torch.fx finds to lead to some layers.

    Attributes:
        network: gives what each layer gives, by its name, without values of parameters.
        to_maps: what makes maps of that.
        shapes: channels, height and width of the maps, in the order of the layers.
        constants: buffers that don't come with weights, by their keys.
    """

    network: nn.Module
    to_maps: ToMaps
    shapes: list[tuple[int, int, int]]
    constants: dict[str, Tensor]


def trace(network: nn.Module, source: Source, name: str, layers: Sequence[str], size: tuple[int, int]) -> Traced:
    """What leads to layers of a network of a name, for images of one size; nothing past the last of them is computed.

    Raises:
        PadimError: a layer isn't there or gives no maps; the message names some that do.
    """
    images, to_maps = torch.empty(1, 3, *size, device="meta"), ToMaps.of(network, size)
    nodes = {source.levels.get(layer, layer): layer for layer in layers}
    modules = dict(network.named_modules())
    missing = [layer for node, layer in nodes.items() if node not in modules]
    if not missing:
        tracing: Mapping[str, Any] = {**source.tracing}
        try:
            graph = create_feature_extractor(network, nodes, tracer_kwargs=tracing, suppress_diff_warning=True)
        except ValueError as error:  # modules that are there and not run
            missing = [layer for node, layer in nodes.items() if f"'{node}'" in str(error)]
            if not missing:
                raise
    if not missing:
        _protect_levels(graph)
        kept = constants(graph, network)
        graph = graph.requires_grad_(False).to("meta")
        # Not called but run: a call would print errors.
        maps: dict[str, Tensor | None] = {layer: to_maps(level) for layer, level in graph.forward(images).items()}
        missing = [layer for layer, level in maps.items() if level is None]
        if not missing:
            shapes = [level.shape[1:] for layer in layers if (level := maps[layer]) is not None]
            return Traced(graph, to_maps, [(channels, rows, columns) for channels, rows, columns in shapes], kept)
    ends = ", ".join(stage_ends(network.to("meta"), to_maps, images))
    raise PadimError(f"layers: {name} has no maps named {', '.join(missing)}; its stages end at {ends}")


def _protect_levels(network: Any) -> None:
    """Give copies of levels that the network computes with: in-place activations would overwrite them."""
    graph = network.graph
    (output,) = (node for node in graph.nodes if node.op == "output")
    for level in output.all_input_nodes:
        if len(level.users) > 1:
            with graph.inserting_after(level):
                output.replace_input_with(level, graph.call_method("clone", (level,)))
    network.recompile()


def folded(network: nn.Module) -> nn.Module:
    """The network with every BatchNorm, as it is at inference, as a part of the convolution before it."""
    return fuse(network.eval(), inplace=True, no_trace=True)
