"""The progress of long work, reported to one callback; and a callback that makes lines of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Protocol, TypeVar

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

# Seconds from one line to the next, and before the first: short work has none.
_BETWEEN_LINES = 30.0


@dataclass(frozen=True)
class Progress:
    """How far some work has come.

    Attributes:
        what: what is worked on, as `bottle`.
        done: how many units are done.
        total: how many there are.
        unit: what is counted, as `image` or `step`.
        figures: what was measured last, by name.
    """

    what: str
    done: int
    total: int
    unit: str = "image"
    figures: Mapping[str, float] = field(default_factory=dict)


OnProgress = Callable[[Progress], None]


def silent(progress: Progress) -> None:
    """Say nothing."""


class Lines:
    """Says now and then how far work has come, in a line of its own, as a log file wants it."""

    def __init__(self, write: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        """A callback for progress, which passes its lines on; the clock gives seconds."""
        self._write, self._clock = write, clock
        self._began = self._spoke = clock()
        self._first: Progress | None = None
        self._done = 0

    def __call__(self, progress: Progress) -> None:
        """Say how far it has come, unless that was said a moment ago; of work that was spoken of, also its end."""
        now = self._clock()
        if self._first is None or progress.what != self._first.what or progress.done < self._done:
            self._first, self._began = progress, now
        self._done, ended = progress.done, progress.done >= progress.total
        made = progress.done - self._first.done
        if made and (now - self._spoke >= _BETWEEN_LINES or (ended and self._spoke > self._began)):
            self._write(_line(progress, (now - self._began) / made))
            self._spoke = now
        if ended:
            self._first = None


def _line(progress: Progress, seconds: float) -> str:
    """How far work has come, of which a unit takes so many seconds."""
    pace = f"{1 / seconds:.1f} {progress.unit}s/s" if 0 < seconds < 1 else f"{seconds:.1f} s/{progress.unit}"
    figures = (f"{name.replace('_', ' ')} {value:.3g}" for name, value in progress.figures.items())
    left = timedelta(seconds=round(seconds * (progress.total - progress.done)))
    done = f"{progress.what}: {progress.done} of {progress.total} {progress.unit}s"
    return ", ".join([done, *figures, pace, f"{left} left"])


class Source(Sized, Iterable[T_co], Protocol[T_co]):
    """What can be counted and gone through."""


def tracked(items: Source[T], what: str, report: OnProgress) -> Iterator[T]:
    """The items, of which the callback is told as they pass by."""
    report(Progress(what, 0, len(items)))
    number = 0
    for number, item in enumerate(items, 1):
        yield item
        report(Progress(what, number, len(items)))
    if number < len(items):  # some were left out
        report(Progress(what, len(items), len(items)))
