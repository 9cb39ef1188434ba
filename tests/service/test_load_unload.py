"""POST /models/{name}/versions/{version}/load and /unload: memory by decision, not by restart."""

import asyncio
import gc
import json
import os
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from service import catalog as catalogs
from service import loading
from service.catalog import Catalog
from service.contract.errors import NotReady, SelfTestFailed
from service.runtime import Runtime
from service.schemas import ModelBody, VersionState
from service.serving_state import FILE
from tests.artifacts import publish_image, set_active
from tests.service.operators import eventually, loaded, operated, score, served
from tests.service.test_catalog import alter
from tests.service.test_score_bad_input import refused


@pytest.fixture
def models(tmp_path: Path) -> Path:
    root = tmp_path / "models"
    for version in (1, 2):
        publish_image(root, "bright", version)
    set_active(root, image="bright/1")
    return root


@pytest.fixture
def client(models: Path) -> Iterator[TestClient]:
    with operated(models) as client:
        yield loaded(client)


@pytest.fixture(autouse=True)
def _look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogs, "POLL_S", 0.05)


def change(client: TestClient, what: str, version: int, name: str = "bright") -> Any:
    return client.post(f"/models/{name}/versions/{version}/{what}")


def state(client: TestClient, version: int) -> tuple[str, bool]:
    body = client.get(f"/models/bright/versions/{version}").json()
    return body["status"], body["active"]


def metric(client: TestClient, name: str, version: int) -> str:
    lines = client.get("/metrics").text.splitlines()
    (line,) = [x for x in lines if x.startswith(f"{name}{{") and f'version="{version}"' in x]
    return line.rpartition(" ")[2]


def test_a_version_is_loaded_served_unloaded_and_not_served(client: TestClient) -> None:
    refused(score(client, "?version=2"), 404, "POST /models/bright/versions/2/load")
    body = VersionState.model_validate(change(client, "load", 2).json())
    assert (body.name, body.version, body.status, body.active) == ("bright", 2, "ready", False)
    assert served(client, "?version=2") == 2
    assert served(client) == 1
    assert metric(client, "anomaly_model_ready", 2) == "1.0"
    assert change(client, "load", 2).status_code == 200  # again is fine
    body = VersionState.model_validate(change(client, "unload", 2).json())
    assert body.status == "not_loaded"
    refused(score(client, "?version=2"), 404, "not loaded")
    for name in ("anomaly_model_ready", "anomaly_model_info"):
        assert metric(client, name, 2) == "0.0"
    assert change(client, "unload", 2).json()["status"] == "not_loaded"
    assert served(client) == 1


def test_what_was_published_after_start_is_loaded_without_a_restart(
    client: TestClient, models: Path
) -> None:
    publish_image(models, "bright", 3)
    publish_image(models, "late", 1)
    publish_image(models, "late", 2)
    assert change(client, "load", 3).status_code == 200
    assert served(client, "?version=3") == 3
    assert served(client) == 1  # nobody said that it is better
    assert change(client, "load", 1, "late").json()["active"] is True
    assert change(client, "load", 2, "late").json()["active"] is False
    assert served(client, "?model=late") == 1
    assert client.get("/readyz").status_code == 200


def test_decisions_outlive_the_process(models: Path) -> None:
    with operated(models) as client:
        change(loaded(client), "load", 2)
    with operated(models) as client:
        assert state(loaded(client), 2) == ("ready", False)
        change(client, "unload", 2)
    with operated(models, load_versions="all") as client:
        assert state(loaded(client), 2) == ("not_loaded", False)
        assert change(client, "load", 2).status_code == 200
    with operated(models, load_versions="all") as client:
        assert state(loaded(client), 2) == ("ready", False)


def test_what_one_process_decides_all_carry_out(models: Path) -> None:
    with operated(models) as one, operated(models) as two:
        loaded(one), loaded(two)
        change(one, "load", 2)
        eventually(lambda: state(two, 2)[0] == "ready")
        change(two, "unload", 2)
        eventually(lambda: state(one, 2)[0] == "not_loaded")


def test_the_active_version_is_not_unloaded(client: TestClient) -> None:
    refused(change(client, "unload", 1), 409, "active", "PUT /models/bright/aliases/stable")
    assert served(client) == 1


@pytest.mark.parametrize("what", ["load", "unload"])
def test_what_is_not_there_is_said(client: TestClient, what: str) -> None:
    refused(change(client, what, 7), 404, "known versions: 1, 2")
    refused(change(client, what, 1, "nope"), 404, "bright")
    refused(change(client, what, 0), 422)
    assert client.post(f"/models/..%2Fbright/versions/1/{what}").status_code == 404


def test_a_corrupt_version_is_refused_with_its_reason_and_the_rest_goes_on(
    client: TestClient, models: Path
) -> None:
    alter(models / "bright" / "2", "score.onnx")
    refused(change(client, "load", 2), 409, "bright/2/score.onnx", "sha256")
    refused(score(client, "?version=2"), 503, "score.onnx")
    assert served(client) == 1
    assert client.get("/readyz").status_code == 200
    assert not (models / FILE).exists()
    alter(models / "bright" / "2", "score.onnx")  # mended
    assert change(client, "load", 2).json()["status"] == "ready"


def test_a_version_that_fails_its_self_test_is_not_served(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> None:
        raise SelfTestFailed("a golden score deviates")

    monkeypatch.setattr(loading, "self_test", failing)
    refused(change(client, "load", 2), 409, "deviates")
    assert state(client, 2)[0] == "failed"
    assert change(client, "unload", 2).json()["status"] == "not_loaded"


@pytest.mark.parametrize("obstacle", ["folder", "lock", "content"])
def test_where_a_decision_cannot_be_kept_nothing_changes(
    models: Path, tmp_path: Path, obstacle: str
) -> None:
    file = tmp_path / "state" / FILE
    with operated(models, state_file=file) as client:
        loaded(client)
        if obstacle == "lock":
            (file.parent / f"{FILE}.lock").mkdir(parents=True)
        elif obstacle == "content":
            file.parent.mkdir()
            file.write_text('{"format": 1, "modles": {}}')
        body = refused(change(client, "load", 2), 409, str(file))
        assert ("modles" if obstacle == "content" else "ANOMALY_STATE_FILE") in body["detail"]
        assert state(client, 2)[0] == "not_loaded"
        assert served(client) == 1
        if obstacle == "folder":
            file.parent.mkdir()
            assert change(client, "load", 2).status_code == 200
            assert json.loads(file.read_text())["models"] == {"bright": {"loaded": [2]}}
            assert not (models / FILE).exists()


def test_a_full_disk_leaves_the_file_as_it_was(
    client: TestClient, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change(client, "load", 2)
    before = (models / FILE).read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        refused(change(client, "unload", 2), 409, "No space left")
    assert (models / FILE).read_bytes() == before
    assert {p.name for p in models.glob(f"{FILE}*")} == {FILE, f"{FILE}.lock"}
    assert served(client, "?version=2") == 2
    assert change(client, "unload", 2).status_code == 200


def test_a_file_broken_by_hand_is_said_at_start_and_ignored_later(
    models: Path, client: TestClient
) -> None:
    change(client, "load", 2)
    (models / FILE).write_text("{")
    refused(change(client, "load", 2), 409, FILE)
    assert served(client, "?version=2") == 2
    with operated(models) as late:
        refused(loaded(late).get("/readyz"), 503, FILE)
        assert served(late) == 1
        (models / FILE).unlink()
        eventually(lambda: late.get("/readyz").status_code == 200)


def test_a_load_that_takes_too_long_is_answered_in_time_and_goes_on(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = threading.Event()
    honest = loading.self_test

    def slow(*arguments: Any) -> None:
        assert go.wait(30)
        honest(*arguments)

    monkeypatch.setattr(loading, "self_test", slow)
    headers = {"X-Request-Timeout": "0.2"}
    refused(client.post("/models/bright/versions/2/load", headers=headers), 504, "goes on")
    assert state(client, 2)[0] == "loading"
    refused(score(client, "?version=2"), 503, "being loaded")
    assert served(client) == 1
    assert client.get("/readyz").status_code == 200
    go.set()
    eventually(lambda: state(client, 2)[0] == "ready")


def test_requests_in_flight_finish_with_the_version_they_began_with(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    change(client, "load", 2)
    scorer = client.app.state.resources.catalog.get("bright", 2, "image")  # type: ignore[attr-defined]
    begun, go = threading.Event(), threading.Event()
    honest = scorer.detector.detect

    def slow(x: Any, *, maps: bool) -> Any:
        begun.set()
        assert go.wait(30)
        return honest(x, maps=maps)

    monkeypatch.setattr(scorer.detector, "detect", slow)
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(score(client, "?version=2&map=none")))
    thread.start()
    assert begun.wait(30)
    assert change(client, "unload", 2).json()["status"] == "not_loaded"
    go.set()
    thread.join()
    assert (found[0].status_code, found[0].json()["version"]) == (200, 2)


def test_changes_asked_for_at_the_end_are_refused_and_not_lost_in_silence(models: Path) -> None:
    catalog = Catalog(models, Runtime(threads=1))
    catalog.start()
    eventually(lambda: not catalog.loading)
    catalog._stopping.set()
    late = catalog.load("bright", 2)
    catalog.stop()
    with pytest.raises(NotReady, match="ending"):
        late.result(timeout=10)


def test_memory_and_threads_are_given_back(models: Path) -> None:
    catalog = Catalog(models, Runtime(threads=2))
    catalog.start()
    eventually(lambda: not catalog.loading)

    def cycle() -> None:
        catalog.load("bright", 2).result(timeout=30)
        catalog.unload("bright", 2).result(timeout=30)

    for _ in range(30):
        cycle()
    gc.collect()
    before, threads = resident_bytes(), threads_of_this_process()
    for _ in range(100):
        cycle()
    gc.collect()
    assert resident_bytes() < 1.05 * before
    assert threads_of_this_process() <= threads
    catalog.load("bright", 2).result(timeout=30)
    scorer = weakref.ref(catalog.get("bright", 2, "image"))
    assert scorer() is not None
    catalog.unload("bright", 2).result(timeout=30)
    assert scorer() is None  # at once: no cycle waits for the collector
    catalog.stop()


def threads_of_this_process() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def test_the_listing_says_what_is_held(client: TestClient) -> None:
    change(client, "load", 2)
    body = ModelBody.model_validate(client.get("/models/bright").json())
    assert (body.active_version, body.aliases, body.shadow) == (1, {}, None)
    assert [(v.version, v.status, v.active) for v in body.versions] == [
        (1, "ready", True), (2, "ready", False),
    ]  # fmt: skip


def test_many_changes_at_once_all_count(client: TestClient, models: Path) -> None:
    for version in range(3, 9):
        publish_image(models, "bright", version)
    catalog = client.app.state.resources.catalog  # type: ignore[attr-defined]

    async def all_at_once() -> None:
        futures = [catalog.load("bright", v) for v in range(3, 9)]
        await asyncio.gather(*map(asyncio.wrap_future, futures))

    asyncio.run(all_at_once())
    assert json.loads((models / FILE).read_text())["revision"] == 6
    assert [served(client, f"?version={v}") for v in range(3, 9)] == list(range(3, 9))
