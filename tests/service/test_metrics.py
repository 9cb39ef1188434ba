"""GET /metrics: the documented names, few labels, and numbers that add up."""

import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from tests.service.conftest import Start
from tests.service.pictures import encode, grey
from tests.service.test_timeseries import rows

PNG = {"Content-Type": "image/png"}
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def samples(client: TestClient) -> Samples:
    text = client.get("/metrics").text
    return {
        (s.name, frozenset(s.labels.items())): s.value
        for family in text_string_to_metric_families(text)
        for s in family.samples
    }


def value(found: Samples, name: str, **labels: str) -> float:
    return found.get((name, frozenset(labels.items())), 0.0)


@pytest.fixture
def fresh(start: Start) -> TestClient:
    return start(max_images=3)


def test_items_scores_and_batches_are_counted(fresh: TestClient) -> None:
    files = [("image", ("a.png", encode(grey(level)), "image/png")) for level in (0, 0, 255)]
    fresh.post("/score", files=files)
    fresh.post("/score/timeseries", json={"rows": [[None] * 3, *rows(12).tolist()]})
    found = samples(fresh)
    bright = {"model": "bright", "version": "1"}
    assert value(found, "anomaly_items_total", decision="normal", **bright) == 2
    assert value(found, "anomaly_items_total", decision="anomalous", **bright) == 1
    assert value(found, "anomaly_score_count", **bright) == 3
    assert value(found, "anomaly_score_bucket", le="0.1", **bright) == 2
    assert value(found, "anomaly_batch_size_sum", model="bright") == 3
    skipped = value(
        found, "anomaly_items_total", decision="not_scorable", model="sensors", version="1"
    )
    assert skipped == 1
    assert value(found, "anomaly_queue_depth", model="bright") == 0
    for phase in ("decode", "queue", "preprocess", "infer", "postprocess", "encode"):
        labels = {"model": "bright", "phase": phase}
        assert value(found, "anomaly_phase_duration_seconds_count", **labels) > 0, phase


def test_requests_are_labelled_by_route_template_so_that_labels_stay_few(
    fresh: TestClient,
) -> None:
    for i in range(5):
        fresh.get(f"/nope/{i}")
        fresh.get(f"/models/name{i}")
    fresh.request("BREW", "/livez")
    found = samples(fresh)
    name = "anomaly_http_request_duration_seconds_count"
    assert value(found, name, route="unmatched", method="GET", status="404") == 5
    assert value(found, name, route="/models/{name}", method="GET", status="404") == 5
    methods = {dict(labels).get("method") for n, labels in found if n == name}
    assert methods == {"GET", "OTHER"}


def test_refused_requests_are_counted_by_reason(fresh: TestClient) -> None:
    fresh.post("/score", content=b"", headers=PNG)
    fresh.post("/score?model=nope", content=b"", headers=PNG)
    fresh.post("/score", content=b"{}", headers={"Content-Type": "text/plain"})
    fresh.post("/score?modle=x")
    fresh.post("/score?fpr=x")
    found = samples(fresh)
    for reason, count in {
        "malformed-input": 1, "model-not-found": 1, "unsupported-media": 1, "invalid-input": 2,
    }.items():  # fmt: skip
        assert value(found, "anomaly_requests_rejected_total", reason=reason) == count, reason


def test_models_show_what_they_are_and_that_they_are_ready(fresh: TestClient) -> None:
    found = samples(fresh)
    assert value(found, "anomaly_model_ready", model="bright", version="1") == 1
    infos = [dict(labels) for name, labels in found if name == "anomaly_model_info"]
    assert {i["model"] for i in infos} == {"bright", "sensors"}
    for info in infos:
        assert info["family"] == "iae_lstm_kl"
        assert info["provider"] == "CPUExecutionProvider"
        assert len(info["sha256"]) == 64


def test_prometheus_gets_the_format_it_asks_for(fresh: TestClient) -> None:
    plain = fresh.get("/metrics")
    assert plain.headers["content-type"].startswith("text/plain")
    open_metrics = fresh.get("/metrics", headers={"Accept": "application/openmetrics-text"})
    assert open_metrics.headers["content-type"].startswith("application/openmetrics-text")
