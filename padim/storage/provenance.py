"""Where a fitted model comes from, as its file says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_type_hints


@dataclass(frozen=True)
class Provenance:
    """Where a model comes from, as its file says: `about` in its metadata.

    Attributes:
        category: the category it was fitted to, or "".
        images: how many images it was fitted to.
        false_alarm_rate: the share of fresh normal images that its verdict may flag, in 0..1.
        weights_sha256: digest of the weights that it started from, see `padim.weights.digest`.
        padim_version: the version of the package that wrote it.
        skipped: how many further images there were that could not be read.
    """

    category: str
    images: int
    false_alarm_rate: float
    weights_sha256: str
    padim_version: str
    skipped: int = 0

    def __post_init__(self) -> None:
        """Raises TypeError or ValueError for a value that is not valid, as a damaged file may have."""
        for name, kind in get_type_hints(type(self)).items():
            if type(getattr(self, name)) is not kind:
                raise TypeError(f"{name}: {getattr(self, name)!r} is no {kind.__name__}")
        if not 0 <= min(self.images, self.skipped) <= max(self.images, self.skipped) < 2**31:
            raise ValueError(f"images: {self.images}, {self.skipped} are no numbers of images")
        if not 0 < self.false_alarm_rate < 1:
            raise ValueError(f"false_alarm_rate: {self.false_alarm_rate} is not between 0 and 1")
