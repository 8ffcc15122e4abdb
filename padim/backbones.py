"""The backbones by name: how each network is built, where its levels end, and where its weights come from.

All of it is text, which `pkgutil.resolve_name` turns into the thing itself when it is needed: so the commands know the
names without loading torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

# Packages that have further backbones, `torchvision:NAME` and `timm:NAME`, whose layers are modules by their names.
LIBRARIES = ("torchvision", "timm")


@dataclass(frozen=True)
class Architecture:
    """A network that gives features.

    Attributes:
        build: a function that makes the network.
        weights: the address of torchvision's weights, or a function that gives a state dict.
        levels: the modules whose outputs are the levels `layer1` to `layer4`; `padim.stages.Stages` know their own.
    """

    build: str
    weights: str
    levels: Mapping[str, str] = field(default_factory=dict)


# Where torchvision's weights are, the first ones of each network (IMAGENET1K_V1).
_HUB = "https://download.pytorch.org/models"

ARCHITECTURES = {
    "resnet18": Architecture("padim.resnet:resnet18", f"{_HUB}/resnet18-f37072fd.pth"),
    "wide_resnet50_2": Architecture("padim.resnet:wide_resnet50_2", f"{_HUB}/wide_resnet50_2-95faca4d.pth"),
    # The paper's layers 7, 20 and 26 count the blocks from 0; the fourth is the last block.
    "efficientnet_b5": Architecture(
        "torchvision.models:efficientnet_b5",
        f"{_HUB}/efficientnet_b5_lukemelas-1a07897c.pth",
        {"layer1": "features.2", "layer2": "features.5.0", "layer3": "features.5", "layer4": "features.7"},
    ),
    "efficientnet_lite0": Architecture("padim.lite0:build", "padim.lite0:weights"),
}
