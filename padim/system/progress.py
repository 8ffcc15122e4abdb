"""The progress of long work, reported to one callback."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


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
