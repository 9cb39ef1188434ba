"""stable and candidate: which version answers, how a new one goes live, and how to go back."""

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

from service import catalog as catalogs
from service.catalog import Catalog
from service.runtime import Runtime
from service.schemas import ModelBody
from service.serving_state import FILE
from tests.artifacts import publish_image, publish_series, set_active
from tests.service.operators import KEYS, PNG, SECRET, eventually, loaded, operated, score, served
from tests.service.pictures import encode, grey
from tests.service.test_catalog import alter
from tests.service.test_process import serving
from tests.service.test_score_bad_input import refused


@pytest.fixture
def models(tmp_path: Path) -> Path:
    for version in (1, 2, 3):
        publish_image(tmp_path, "bright", version)
    publish_series(tmp_path, "sensors")
    set_active(tmp_path, image="bright/1", timeseries="sensors/1")
    return tmp_path


@pytest.fixture
def client(models: Path) -> Iterator[TestClient]:
    with operated(models) as client:
        yield loaded(client)


@pytest.fixture(autouse=True)
def _look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogs, "POLL_S", 0.05)


def put(client: TestClient, alias: str, version: object, name: str = "bright") -> Any:
    return client.put(f"/models/{name}/aliases/{alias}", json={"version": version})


def remove(client: TestClient, alias: str, name: str = "bright") -> Any:
    return client.delete(f"/models/{name}/aliases/{alias}")


def shown(client: TestClient) -> ModelBody:
    return ModelBody.model_validate(client.get("/models/bright").json())


def held(client: TestClient) -> list[int]:
    return [v.version for v in shown(client).versions if v.status == "ready"]


def test_a_new_version_goes_live_by_candidate_and_stable_and_back_again(
    client: TestClient, models: Path
) -> None:
    body = ModelBody.model_validate(put(client, "candidate", 2).json())
    assert (body.active_version, body.aliases, held(client)) == (1, {"candidate": 2}, [1, 2])
    assert (served(client), served(client, "?version=candidate")) == (1, 2)
    body = ModelBody.model_validate(put(client, "stable", 2).json())
    assert (body.active_version, body.aliases) == (2, {"stable": 2})  # no candidate any more
    assert (served(client), served(client, "?version=stable")) == (2, 2)
    assert served(client, "?model=bright") == 2
    assert served(client, "?version=1") == 1  # stays loaded
    assert put(client, "stable", 1).json()["active_version"] == 1
    assert served(client) == 1
    body = ModelBody.model_validate(remove(client, "stable").json())
    assert (body.active_version, body.aliases, held(client)) == (1, {}, [1, 2])
    assert client.get("/readyz").json()["models"] == ["bright/1", "sensors/1"]


def test_without_stable_the_version_of_active_json_is_active_again(client: TestClient) -> None:
    put(client, "stable", 3)
    client.post("/models/bright/versions/1/unload")
    assert held(client) == [3]
    assert remove(client, "stable").json()["active_version"] == 1
    assert served(client) == 1
    assert held(client) == [1, 3]


def test_aliases_outlive_the_process_and_only_what_they_need_is_loaded(models: Path) -> None:
    with operated(models) as client:
        put(loaded(client), "stable", 2)
        put(client, "candidate", 3)
        client.post("/models/bright/versions/1/unload")
    with operated(models) as client:
        assert held(loaded(client)) == [2, 3]
        assert (served(client), served(client, "?version=candidate")) == (2, 3)
        assert client.get("/readyz").json()["models"] == ["bright/2", "sensors/1"]


def test_every_process_follows(models: Path) -> None:
    with operated(models) as one, operated(models) as two:
        loaded(one), loaded(two)
        put(one, "stable", 2)
        eventually(lambda: served(two) == 2)
        # at once, by the other one, which has to know of what the first has just decided
        assert put(one, "stable", 3).status_code == 200
        assert two.post("/models/bright/versions/2/unload").status_code == 200
        assert shown(two).active_version == 3


@pytest.mark.parametrize("route", ["/score", "/score/timeseries", "/models/bright/versions/"])
@pytest.mark.parametrize("asked", ["0", "-1", "1.5", "latest", "Stable", "²", "1" * 30, ""])
def test_what_is_neither_a_number_nor_an_alias_is_refused_by_what_is_allowed(
    session_client: TestClient, route: str, asked: str
) -> None:
    client = session_client
    if route.startswith("/models"):
        if asked:
            refused(client.get(route + asked), 422, "stable", "candidate", "number")
        return
    body = refused(client.post(f"{route}?version={asked}"), 422, "stable", "candidate", "number")
    assert [e["pointer"] for e in body["errors"]] == ["/version"]


def test_an_alias_that_is_not_set_is_a_404_that_names_those_that_are(client: TestClient) -> None:
    refused(score(client, "?version=stable"), 404, "stable", "set: none")
    put(client, "candidate", 2)
    for refusal in (
        score(client, "?version=stable"),
        client.get("/models/bright/versions/stable"),
        remove(client, "stable"),
    ):
        refused(refusal, 404, "stable", "candidate = 2")
    assert client.get("/models/bright/versions/candidate").json()["aliases"] == ["candidate"]
    series = client.post("/score/timeseries?version=candidate", json={"rows": [[1, 2, 3]]})
    refused(series, 404, "sensors", "candidate")


@pytest.mark.parametrize(
    ("body", "status", "word"),
    [
        (b'{"version": 0}', 422, "/version"), (b'{"version": "2"}', 422, "/version"),
        (b"{}", 422, "/version"), (b'{"version": 2, "x": 1}', 422, "/x"), (b"[]", 422, "version"),
        (b"{", 400, "JSON"), (b"", 400, "JSON"), (b'{"version": \xff}', 400, "JSON"),
    ],
)  # fmt: skip
def test_a_body_that_is_none_is_refused(
    client: TestClient, body: bytes, status: int, word: str
) -> None:
    headers = {"Content-Type": "application/json"}
    path = "/models/bright/aliases/stable"
    refused(client.put(path, content=body, headers=headers), status, word)
    refused(client.put(path, content=b'{"version": 2}'), 415, "application/json")
    refused(client.put(path, content=bytes(21 * 2**20), headers=headers), 413)
    assert shown(client).aliases == {}


def test_what_cannot_be_named_is_refused_and_nothing_changes(
    client: TestClient, models: Path
) -> None:
    refused(put(client, "latest", 2), 422, "stable", "candidate")
    refused(put(client, "stable", 7), 404, "known versions: 1, 2, 3")
    refused(put(client, "stable", 1, "nope"), 404, "bright")
    refused(put(client, "candidate", 1), 409, "compared")
    publish_image(models, "late", 1)
    refused(put(client, "candidate", 1, "late"), 409, "compared")
    alter(models / "bright" / "2", "score.onnx")
    for alias in ("stable", "candidate"):
        refused(put(client, alias, 2), 409, "bright/2/score.onnx")
    publish_series(models, "bright", 4)
    refused(put(client, "stable", 4), 409, "timeseries")
    assert (shown(client).aliases, served(client)) == ({}, 1)
    assert not (models / FILE).exists()
    assert held(client) == [1]


def test_what_an_alias_names_is_not_unloaded(client: TestClient) -> None:
    put(client, "stable", 2)
    put(client, "candidate", 3)
    refused(client.post("/models/bright/versions/2/unload"), 409, "active")
    refused(client.post("/models/bright/versions/3/unload"), 409, "candidate", "DELETE")
    assert held(client) == [1, 2, 3]
    remove(client, "candidate")
    assert client.post("/models/bright/versions/3/unload").status_code == 200
    assert held(client) == [1, 2]


def test_a_stable_version_that_is_broken_at_start_makes_the_service_unready(models: Path) -> None:
    with operated(models) as client:
        put(loaded(client), "stable", 2)
    alter(models / "bright" / "2", "score.onnx")
    with operated(models) as client:
        loaded(client)
        refused(client.get("/readyz"), 503, "bright/2")
        refused(score(client), 503, "bright/2/score.onnx")
        assert served(client, "?version=1") == 1
        put(client, "stable", 1)
        assert client.get("/readyz").status_code == 200


def test_a_broken_candidate_does_not_make_the_service_unready(models: Path) -> None:
    with operated(models) as client:
        put(loaded(client), "candidate", 2)
    alter(models / "bright" / "2", "score.onnx")
    with operated(models) as client:
        assert loaded(client).get("/readyz").status_code == 200
        refused(score(client, "?version=candidate"), 503, "bright/2/score.onnx")
        assert served(client) == 1


def test_a_process_that_cannot_load_the_new_stable_version_serves_the_one_before_and_says_so(
    models: Path,
) -> None:
    with operated(models) as one, operated(models) as two:
        loaded(one), loaded(two)
        catalog: Catalog = two.app.state.resources.catalog  # type: ignore[attr-defined]
        catalog.runtime = Runtime("cuda!", 1)  # a machine of which the graphics card is gone
        put(one, "stable", 2)
        eventually(lambda: two.get("/readyz").status_code == 503)
        refused(two.get("/readyz"), 503, "stable names 2", "CUDA", "1 is served")
        assert (served(one), served(two)) == (2, 1)
        assert served(two, "?version=stable") == 1
        catalog.runtime = Runtime("cpu", 1)
        one.post("/models/bright/versions/2/load")  # asked for again: every process tries again
        eventually(lambda: served(two) == 2)
        assert two.get("/readyz").status_code == 200


def test_an_alias_to_a_version_that_is_gone_is_said(models: Path) -> None:
    (models / FILE).write_text('{"models": {"bright": {"stable": 9}, "gone": {"stable": 1}}}')
    with operated(models) as client:
        loaded(client)
        refused(client.get("/readyz"), 503, "bright: alias stable names 9", "1 is served")
        assert served(client) == 1


def test_finding_a_scorer_costs_one_look_whatever_was_asked(client: TestClient) -> None:
    put(client, "stable", 2)
    put(client, "candidate", 3)
    catalog: Catalog = client.app.state.resources.catalog  # type: ignore[attr-defined]
    for name in (None, "bright"):
        for version, expected in ((None, 2), (1, 1), (3, 3), ("stable", 2), ("candidate", 3)):
            assert catalog.get(name, version, "image").manifest.version == expected
            assert (name, version, "image") in catalog._now.ready


def test_all_workers_of_a_server_follow(models: Path, tmp_path: Path) -> None:
    headers = {"X-API-Key": SECRET} | PNG
    file = encode(grey(5))

    def versions(base: str) -> set[int]:
        # each over a connection of its own, so that both workers get some
        url = f"{base}/score?map=none"
        answers = [httpx.post(url, content=file, headers=headers).json() for _ in range(10)]
        return {answer["version"] for answer in answers}

    settings = {"ANOMALY_WORKERS": "2", "ANOMALY_API_KEYS": KEYS}
    with serving(models, tmp_path / "log", **settings) as (process, base):
        path = f"{base}/models/bright/aliases/stable"
        assert httpx.put(path, json={"version": 2}).status_code == 401
        answer = httpx.put(path, json={"version": 2}, headers={"X-API-Key": SECRET}, timeout=30)
        assert answer.status_code == 200, answer.text
        eventually(lambda: versions(base) == {2})
        process.send_signal(signal.SIGTERM)  # so that its workers end too
        assert process.wait(timeout=30) in (0, -signal.SIGTERM)
    text = (tmp_path / "log").read_text()
    assert '"caller":"ops"' in text
    assert SECRET not in text
