"""Recalibration as arithmetic: which scores count, what they promise, and how sure that is."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from service.contract.calibration import Calibration
from service.contract.errors import Conflict, InvalidInput
from service.observed import ANOMALOUS, NORMAL, UNLABELLED, Observed
from service.recalibration import (
    needed,
    propose,
    quantile_interval,
    share_interval,
)

DAY_NS = 86_400_000_000_000
CURRENT = Calibration.fit(np.arange(1, 1000) / 1000)
labels_given = st.sampled_from([UNLABELLED, NORMAL, ANOMALOUS])
scores_seen = st.floats(-5, 5, allow_nan=False, width=32)


def observed(raw: Any, label: Any = 0, **columns: Any) -> Observed:
    """Images, unless columns say otherwise, over two days; each of a content of its own."""
    n = len(raw)
    label = np.broadcast_to(np.asarray(label, np.int8), n).copy()
    found = {
        "raw": np.asarray(raw, np.float64),
        "at_ns": np.linspace(0, 2 * DAY_NS, n).astype(np.int64),
        "series": np.arange(n, dtype=np.uint64),
        "start": np.full(n, -1, np.int64),
        "stream": np.zeros(n, bool),
        "label": label,
        "labelled_at_ns": (label != UNLABELLED).astype(np.int64),
    }
    for name, values in columns.items():
        found[name] = np.asarray(values, found[name].dtype)
    return Observed(model="m", version=1, digest="d", answers=n, **found)


def windows(start: Any, series: Any = 0, **columns: Any) -> Observed:
    n = len(start)
    columns.setdefault("raw", np.arange(n) / 10)
    return observed(
        columns.pop("raw"), start=start, series=np.broadcast_to(series, n), **columns
    )  # fmt: skip


@settings(max_examples=25)
@given(st.lists(scores_seen, min_size=25, max_size=80), st.data())
def test_leaving_out_anomalies_above_the_threshold_never_raises_it(
    raw: list[float], data: st.DataObject
) -> None:
    fpr = data.draw(st.sampled_from([0.05, 0.1, 0.3]))
    plain = propose(observed(raw), CURRENT, fpr)
    above = [i for i, score in enumerate(raw) if score > plain.threshold]
    said = data.draw(st.lists(st.sampled_from(above), unique=True)) if above else []
    assume(len(raw) - len(said) >= needed(fpr))
    label = np.zeros(len(raw), np.int8)
    label[said] = ANOMALOUS
    trimmed = propose(observed(raw, label), CURRENT, fpr)
    assert trimmed.threshold <= plain.threshold
    assert trimmed.n == len(raw) - len(said)
    # seen from the other side: an anomaly that nobody labels makes no further item flagged
    assert plain.flagged <= trimmed.flagged


@settings(max_examples=25)
@given(st.lists(st.tuples(scores_seen, labels_given), min_size=25, max_size=60))
def test_items_labelled_normal_count_like_those_not_labelled(
    items: list[tuple[float, int]],
) -> None:
    raw, label = zip(*items, strict=True)
    assume(sum(one != ANOMALOUS for one in label) >= needed(0.1))
    without = [UNLABELLED if one == NORMAL else one for one in label]
    found = propose(observed(raw, label), CURRENT, 0.1)
    assert found.threshold == propose(observed(raw, without), CURRENT, 0.1).threshold
    assert found.anomalous == label.count(ANOMALOUS)
    assert found.normal == label.count(NORMAL)
    assert found.flagged == sum(score > found.threshold for score in raw)


@pytest.mark.parametrize(
    ("share_anomalous", "share_labelled"), [(0.0, 0.0), (0.05, 0.0), (0.05, 0.5), (0.05, 1.0)]
)
def test_the_false_alarm_rate_holds_whatever_share_of_the_anomalies_was_labelled(
    share_anomalous: float, share_labelled: float
) -> None:
    rng = np.random.default_rng(7)
    fpr, n, rounds, items = 0.05, 199, 120, 400
    alarms = 0
    for _ in range(rounds):
        anomalous = rng.random(n) < share_anomalous
        raw = np.where(anomalous, rng.normal(4, 1, n), rng.normal(0, 1, n))
        label = np.where(anomalous & (rng.random(n) < share_labelled), ANOMALOUS, UNLABELLED)
        found = propose(observed(raw, label), CURRENT, fpr)
        alarms += int((found.calibration.p_value(rng.normal(0, 1, items)) <= fpr).sum())
    # each round has a threshold of its own, whose rate is Beta distributed: that spreads most
    spread = np.sqrt(fpr * (1 - fpr) * (1 / (n * rounds) + 1 / (items * rounds)))
    assert alarms / (rounds * items) <= fpr + 3 * spread
    if share_labelled in (1.0, share_anomalous):
        assert alarms / (rounds * items) >= fpr - 4 * spread


def test_anomalies_that_score_low_raise_the_rate_by_no_more_than_their_share() -> None:
    rng = np.random.default_rng(8)
    fpr, n, hidden, rounds, items = 0.05, 199, 20, 120, 400
    alarms = 0
    for _ in range(rounds):
        raw = np.concatenate([rng.normal(0, 1, n - hidden), np.full(hidden, -9.0)])
        found = propose(observed(raw), CURRENT, fpr)
        alarms += int((rng.normal(0, 1, items) > found.threshold).sum())
    spread = np.sqrt(fpr * (1 - fpr) * (1 / (n * rounds) + 1 / (items * rounds)))
    assert alarms / (rounds * items) <= fpr * (n + 1) / (n - hidden + 1) + 3 * spread


def test_intervals_hold_what_they_should_as_often_as_they_say() -> None:
    rng = np.random.default_rng(9)
    inside = rates = 0
    for _ in range(250):
        found = propose(observed(rng.uniform(0, 1, 300)), CURRENT, 0.1)
        inside += found.threshold_interval.holds(0.9)
        rates += found.rate_interval.holds(1 - found.threshold)
    assert 0.92 <= inside / 250 <= 1
    assert 0.91 <= rates / 250 <= 0.98
    assert quantile_interval(Calibration.fit(np.arange(99)), 0.01).high is None
    assert share_interval(0, 0) == replace(share_interval(0, 0), low=0.0, high=1.0)
    low, high = share_interval(3, 10).low, share_interval(3, 10).high
    assert (low, high) == pytest.approx((0.0667, 0.6525), abs=1e-4)


@given(st.floats(0.0005, 0.9))
def test_as_many_items_are_asked_for_as_the_rate_needs_and_no_more(fpr: float) -> None:
    n = needed(fpr)
    assert Calibration.fit(np.arange(n)).finest_fpr <= fpr
    assert n == 1 or 1 / n > fpr


def test_too_few_items_are_refused_with_how_many_are_missing() -> None:
    label = [ANOMALOUS] * 5 + [UNLABELLED] * 35
    with pytest.raises(Conflict, match=r"needs 99 .*there are 35, so 64 more.*can promise 0.0278"):
        propose(observed(np.arange(40), label), CURRENT, 0.01)
    with pytest.raises(Conflict, match=r"there are 0, so 99 more are needed$"):
        propose(observed([]), CURRENT, 0.01)
    for fpr in (1.0, 0.0, 1e-320, 9.302221035619471e-300):
        with pytest.raises(InvalidInput, match="at least 1e-09, and less than 1"):
            propose(observed([1.0]), CURRENT, fpr)


def test_what_was_sent_twice_counts_once_with_its_last_label() -> None:
    twice = observed(
        [0.1, 0.2, 0.1], [NORMAL, 0, ANOMALOUS], series=[1, 2, 1], labelled_at_ns=[5, 0, 9]
    )
    once = twice.distinct()
    assert once.raw.tolist() == [0.1, 0.2]
    assert once.label.tolist() == [ANOMALOUS, UNLABELLED]
    again = twice.taken(np.array([2, 0, 1])).distinct()
    assert again.label.tolist() == [ANOMALOUS, UNLABELLED]
    assert twice.fingerprint == twice.taken(np.array([2, 0, 1])).fingerprint


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 60), scores_seen, labels_given), min_size=1
    ),
    st.integers(1, 9),
    st.randoms(use_true_random=False),
)
def test_no_two_windows_of_the_sample_share_rows_whatever_they_scored(
    items: list[tuple[int, int, float, int]], apart: int, random: Any
) -> None:
    series, start, raw, label = (list(c) for c in zip(*items, strict=True))
    once = windows(start, series, raw=raw, label=label).distinct()
    kept = once.taken(once.independent(apart))
    for mine in set(kept.series.tolist()):
        first = np.sort(kept.start[kept.series == mine])
        assert (np.diff(first) >= apart).all()
    shuffled = list(range(len(raw)))
    random.shuffle(shuffled)
    other = windows(
        start, series, raw=[raw[i] for i in shuffled], label=[label[i] for i in shuffled]
    ).distinct()
    again = other.taken(other.independent(apart))
    assert again.start.tolist() == kept.start.tolist()


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 60), st.booleans()), min_size=1),
    st.integers(1, 9),
)
def test_windows_touch_those_of_their_recording_that_they_share_rows_with(
    items: list[tuple[int, int, bool]], apart: int
) -> None:
    series, start, chosen = (list(c) for c in zip(*items, strict=True))
    found = windows(start, series).touching(np.array(chosen), apart)
    for i, (mine, at, _) in enumerate(items):
        near = any(c and s == mine and abs(b - at) < apart for s, b, c in items)
        assert found[i] == near


def test_one_label_takes_out_all_windows_that_share_rows_with_the_one_that_got_it() -> None:
    raw = np.linspace(0, 1, 400)
    label = np.zeros(400, np.int8)
    label[203] = ANOMALOUS  # itself thinned away: windows of 4 rows, one each row, 0 4 8 ... stay
    at_ns = np.linspace(0, 2 * DAY_NS, 400)
    found = propose(windows(np.arange(400), raw=raw, label=label, at_ns=at_ns), CURRENT, 0.05, 4)
    assert found.sample == 100
    assert set(raw[::4]) - set(found.calibration.scores.tolist()) == {raw[200], raw[204]}
    assert found.anomalous == 2


def test_a_stream_that_was_begun_anew_is_another_one_and_a_repeated_append_is_not() -> None:
    start = [0, 2, 4, 6, 4, 6, 0, 2, 4]  # the second 4, 6: appended again under the same key
    raw = [0.1, 0.2, 0.3, 0.4, 0.3, 0.4, 0.5, 0.6, 0.7]
    at_ns = [1, 1, 2, 2, 3, 3, 9, 9, 9]
    once = windows(start, raw=raw, stream=[True] * 9, at_ns=at_ns).distinct()
    assert sorted(once.raw.tolist()) == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]
    kept = once.taken(once.independent(4))
    assert sorted(kept.raw.tolist()) == [0.1, 0.3, 0.5, 0.7]


def test_what_flagged_items_turned_out_to_be_is_counted_with_how_sure_that_is() -> None:
    raw = np.concatenate([np.linspace(0, 1.05, 1000), [2.0] * 4])
    label = np.zeros(1004, np.int8)
    label[990:1000] = NORMAL
    label[1000:] = ANOMALOUS
    found = propose(observed(raw, label), CURRENT, 0.01)
    assert found.threshold_now == pytest.approx(0.99)
    assert found.flagged_now == int((raw > found.threshold_now).sum())
    assert (found.labelled_flagged, found.false_alarms) == (14, 10)
    assert found.unlabelled_flagged == found.flagged_now - 14
    assert found.false_alarm_interval.holds(10 / 14)
    assert found.flagged - found.anomalous == 9
    assert "not labelled" in found.warnings[0]
    label[:1000] = NORMAL
    assert propose(observed(raw, label), CURRENT, 0.01).warnings == ()


def test_a_short_or_needless_recalibration_is_told() -> None:
    few = observed(np.arange(1, 200) / 200, NORMAL, at_ns=np.arange(199))
    told = " ".join(propose(few, CURRENT, 0.05).warnings)
    assert "199 items are few" in told
    assert "less than a day" in told
    assert "no reason to recalibrate" in told
    coarse = Calibration.fit(np.arange(9))
    found = propose(observed(np.arange(300)), coarse, 0.01)
    assert found.threshold_now is None
    assert found.flagged_now is None


def test_an_export_comes_back_as_it_was_and_anything_else_is_refused(tmp_path: Any) -> None:
    given_out = windows([0, 4], raw=[0.1 + 0.2, -1e-300], label=[NORMAL, 0])
    path = tmp_path / "export.npz"
    path.write_bytes(given_out.dump())
    back = Observed.read(path)
    assert back.raw.tolist() == given_out.raw.tolist()
    assert back.fingerprint == given_out.fingerprint
    assert (back.model, back.version, back.answers) == ("m", 1, 2)
    np.savez(tmp_path / "other.npz", scores=np.arange(3))
    broken = (path.read_bytes()[:-30], b"", b"PK", (tmp_path / "other.npz").read_bytes())
    for data in broken:
        with pytest.raises(InvalidInput, match=r"export\.npz: no export of GET"):
            Observed.load(data, "export.npz")
    with pytest.raises(InvalidInput, match="cannot be read"):
        Observed.read(tmp_path / "nowhere.npz")
