"""Work that threads do ahead of whoever takes its results, in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

from padim.system.machine import lower_priority

T = TypeVar("T")
R = TypeVar("R")


class Ahead(Generic[T, R]):
    """Values in their order, each with what a function makes of it, which threads begin before it is asked for."""

    def __init__(
        self, work: Callable[[T], R], values: Iterable[T], *, threads: int, count: int, eager: bool = False
    ) -> None:
        """Never begins with more than `count` values that are not taken.

        With `eager`, so many are begun now, and another one for each that is taken. Otherwise the next value, which may
        take long to come, is asked for only while the result of the first one is not there.
        """
        self._work, self._values, self._count, self._eager = work, iter(values), count, eager
        self._pool = ThreadPoolExecutor(threads, initializer=lower_priority)
        self._begun: deque[tuple[T, Future[R]]] = deque()
        self._problem: BaseException | None = None
        if eager:
            self._fill()

    def __iter__(self) -> Generator[tuple[T, Future[R]]]:
        """Can be iterated over once. What goes wrong with the values is raised after those that came before it."""
        try:
            self._fill()
            while self._begun:
                yield self._begun.popleft()
                self._fill()
        finally:
            self._pool.shutdown(cancel_futures=True)
        if self._problem is not None:
            raise self._problem

    def _fill(self) -> None:
        """Begin with as many values as may be under way now."""
        while len(self._begun) < self._count and (self._eager or not self._begun or not self._begun[0][1].done()):
            if not self._begin():
                break

    def _begin(self) -> bool:
        """Begin with the next value, if there is one."""
        try:
            for value in self._values:
                self._begun.append((value, self._pool.submit(self._work, value)))
                return True
        except BaseException as problem:  # Ctrl-C too: what is begun is soon done
            self._values, self._problem = iter(()), problem
        return False
