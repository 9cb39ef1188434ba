"""Tables of sensor readings: columns, times, gaps, labels, blocks; the public benchmarks."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.contract.errors import InvalidInput
from training.data import load
from training.data.base import Recording, SeriesData
from training.data.blocks import BlockOptions, split_blocks
from training.data.sensors import read_scada_csv
from training.data.turbine import DAY, Icing, simulate
from training.data.turbine_columns import NAMES


def series(name: str, folder: Path | None, **options: object) -> SeriesData:
    data = load(name, options, folder, 0)
    assert isinstance(data, SeriesData)
    return data


def pump(n: int = 1000) -> pd.DataFrame:
    time = pd.date_range("2024-03-01", periods=n, freq="60s")
    count = np.arange(n, dtype=float)
    return pd.DataFrame({"Time": time, "flow": count, "pressure": -count, "label": 0})


def kept(data: SeriesData) -> list[np.ndarray]:
    return [
        np.concatenate([r.rows[:, 0] for r in part])
        for part in (data.train, data.validation, data.calibration, data.test)
    ]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_table_is_read_by_its_header(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"pump.{kind}"
    pump().to_csv(path, index=False) if kind == "csv" else pump().to_parquet(path)
    data = series("csv", tmp_path, path=path.name, units={"flow": "l/min"})
    assert data.columns == ("flow", "pressure")
    assert data.units == ("l/min", "")
    assert data.period_s == 60.0


def test_named_columns_are_taken_in_the_order_named(tmp_path: Path) -> None:
    pump().to_csv(tmp_path / "pump.csv", index=False)
    data = series("csv", tmp_path, path="pump.csv", columns=["pressure", "flow"])
    assert (data.train[0].rows[:, 0] == -data.train[0].rows[:, 1]).all()


def test_a_space_in_a_header_does_not_make_the_label_a_sensor(tmp_path: Path) -> None:
    frame = pump().rename(columns={"label": " label", "flow": "flow ", "Time": " Time"})
    frame.to_csv(tmp_path / "pump.csv", index=False)
    for options in ({}, {"label_column": "label", "time_column": "Time"}):
        data = series("csv", tmp_path, path="pump.csv", **options)
        assert data.columns == ("flow", "pressure")
        assert data.period_s == 60.0


@pytest.mark.parametrize(
    ("header", "message"),
    [("flow, flow", "column 'flow' occurs twice"), ("flow,", "column 2 has no name")],
)
def test_columns_that_cannot_be_told_apart_are_refused(
    tmp_path: Path, header: str, message: str
) -> None:
    (tmp_path / "pump.csv").write_text(f"{header}\n" + "1,2\n" * 50)
    with pytest.raises(InvalidInput, match=message):
        series("csv", tmp_path, path="pump.csv")


def test_a_row_without_a_label_is_named(tmp_path: Path) -> None:
    frame = pump().astype({"label": object})
    frame.loc[7, "label"] = None
    frame.to_csv(tmp_path / "pump.csv", index=False)
    with pytest.raises(InvalidInput, match="column 'label', row 8: the label is missing"):
        series("csv", tmp_path, path="pump.csv", label_column="label")


def test_no_recording_spans_a_gap(tmp_path: Path) -> None:
    frame = pump()
    frame.loc[300:, "Time"] += pd.Timedelta(hours=1)
    frame.to_csv(tmp_path / "pump.csv", index=False)
    data = series("csv", tmp_path, path="pump.csv", guard_rows=2)
    for r in (*data.train, *data.validation, *data.calibration, *data.test):
        assert r.timestamps_s is not None
        assert (np.diff(r.timestamps_s) == 60).all()


def test_anomalous_rows_are_in_test_and_only_there(tmp_path: Path) -> None:
    frame = pump()
    frame.loc[500:599, "label"] = 1
    frame.to_csv(tmp_path / "pump.csv", index=False)
    data = series("csv", tmp_path, path="pump.csv", label_column="label")
    train, validation, calibration, test = kept(data)
    fitted = np.concatenate([train, validation, calibration])
    assert not ((fitted >= 500 - 36) & (fitted < 600 + 36)).any(), "nor within the guard band"
    assert set(range(500, 600)) <= set(test.astype(int).tolist())
    assert sum(int(r.labels.sum()) for r in data.test if r.labels is not None) == 100
    assert data.columns == ("flow", "pressure")


def test_a_word_among_the_readings_is_named_with_column_and_row(tmp_path: Path) -> None:
    (tmp_path / "bad.csv").write_text("time,a,b\n2024-01-01,1,2\n2024-01-02,1,off\n")
    with pytest.raises(InvalidInput, match=r"column 'b', row 2: 'off' is not a number"):
        series("csv", tmp_path, path="bad.csv")


def test_an_empty_cell_is_a_missing_reading(tmp_path: Path) -> None:
    (tmp_path / "gap.csv").write_text("time,a,b\n2024-01-01 00:00,1,2\n2024-01-01 00:01,1,\n")
    _, rows, _ = read_scada_csv(tmp_path / "gap.csv")
    assert np.isnan(rows).tolist() == [[False, False], [False, True]]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"path": "none.csv"}, "none.csv"),
        ({"path": "pump.csv", "columns": ["flow", "heat"]}, "no column heat; there are Time, flow"),
        ({"path": "pump.csv", "units": {"heat": "K"}}, "heat"),
        ({"path": "pump.csv", "label_column": "alarm"}, "alarm"),
        ({"path": "pump.csv", "guard_rows": 400}, "1000 normal rows leave no rows for validation"),
        ({"path": "pump.csv", "time_column": "flow", "period_s": 0}, "/data/period_s"),
    ],
)
def test_what_a_table_lacks_is_named(
    tmp_path: Path, options: dict[str, object], named: str
) -> None:
    pump().to_csv(tmp_path / "pump.csv", index=False)
    with pytest.raises(InvalidInput, match=named):
        load("csv", options, tmp_path, 0)


def test_the_publishers_date_form_is_read_as_seconds(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text(
        "Time,power,group\n2015/12/30 15:15,1,1\n2015/12/30 15:16,2,1\n"
    )
    columns, rows, times = read_scada_csv(tmp_path / "x.csv")
    assert columns == ("power",)
    assert rows.tolist() == [[1.0], [2.0]]
    assert times is not None
    assert times.tolist() == [1451488500.0, 1451488560.0]


@given(st.integers(1, 6), st.integers(0, 12), st.lists(st.integers(0, 999), max_size=3))
def test_neighbouring_rows_of_different_splits_are_a_guard_apart(
    blocks: int, guard: int, broken: list[int]
) -> None:
    labels = np.zeros(1000, dtype=np.int64)
    labels[broken] = 1
    rows = np.arange(1000.0)[:, None]
    options = BlockOptions(
        blocks=blocks, guard_rows=guard, validation_share=0.2, calibration_share=0.2
    )
    split = split_blocks([Recording(rows, None, labels, "r")], options, "r")
    where = np.full(1000, -1)
    for s, part in enumerate((split.train, split.validation, split.calibration, split.test)):
        for r in part:
            i = r.rows[:, 0].astype(int)
            assert (where[i] == -1).all()
            where[i] = s
    used = np.flatnonzero(where >= 0)
    change = np.diff(where[used]) != 0
    assert (np.diff(used)[change] > guard).all()
    assert (where[labels == 1] == 3).all()


@pytest.fixture
def contest(tmp_path: Path) -> Path:
    """Two days of the simulator in the contest's layout, four rows a minute."""
    day = simulate(2, 0)
    assert day.timestamps_s is not None
    times = (day.timestamps_s[:, None] + [0, 15, 30, 45]).ravel()
    frame = pd.DataFrame(np.repeat(day.rows, 4, axis=0), columns=list(NAMES))
    frame.insert(0, "time", pd.to_datetime(times, unit="s").strftime("%Y-%m-%d %H:%M:%S"))
    frame["group"] = 1
    frame.to_csv(tmp_path / "15_data.csv", index=False)
    start = frame["time"]

    def ranges(name: str, *spans: tuple[int, int]) -> None:
        rows = [{"startTime": start[a * 4], "endTime": start[b * 4]} for a, b in spans]
        pd.DataFrame(rows).to_csv(tmp_path / f"15_{name}TimeRange.csv", index=False)

    ranges("normal", (0, 1000), (1500, 2800))
    ranges("failure", (1050, 1400))
    return tmp_path


def test_the_contests_intervals_label_rows_and_the_rest_is_removed(contest: Path) -> None:
    data = series("icing", contest)
    assert data.columns == NAMES
    assert data.period_s == 60.0
    start = simulate(2, 0).timestamps_s
    assert start is not None
    minute = {
        label: {
            int((t - start[0]) // 60)
            for r in data.test
            if r.timestamps_s is not None and r.labels is not None
            for t in r.timestamps_s[r.labels == label]
        }
        for label in (0, 1)
    }
    assert minute[1] == set(range(1050, 1401))
    every = minute[0] | {
        int((t - start[0]) // 60)
        for part in (data.train, data.validation, data.calibration)
        for r in part
        if r.timestamps_s is not None
        for t in r.timestamps_s
    }
    assert not every & (set(range(1002, 1499)) | set(range(2802, 2880)))


def test_the_papers_split_shares_rows_and_says_so(contest: Path) -> None:
    data = series("icing", contest, protocol="paper")
    assert "leaks" in data.source.protocol
    parts = (data.train, data.validation, data.calibration, data.test)
    assert all(len(r.rows) == 26 for part in parts for r in part)
    assert all(r.labels is not None and not r.labels.any() for part in parts[:3] for r in part)
    icy = [r for r in data.test if r.name == "icing"]
    assert len(icy) == 351 - 25
    normal = len(data.test) - len(icy)
    assert normal == round(0.3 * (normal + sum(map(len, parts[:3]))))
    trained = {row.tobytes() for r in data.train for row in r.rows}
    shared = [row.tobytes() in trained for r in data.test if r.name == "normal" for row in r.rows]
    assert np.mean(shared) > 0.9


def test_contest_rows_can_be_used_as_they_are(contest: Path) -> None:
    data = series("icing", contest, average_s=None)
    assert data.period_s == 15.0


def test_a_missing_contest_file_is_named_with_who_has_it(contest: Path) -> None:
    (contest / "15_failureTimeRange.csv").unlink()
    with pytest.raises(InvalidInput, match=r"15_failureTimeRange\.csv.*organisers"):
        series("icing", contest)


def tep_runs(faults: tuple[int, ...]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    lengths = {"d00": 500, "d00_te": 960, **{f"d{k:02d}_te": 960 for k in faults}}
    return {k: rng.normal(size=(n, 52)).astype(np.float32) for k, n in lengths.items()}


def test_the_fault_of_a_tennessee_run_starts_at_row_160(tmp_path: Path) -> None:
    np.savez(tmp_path / "tep.npz", **tep_runs((1, 4)))
    data = series("tep", tmp_path, faults=[1, 4])
    assert [r.name for r in data.test] == ["d00_te", "d01_te", "d04_te"]
    first = [np.flatnonzero(r.labels)[:1].tolist() for r in data.test if r.labels is not None]
    assert first == [[], [160], [160]]


def test_the_original_tennessee_files_give_what_the_npz_gives(tmp_path: Path) -> None:
    runs = tep_runs((2,))
    np.savez(tmp_path / "tep.npz", **runs)
    expected = series("tep", tmp_path, faults=[2])
    home = tmp_path / "originals" / "tep"
    home.mkdir(parents=True)
    for name, rows in runs.items():
        # d00 alone is published transposed
        np.savetxt(home / f"{name}.dat", rows.T if name == "d00" else rows, fmt="%.9e")
    found = series("tep", home.parent, faults=[2])
    for a, b in zip(expected.test, found.test, strict=True):
        np.testing.assert_allclose(a.rows, b.rows, rtol=1e-6)
    np.testing.assert_allclose(expected.train[0].rows, found.train[0].rows, rtol=1e-6)


def test_the_pump_rigs_anomaly_free_run_is_for_training_only(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {"anomaly-free_anomaly-free_x": rng.normal(size=(900, 8))}
    arrays["anomaly-free_anomaly-free_t"] = np.arange(900)
    for name in ("valve1_0", "other_1"):
        arrays[f"{name}_x"] = rng.normal(size=(200, 8))
        arrays[f"{name}_t"] = np.arange(200)
        arrays[f"{name}_anomaly"] = (np.arange(200) > 120).astype(np.uint8)
    np.savez(tmp_path / "skab.npz", **arrays)
    data = series("skab", tmp_path)
    assert {r.name for r in data.test} == {"valve1_0", "other_1"}
    assert all(r.labels is not None and r.labels.sum() == 79 for r in data.test)
    assert {r.name for r in data.train} == {"anomaly-free_anomaly-free"}


def test_the_pump_rigs_original_files_are_read(tmp_path: Path) -> None:
    from training.data.sensors_public import SKAB_COLUMNS

    rng = np.random.default_rng(0)
    for folder, stem, n in (("anomaly-free", "anomaly-free", 900), ("valve1", "0", 200)):
        frame = pd.DataFrame(rng.normal(size=(n, 8)), columns=list(SKAB_COLUMNS))
        frame.insert(0, "datetime", pd.date_range("2020-03-09", periods=n, freq="1s"))
        if folder == "valve1":
            frame["anomaly"] = (np.arange(n) > 120).astype(float)
        (tmp_path / folder).mkdir()
        frame.to_csv(tmp_path / folder / f"{stem}.csv", sep=";", index=False)
    data = series("skab", tmp_path)
    assert [r.name for r in data.test] == ["valve1_0"]
    assert data.test[0].labels is not None
    assert data.test[0].labels.sum() == 79


def test_ice_does_not_change_the_weather() -> None:
    iced, clear = simulate(2, 3, [Icing(0, 2 * DAY, 0.4)]), simulate(2, 3)
    outside = NAMES.index("environment_tmp")
    assert (iced.rows[:, outside] == clear.rows[:, outside]).all()
