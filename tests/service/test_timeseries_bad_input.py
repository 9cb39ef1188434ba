"""POST /score/timeseries: whatever is wrong is a documented problem that names the place."""

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from tests.service.conftest import Start
from tests.service.test_score_bad_input import refused
from tests.service.test_timeseries import CSV, csv_of, rows, stamps

JSON = {"Content-Type": "application/json"}
ROWS = rows().tolist()


def post(client: TestClient, body: Any, query: str = "") -> Any:
    """``body`` as JSON; text as csv."""
    if isinstance(body, str):
        return client.post(f"/score/timeseries{query}", content=body, headers=CSV)
    return client.post(f"/score/timeseries{query}", content=json.dumps(body), headers=JSON)


@pytest.mark.parametrize("count", [0, 1, 5])
def test_too_few_rows_for_one_window(client: TestClient, count: int) -> None:
    for body in ({"rows": ROWS[:count]}, csv_of(rows(count))):
        refused(post(client, body), 422, f"{count} rows", "needs 6", "4 + 2 for smoothing")


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ("power,wind", ("missing column 'pitch'", "power, wind, pitch")),
        ("power,wind,pitch,rotor", ("unknown column 'rotor'",)),
        ("power,wind,Pitch", ("unknown column 'Pitch'", "missing column 'pitch'")),
        ("power,wind,pitch,power", ("'power' occurs twice",)),
        ("time,date,power,wind,pitch", ("second column of timestamps",)),
        ("1.5,2.5,3.5", ("header",)),
    ],
)
def test_wrong_columns(client: TestClient, header: str, words: tuple[str, ...]) -> None:
    cells = ",".join("1" for _ in header.split(","))
    refused(post(client, "\n".join([header, *[cells] * 8])), 422, *words)


def test_wrong_columns_in_json(client: TestClient) -> None:
    body = refused(post(client, {"columns": ["power", "wind", "rotor"], "rows": ROWS}), 422)
    assert {"pointer": "/columns/2", "detail": "unknown column 'rotor'"} in body["errors"]


def test_a_row_of_wrong_length(client: TestClient) -> None:
    text = csv_of(rows()).splitlines()
    text[4] += ",9"
    refused(post(client, "\n".join(text)), 422, "row 3 (line 5)", "4 cells, expected 3")
    short = [*ROWS[:3], ROWS[3][:2], *ROWS[4:]]
    body = refused(post(client, {"rows": short}), 422, "row 3", "2 cells, expected 3")
    assert body["errors"][0]["pointer"] == "/rows/3"


@pytest.mark.parametrize("cell", ["many", "1,5", "0x10", "1_000", "--"])
def test_text_among_the_readings(client: TestClient, cell: str) -> None:
    text = csv_of(rows()).splitlines()
    text[4] = f'1,"{cell}",3'
    body = refused(post(client, "\n".join(text)), 422, cell, "line 5", "wind", "not a number")
    assert body["errors"][0]["pointer"] == "/rows/3/1"


@pytest.mark.parametrize(
    ("cell", "point"), [("-1,0779", "-1.0779"), (",5", ".5"), ("2,1E3", "2.1E3")]
)
def test_a_decimal_comma_is_told_as_one(client: TestClient, cell: str, point: str) -> None:
    text = csv_of(rows()).replace(",", ";").splitlines()
    text[4] = f"1;{cell};3"
    told = f"{cell!r} is not a number; decimal commas are not read, write {point}"
    body = refused(post(client, "\n".join(text)), 422, "row 3 (line 5)", told)
    assert body["errors"][0]["detail"].endswith(told)


@pytest.mark.parametrize("cell", ["many", "1,5,5", "1,", "a,5", ","])
def test_no_decimal_comma_is_seen_where_there_is_none(client: TestClient, cell: str) -> None:
    text = csv_of(rows()).replace(",", ";").splitlines()
    text[4] = f"1;{cell};3"
    body = refused(post(client, "\n".join(text)), 422, "not a number")
    assert "decimal" not in body["detail"]


@pytest.mark.parametrize("cell", ["many", "", "1.5", "NaN", True, [], {}, [1.0]])
def test_what_is_no_number_in_json(client: TestClient, cell: Any) -> None:
    data = [list(row) for row in ROWS]
    data[3][1] = cell
    body = refused(post(client, {"rows": data}), 422, "not a number")
    assert body["errors"][0]["pointer"] == "/rows/3/1"


def test_the_list_of_wrong_places_is_bounded(client: TestClient) -> None:
    body = refused(post(client, {"rows": [["a", "b", "c"]] * 500}), 422)
    assert len(body["errors"]) == 20


@pytest.mark.parametrize("text", ["", "\n\n", "\ufeff"])
def test_an_empty_csv(client: TestClient, text: str) -> None:
    refused(post(client, text), 422, "empty")


def test_csv_that_is_not_utf8_or_has_a_broken_quote_or_a_nul(client: TestClient) -> None:
    latin = client.post("/score/timeseries", content="größe,b\n".encode("latin-1"), headers=CSV)
    refused(latin, 400, "UTF-8")
    refused(post(client, 'power,wind,pitch\n1,"2,3\n'), 400, "csv")


@pytest.mark.parametrize(
    "body", [b"", b"{", b'{"rows": [[1,2,3]', b"NaN", b"\xff", b'{"rows": NaN', b"[" * 100_000]
)
def test_broken_json(client: TestClient, body: bytes) -> None:
    response = client.post("/score/timeseries", content=body, headers=JSON)
    assert response.status_code in (400, 422)
    refused(response, response.status_code, "JSON")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ([], ("object",)),
        ({}, ("/rows",)),
        ({"rows": None}, ("/rows",)),
        ({"rows": {"power": [1]}}, ("/rows",)),
        ({"rows": [1, 2]}, ("/rows/0",)),
        ({"rows": [{"power": 1}]}, ("/rows/0",)),
        ({"rows": ROWS, "columns": "power"}, ("/columns",)),
        ({"rows": ROWS, "columns": [1, 2, 3]}, ("/columns",)),
        ({"rows": ROWS, "colums": ["a"]}, ("/colums",)),
        ({"rows": ROWS, "timestamps": stamps()[:-1]}, ("/timestamps", "12")),
        ({"rows": ROWS, "timestamps": "now"}, ("/timestamps",)),
        ({"rows": ROWS, "timestamps": ["noon"] * 12}, ("/timestamps/0", "noon")),
        ({"rows": ROWS, "timestamps": [1.5] * 12}, ("/timestamps/0",)),
        ({"rows": ROWS, "timestamps": ["2015/13/40 15:15"] * 12}, ("/timestamps/0",)),
        (
            {
                "columns": ["time", "power", "wind", "pitch"],
                "rows": [["2015-12-30", *row] for row in ROWS],
                "timestamps": stamps(),
            },
            ("/timestamps", "twice"),
        ),
    ],
)
def test_json_of_another_form(client: TestClient, body: Any, words: tuple[str, ...]) -> None:
    refused(post(client, body), 422, *words)


def test_a_wrong_timestamp_in_csv_is_pointed_at(client: TestClient) -> None:
    clock = stamps()
    clock[5] = "later"
    body = refused(post(client, csv_of(rows(), Time=clock)), 422, "later")
    assert body["errors"][0]["pointer"] == "/rows/5/0"


def test_more_cells_windows_or_residuals_than_allowed(start: Start) -> None:
    client = start(max_cells=36, max_windows=4, max_map_pixels=47)
    for body in ({"rows": ROWS}, csv_of(rows())):
        assert post(client, body).status_code == 200
        refused(post(client, body, "?stride=1"), 413, "7 windows", "stride")
        refused(post(client, body, "?map=float32"), 413, "map=none")
    for body in ({"rows": [*ROWS, ROWS[0]]}, csv_of(rows(13))):
        refused(post(client, body), 413, "36 cells", "ANOMALY_MAX_CELLS")


@pytest.mark.parametrize("content_type", ["image/png", "text/plain", ""])
def test_a_wrong_content_type(client: TestClient, content_type: str) -> None:
    headers = {"Content-Type": content_type}
    response = client.post("/score/timeseries", content=b"{}", headers=headers)
    refused(response, 415, "application/json", "text/csv")


def test_a_multipart_body_with_another_part_or_two_files(client: TestClient) -> None:
    text = csv_of(rows())
    refused(client.post("/score/timeseries", files={"csv": text}), 422, "'csv'", "'file'")
    twice = [("file", ("a.csv", text)), ("file", ("b.csv", text))]
    refused(client.post("/score/timeseries", files=twice), 422, "2")


@pytest.mark.parametrize(
    ("query", "status", "words"),
    [
        ("?model=bright", 422, ("post to /score",)),
        ("?model=nope", 404, ("nope", "sensors")),
        ("?version=3", 404, ("known versions: 1",)),
        ("?stride=0", 422, ("/stride",)),
        ("?stride=fast", 422, ("/stride",)),
        ("?map=png", 422, ("/map", "'float32'")),
        ("?fpr=0.0001", 422, ("0.005",)),
        ("?strid=1", 422, ("strid", "stride")),
    ],
)
def test_a_wrong_query(client: TestClient, query: str, status: int, words: tuple[str, ...]) -> None:
    refused(post(client, {"rows": ROWS}, query), status, *words)


cells = st.none() | st.booleans() | st.floats() | st.text(max_size=5) | st.integers()


@given(
    st.dictionaries(
        st.sampled_from(["rows", "columns", "timestamps", "x"]),
        cells | st.lists(cells | st.lists(cells, max_size=4), max_size=9),
    )
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_arbitrary_json_is_a_client_error_and_never_a_500(client: TestClient, body: Any) -> None:
    assert post(client, body).status_code in (400, 422)


@given(st.text(max_size=200), st.booleans())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_arbitrary_text_is_a_client_error_and_never_a_500(
    client: TestClient, text: str, with_header: bool
) -> None:
    body = ("power,wind,pitch\n" if with_header else "") + text
    data = body.encode("utf-8", "surrogatepass")
    response = client.post("/score/timeseries", content=data, headers=CSV)
    assert response.status_code in (400, 422)


def test_a_stride_beyond_all_numbers_is_refused(client: TestClient) -> None:
    refused(post(client, csv_of(rows()), f"?stride={2**63}"), 422, "stride")


def test_a_timestamp_at_the_end_of_time_is_refused(client: TestClient) -> None:
    late = ["9999/12/31 23:59:59.99999999"] * 12
    refused(post(client, csv_of(rows(), Time=late)), 422, "no timestamp")


def test_a_lone_surrogate_in_json_is_refused(client: TestClient) -> None:
    body = b'{"rows": [[NaN]], "\\ud800": 1}'
    response = client.post(
        "/score/timeseries", content=body, headers={"Content-Type": "application/json"}
    )
    refused(response, 400, "not JSON")


def test_thousands_of_columns_are_refused_by_their_number(client: TestClient) -> None:
    header = ",".join(f"c{i}" for i in range(5000))
    refused(post(client, header + "\n1,2\n"), 422, "5000 columns")
