"""A promised false-positive rate is kept, and p-value, threshold and decision never disagree."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.contract.calibration import Calibration
from service.contract.errors import ArtifactCorrupt, InvalidInput

finite = st.floats(-1e6, 1e6, allow_nan=False)
# few distinct values, so that ties are common
scores = st.lists(st.one_of(finite, st.integers(0, 5).map(float)), min_size=1, max_size=60)


@given(scores, finite, st.floats(0.001, 0.999))
def test_anomalous_means_above_the_threshold_means_p_at_most_fpr(
    normal: list[float], raw: float, fpr: float
) -> None:
    calibration = Calibration.fit(np.array(normal))
    rate = max(fpr, calibration.finest_fpr)
    p = calibration.p_value(np.array([raw]))
    decision = calibration.decide(p, rate, rate)[0]
    assert (decision == "anomalous") == (p[0] <= rate) == (raw > calibration.threshold(rate))


@given(scores, st.lists(finite, min_size=2, max_size=20))
def test_a_higher_raw_score_never_gets_a_higher_p_value(
    normal: list[float], raw: list[float]
) -> None:
    p = Calibration.fit(np.array(normal)).p_value(np.sort(np.array(raw)))
    assert (np.diff(p) <= 0).all()
    assert (p > 0).all()
    assert (p <= 1).all()


@given(scores, st.permutations(range(8)))
def test_calibration_does_not_depend_on_the_order_of_its_scores(
    normal: list[float], order: list[int]
) -> None:
    shuffled = np.array(normal)[np.argsort([order[i % 8] * 100 + i for i in range(len(normal))])]
    assert (Calibration.fit(np.array(normal)).scores == Calibration.fit(shuffled).scores).all()


@given(scores, st.floats(0.001, 0.999), st.floats(0.001, 0.999))
def test_a_larger_rate_never_raises_the_threshold(normal: list[float], a: float, b: float) -> None:
    calibration = Calibration.fit(np.array(normal))
    low, high = sorted(max(rate, calibration.finest_fpr) for rate in (a, b))
    assert calibration.threshold(high) <= calibration.threshold(low)


@pytest.mark.parametrize("fpr", [0.01, 0.05, 0.2])
def test_the_promised_false_alarm_rate_is_realised_on_new_normal_items(fpr: float) -> None:
    rng = np.random.default_rng(0)
    flagged, repeats, n, new = 0, 200, 199, 200
    for _ in range(repeats):
        calibration = Calibration.fit(rng.standard_normal(n))
        flagged += int((calibration.p_value(rng.standard_normal(new)) <= fpr).sum())
    realised = flagged / (repeats * new)
    # k / (n + 1) is hit exactly at these rates; the spread is that of 200 calibration sets
    spread = np.sqrt(fpr * (1 - fpr) / n / repeats + fpr * (1 - fpr) / (repeats * new))
    assert abs(realised - fpr) < 4 * spread


def test_the_finest_rate_is_one_over_n_plus_one_and_finer_ones_are_refused_by_name() -> None:
    calibration = Calibration.fit(np.arange(99.0))
    assert calibration.threshold(0.01) == 98.0
    with pytest.raises(InvalidInput, match=r"finest is 0\.01"):
        calibration.threshold(0.0099)


@pytest.mark.parametrize("fpr", [0.0, 1.0, -0.1, 2.0])
def test_a_rate_outside_0_to_1_is_refused(fpr: float) -> None:
    with pytest.raises(InvalidInput, match="between 0 and 1"):
        Calibration.fit(np.arange(99.0)).threshold(fpr)


def test_between_the_two_rates_lies_review() -> None:
    calibration = Calibration.fit(np.arange(99.0))
    p = calibration.p_value(np.array([98.5, 96.5, 50.0]))
    assert calibration.decide(p, 0.01, 0.05) == ["anomalous", "review", "normal"]


@pytest.mark.parametrize("bad", [[], [np.nan], [0.0, np.inf]])
def test_scores_that_are_no_numbers_are_refused(bad: list[float]) -> None:
    with pytest.raises(ArtifactCorrupt):
        Calibration.fit(np.array(bad))
