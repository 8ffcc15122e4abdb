"""What the tests compare with, and what several of them need: plain forms in float64, and detectors that are fitted."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

import torch

from padim import FitOptions
from padim.detectors.contract import Detector
from padim.gaussian.moments import Moments
from padim.gaussian.shared import Gaussian

AnyDetector = TypeVar("AnyDetector", bound=Detector)


def fitted(detector: AnyDetector, batches: Iterable[Any], category: str = "", **options: Any) -> AnyDetector:
    """A detector after a fit with such options."""
    detector.fit(batches, FitOptions(category=category, **options))
    return detector


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
