"""What every answer has in common: ids, problems, pages that work offline, a full description."""

import logging
import re
from typing import Any

import pytest
from starlette.testclient import TestClient

from service.app import create_app
from service.contract.errors import DetectorFailure
from service.problems import INTERNAL_DETAIL
from service.scoring import Scorer
from service.settings import Settings
from tests.service.conftest import Start
from tests.service.pictures import encode, grey
from tests.service.test_score_bad_input import refused

GOOD = encode(grey(51))
PNG = {"Content-Type": "image/png"}
TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def test_a_request_id_is_taken_over_and_echoed_in_header_and_body(client: TestClient) -> None:
    response = client.post("/score", content=GOOD, headers=PNG | {"X-Request-ID": "part-17/a"})
    assert response.headers["X-Request-ID"] == response.json()["request_id"] == "part-17/a"


@pytest.mark.parametrize("bad", ["", "a b", "x" * 129, "größe"])
def test_a_request_id_that_is_unprintable_or_too_long_is_replaced(
    client: TestClient, bad: str
) -> None:
    headers = {b"X-Request-ID": bad.encode()}
    first = client.get("/livez", headers=headers).headers["X-Request-ID"]
    second = client.get("/livez", headers=headers).headers["X-Request-ID"]
    assert re.fullmatch("[0-9a-f]{32}", first)
    assert first != second


def test_a_valid_traceparent_is_echoed_and_another_is_not(client: TestClient) -> None:
    assert client.get("/livez", headers={"traceparent": TRACE}).headers["traceparent"] == TRACE
    for bad in ("00-zz", TRACE.replace("4bf92f3577b34da6a3ce929d0e0e4736", "0" * 32)):
        assert "traceparent" not in client.get("/livez", headers={"traceparent": bad}).headers


def test_an_unknown_path_and_a_wrong_method_are_problems(client: TestClient) -> None:
    refused(client.get("/nope"), 404, "/nope")
    response = client.get("/score")
    refused(response, 405, "GET", "POST")
    assert response.headers["Allow"] == "POST"


class Broken:
    """A detector with a bug."""

    max_batch = 1

    def __init__(self, error: Exception) -> None:
        self.error = error

    def detect(self, x: Any, *, maps: bool) -> Any:
        raise self.error


@pytest.mark.parametrize("route", ["/score", "/v2/models/bright/infer"])
@pytest.mark.parametrize(
    "error", [ZeroDivisionError("secret"), DetectorFailure("score.onnx: secret")]
)
def test_a_bug_is_answered_with_a_fixed_text_and_logged_with_its_traceback(
    start: Start,
    route: str,
    error: Exception,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    client = start()
    scorer: Scorer = client.app.state.resources.catalog.get("bright", 1, "image")  # type: ignore[attr-defined]
    monkeypatch.setattr(scorer, "detector", Broken(error))
    with caplog.at_level(logging.ERROR):
        if route == "/score":
            response = client.post(route, content=GOOD, headers=PNG)
        else:
            pixels = {"name": "image", "shape": [1, 2, 2, 1], "datatype": "UINT8", "data": [0] * 4}
            response = client.post(route, json={"inputs": [pixels]})
    body = refused(response, 500)
    assert body["detail"] == INTERNAL_DETAIL
    assert "secret" not in response.text
    assert "Traceback" not in response.text
    assert "secret" in caplog.text
    assert response.headers["X-Request-ID"] in caplog.text


def test_a_score_that_is_not_a_number_is_an_error_and_never_an_answer(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = start()
    scorer: Scorer = client.app.state.resources.catalog.get("bright", 1, "image")  # type: ignore[attr-defined]
    honest = scorer.detector.detect

    def to_nan(x: Any, *, maps: bool) -> Any:
        found = honest(x, maps=maps)
        found.scores[:] = float("nan")
        return found

    monkeypatch.setattr(scorer.detector, "detect", to_nan)
    refused(client.post("/score", content=GOOD, headers=PNG), 500)


def test_one_line_a_request_is_logged_without_letting_a_path_break_it(
    client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "service.request_context"):
        client.get("/nope%0Aforged line", headers={"X-Request-ID": "abc"})
    (record,) = caplog.records
    assert "\n" not in record.getMessage()
    assert "404" in record.getMessage()
    assert "abc" in record.getMessage()


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_pages_and_all_they_need_come_from_this_host_and_hold_no_inline_script(
    client: TestClient, path: str
) -> None:
    page = client.get(path)
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    assert "script-src 'self';" in page.headers["Content-Security-Policy"]
    assert "default-src 'none'" in page.headers["Content-Security-Policy"]
    assert "http" not in page.text
    assert not re.search(r"<script(?![^>]*\bsrc=)", page.text)
    needed = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert needed
    for address in needed:
        assert client.get(address).status_code == 200, address


def test_the_description_covers_every_route_bodies_and_problems(client: TestClient) -> None:
    schema = client.get("/openapi.json").json()
    assert schema["openapi"].startswith("3.1")
    assert set(schema["paths"]) == {
        "/score",
        "/score/timeseries",
        "/score/vectors",
        "/feedback",
        "/feedback/calibration",
        "/feedback/proposal",
        "/models",
        "/models/{name}",
        "/models/{name}/versions/{version}",
        "/v2",
        "/v2/health/live",
        "/v2/health/ready",
        "/v2/models/{name}",
        "/v2/models/{name}/infer",
        "/v2/models/{name}/ready",
        "/v2/models/{name}/versions/{version}",
        "/v2/models/{name}/versions/{version}/infer",
        "/v2/models/{name}/versions/{version}/ready",
        "/v2/repository/index",
        "/streams/{id}",
        "/streams/{id}/rows",
        "/models/{name}/versions/{version}/load",
        "/models/{name}/versions/{version}/unload",
        "/models/{name}/aliases/{alias}",
        "/livez",
        "/readyz",
        "/healthz",
        "/metrics",
    }
    score = schema["paths"]["/score"]["post"]
    assert set(score["requestBody"]["content"]) == {
        "multipart/form-data", "image/png", "image/jpeg", "image/bmp", "image/tiff", "image/webp",
    }  # fmt: skip
    assert {p["name"] for p in score["parameters"]} == {
        "model", "version", "map", "fpr", "fdr", "evidence", "source",
    }  # fmt: skip
    for status in ("400", "404", "413", "415", "422", "429", "503", "504"):
        assert list(score["responses"][status]["content"]) == ["application/problem+json"]
    references = set(re.findall(r'"#/components/schemas/(\w+)"', client.get("/openapi.json").text))
    assert references <= set(schema["components"]["schemas"])
    assert all(schema["components"]["schemas"][r] for r in references)


def test_too_many_items_in_progress_are_refused_at_once(start: Start) -> None:
    client = start(queue_max_items=3)
    admission = client.app.state.resources.admission  # type: ignore[attr-defined]
    with admission.admit("bright", 3):
        response = client.post("/score", content=GOOD, headers=PNG)
        refused(response, 503, "3 items")
        assert response.headers["Retry-After"] == "1"
    files = [("image", ("a.png", GOOD, "image/png"))] * 4
    assert client.post("/score", files=files).status_code == 200  # alone, it always fits
    assert client.post("/score", content=GOOD, headers=PNG).status_code == 200


def test_settings_come_from_the_environment_and_wrong_ones_are_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from service.__main__ import main

    monkeypatch.setenv("ANOMALY_MAX_PIXELS", "123")
    monkeypatch.setenv("ANOMALY_REVIEW_FPR", "")
    assert Settings().max_pixels == 123
    assert Settings().review_fpr is None
    monkeypatch.setenv("ANOMALY_MAX_PIXELS", "many")
    assert main([]) == 2
    assert "ANOMALY_MAX_PIXELS" in capsys.readouterr().err


def test_building_an_app_twice_in_one_process_is_fine(start: Start) -> None:
    assert create_app(Settings()) is not create_app(Settings())
    one, two = start(), start()
    one.post("/score", content=GOOD, headers=PNG)
    assert 'anomaly_items_total{decision="normal",model="bright"' in one.get("/metrics").text
    assert 'anomaly_items_total{decision="normal",model="bright"' not in two.get("/metrics").text
