"""Work that threads do ahead of whoever takes its results, in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Generic, TypeVar

from padim.system.machine import lower_priority

T = TypeVar("T")
R = TypeVar("R")


class Ahead(Generic[T, R]):
    """Values in their order, each with what a function makes of it, which threads begin before it is asked for."""

    def __init__(self, work: Callable[[T], R], values: Iterable[T], *, threads: int, count: int) -> None:
        """Begins with the first `count` values now, and with another one for each that is taken."""
        self._work, self._values = work, iter(values)
        self._pool = ThreadPoolExecutor(threads, initializer=lower_priority)
        self._begun: deque[tuple[T, Future[R]]] = deque()
        self._problem: BaseException | None = None
        self._begin(count)

    def __iter__(self) -> Generator[tuple[T, Future[R]]]:
        """Can be iterated over once. What goes wrong with the values is raised after those that came before it."""
        try:
            while self._begun:
                yield self._begun.popleft()
                self._begin(1)
        finally:
            self._pool.shutdown(cancel_futures=True)
        if self._problem is not None:
            raise self._problem

    def _begin(self, most: int) -> None:
        try:
            for value in islice(self._values, most):
                self._begun.append((value, self._pool.submit(self._work, value)))
        except BaseException as problem:  # Ctrl-C too: what is begun is soon done
            self._values, self._problem = iter(()), problem
