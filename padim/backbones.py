"""The backbones by name: how each network is built, where its levels end, and where its weights come from.

All of it is text, which `pkgutil.resolve_name` turns into the thing itself when it is needed: so the commands know the
names without loading torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

# Packages that have further backbones, `torchvision:NAME` and `timm:NAME`, whose layers are modules by their names.
LIBRARIES = ("torchvision", "timm")


@dataclass(frozen=True)
class Architecture:
    """A network that gives features.

    Attributes:
        build: a function that makes the network.
        levels: the modules whose outputs are the levels `layer1` to `layer4`.
        weights: one of torchvision's weights, or a function that gives a state dict.
        leaves: a function that gives the classes of modules that tracing must not enter, if there are any.
    """

    build: str
    levels: Mapping[str, str]
    weights: str
    leaves: str | None = None


_RESNET = {f"layer{level}": f"layer{level}" for level in range(1, 5)}

ARCHITECTURES = {
    "resnet18": Architecture(
        "torchvision.models:resnet18", _RESNET, "torchvision.models:ResNet18_Weights.IMAGENET1K_V1"
    ),
    "wide_resnet50_2": Architecture(
        "torchvision.models:wide_resnet50_2", _RESNET, "torchvision.models:Wide_ResNet50_2_Weights.IMAGENET1K_V1"
    ),
    # The paper's layers 7, 20 and 26 count the blocks from 0; the fourth is the last block.
    "efficientnet_b5": Architecture(
        "torchvision.models:efficientnet_b5",
        {"layer1": "features.2", "layer2": "features.5.0", "layer3": "features.5", "layer4": "features.7"},
        "torchvision.models:EfficientNet_B5_Weights.IMAGENET1K_V1",
    ),
    # The stages that end at strides 4, 8, 16 and 32.
    "efficientnet_lite0": Architecture(
        "padim.lite0:build",
        {"layer1": "blocks.1", "layer2": "blocks.2", "layer3": "blocks.4", "layer4": "blocks.6"},
        "padim.lite0:weights",
        "padim.lite0:leaves",
    ),
}
