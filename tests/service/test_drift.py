"""Drift: live items against the calibration, seen through /metrics and by another's statistic."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ecdf
from starlette.testclient import TestClient

from service.contract.calibration import Calibration
from service.drift import Reference
from tests.artifacts import IMAGE_INPUT, publish_image, publish_series, set_active
from tests.service.conftest import Start
from tests.service.operators import eventually, loaded, operated
from tests.service.pictures import encode, grey
from tests.service.tensors import INFER, SERIES, cells, pixels, post
from tests.service.test_metrics import samples

BRIGHT = {"model": "bright", "version": "1"}
SENSORS = {"model": "sensors", "version": "1"}
# the calibration has 199 scores from 0.0025 to 0.4975: as many of each level are normal
NORMAL = range(127)


def send(client: TestClient, levels: range | list[int], query: str = "") -> list[dict[str, Any]]:
    """The results of images of these grey levels, 50 a request."""
    found = []
    for first in range(0, len(levels), 50):
        parts = [
            ("image", ("a.png", encode(grey(level)), "image/png"))
            for level in levels[first : first + 50]
        ]
        response = client.post(f"/score?map=none{query}", files=parts)
        assert response.status_code == 200, response.text
        found += response.json()["results"]
    return found


def metric(client: TestClient, name: str, **labels: str) -> float | None:
    return samples(client).get((name, frozenset(labels.items())))


def figures(client: TestClient, of: str = "", **labels: str) -> tuple[float | None, ...]:
    """Items, distance and flagged ratio."""
    found = samples(client)
    return tuple(
        found.get((f"anomaly{of}_{name}", frozenset(labels.items())))
        for name in ("drift_items", "drift_ks", "flagged_ratio")
    )


def test_items_like_those_of_the_calibration_are_near_it_and_others_far(start: Start) -> None:
    client = start()
    send(client, NORMAL)
    send(client, [255, 255])
    items, ks, flagged = figures(client, **BRIGHT)
    assert items == 129
    assert ks is not None
    assert ks < 0.03
    assert flagged == pytest.approx(2 / 129)
    assert metric(client, "anomaly_promised_false_alarm_ratio", **BRIGHT) == pytest.approx(0.01)
    assert metric(client, "anomaly_calibration_items", **BRIGHT) == 199
    other = start()
    send(other, [255] * 100)  # every p-value is 1 / 200
    assert figures(other, **BRIGHT) == (100, pytest.approx(199 / 200), 1)


def test_fewer_than_100_items_give_no_figure(start: Start) -> None:
    client = start()
    assert figures(client, **BRIGHT) == (0, None, None)
    send(client, [0] * 99)
    assert figures(client, **BRIGHT) == (99, None, None)
    send(client, [0])
    assert figures(client, **BRIGHT) == (100, pytest.approx(199 / 200), 0)


def test_only_the_last_items_count(start: Start) -> None:
    client = start(drift_window=100)
    send(client, [255] * 130)
    assert figures(client, **BRIGHT) == (100, pytest.approx(199 / 200), 1)
    send(client, [0] * 60)
    assert figures(client, **BRIGHT) == (100, pytest.approx(0.6 - 1 / 200), 0.4)
    send(client, [0] * 40)
    assert figures(client, **BRIGHT)[2] == 0


def test_the_rate_that_a_query_asks_for_changes_nothing(start: Start) -> None:
    client = start()
    decisions = {r["decision"] for r in send(client, [100] * 50, "&fpr=0.9")}
    decisions |= {r["decision"] for r in send(client, [100] * 50, "&fdr=0.9")}
    assert decisions == {"anomalous"}
    assert figures(client, **BRIGHT)[2] == 0


def test_answers_from_the_cache_are_live_items_too_whatever_their_source(start: Start) -> None:
    client = start()
    for i in range(100):
        send(client, [0], f"&source=camera-{i % 2}")
    assert 'cache_requests_total{result="hit"} 99.0' in client.get("/metrics").text
    assert figures(client, **BRIGHT)[0] == 100
    for camera in ("camera-0", "camera-1"):
        assert figures(client, "_source", source=camera, **BRIGHT) == (50, None, None)


def test_a_source_is_told_from_the_others_and_from_the_whole(start: Start) -> None:
    client = start()
    send(client, NORMAL, "&source=left.camera_1")
    send(client, [255] * 127, "&source=right")
    assert figures(client, **BRIGHT)[2] == 0.5
    assert figures(client, "_source", source="right", **BRIGHT)[2] == 1
    _, ks, flagged = figures(client, "_source", source="left.camera_1", **BRIGHT)
    assert ks is not None
    assert ks < 0.03
    assert flagged == 0


def test_sources_beyond_the_limit_count_as_other(start: Start) -> None:
    client = start(sources_max=2)
    for source in ("other", "a", "b", "c", "d", "a", "c"):
        send(client, [0], f"&source={source}")
    found = samples(client)
    counted = {
        dict(labels)["source"]: value
        for (name, labels), value in found.items()
        if name == "anomaly_source_drift_items"
    }
    assert counted == {"a": 2, "b": 1, "other": 4}


@pytest.mark.parametrize("source", ["", "a b", "a%2Bb", "a/b", "x" * 65, "caf%C3%A9", "a%0A"])
def test_a_source_with_other_characters_is_refused(client: TestClient, source: str) -> None:
    for path in ("/score", "/score/timeseries", "/streams/t/rows"):
        response = client.post(
            f"{path}?source={source}",
            content=b"{}",
            headers={"Content-Type": "application/json"},
        )
        assert response.status_code == 422, path
        assert response.json()["errors"][0]["pointer"] == "/source"


def test_windows_that_share_rows_count_once_and_unscorable_ones_never(start: Start) -> None:
    client = start()
    rows = np.random.default_rng(0).normal(size=(66, 3)).round(4)
    rows[0, 0] = np.nan
    body = {"rows": [[None if np.isnan(v) else v for v in row] for row in rows.tolist()]}
    answer = client.post("/score/timeseries", params={"stride": 2, "source": "t1"}, json=body)
    decisions = [r["decision"] for r in answer.json()["results"]]
    assert len(decisions) == 31  # a window needs 6 rows: every third shares none with the last
    assert decisions[0] == "not_scorable"
    assert figures(client, **SENSORS)[0] == 10
    assert figures(client, "_source", source="t1", **SENSORS)[0] == 10
    assert figures(client, "_source", source="t1", **BRIGHT)[0] is None


def test_a_stream_in_pieces_counts_as_the_same_rows_at_once(start: Start) -> None:
    client = start()
    rows = np.random.default_rng(0).normal(size=(66, 3)).round(4).tolist()
    for first in range(0, 66, 5):
        sent = {"rows": rows[first : first + 5]}
        for _ in range(2):  # what is repeated is not live anew
            response = client.post(
                "/streams/turbine/rows?source=t7",
                json=sent,
                headers={"Idempotency-Key": f"k{first}"},
            )
            assert response.status_code == 200, response.text
    assert figures(client, "_source", source="t7", **SENSORS)[0] == 11
    assert figures(client, **SENSORS)[0] == 11


def test_the_open_inference_protocol_names_a_source_in_its_parameters(start: Start) -> None:
    client = start()
    image = pixels(grey(0)[None, :, :, None])
    assert post(client, image, parameters={"source": "a"}).status_code == 200
    rows = cells(np.random.default_rng(0).normal(size=(66, 3)).round(4))
    answer = post(client, rows, path=SERIES, parameters={"source": "b", "stride": 3})
    assert answer.status_code == 200, answer.text
    assert figures(client, "_source", source="a", **BRIGHT)[0] == 1
    assert figures(client, "_source", source="b", **SENSORS)[0] == 11
    refused = post(client, image, path=INFER, parameters={"source": "a b"})
    assert refused.status_code == 422
    assert refused.json()["errors"][0]["pointer"] == "/parameters/source"


def test_a_heatmap_counts_as_an_item(start: Start) -> None:
    client = start()
    client.post(
        "/score?source=a",
        content=encode(grey(0)),
        headers={"Content-Type": "image/png", "Accept": "image/png"},
    )
    assert figures(client, "_source", source="a", **BRIGHT)[0] == 1


def test_a_candidate_that_scores_in_the_shadow_has_no_live_items(tmp_path: Path) -> None:
    publish_image(tmp_path, "bright", 1)
    publish_image(tmp_path, "bright", 2, IMAGE_INPUT.model_copy(update={"std": (0.5,)}))
    publish_series(tmp_path)
    set_active(tmp_path, image="bright/1", timeseries="sensors/1")
    with operated(tmp_path, shadow_share=1.0) as client:
        loaded(client)
        client.put("/models/bright/aliases/candidate", json={"version": 2})
        send(client, [0] * 10)
        assert client.app.state.resources.shadow.settle(30)  # type: ignore[attr-defined]
        assert client.get("/models/bright").json()["shadow"]["scored"] == 10
        assert figures(client, **BRIGHT)[0] == 10
        assert figures(client, model="bright", version="2")[0] == 0
        client.put("/models/bright/aliases/stable", json={"version": 2})
        send(client, [0] * 10)
        assert figures(client, model="bright", version="2")[0] == 10
        client.delete("/models/bright/aliases/candidate")
        client.post("/models/bright/versions/1/unload")
        eventually(lambda: figures(client, **BRIGHT)[0] is None)
        client.post("/models/bright/versions/1/load")
        eventually(lambda: figures(client, **BRIGHT)[0] == 0)


scores = st.lists(
    st.one_of(st.floats(-5, 5, width=16), st.sampled_from([0.0, 1.0])), min_size=1, max_size=40
)


@given(calibration=scores, live=scores)
def test_the_distance_is_that_of_two_samples_within_one_calibration_item(
    calibration: list[float], live: list[float]
) -> None:
    known = Calibration.fit(np.array(calibration))
    reference = Reference.of(known, 0.01)
    p_values = known.p_value(np.array(live))
    ranks = reference.ranks(1 - p_values)
    assert np.array_equal(ranks / (known.n + 1), p_values)
    held_out = known.p_value(known.scores)
    at = np.concatenate([p_values, held_out])
    expected = np.abs(ecdf(p_values).cdf.evaluate(at) - ecdf(held_out).cdf.evaluate(at)).max()
    assert abs(reference.ks(ranks) - expected) <= 1 / (known.n + 1) + 1e-12


@pytest.mark.parametrize(("n", "fpr", "promised"), [(199, 0.01, 2 / 200), (188, 0.01, 1 / 189)])
def test_what_a_calibration_promises_is_what_its_size_can_hold(
    n: int, fpr: float, promised: float
) -> None:
    known = Calibration.fit(np.arange(n))
    assert Reference.of(known, fpr).promised == pytest.approx(promised)
    assert Reference.of(Calibration.fit(np.zeros(n)), fpr).promised == pytest.approx(1 / (n + 1))
