"""Detection delays and false alarms, by hand and by property."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.alarms import Seen, count_alarms, runs


def seen(flagged: set[int], anomalous: range, length: int = 60, rows: int = 5) -> Seen:
    """A recording of one row a minute, scored at every row from the fifth on."""
    end = np.arange(rows, length + 1)
    truth = np.zeros(length, dtype=bool)
    truth[list(anomalous)] = True
    return Seen(end, np.isin(end, list(flagged)), truth, rows, 60.0)


def test_the_delay_counts_from_the_first_row_to_the_end_of_the_first_window_that_tells() -> None:
    found = count_alarms([seen({26, 27, 40}, range(20, 60))])
    assert (found.events, found.detected, found.delay_s) == (1, 1, 6 * 60)
    assert found.false_alarms == 0


def test_an_alarm_before_the_event_is_false_and_does_not_detect_it() -> None:
    found = count_alarms([seen({10, 11, 12, 18}, range(20, 30))])
    assert (found.detected, found.delay_s, found.false_alarms) == (0, None, 2)
    # windows that end at row 5..20 and 35..60 touch none of the anomalous rows 20..29
    assert found.normal_s == (16 + 26) * 60
    assert found.false_per_day == pytest.approx(2 * 86400 / (42 * 60))


def test_an_alarm_that_begins_before_the_event_and_goes_on_into_it_is_not_false() -> None:
    found = count_alarms([seen({19, 20, 21, 22}, range(20, 30))])
    assert (found.detected, found.delay_s, found.false_alarms) == (1, 60, 0)


def test_without_normal_operation_there_is_no_rate() -> None:
    assert count_alarms([seen({8}, range(60))]).false_per_day is None


@given(st.lists(st.booleans(), max_size=40))
def test_runs_cover_what_is_true_and_nothing_else(flags: list[bool]) -> None:
    found = runs(np.array(flags, dtype=bool))
    covered = np.zeros(len(flags), dtype=bool)
    for first, stop in found:
        assert not covered[max(first - 1, 0) : stop].any()
        covered[first:stop] = True
    assert covered.tolist() == flags
