"""POST /score/timeseries: rows go in, windows with scores known by arithmetic come out."""

import json
import math
from base64 import b64decode
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from service.contract.manifest import SeriesInput
from service.contract.preprocess import prepare_series
from service.schemas import SeriesBody
from tests.artifacts import CALIBRATION, SERIES_INPUT, publish_series, set_active
from tests.service.conftest import Start

NAMES = [c.name for c in SERIES_INPUT.columns]
CSV = {"Content-Type": "text/csv"}


def rows(t: int = 12, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(t, 3)).round(4)


def stamps(t: int = 12) -> list[str]:
    return [f"2015-12-30T15:{i:02d}:00Z" for i in range(t)]


def checked(response: Any) -> dict[str, Any]:
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    SeriesBody.model_validate(body)
    return body


def post_json(client: TestClient, query: str = "", **members: Any) -> dict[str, Any]:
    return checked(client.post(f"/score/timeseries{query}", json=members))


def post_csv(client: TestClient, text: str, query: str = "") -> dict[str, Any]:
    return checked(client.post(f"/score/timeseries{query}", content=text, headers=CSV))


def csv_of(data: np.ndarray, names: list[str] = NAMES, **extra: list[str]) -> str:
    header = ",".join([*extra, *names])
    lines = [
        ",".join([*(values[i] for values in extra.values()), *map(str, row)])
        for i, row in enumerate(data.tolist())
    ]
    return "\n".join([header, *lines]) + "\n"


def results_of(body: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = body["results"]
    return found


def test_each_window_scores_the_mean_magnitude_of_its_scaled_readings(client: TestClient) -> None:
    data = rows()
    body = post_json(client, rows=data.tolist())
    assert (body["model"], body["version"], body["family"]) == ("sensors", 1, "iae_lstm_kl")
    assert (body["rows"], body["windows"], body["warnings"]) == (12, 4, [])
    windows = prepare_series(SERIES_INPUT, data)
    for i, result in enumerate(results_of(body)):
        assert result["index"] == i
        assert (result["start"], result["end"]) == (1 + 2 * i, 5 + 2 * i)
        raw = np.abs(windows.values[i]).mean()
        assert result["raw_score"] == pytest.approx(raw, rel=1e-5)
        assert result["p_value"] == CALIBRATION.p_value(np.array([result["raw_score"]]))[0]
        assert result["threshold"] == CALIBRATION.threshold(0.01)
        assert result["decision"] in ("normal", "review", "anomalous")
        assert result["residual_map"] is None


def test_contributions_are_the_shares_of_the_residual_largest_first(client: TestClient) -> None:
    data = rows()
    windows = prepare_series(SERIES_INPUT, data)
    for i, result in enumerate(results_of(post_json(client, rows=data.tolist()))):
        shares = {c["column"]: c["share"] for c in result["contributions"]}
        assert set(shares) == set(NAMES)
        assert sum(shares.values()) == pytest.approx(1)
        assert list(shares.values()) == sorted(shares.values(), reverse=True)
        by_column = np.abs(windows.values[i]).sum(axis=0)
        expected = dict(zip(NAMES, by_column / by_column.sum(), strict=True))
        assert shares == pytest.approx(expected, rel=1e-5)


def test_where_nothing_deviates_every_column_has_an_equal_share(
    start: Start, tmp_path: Path
) -> None:
    free = [c.model_copy(update={"must_vary": False}) for c in SERIES_INPUT.columns]
    publish_series(tmp_path, spec=SERIES_INPUT.model_copy(update={"columns": tuple(free)}))
    set_active(tmp_path, timeseries="sensors/1")
    mean = [[c.mean for c in free]] * 6
    (result,) = results_of(post_json(start(tmp_path), rows=mean))
    assert [c["share"] for c in result["contributions"]] == pytest.approx([1 / 3] * 3)
    assert result["raw_score"] == 0


def test_map_float32_gives_the_residual_of_each_cell(client: TestClient) -> None:
    data = rows()
    windows = prepare_series(SERIES_INPUT, data)
    for i, result in enumerate(results_of(post_json(client, "?map=float32", rows=data.tolist()))):
        found = result["residual_map"]
        assert (found["encoding"], found["height"], found["width"]) == ("float32", 4, 3)
        cells = np.frombuffer(b64decode(found["data"]), "<f4").reshape(4, 3)
        assert np.allclose(cells, np.abs(windows.values[i]), atol=1e-6)


def test_stride_moves_the_windows(client: TestClient) -> None:
    results = results_of(post_json(client, "?stride=3", rows=rows().tolist()))
    assert [r["start"] for r in results] == [1, 4, 7]
    (only,) = results_of(post_json(client, "?stride=1000", rows=rows().tolist()))
    assert only["start"] == 1


def test_columns_are_matched_by_name_in_any_order(client: TestClient) -> None:
    data = rows()
    expected = results_of(post_json(client, rows=data.tolist()))
    swapped = data[:, [2, 0, 1]].tolist()
    assert expected == results_of(
        post_json(client, columns=["pitch", "power", "wind"], rows=swapped)
    )
    assert expected == results_of(post_csv(client, csv_of(data)))
    names = ["pitch", "power", "wind"]
    assert expected == results_of(post_csv(client, csv_of(data[:, [2, 0, 1]], names)))


def test_a_csv_file_as_multipart_part_scores_like_its_text(client: TestClient) -> None:
    text = csv_of(rows())
    response = client.post("/score/timeseries", files={"file": ("a.csv", text, "text/csv")})
    assert checked(response)["results"] == post_csv(client, text)["results"]


@pytest.mark.parametrize("delimiter", [";", "\t"])
@pytest.mark.parametrize("prefix", ["", "\ufeff"])
def test_a_csv_file_of_a_spreadsheet_is_read(
    client: TestClient, delimiter: str, prefix: str
) -> None:
    text = csv_of(rows())
    other = prefix + text.replace(",", delimiter).replace("\n", "\r\n") + "\r\n\r\n"
    assert post_csv(client, other)["results"] == post_csv(client, text)["results"]


@pytest.mark.parametrize("name", ["time", "Time", "TIMESTAMP", "date"])
def test_a_column_of_timestamps_is_not_a_reading(client: TestClient, name: str) -> None:
    text = csv_of(rows(), **{name: stamps()})
    assert post_csv(client, text)["results"] == post_csv(client, csv_of(rows()))["results"]


@pytest.mark.parametrize("name", ["group", "Label"])
def test_a_label_column_is_ignored_with_a_warning(client: TestClient, name: str) -> None:
    body = post_csv(client, csv_of(rows(), **{name: ["normal"] * 12}))
    assert body["results"] == post_csv(client, csv_of(rows()))["results"]
    (warning,) = body["warnings"]
    assert name in warning


@pytest.mark.parametrize(
    "form",
    [
        "2015-12-30T15:{:02d}:00Z",
        "2015-12-30T15:{:02d}:00+02:00",
        "2015-12-30 15:{:02d}",
        "2015/12/30 15:{:02d}",
        "2015/12/30 15:{:02d}:00",
        "2015-12-30T15:{:02d}:00.000",
    ],
)
def test_usual_forms_of_timestamps_are_read_and_a_gap_is_seen(
    client: TestClient, form: str
) -> None:
    minutes = [*range(7), *range(30, 37)]
    text = csv_of(rows(14), Time=[form.format(m) for m in minutes])
    results = results_of(post_csv(client, text, "?stride=1"))
    reasons = [r.get("reason") for r in results]
    assert reasons == [None, None, *["time_gap"] * 5, None, None]


def test_single_digit_dates_of_spreadsheets_are_read(client: TestClient) -> None:
    text = csv_of(rows(), Time=[f"2016/1/3 9:{i:02d}" for i in range(12)])
    assert {r["decision"] for r in results_of(post_csv(client, text))} != {"not_scorable"}


def test_timestamps_beside_json_rows_show_gaps_too(client: TestClient) -> None:
    clock: list[str | None] = [*stamps(12)]
    results = results_of(post_json(client, rows=rows().tolist(), timestamps=clock))
    assert all("reason" not in r for r in results)
    clock[0] = None
    results = results_of(post_json(client, rows=rows().tolist(), timestamps=clock))
    assert [r.get("reason") for r in results] == ["time_gap", None, None, None]


@pytest.mark.parametrize("missing", ["", "NaN", "nan", "null", "NA", "inf"])
def test_a_missing_csv_cell_makes_its_windows_not_scorable_and_no_other(
    client: TestClient, missing: str
) -> None:
    lines = csv_of(rows()).splitlines()
    cells = lines[1 + 5].split(",")
    cells[1] = missing
    lines[1 + 5] = ",".join(cells)
    body = post_csv(client, "\n".join(lines), "?stride=1")
    assert [r.get("reason") for r in results_of(body)] == ["missing_values"] * 6 + [None]
    spoilt, whole = body["results"][0], post_csv(client, csv_of(rows()), "?stride=1")["results"]
    assert spoilt["decision"] == "not_scorable"
    assert spoilt["score"] is spoilt["p_value"] is spoilt["raw_score"] is None
    assert spoilt["contributions"] == []
    assert body["results"][6] == whole[6]


def test_null_and_nan_in_json_are_missing_readings(client: TestClient) -> None:
    data: list[list[float | None]] = rows().tolist()
    data[0][0] = None
    results = results_of(post_json(client, rows=data))
    assert [r.get("reason") for r in results] == ["missing_values", None, None, None]
    data[0][0] = math.nan
    body = json.dumps({"rows": data}).encode()
    assert b"NaN" in body
    headers = {"Content-Type": "application/json"}
    response = client.post("/score/timeseries", content=body, headers=headers)
    assert results_of(checked(response)) == results
    assert b"NaN" not in response.content


def test_out_of_range_and_stuck_sensors_are_said_and_the_rest_is_scored(
    client: TestClient,
) -> None:
    data = rows(24)
    data[0, 0] = 1e9
    data[14:, 2] = 0.5
    reasons = [r.get("reason") for r in results_of(post_json(client, rows=data.tolist()))]
    assert reasons[0] == "out_of_range"
    assert reasons[1:5] == [None] * 4
    assert reasons[-1] == "constant_sensor"


def test_a_recording_where_no_window_is_scorable_is_answered(client: TestClient) -> None:
    body = post_json(client, rows=[[None, None, None]] * 12)
    assert [r["decision"] for r in results_of(body)] == ["not_scorable"] * 4


def test_a_window_scores_the_same_in_a_long_recording_as_alone(client: TestClient) -> None:
    data = rows(60)
    whole = results_of(post_json(client, "?stride=1", rows=data.tolist()))
    for i in (0, 17, 54):
        (alone,) = results_of(post_json(client, rows=data[i : i + 6].tolist()))
        assert alone["raw_score"] == pytest.approx(whole[i]["raw_score"], abs=1e-6)
        assert alone["decision"] == whole[i]["decision"]


def test_cutting_a_long_recording_piecewise_changes_nothing(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = rows(60).tolist()
    data[20][0] = None
    whole = results_of(post_json(client, rows=data, timestamps=stamps(60)))
    monkeypatch.setattr("service.routes.timeseries._CELLS_AT_ONCE", 5 * 6 * 3)
    assert results_of(post_json(client, rows=data, timestamps=stamps(60))) == whole


def test_an_artifact_without_sampling_period_takes_timestamps_without_looking_for_gaps(
    start: Start, tmp_path: Path
) -> None:
    spec: SeriesInput = SERIES_INPUT.model_copy(update={"period_s": None})
    publish_series(tmp_path, spec=spec)
    set_active(tmp_path, timeseries="sensors/1")
    text = csv_of(rows(), Time=["2015-12-30"] * 12)
    results = results_of(post_csv(start(tmp_path), text))
    assert all("reason" not in r for r in results)
