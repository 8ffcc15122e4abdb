"""Results come in order, so much is done ahead and no more, and what fails costs nothing that came before it."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from padim.system.ahead import Ahead

WAIT = 30  # seconds, of a test that fails


@settings(max_examples=40, deadline=None)
@given(
    values=st.lists(st.integers(0, 3), max_size=20),
    threads=st.integers(1, 4),
    count=st.integers(1, 9),
    eager=st.booleans(),
)
def test_results_come_in_the_order_of_the_values(values, threads, count, eager):
    def slow(value):
        time.sleep(value / 1000)
        return value * 2

    found = [
        (value, result.result()) for value, result in Ahead(slow, values, threads=threads, count=count, eager=eager)
    ]
    assert found == [(value, value * 2) for value in values]


def test_so_many_are_begun_and_another_one_for_each_that_is_taken():
    asked = []
    ahead = Ahead(str, (asked.append(number) or number for number in range(100)), threads=2, count=5, eager=True)
    assert asked == [*range(5)]  # before anything is taken
    with closing(iter(ahead)) as taken:
        for number in range(10):
            assert next(taken)[0] == number
            assert len(asked) == 5 + number


def test_what_is_done_is_given_before_another_value_is_asked_for():
    asked, go = [], threading.Event()

    def work(value):
        assert value == 0 or go.wait(WAIT)
        return value

    def values():
        for number in range(100):
            asked.append(number)
            yield number
            while number == 0 and ahead._begun and not ahead._begun[0][1].done():
                time.sleep(0.001)

    ahead = Ahead(work, values(), threads=1, count=5)
    assert asked == []
    with closing(iter(ahead)) as taken:
        assert next(taken)[0] == 0
        assert asked in ([0], [0, 1])  # the first one is done by then, or while the second one is awaited
        assert next(taken)[0] == 1
        assert asked == [*range(6)]  # so many may wait for one that is not done
        go.set()


def test_the_work_goes_on_while_the_next_value_is_awaited():
    """The first result waits for the second value, which is asked for only if nobody waits for the first result."""
    second = threading.Event()

    def values():
        yield 1
        second.set()
        yield 2

    results = [result.result() for _, result in Ahead(lambda _: second.wait(WAIT), values(), threads=1, count=2)]
    assert results == [True, True]


@pytest.mark.parametrize("problem", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("at", [0, 2, 7])
@pytest.mark.parametrize("eager", [True, False])
def test_a_problem_with_the_values_comes_after_what_preceded_it(problem, at, eager):
    def values():
        yield from range(at)
        raise problem

    taken = []
    with pytest.raises(problem):
        taken.extend(result.result() for _, result in Ahead(str, values(), threads=2, count=3, eager=eager))
    assert taken == [str(number) for number in range(at)]


def test_whoever_stops_early_cancels_what_has_not_begun(monkeypatch):
    go, done, shutdown = threading.Event(), [], ThreadPoolExecutor.shutdown

    def cancel_first(pool, **how):
        shutdown(pool, wait=False, **how)
        go.set()
        shutdown(pool)

    def work(value):
        go.wait(WAIT)
        done.append(value)

    monkeypatch.setattr(ThreadPoolExecutor, "shutdown", cancel_first)
    with closing(iter(Ahead(work, range(50), threads=1, count=20, eager=True))) as taken:
        next(taken)
    assert done == [0]
