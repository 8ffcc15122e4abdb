"""What is said of progress: from 0 to all, once each, also where some were left out; in bars, or in a few lines."""

from __future__ import annotations

import io
import re
import sys

import pytest

from padim.cli.command import progress_bars
from padim.system.progress import Lines, Progress, tracked


class Source:
    """Counts more items than it gives, as a loader does that skips some."""

    def __init__(self, given, counted):
        self.given, self.counted = given, counted

    def __len__(self):
        return self.counted

    def __iter__(self):
        return iter(range(self.given))


@pytest.mark.parametrize(("given", "counted"), [(3, 3), (2, 4), (0, 2), (0, 0)])
def test_every_item_is_reported_once_and_the_end_is_reached(given, counted):
    reports = []
    assert [*tracked(Source(given, counted), "parts", reports.append)] == [*range(given)]
    assert all((report.what, report.total) == ("parts", counted) for report in reports)
    done = [report.done for report in reports]
    assert done == sorted(set(done))
    assert (done[0], done[-1]) == (0, counted)


def test_work_that_stops_early_does_not_reach_the_end():
    reports = []
    for item in tracked(Source(5, 5), "parts", reports.append):
        if item == 2:
            break
    assert reports[-1] == Progress("parts", 2, 5)


class Clock:
    """Seconds that pass when a test says so."""

    seconds = 0.0

    def __call__(self):
        return self.seconds


def lines_of(reports):
    """What `Lines` says of reports that come at such seconds."""
    said, clock = [], Clock()
    lines = Lines(said.append, clock)
    for clock.seconds, *report in reports:
        lines(Progress(*report))
    return said


def test_a_line_comes_every_half_minute_and_at_the_end():
    reports = [(float(second), "bottle", 2 * second, 200) for second in range(101)]
    assert lines_of(reports) == [
        "bottle: 60 of 200 images, 2.0 images/s, 0:01:10 left",
        "bottle: 120 of 200 images, 2.0 images/s, 0:00:40 left",
        "bottle: 180 of 200 images, 2.0 images/s, 0:00:10 left",
        "bottle: 200 of 200 images, 2.0 images/s, 0:00:00 left",
    ]


def test_short_work_has_no_line_and_long_series_of_it_have_some():
    assert lines_of([(0, "bottle", 0, 9), (29, "bottle", 9, 9)]) == []
    series = [(20 * number + at, f"part {number}", at, 20) for number in range(4) for at in range(21)]
    assert [line.split(",")[0] for line in lines_of(series)] == [
        "part 1: 10 of 20 images",
        "part 1: 20 of 20 images",
        "part 3: 10 of 20 images",
        "part 3: 20 of 20 images",
    ]


def test_the_pace_is_that_of_the_steps_of_this_run():
    figures = {"loss": 0.41234, "learning_rate": 0.03}
    reports = [(0, "bottle", 300, 500, "step", {}), (50, "bottle", 320, 500, "step", figures)]
    assert lines_of(reports) == [
        "bottle: 320 of 500 steps, loss 0.412, learning rate 0.03, 2.5 s/step, 0:07:30 left"  # 180 x 2.5 s
    ]


@pytest.mark.parametrize("terminal", [True, False])
def test_bars_are_for_terminals(monkeypatch, terminal):
    stream = io.StringIO()
    stream.isatty = lambda: terminal
    monkeypatch.setattr(sys, "stderr", stream)
    for quiet in (True, False):
        assert stream.getvalue() == ""
        with progress_bars(quiet=quiet) as progress:
            for done in (0, 3, 7):
                progress(Progress("bottle", done, 7, figures={"loss": 0.5}))
    assert (re.search(r"bottle: 100%.* 7/7 .*loss=0.5", stream.getvalue()) is not None) == terminal
    assert bool(stream.getvalue()) == terminal
