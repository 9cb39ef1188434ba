"""Feedback through HTTP: what can be labelled, what is kept of it, and what follows from it."""

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from service.app import create_app
from service.observed import Observed
from service.schemas import FeedbackRecord, ProposalBody
from service.settings import Settings
from tests.artifacts import CALIBRATION, publish_image, publish_series, set_active
from tests.service.conftest import Start, wait_until_loaded
from tests.service.pictures import encode, grey
from tests.service.test_score_bad_input import refused

PNG = {"Content-Type": "image/png"}
ROWS = np.random.default_rng(0).normal(size=(40, 3)).round(4)
CONTRACT = {
    "request_id", "index", "label", "comment", "model", "version", "raw_score", "p_value",
    "decision", "recorded_at",
}  # fmt: skip


@pytest.fixture
def models(tmp_path: Path) -> Path:
    publish_image(tmp_path)
    publish_series(tmp_path)
    set_active(tmp_path, image="bright/1", timeseries="sensors/1")
    return tmp_path


@pytest.fixture
def client(start: Start, models: Path) -> Iterator[TestClient]:  # type: ignore[override]
    return start(models)


def score(client: TestClient, request_id: str, level: int = 255, query: str = "") -> Any:
    headers = PNG | {"X-Request-ID": request_id}
    answer = client.post(f"/score?map=none{query}", content=encode(grey(level)), headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.json()["results"][0]


def say(client: TestClient, request_id: str, label: str = "anomalous", **more: Any) -> Any:
    return client.post("/feedback", json={"request_id": request_id, "label": label, **more})


def picture(raw_score: float) -> bytes:
    """An image that scores so, to 1 / 16320."""
    total = round(raw_score * 255 * 64)
    pixels = np.full(64, total // 64, np.uint8)
    pixels[: total % 64] += 1
    return encode(pixels.reshape(8, 8))


def shifted_normals(n: int, seed: int) -> list[float]:
    """Scores of different images of which a tenth lies above the threshold of ``CALIBRATION``."""
    low, high = round(0.05 * 16_320), round(0.545 * 16_320)
    steps = np.random.default_rng(seed).choice(np.arange(low, high), n, replace=False)
    return (steps / 16_320).tolist()


def use(client: TestClient, raw_scores: list[float], name: str) -> list[dict[str, Any]]:
    """The results of images with these scores, fifty a request: name-0, name-1, ..."""
    found = []
    for i in range(0, len(raw_scores), 50):
        files = [("image", picture(raw)) for raw in raw_scores[i : i + 50]]
        answer = client.post(
            "/score?map=none", files=files, headers={"X-Request-ID": f"{name}-{i // 50}"}
        )
        assert answer.status_code == 200, answer.text
        found += [r | {"request_id": f"{name}-{i // 50}"} for r in answer.json()["results"]]
    return found


def test_a_label_is_kept_with_what_the_service_had_said_and_the_last_one_counts(
    client: TestClient,
) -> None:
    result = score(client, "a-1")
    first = say(client, "a-1", "anomalous", comment="a scratch")
    assert first.status_code == 200, first.text
    body = FeedbackRecord.model_validate(first.json())
    assert set(first.json()) >= CONTRACT
    assert (body.model, body.version, body.index) == ("bright", 1, 0)
    assert (body.raw_score, body.p_value) == (result["raw_score"], result["p_value"])
    assert (body.label, body.comment, body.decision) == ("anomalous", "a scratch", "anomalous")
    assert say(client, "a-1", "normal", index=0).status_code == 200
    (only,) = client.get("/feedback").json()
    assert (only["label"], only["comment"]) == ("normal", None)


def test_a_repeated_request_can_be_labelled_under_either_id(client: TestClient) -> None:
    assert score(client, "once") == score(client, "twice")
    for request_id in ("once", "twice"):
        assert say(client, request_id).json()["raw_score"] == 1.0
    assert len(client.get("/feedback").json()) == 2


def test_an_id_that_was_used_again_means_the_last_answer(client: TestClient) -> None:
    score(client, "same", 51)
    assert say(client, "same", "normal").json()["raw_score"] == pytest.approx(0.2)
    score(client, "same", 102)
    assert say(client, "same").json()["raw_score"] == pytest.approx(0.4)
    labels = [(f["label"], f["raw_score"]) for f in client.get("/feedback").json()]
    assert labels == [("normal", pytest.approx(0.2)), ("anomalous", pytest.approx(0.4))]


def test_every_way_of_scoring_can_get_feedback(client: TestClient) -> None:
    headers = {"X-Request-ID": "heat", "Accept": "image/png", **PNG}
    assert client.post("/score", content=encode(grey(51)), headers=headers).status_code == 200
    assert say(client, "heat").json()["raw_score"] == pytest.approx(0.2)

    tensor = {"name": "image", "shape": [2, 1, 1, 1], "datatype": "UINT8", "data": [51, 102]}
    for id_ in ("drawn", "anew"):  # by a client library, for each request
        body = {"id": id_, "inputs": [tensor]}
        client.post("/v2/models/bright/infer", json=body, headers={"X-Request-ID": "v2"})
    assert say(client, "v2", index=1).json()["raw_score"] == pytest.approx(0.4)
    found = client.get("/feedback/proposal?model=bright&fpr=0.5").json()
    assert (found["answers"], found["distinct_items"]) == (3, 3)

    rows = {"rows": ROWS.tolist()}
    windows = client.post("/score/timeseries", json=rows, headers={"X-Request-ID": "t"}).json()
    found = say(client, "t", index=2).json()
    assert found["raw_score"] == windows["results"][2]["raw_score"]
    assert (found["start"], found["end"], found["stream"]) == (5, 9, None)

    tensor = {"name": "rows", "shape": [40, 3], "datatype": "FP64", "data": ROWS.ravel().tolist()}
    client.post("/v2/models/sensors/infer", json={"inputs": [tensor]},
                headers={"X-Request-ID": "v2t"})  # fmt: skip
    assert say(client, "v2t", index=2).json()["raw_score"] == found["raw_score"]

    for request_id, key in (("s1", "k1"), ("s2", "k2"), ("s2-again", "k2")):
        part = ROWS[:20] if key == "k1" else ROWS[20:]
        answer = client.post(
            "/streams/t1/rows",
            json={"rows": part.tolist()},
            headers={"X-Request-ID": request_id, "Idempotency-Key": key},
        )
        assert answer.status_code == 200, answer.text
    windows = answer.json()["results"]
    for request_id in ("s2", "s2-again"):
        label = say(client, request_id, index=windows[0]["index"]).json()
        assert label["raw_score"] == windows[0]["raw_score"]
        assert (label["start"], label["stream"]) == (windows[0]["start"], "t1")
    refused(say(client, "s2", index=0), 422, f"it has {windows[0]['index']} to")


def test_what_has_no_score_cannot_be_labelled_and_what_is_unknown_is_not_found(
    client: TestClient,
) -> None:
    files = [("image", encode(grey(51))), ("image", b"no picture"), ("image", encode(grey(102)))]
    client.post("/score?map=none", files=files, headers={"X-Request-ID": "three"})
    assert say(client, "three", index=2).json()["raw_score"] == pytest.approx(0.4)
    refused(say(client, "three", index=1), 422, "no score")
    refused(say(client, "three", index=3), 422, "no result 3", "0 to 2")
    gap = ROWS.copy()
    gap[3, 0] = np.nan
    rows = {"rows": [[None if np.isnan(v) else v for v in row] for row in gap.tolist()]}
    client.post("/score/timeseries", json=rows, headers={"X-Request-ID": "gap"})
    refused(say(client, "gap", index=0), 422, "not scorable")
    refused(say(client, "never"), 404, "answer-not-found", "'never'", "FEEDBACK_TTL_S")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"request_id": "a", "label": "odd"}, ("/label", "'normal' or 'anomalous'")),
        ({"label": "normal"}, ("/request_id", "required")),
        ({"request_id": "a b", "label": "normal"}, ("/request_id",)),
        ({"request_id": "a", "label": "normal", "index": -1}, ("/index",)),
        ({"request_id": "a", "label": "normal", "index": "0"}, ("/index",)),
        ({"request_id": "a", "label": "normal", "comment": "x" * 501}, ("/comment", "500")),
        ({"request_id": "a", "label": "normal", "lable": 1}, ("/lable", "not permitted")),
        ([1], ("a body is",)),
    ],
)
def test_a_wrong_body_is_refused_by_the_name_of_what_is_wrong(
    client: TestClient, body: Any, words: tuple[str, ...]
) -> None:
    refused(client.post("/feedback", json=body), 422, *words)


def test_bodies_that_are_no_json_and_switched_off_memory_are_told(
    client: TestClient, start: Start, models: Path
) -> None:
    json = {"Content-Type": "application/json"}
    refused(client.post("/feedback", content=b"{", headers=json), 400, "not JSON")
    lone = b'{"request_id": "a", "label": "normal", "comment": "\\ud800"}'
    refused(client.post("/feedback", content=lone, headers=json), 400, "not JSON")
    refused(client.post("/feedback", content=b"{}"), 415)
    long = client.post("/feedback", content=b" " * 20_000, headers=json)
    refused(long, 413, "16384 bytes (the fixed limit of this route)")
    off = start(models, feedback_ttl_s=0)
    score(off, "a")
    refused(say(off, "a"), 409, "FEEDBACK_TTL_S=0")
    refused(off.get("/feedback/proposal?model=bright"), 409, "FEEDBACK_TTL_S=0")


def test_feedback_is_listed_in_pages_by_model_and_as_csv_that_no_spreadsheet_executes(
    client: TestClient,
) -> None:
    for i in range(5):
        score(client, f"r{i}", 10 * i)
        say(client, f"r{i}", comment='=cmd|"/c calc"!A1' if i == 2 else "fine,\n so far")
    seen, url = [], "/feedback?model=bright&limit=2"
    while url:
        page = client.get(url)
        assert len(page.json()) <= 2
        seen += [f["request_id"] for f in page.json()]
        url = page.links.get("next", {}).get("url", "")
    assert seen == [f"r{i}" for i in range(5)]
    assert client.get("/feedback?model=sensors").json() == []
    assert client.get("/feedback?version=2").json() == []
    refused(client.get("/feedback?modle=bright"), 422, "modle")
    for number in ("after", "version"):
        refused(client.get(f"/feedback?{number}={10**20}"), 422, number)

    answer = client.get("/feedback", headers={"Accept": "text/csv"})
    assert answer.headers["content-type"].startswith("text/csv")
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    assert [r["request_id"] for r in rows] == seen
    assert rows[2]["comment"] == '\'=cmd|"/c calc"!A1'
    assert rows[1]["comment"] == "fine,\n so far"
    assert float(rows[4]["raw_score"]) == pytest.approx(40 / 255)


def test_a_proposal_leaves_out_labelled_anomalies_and_changes_nothing(client: TestClient) -> None:
    normal = shifted_normals(600, seed=3)
    results = use(client, [*normal, 0.9, 0.95], "live")
    flagged = [r for r in results if r["decision"] == "anomalous"]
    for result in flagged:
        odd = result["raw_score"] > 0.8
        answer = say(client, result["request_id"], "anomalous" if odd else "normal",
                     index=result["index"])  # fmt: skip
        assert answer.status_code == 200
    answer = client.get("/feedback/proposal?model=bright")
    body = ProposalBody.model_validate(answer.json())
    assert (body.fpr, body.distinct_items, body.sample, body.n) == (0.01, 602, 602, 600)
    assert (body.labelled_normal, body.labelled_anomalous) == (len(flagged) - 2, 2)
    assert body.current.flagged == len(flagged)
    assert body.current.unlabelled_flagged == 0
    assert body.current.false_alarms == len(flagged) - 2
    assert body.current.threshold == CALIBRATION.threshold(0.01)
    low, value, high = (getattr(body.proposed.threshold, name) for name in ("low", "value", "high"))
    assert 0.5 < low <= value <= high < 0.55
    assert body.proposed.flagged == 2 + 5  # floor(0.01 * 601) - 1 of the others
    assert any("less than a day" in w for w in body.warnings)

    use(client, normal[:50], "again")  # the same images count once
    assert client.get("/feedback/proposal?model=bright").json()["n"] == 600
    coarse = client.get("/feedback/proposal?model=bright&fpr=0.001")
    refused(coarse, 409, "needs 999", "399 more are needed")
    refused(client.get("/feedback/proposal?model=bright&period_s=0.000001"), 409, "there are 0")
    refused(client.get("/feedback/proposal"), 422, "/model")
    refused(client.get("/feedback/proposal?model=nope"), 404, "nope")

    data = client.get("/feedback/calibration?model=bright&version=1").content
    observed = Observed.load(data, "export")
    assert (len(observed), len(observed.distinct())) == (652, 602)
    assert score(client, "after", 255)["threshold"] == CALIBRATION.threshold(0.01)
    assert np.isin(body.proposed.threshold.value, observed.raw)


def test_windows_that_share_rows_count_once_in_a_proposal(client: TestClient) -> None:
    recording = np.random.default_rng(4).normal(size=(600, 3))
    answer = client.post("/score/timeseries?stride=1", json={"rows": recording.tolist()})
    windows = len(answer.json()["results"])
    found = client.get("/feedback/proposal?model=sensors&fpr=0.05").json()
    assert found["distinct_items"] == windows == 595
    assert found["sample"] == 100  # 600 rows, 6 a window with what smoothing needs
    with_stream = 0
    for i in range(0, 600, 60):
        part = {"rows": (recording[i : i + 60] + 1).tolist()}
        with_stream += len(client.post("/streams/t/rows?stride=2", json=part).json()["results"])
    found = client.get("/feedback/proposal?model=sensors&fpr=0.05").json()
    assert found["distinct_items"] == windows + with_stream
    assert found["sample"] == 200


def test_what_was_answered_last_is_known_after_a_restart(start: Start, models: Path) -> None:
    with TestClient(create_app(Settings(models_dir=models, threads=1))) as before:
        score(wait_until_loaded(before), "last")
    assert say(start(models), "last", comment="\u0000 ok").json()["comment"] == "\u0000 ok"


def test_the_oldest_answers_are_forgotten_first_and_none_is_known_for_ever(
    start: Start, models: Path
) -> None:
    client = start(models, feedback_max_items=100)
    use(client, [0.1] * 150, "first")
    assert say(client, "first-2").status_code == 200  # which writes, and forgets
    client.app.state.resources.feedback.store._file._next_trim = 0  # type: ignore[attr-defined]
    score(client, "last")
    assert say(client, "last").status_code == 200
    refused(say(client, "first-0"), 404)
    assert say(client, "first-2").status_code == 200
    brief = start(models, feedback_ttl_s=0.001)
    refused(say(brief, "last"), 404, "0.001 s")


def test_labels_count_for_the_rate_of_their_caller(start: Start, models: Path) -> None:
    limited = start(models, rate_limit="2/h")
    assert [say(limited, "absent").status_code for _ in range(3)] == [404, 404, 429]
    assert limited.get("/feedback").status_code == 200
