"""Thresholds from normal images alone: what they score when each is left out of the fit."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from padim.errors import PadimError

# Shares of the pixels for which a quantile is kept: 1, and 100 steps per decade down to a millionth.
PIXEL_RATES = 10.0 ** -(np.arange(601) / 100)

# Values of the maps are counted in bins of 0.2 % width between these, so that any number of maps takes no memory.
_LOWEST, _DECADES, _BINS_A_DECADE = 1e-3, 7, 1000

# From so many standard deviations on, and these of so much at least, the logarithm of a score is far from the others.
_FAR, _LEAST_SPREAD, _FEW = 5.0, 0.03, 10


@dataclass
class Tally:
    """The maps of normal images, counted as they pass by; what several processes have counted can be added up.

    Attributes:
        batches: image scores, `[n]` per batch.
        counts: how many pixels of their maps fall into each bin.
    """

    batches: list[NDArray[np.float32]] = field(default_factory=list)
    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(_DECADES * _BINS_A_DECADE, dtype=np.int64))

    def add(self, maps: NDArray[np.float32]) -> None:
        """Count maps `[n, h, w]`, but for the pixels that are NaN."""
        self.batches.append(np.nanmax(maps, axis=(1, 2)))
        values = maps[~np.isnan(maps)]
        bins = (np.log10((values / _LOWEST).clip(min=1)) * _BINS_A_DECADE).astype(np.int64)
        self.counts += np.bincount(bins.clip(max=len(self.counts) - 1), minlength=len(self.counts))

    def scores(self) -> NDArray[np.float32]:
        """All image scores, `[n]`."""
        return np.concatenate(self.batches) if self.batches else np.empty(0, dtype=np.float32)

    def calibration(self, floor: float = 0.0) -> Calibration | None:
        """What they say of normal images; None if there was none.

        Distances below a floor, which are rounding errors, count as that.
        """
        scores = self.scores().clip(min=np.float32(floor))
        if not len(scores):
            return None
        reached = self.counts[::-1].cumsum()[::-1] / self.counts.sum()  # share at or above each bin
        # Both fall, and searchsorted takes what rises: hence the signs.
        bins = np.searchsorted(-reached, -PIXEL_RATES, side="right") - 1  # the last one that so many reach
        edges = (_LOWEST * 10 ** ((bins + 1) / _BINS_A_DECADE)).clip(min=floor)
        return Calibration(np.sort(scores), edges.astype(np.float32))


@dataclass(frozen=True)
class Calibration:
    """How normal images score.

    Attributes:
        scores: image scores of the training images, each left out of the fit, ascending, `[n]`.
        pixels: for each of `PIXEL_RATES`, the value that so large a share of their maps' pixels exceeds, `[601]`; None
            from a detector without maps.
    """

    scores: NDArray[np.float32]
    pixels: NDArray[np.float32] | None

    def __post_init__(self) -> None:
        """Raise a ValueError for what no images score: distances below 0, or values that don't ascend."""
        for values in (self.scores, self.pixels):
            if values is not None and not (values[1:] >= values[:-1]).all():
                raise ValueError("a calibration that does not ascend")
        if self.pixels is not None and min(self.scores[0], self.pixels[0]) < 0:
            raise ValueError("a calibration below 0")

    def joined(self, other: Calibration) -> Calibration:
        """The calibration of the images of both."""
        scores = np.sort(np.concatenate([self.scores, other.scores]))
        if self.pixels is None or other.pixels is None:
            return Calibration(scores, None)
        values = np.sort(np.concatenate([self.pixels, other.pixels]))
        shares = [
            len(part.scores) / len(scores) * _share_above(values, pixels)
            for part, pixels in ((self, self.pixels), (other, other.pixels))
        ]
        first = np.searchsorted(-np.sum(shares, axis=0), -PIXEL_RATES)  # that so few pixels exceed
        return Calibration(scores, values[first.clip(max=len(values) - 1)])

    def threshold(self, false_alarm_rate: float) -> float:
        """The image score that a fresh normal image reaches with at most this probability.

        Of n + 1 scores that come from one source, the last is among the k largest with probability
        k / (n + 1). So k is the whole part of rate (n + 1), and the threshold lies just above the k-th
        largest of the n (split conformal prediction).

        Raises:
            PadimError: n images can't vouch for so small a rate.
        """
        n = len(self.scores)
        allowed = math.floor(false_alarm_rate * (n + 1) + 1e-9)
        if allowed < 1:
            raise PadimError(
                f"a false-alarm rate of {false_alarm_rate:g} takes at least {math.ceil(1 / false_alarm_rate) - 1}"
                f" training images, the model has {n}: ask for {rounded_up(self.smallest_rate()):g} or more"
            )
        return shortest(np.nextafter(self.scores[n - allowed], np.float32(np.inf)))

    def smallest_rate(self) -> float:
        """The smallest false-alarm rate that so many images can vouch for."""
        return 1 / (len(self.scores) + 1)

    def p_value(self, score: float) -> float:
        """The probability of a fresh normal image to score as high: `(1 + how many did) / (n + 1)`."""
        reached = len(self.scores) - int(np.searchsorted(self.scores, score, side="left"))
        return (1 + reached) / (len(self.scores) + 1)

    def pixel_threshold(self, false_alarm_rate: float) -> float | None:
        """The distance that this share of the pixels of fresh normal images exceeds; None without maps."""
        if self.pixels is None:
            return None
        step = math.ceil(-100 * math.log10(false_alarm_rate) - 1e-9)
        return shortest(self.pixels[min(step, len(self.pixels) - 1)])


@dataclass(frozen=True)
class Thresholds:
    """From where on an image and a pixel are anomalous; each entry is None where that isn't known.

    Attributes:
        threshold: image score from which an image is anomalous.
        false_alarm_rate: the share of fresh normal images that reach it.
        pixel_threshold: distance from which a pixel is anomalous.
    """

    threshold: float | None = None
    false_alarm_rate: float | None = None
    pixel_threshold: float | None = None

    @classmethod
    def calibrated(cls, calibration: Calibration | None, default: float, rate: float | None = None) -> Thresholds:
        """The thresholds for a false-alarm rate, or for the default one.

        Without a calibration there are none. A default that is too small for the number of images gives way to the
        smallest rate that they can vouch for.

        Raises:
            PadimError: the calibration can't vouch for the rate that was asked for, or there is none.
        """
        if calibration is None and rate is not None:
            raise PadimError(
                "the model has no calibration: train it with three images or more, without --no-calibration"
            )
        if calibration is None:
            return cls()
        wanted = max(default, calibration.smallest_rate()) if rate is None else rate
        return cls(calibration.threshold(wanted), wanted, calibration.pixel_threshold(wanted))

    @classmethod
    def fixed(cls, calibration: Calibration | None, threshold: float) -> Thresholds:
        """One threshold for images and pixels alike, with the rate that the calibration expects of it."""
        rate = calibration.p_value(threshold) if calibration else None
        return cls(threshold, rate, threshold)

    def is_anomalous(self, score: float, *, found: bool = True) -> bool | None:
        """The verdict on an image, or None without a threshold; a part whose pose is not `found` is anomalous."""
        if not found:
            return True
        return None if self.threshold is None else score >= self.threshold


def outlying(scores: NDArray[np.float32]) -> list[int]:
    """The positions of scores `[n]` that lie far above the others, the highest first.

    Far is more than five robust standard deviations of the logarithms above their median. A few scores tell nothing.
    """
    if len(scores) < _FEW:
        return []
    logarithms = np.log(scores.clip(min=_LOWEST))
    above = logarithms - np.median(logarithms)
    spread = max(1.4826 * float(np.median(np.abs(above))), _LEAST_SPREAD)
    return [int(position) for position in np.argsort(-above) if above[position] > _FAR * spread]


def rounded_up(rate: float) -> float:
    """A rate in three significant digits and no less, to ask for."""
    scale: float = 10.0 ** (2 - math.floor(math.log10(rate)))
    return math.ceil(rate * scale - 1e-9) / scale


def shortest(value: np.float32) -> float:
    """A float32 as the shortest decimal that tells it from its neighbours, which keeps the order of scores."""
    return float(str(value))


def _share_above(values: NDArray[np.float32], pixels: NDArray[np.float32]) -> NDArray[np.float64]:
    """The share of pixels that exceed each of some values, from the quantiles of `PIXEL_RATES`."""
    shares = 10.0 ** np.interp(values, pixels, np.log10(PIXEL_RATES))
    return np.where(values > pixels[-1], 0.0, shares)
