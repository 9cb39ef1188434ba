"""Windows lie where they say, say why they cannot be scored, and see their own rows only."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from service.contract.manifest import SeriesInput
from service.contract.preprocess import prepare_series
from tests.artifacts import SERIES_INPUT

SPEC = SERIES_INPUT  # 3 columns, window 4, smoothing 3 (one row at either side), stride 2, 60 s
CLOCK = np.arange(40.0) * 60


def rows(t: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(t, 3))


def test_windows_start_behind_the_rows_that_smoothing_takes_and_end_before_them() -> None:
    windows = prepare_series(SPEC, rows(12))
    assert windows.start.tolist() == [1, 3, 5, 7]
    assert windows.end.tolist() == [5, 7, 9, 11]
    assert windows.values.shape == (4, 4, 3)


def test_values_are_the_smoothed_rows_scaled_by_the_manifest() -> None:
    data = rows(12)
    windows = prepare_series(SPEC, data)
    mean = np.array([c.mean for c in SPEC.columns])
    std = np.array([c.std for c in SPEC.columns])
    for i, (start, end) in enumerate(zip(windows.start, windows.end, strict=True)):
        smooth = np.stack([data[r - 1 : r + 2].mean(axis=0) for r in range(start, end)])
        assert np.allclose(windows.values[i], (smooth - mean) / std, atol=1e-6)


@pytest.mark.parametrize(("t", "count"), [(0, 0), (5, 0), (6, 1), (7, 1), (8, 2)])
def test_there_are_as_many_windows_as_rows_allow(t: int, count: int) -> None:
    assert len(prepare_series(SPEC, rows(t))) == count
    assert SPEC.min_rows == 6


@pytest.mark.parametrize("row", range(14))
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_missing_reading_spoils_the_windows_made_from_it_and_no_other(
    row: int, bad: float
) -> None:
    data = rows(14)
    data[row, 1] = bad
    windows = prepare_series(SPEC, data, stride=1)
    for i, reason in enumerate(windows.reasons):
        touched = windows.start[i] - 1 <= row < windows.end[i] + 1
        assert reason == ("missing_values" if touched else None)


@pytest.mark.parametrize("step", [-60.0, 0.0, 91.0, 3600.0])
def test_a_gap_in_time_spoils_the_windows_across_it(step: float) -> None:
    clock = CLOCK[:14].copy()
    clock[7:] += step - 60
    windows = prepare_series(SPEC, rows(14), clock, stride=1)
    for i, reason in enumerate(windows.reasons):
        across = windows.start[i] - 1 < 7 < windows.end[i] + 1
        assert reason == ("time_gap" if across else None)


def test_a_missing_timestamp_counts_as_a_gap() -> None:
    clock = CLOCK[:14].copy()
    clock[7] = np.nan
    windows = prepare_series(SPEC, rows(14), clock, stride=1)
    for i, reason in enumerate(windows.reasons):
        touched = windows.start[i] - 1 <= 7 < windows.end[i] + 1
        assert reason == ("time_gap" if touched else None)


def test_without_timestamps_no_gap_is_seen_and_with_regular_ones_there_is_none() -> None:
    assert prepare_series(SPEC, rows(14)).scorable.all()
    assert prepare_series(SPEC, rows(14), CLOCK[:14]).scorable.all()
    assert prepare_series(SPEC, rows(14), CLOCK[:14] * 1.4).scorable.all()


def test_an_unbelievable_reading_and_a_stuck_sensor_are_told_apart() -> None:
    data = rows(20)
    data[2, 0] = 51.0
    data[10:, 2] = 0.3
    reasons = prepare_series(SPEC, data, stride=1).reasons
    assert reasons[0] == "out_of_range"
    assert reasons[5] is None
    assert reasons[-1] == "constant_sensor"
    data[10:, 2] = rows(10)[:, 2]
    data[10:, 1] = 0.3  # this one may be constant
    assert prepare_series(SPEC, data, stride=1).reasons[-1] is None


@given(
    arrays(np.float64, (15, 3), elements=st.floats(-60, 60) | st.just(np.nan)),
    st.integers(1, 5),
    st.integers(0, 6),
)
def test_a_window_is_the_same_whatever_else_was_sent(
    data: np.ndarray, stride: int, skip: int
) -> None:
    whole = prepare_series(SPEC, data, CLOCK[:15], stride)
    for i, start in enumerate(whole.start):
        begin = start - 1
        alone = prepare_series(SPEC, data[begin : begin + SPEC.min_rows], CLOCK[begin:][:6], stride)
        assert alone.reasons == (whole.reasons[i],)
        assert np.array_equal(alone.values[0], whole.values[i], equal_nan=True)
    tail = prepare_series(SPEC, data[skip:], CLOCK[skip:15], stride=1)
    full = prepare_series(SPEC, data, CLOCK[:15], stride=1)
    assert tail.reasons == full.reasons[skip:]


def test_the_rows_are_not_modified() -> None:
    data = rows(12)
    data[3, 1] = np.nan
    before = data.copy()
    prepare_series(SPEC, data, CLOCK[:12])
    assert np.array_equal(data, before, equal_nan=True)


def test_a_rule_with_an_even_smoothing_or_two_columns_of_one_name_is_refused() -> None:
    plain = SPEC.model_dump()
    with pytest.raises(ValueError, match="odd"):
        SeriesInput.model_validate(plain | {"smoothing": 2})
    with pytest.raises(ValueError, match="unique"):
        SeriesInput.model_validate(plain | {"columns": [plain["columns"][0]] * 2})
