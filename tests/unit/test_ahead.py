"""Results come in order, so much is done ahead and no more, and what fails costs nothing that came before it."""

from __future__ import annotations

import threading
import time
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
)
def test_results_come_in_the_order_of_the_values(values, threads, count):
    def slow(value):
        time.sleep(value / 1000)
        return value * 2

    found = [(value, result.result()) for value, result in Ahead(slow, values, threads=threads, count=count)]
    assert found == [(value, value * 2) for value in values]


def test_so_many_are_begun_and_another_one_for_each_that_is_taken():
    asked = []
    ahead = Ahead(str, (asked.append(number) or number for number in range(100)), threads=2, count=5)
    assert asked == [*range(5)]  # before anything is taken
    with closing(iter(ahead)) as taken:
        for number in range(10):
            assert next(taken)[0] == number
            assert len(asked) == 5 + number


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
def test_a_problem_with_the_values_comes_after_what_preceded_it(problem, at):
    def values():
        yield from range(at)
        raise problem

    taken = []
    with pytest.raises(problem):
        taken.extend(result.result() for _, result in Ahead(str, values(), threads=2, count=3))
    assert taken == [str(number) for number in range(at)]


def test_whoever_stops_early_cancels_what_has_not_begun():
    go, done = threading.Event(), []

    def work(value):
        go.wait(WAIT)
        done.append(value)

    with closing(iter(Ahead(work, range(50), threads=1, count=20))) as taken:
        next(taken)
        go.set()
    assert len(done) < 20
    assert threading.active_count() < 20
