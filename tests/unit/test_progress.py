"""What is said of progress: from 0 to all, once each, also where some were left out."""

from __future__ import annotations

import pytest

from padim.system.progress import Progress, tracked


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
