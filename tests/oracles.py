"""What several tests need: fitted detectors, moments, networks of libraries, and patience with other processes."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import timm
import torch
import torchvision

from padim import FitOptions
from padim.detectors.contract import Detector
from padim.gaussian.moments import Moments
from padim.gaussian.shared import Gaussian

LIMIT = 60.0  # seconds; only for a test that would hang otherwise

AnyDetector = TypeVar("AnyDetector", bound=Detector)


def fitted(detector: AnyDetector, batches: Iterable[Any], category: str = "", **options: Any) -> AnyDetector:
    """A detector after a fit with such options."""
    detector.fit(batches, FitOptions(category=category, **options))
    return detector


def library_network(backbone: str) -> torch.nn.Module:
    """The network of a backbone of a library, as the library has it, with random weights that all have an effect."""
    library, _, name = backbone.partition(":")
    make = torchvision.models.get_model if library == "torchvision" else timm.create_model
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network: torch.nn.Module = make(name, **({"dynamic_img_size": True} if "vit" in name else {})).eval()
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(std=0.1)
                module.running_var.uniform_(0.5, 1.5)
        for parameter in network.parameters():
            if 0 < parameter.abs().max() < 1e-4:  # what scales a block, which starts next to nothing
                torch.nn.init.uniform_(parameter, 0.2, 0.5)
    return network


def activations(network: torch.nn.Module, layers: Sequence[str], images: torch.Tensor) -> list[torch.Tensor]:
    """What modules of a network give for normalised images, in float64."""
    found: dict[str, torch.Tensor] = {}
    for layer in layers:
        module = network.get_submodule(layer)
        module.register_forward_hook(lambda *call, layer=layer: found.update({layer: call[-1].clone()}))
    with torch.no_grad():
        network.double()(images.double())
    return [found[layer] for layer in layers]


def moments_of(groups: Iterable[list[torch.Tensor]]) -> Moments:
    """The moments of groups of features, `[cells_i, d_i, n]` per level, about the mean of the first group."""
    moments = None
    for features in groups:
        moments = moments or Moments.about([level.mean(dim=2, keepdim=True) for level in features])
        moments.add(features)
    assert moments is not None
    return moments


def factors_of(gaussian: Gaussian) -> list[torch.Tensor]:
    """All blocks of the factors of a Gaussian."""
    return [*gaussian.inverse, *(block for row in gaussian.coupling for block in row)]


def until(condition: Callable[[], Any], process: subprocess.Popen[Any] | None = None) -> Any:
    """Wait for what a condition gives, while a process runs."""
    deadline = time.monotonic() + LIMIT
    while not (result := condition()):
        assert process is None or process.poll() is None, process.stderr.read().decode()
        assert time.monotonic() < deadline, "it didn't happen"
        time.sleep(0.02)
    return result
