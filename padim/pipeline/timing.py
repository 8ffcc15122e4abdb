"""How long the stages of scoring take."""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from padim.detectors.scores import NumpyScores, Scorer


class Stopwatch:
    """Notes what the batches of a scorer take. As a context, it takes the time of PaDiM's backbone apart.

    Attributes:
        milliseconds: per image of the last batch: `network` and `gaussians`, which is all that follows it, or for
            other models `graph`, all in one.
    """

    def __init__(self, scorer: Scorer) -> None:
        self.milliseconds: dict[str, float] = {}
        self._scorer, self._hooks = scorer, ExitStack()
        self._network: Any = getattr(scorer, "backbone", None)
        self._begun, self._seconds = 0.0, 0.0

    def __enter__(self) -> Self:
        if self._network is not None:
            for hook in (
                self._network.register_forward_pre_hook(self._begin),
                self._network.register_forward_hook(self._end),
            ):
                self._hooks.callback(hook.remove)
        return self

    def __exit__(self, *error: object) -> None:
        self._hooks.close()

    def score_pixels(self, pixels: NDArray[np.uint8]) -> NumpyScores:
        """As `Scorer.score_pixels`."""
        self._seconds, start = 0.0, time.perf_counter()
        scores = self._scorer.score_pixels(pixels)
        whole = time.perf_counter() - start
        parts = {"graph": whole}
        if self._network is not None:
            parts = {"network": self._seconds, "gaussians": whole - self._seconds}
        self.milliseconds = {name: 1e3 * seconds / len(pixels) for name, seconds in parts.items()}
        return scores

    def _begin(self, network: Any, *_: object) -> None:
        self._begun = _now(network)

    def _end(self, network: Any, *_: object) -> None:
        self._seconds += _now(network) - self._begun


def _now(network: Any) -> float:
    """The time, once the device of a network has computed all that it was told to."""
    device = next(network.parameters()).device
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)
    return time.perf_counter()
