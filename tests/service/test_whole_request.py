"""Decisions over all items of a request, and what they were compared with, through HTTP."""

from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from service.schemas import ScoreBody, SeriesBody
from tests.artifacts import CALIBRATION, SERIES_INPUT
from tests.service.conftest import Start
from tests.service.pictures import encode, grey
from tests.service.test_evidence import SHIPPED, picture

# CALIBRATION: 199 scores 1/400 .. 199/400; a grey level of 127 or more gets the least p, 1/200


def post(client: TestClient, levels: list[int | None], query: str) -> dict[str, Any]:
    """An image of each level; a broken file for None."""
    files = [
        ("image", ("a", b"broken" if v is None else encode(grey(v)), "image/png")) for v in levels
    ]
    response = client.post(f"/score?map=none&{query}", files=files)
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    ScoreBody.model_validate(body)
    return body


def test_the_same_image_is_decided_by_what_else_is_in_the_request(client: TestClient) -> None:
    def decisions(levels: list[int | None]) -> list[str]:
        found = post(client, levels, "fdr=0.05")["results"]
        return [r["decision"] for r in found if "error" not in r]

    unusual = 125  # p = 0.02
    assert decisions([unusual]) == ["anomalous"]
    assert decisions([unusual, 0, 0, 0]) == ["review", "normal", "normal", "normal"]
    assert decisions([unusual, 255, 255, 0]) == [*["anomalous"] * 3, "normal"]
    assert decisions([unusual, None, None, None]) == ["anomalous"]  # broken files are no tests


def test_rate_and_threshold_are_those_of_the_request(client: TestClient) -> None:
    body = post(client, [125, 255, 255, 0], "fdr=0.05")
    assert "warnings" not in body
    for result in body["results"]:
        assert result["fpr"] == pytest.approx(0.05 * 3 / 4)
        assert result["threshold"] == CALIBRATION.threshold(result["fpr"])
        assert (result["raw_score"] > result["threshold"]) == (result["decision"] == "anomalous")


def test_a_rate_too_fine_for_the_calibration_is_explained(client: TestClient) -> None:
    body = post(client, [255, 255], "fdr=0.001")
    assert "at least 0.005" in body["warnings"][0]
    assert [r["decision"] for r in body["results"]] == ["review", "review"]
    assert body["results"][0]["threshold"] is None


@pytest.mark.parametrize("route", ["/score", "/score/timeseries"])
@pytest.mark.parametrize("query", ["fdr=0.05&fpr=0.01", "fdr=1", "fdr=0", "fdr=nan", "evidence=17"])
def test_what_cannot_be_asked_is_refused(client: TestClient, route: str, query: str) -> None:
    response = client.post(f"{route}?{query}", content=encode(grey(0)))
    assert response.status_code == 422
    assert query.partition("=")[0] in response.json()["detail"]


def test_the_heatmap_route_decides_by_fdr_too(client: TestClient) -> None:
    headers = {"Content-Type": "image/png", "Accept": "image/png"}
    picture = encode(grey(125))
    response = client.post("/score?fdr=0.05", content=picture, headers=headers)
    assert response.headers["x-anomaly-decision"] == "anomalous"


def test_windows_of_a_recording_are_decided_together(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = np.random.default_rng(0).normal(size=(120, 3)) * 0.01 + [0, 2, 0]
    rows[60:90, 0] += 20.0  # far beyond every calibration score
    rows[100, 1] = np.nan
    body: dict[str, Any] = {"rows": [[None if np.isnan(v) else v for v in r] for r in rows]}

    def scored() -> dict[str, Any]:
        response = client.post("/score/timeseries?fdr=0.05&stride=6", json=body)
        assert response.status_code == 200, response.text
        SeriesBody.model_validate(response.json())
        found: dict[str, Any] = response.json()
        return found

    whole = scored()
    valid = [r for r in whole["results"] if r["decision"] != "not_scorable"]
    assert len(valid) < len(whole["results"])
    flagged = [r for r in valid if r["decision"] == "anomalous"]
    assert 3 <= len(flagged) < len(valid)
    assert {r["fpr"] for r in whole["results"]} == {0.05 * len(flagged) / len(valid)}
    assert not any("share rows" in w for w in whole["warnings"])
    assert SERIES_INPUT.min_rows == 6

    # cut into pieces, it is still one request
    monkeypatch.setattr("service.routes.timeseries._CELLS_AT_ONCE", 1)
    in_pieces = scored()
    assert [r["decision"] for r in in_pieces["results"]] == [
        r["decision"] for r in whole["results"]
    ]


def test_windows_that_share_rows_are_warned_of(client: TestClient) -> None:
    rows = np.random.default_rng(0).normal(size=(40, 3)).tolist()
    found = client.post("/score/timeseries?fdr=0.2&stride=2", json={"rows": rows}).json()
    assert any("share rows" in w for w in found["warnings"])
    assert client.post("/score/timeseries", json={"rows": rows}).json()["warnings"] == []


def test_evidence_comes_with_each_image_of_a_family_that_has_a_bank(start: Start) -> None:
    client = start(models_dir=SHIPPED)
    seven = (SHIPPED.parent / "examples" / "digit-7.png").read_bytes()
    large = encode(Image.open(BytesIO(seven)).convert("L").resize((56, 84)))
    files = [("image", ("a", data, "image/png")) for data in (seven, b"broken", large)]
    response = client.post("/score?model=digits-nln&map=none&evidence=3", files=files)
    assert response.status_code == 200, response.text
    ScoreBody.model_validate(response.json())
    first, broken, last = response.json()["results"]
    assert "error" in broken
    assert [len(r["evidence"]) for r in (first, last)] == [3, 3]
    assert first["evidence"][0]["place"] == {"x": 0, "y": 0, "width": 28, "height": 28}
    assert last["evidence"][0]["place"] == {"x": 0, "y": 0, "width": 56, "height": 84}
    assert picture(first["evidence"][0]["decoded"]).shape == (28, 28)
    plain = client.post("/score?model=digits-nln&map=none", files=files).json()["results"][0]
    del first["evidence"]
    assert plain == first


def test_evidence_of_a_family_without_a_bank_is_refused(client: TestClient) -> None:
    response = client.post("/score?evidence=1", content=encode(grey(0)))
    assert response.status_code == 422
    assert "families that do: nln" in response.json()["detail"]


def test_evidence_and_a_picture_as_the_answer_exclude_each_other(start: Start) -> None:
    seven = (SHIPPED.parent / "examples" / "digit-7.png").read_bytes()
    headers = {"Content-Type": "image/png", "Accept": "image/png"}
    response = start(models_dir=SHIPPED).post(
        "/score?model=digits-nln&evidence=1", content=seven, headers=headers
    )
    assert response.status_code == 422


def test_the_shipped_models_are_where_the_tests_look() -> None:
    assert (SHIPPED / "digits-nln" / "1" / "manifest.json").exists()
