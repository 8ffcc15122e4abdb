"""What several tests need: detectors that are fitted, moments, and patience with other processes."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch

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
