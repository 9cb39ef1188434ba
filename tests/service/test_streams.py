"""/streams: rows in pieces score as at once, are applied once, and are never lost in silence."""

import asyncio
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from service.decoding.tables import Recording
from service.redis_link import RedisLink
from service.schemas import StreamAppended, StreamBody
from service.stream_store import ANSWERS, Append, LocalStreams, RedisStreams, StreamStore
from service.streams import Stream
from tests.artifacts import SERIES_INPUT, publish_series, set_active
from tests.redis_server import RedisServer, redis_server
from tests.service.conftest import Start

_ids = (f"t-{i}" for i in count())
CALM, ICE = [0.1, 2.0, 0.1], [9.0, 2.0, 9.0]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis")) as running:
        yield running


@pytest.fixture(params=["in-process", "redis"])
def anywhere(request: pytest.FixtureRequest, start: Start) -> TestClient:
    """A service that keeps its streams in itself, or in Redis."""
    if request.param == "in-process":
        return start()
    return start(redis_url=request.getfixturevalue("server").url)


def rows(t: int, seed: int = 0) -> list[list[float | None]]:
    found: list[list[float | None]] = (
        np.random.default_rng(seed).normal(size=(t, 3)).round(4).tolist()
    )
    return found


def stamps(minutes: list[int]) -> list[str]:
    return [f"2015-12-30T{m // 60:02d}:{m % 60:02d}:00Z" for m in minutes]


def post(
    client: TestClient, stream: str, query: str = "", key: str | None = None, **members: Any
) -> Any:
    headers = {} if key is None else {"Idempotency-Key": key}
    return client.post(f"/streams/{stream}/rows{query}", json=members, headers=headers)


def append(client: TestClient, stream: str, *args: Any, **members: Any) -> dict[str, Any]:
    response = post(client, stream, *args, **members)
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    StreamAppended.model_validate(body)
    assert body["request_id"] == response.headers["X-Request-ID"]
    return body


def state(client: TestClient, stream: str) -> dict[str, Any]:
    response = client.get(f"/streams/{stream}")
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    StreamBody.model_validate(body)
    return body


def problem(response: Any, status: int, slug: str) -> str:
    assert response.status_code == status, response.text
    assert response.json()["type"] == f"urn:anomaly:problem:{slug}"
    return str(response.json()["detail"])


@st.composite
def recordings(draw: st.DrawFn) -> tuple[dict[str, Any], list[int], int]:
    """Rows with missing readings, timestamps with gaps or none, where it is split, the stride."""
    t = draw(st.integers(6, 40))
    data = rows(t, seed=draw(st.integers(0, 9)))
    for i in draw(st.lists(st.integers(0, t - 1), max_size=2)):
        data[i][draw(st.integers(0, 2))] = draw(st.sampled_from([None, 1e9]))
    whole: dict[str, Any] = {"rows": data}
    if draw(st.booleans()):
        steps = draw(st.lists(st.sampled_from([1, 1, 1, 1, 1, 7, 0]), min_size=t, max_size=t))
        whole["timestamps"] = stamps(np.cumsum(steps).tolist())
    cuts = sorted(draw(st.sets(st.integers(1, t - 1), max_size=8)))
    return whole, [0, *cuts, t], draw(st.integers(1, 12))


def split(
    clients: list[TestClient], recording: tuple[dict[str, Any], list[int], int]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], dict[str, Any]]:
    """Results at once, results of the pieces, and the stream afterwards."""
    whole, cuts, stride = recording
    at_once = clients[0].post(f"/score/timeseries?stride={stride}", json=whole).json()["results"]
    stream, pieces = next(_ids), []
    for i, (a, b) in enumerate(pairwise(cuts)):
        part = {name: values[a:b] for name, values in whole.items()}
        body = append(clients[i % len(clients)], stream, f"?stride={stride}", **part)
        assert (body["rows"], body["rows_seen"]) == (b - a, b)
        assert body["rows_buffered"] < SERIES_INPUT.min_rows
        assert body["windows"] == len(body["results"])
        pieces += body["results"]
    return at_once, pieces, state(clients[-1], stream)


def check_split(
    clients: list[TestClient], recording: tuple[dict[str, Any], list[int], int]
) -> None:
    at_once, pieces, after = split(clients, recording)
    assert pieces == at_once
    assert after["results"] == at_once[-20:]
    odd = [r["decision"] in ("anomalous", "review") for r in at_once]
    starts = [i for i in range(len(odd)) if odd[i] and not (i and odd[i - 1])]
    assert [e["start"] for e in after["events"]] == [at_once[i]["start"] for i in starts]
    assert sum(e["windows"] for e in after["events"]) == sum(odd)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(recording=recordings())
def test_any_split_of_a_recording_gives_the_windows_and_scores_it_has_at_once(
    client: TestClient, recording: tuple[dict[str, Any], list[int], int]
) -> None:
    check_split([client], recording)


def test_any_replica_goes_on_with_a_stream_in_redis(start: Start, server: RedisServer) -> None:
    replicas = [start(redis_url=server.url) for _ in range(2)]

    @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
    @given(recording=recordings())
    def check(recording: tuple[dict[str, Any], list[int], int]) -> None:
        check_split(replicas, recording)

    check()


def test_csv_appends_like_json_and_maps_are_of_the_windows_completed(client: TestClient) -> None:
    data = rows(12)
    at_once = client.post("/score/timeseries?map=float32", json={"rows": data}).json()["results"]
    found = append(client, "csv", "?map=float32", rows=data[:7])["results"]
    lines = ["power,wind,pitch", *[",".join(map(str, row)) for row in data[7:]]]
    response = client.post(
        "/streams/csv/rows?map=float32",
        content="\n".join(lines),
        headers={"Content-Type": "text/csv"},
    )
    assert response.status_code == 200
    assert found + response.json()["results"] == at_once
    assert all(r["residual_map"] is None for r in state(client, "csv")["results"])


def test_events_are_runs_of_windows_that_are_not_normal(anywhere: TestClient) -> None:
    wobble = [[a, b, c + 0.01 * (i % 2)] for i, (a, b, c) in enumerate([CALM] * 12)]
    icy = [[a, b, c + 0.01 * (i % 2)] for i, (a, b, c) in enumerate([ICE] * 12)]
    results: list[dict[str, Any]] = []
    for part in (wobble[:8], [*wobble[8:], *icy[:3]], icy[3:], wobble):
        results += append(anywhere, "ice", "?stride=1", rows=part)["results"]
    (event,) = state(anywhere, "ice")["events"]
    odd = [r for r in results if r["decision"] in ("anomalous", "review")]
    assert event == {
        "start": odd[0]["start"],
        "end": odd[-1]["end"],
        "windows": len(odd),
        "peak": max(r["score"] for r in odd),
        "decision": "anomalous",
    }
    assert anywhere.delete("/streams/ice").status_code == 204


def test_a_repeated_append_is_answered_from_memory_and_applied_once(anywhere: TestClient) -> None:
    stream = next(_ids)
    first = append(anywhere, stream, key="a", rows=rows(8))
    append(anywhere, stream, key="b", rows=rows(3, seed=1))
    again = post(anywhere, stream, key="a", rows=rows(8))
    assert again.headers["Idempotent-Replayed"] == "true"
    body = again.json()
    assert body.pop("request_id") != first.pop("request_id")
    assert body == first
    assert state(anywhere, stream)["rows_seen"] == 11


def test_a_key_that_came_with_something_else_is_refused(anywhere: TestClient) -> None:
    stream = next(_ids)
    append(anywhere, stream, key="a", rows=rows(8))
    for response in (
        post(anywhere, stream, key="a", rows=rows(8, seed=1)),
        post(anywhere, stream, "?fpr=0.05", key="a", rows=rows(8)),
    ):
        assert "Idempotency-Key 'a'" in problem(response, 422, "invalid-input")
    assert state(anywhere, stream)["rows_seen"] == 8


def test_a_refused_append_is_not_remembered(anywhere: TestClient) -> None:
    stream = next(_ids)
    problem(post(anywhere, stream, key="a", rows=[["x", 1, 1]]), 422, "invalid-input")
    append(anywhere, stream, key="a", rows=rows(2))
    assert state(anywhere, stream)["rows_seen"] == 2


def test_a_stream_remembers_its_last_100_answers(anywhere: TestClient) -> None:
    stream = next(_ids)
    for i in range(ANSWERS + 1):
        append(anywhere, stream, key=f"k{i}", rows=rows(1, seed=i))
    for i in (1, ANSWERS):
        repeated = post(anywhere, stream, key=f"k{i}", rows=rows(1, seed=i))
        assert "Idempotent-Replayed" in repeated.headers
    assert "Idempotent-Replayed" not in post(anywhere, stream, key="k0", rows=rows(1)).headers


def test_the_same_append_at_the_same_time_at_several_replicas_is_applied_once(
    start: Start, server: RedisServer
) -> None:
    replicas = [start(redis_url=server.url) for _ in range(3)]
    with ThreadPoolExecutor(6) as pool:
        for i in range(10):
            stream, gate = next(_ids), threading.Barrier(6)

            def send(
                k: int, stream: str = stream, gate: threading.Barrier = gate, i: int = i
            ) -> Any:
                gate.wait()
                return append(replicas[k % 3], stream, key=f"{i}", rows=rows(8))["results"]

            answers = list(pool.map(send, range(6)))
            assert all(a == answers[0] for a in answers)
            assert state(replicas[0], stream)["rows_seen"] == 8


def test_appends_at_the_same_time_are_all_applied(anywhere: TestClient) -> None:
    stream = next(_ids)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: append(anywhere, stream, rows=rows(3, seed=i)), range(16)))
    assert sorted(f["rows_seen"] for f in found) == [3 * i for i in range(1, 17)]
    indices = sorted(r["index"] for f in found for r in f["results"])
    assert indices == list(range(state(anywhere, stream)["windows"]))


def test_appends_at_the_same_time_at_several_replicas_are_all_applied(
    start: Start, server: RedisServer
) -> None:
    replicas = [start(redis_url=server.url) for _ in range(2)]
    stream = next(_ids)
    with ThreadPoolExecutor(4) as pool:
        found = list(
            pool.map(lambda i: append(replicas[i % 2], stream, rows=rows(3, seed=i)), range(16))
        )
    assert sorted(f["rows_seen"] for f in found) == [3 * i for i in range(1, 17)]


def test_a_stream_keeps_the_model_version_and_stride_it_began_with(
    start: Start, tmp_path: Path
) -> None:
    publish_series(tmp_path)
    publish_series(tmp_path, version=2)
    publish_series(tmp_path, name="others")
    set_active(tmp_path, timeseries="sensors/1")
    client = start(tmp_path, load_versions="all")
    assert append(client, "t", "?version=1&stride=3", rows=rows(8))["version"] == 1
    for query in ("?model=others", "?version=2", "?model=sensors&version=2"):
        assert "began with" in problem(post(client, "t", query, rows=rows(8)), 409, "conflict")
    assert "stride=3" in problem(post(client, "t", "?stride=2", rows=rows(8)), 409, "conflict")
    for query in ("", "?model=sensors", "?model=sensors&version=1&stride=3&fpr=0.05"):
        append(client, "t", query, rows=rows(1))
    found = state(client, "t")
    assert (found["model"], found["version"], found["stride"]) == ("sensors", 1, 3)
    assert found["rows_seen"] == 11
    assert client.delete("/streams/t").status_code == 204
    assert append(client, "t", "?model=others", rows=rows(8))["model"] == "others"


def test_a_stream_does_not_go_on_with_an_artifact_that_was_replaced(
    start: Start, tmp_path: Path, server: RedisServer
) -> None:
    stream = next(_ids)
    for name, spec in (
        ("before", SERIES_INPUT),
        ("after", SERIES_INPUT.model_copy(update={"stride": 1})),
    ):
        publish_series(tmp_path / name, spec=spec)
        set_active(tmp_path / name, timeseries="sensors/1")
    append(start(tmp_path / "before", redis_url=server.url), stream, rows=rows(8))
    late = post(start(tmp_path / "after", redis_url=server.url), stream, rows=rows(8))
    assert "not the artifact" in problem(late, 409, "conflict")


def test_timestamps_come_with_every_append_or_with_none(client: TestClient) -> None:
    timed = {"rows": rows(6), "timestamps": stamps([*range(6)])}
    append(client, "timed", **timed)
    problem(post(client, "timed", rows=rows(6)), 422, "invalid-input")
    append(client, "untimed", rows=rows(6))
    problem(post(client, "untimed", **timed), 422, "invalid-input")
    assert state(client, "timed")["timestamps"] is True
    assert state(client, "untimed")["rows_seen"] == 6


@pytest.mark.parametrize(
    ("stream", "query", "key", "members"),
    [
        ("a b", "", None, {"rows": [[1, 2, 3]]}),
        ("a" * 129, "", None, {"rows": [[1, 2, 3]]}),
        ("a", "?window=3", None, {"rows": [[1, 2, 3]]}),
        ("a", "?stride=0", None, {"rows": [[1, 2, 3]]}),
        ("a", "?fpr=0.0001", None, {"rows": [[1, 2, 3]]}),
        ("a", "", None, {"rows": []}),
        ("a", "", None, {"rows": [[1, 2]]}),
        ("a", "", "k" * 256, {"rows": [[1, 2, 3]]}),
        ("a", "", "two words", {"rows": [[1, 2, 3]]}),
    ],
)
def test_what_is_wrong_is_refused_and_begins_no_stream(
    client: TestClient, stream: str, query: str, key: str | None, members: dict[str, Any]
) -> None:
    problem(post(client, stream, query, key, **members), 422, "invalid-input")
    assert client.get(f"/streams/{stream}").status_code in (404, 422)


def test_a_stream_that_is_not_there_is_not_found(anywhere: TestClient) -> None:
    for response in (anywhere.get("/streams/none"), anywhere.delete("/streams/none")):
        assert "none" in problem(response, 404, "stream-not-found")


def test_an_append_of_more_windows_than_allowed_changes_nothing(start: Start) -> None:
    client = start(max_windows=5)
    append(client, "t", rows=rows(6))
    problem(post(client, "t", "?stride=2", rows=rows(40)), 413, "input-too-large")
    assert state(client, "t")["rows_seen"] == 6


def test_an_answer_too_large_to_remember_is_refused_before_it_is_applied(
    anywhere: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.stream_store.ANSWERS_BYTES", 1000)
    stream = next(_ids)
    append(anywhere, stream, key="a", rows=rows(1))
    assert "map=none" in problem(
        post(anywhere, stream, key="b", rows=rows(30)), 413, "input-too-large"
    )
    assert state(anywhere, stream)["rows_seen"] == 1
    append(anywhere, stream, rows=rows(30))


def test_an_idle_stream_is_forgotten(start: Start, server: RedisServer) -> None:
    stream = next(_ids)
    for place in ({}, {"redis_url": server.url}):
        client = start(stream_ttl_s=1.0, **place)
        append(client, stream, rows=rows(3))
        until = time.monotonic() + 20
        while client.get(f"/streams/{stream}").status_code == 200:
            assert time.monotonic() < until
            time.sleep(0.05)


def test_what_changed_since_it_was_read_is_not_overwritten(server: RedisServer) -> None:
    begun = Stream("m", 1, "d", 2, 6, False, 0, 0, np.empty((0, 3)), None)
    append = Append(None, b"")
    after, _, _ = begun.append(Recording(np.zeros((3, 3)), None, ()))

    async def check(store: StreamStore, stream: str) -> None:
        nothing = await store.read(stream)
        assert await store.commit(stream, nothing, after, append, b"{}")
        assert not await store.commit(stream, nothing, after, append, b"{}")
        found = await store.read(stream)
        assert found.stream is not None
        assert found.stream.rows_seen == 3
        await store.delete(stream)
        assert not await store.commit(stream, found, after, append, b"{}")
        assert (await store.read(stream)).stream is None

    async def main() -> None:
        await check(LocalStreams(10, 10), "t")
        link = RedisLink(server.url, print)
        await link.start()
        await check(RedisStreams(link, 10), next(_ids))
        await link.close()

    asyncio.run(main())


def test_streams_are_forgotten_in_the_order_of_their_last_append() -> None:
    now = [0.0]
    store = LocalStreams(10, 10, clock=lambda: now[0])
    begun = Stream("m", 1, "d", 2, 6, False, 0, 0, np.empty((0, 3)), None)

    async def touch(stream: str) -> None:
        await store.commit(stream, await store.read(stream), begun, Append(None, b""), b"{}")

    async def there() -> list[bool]:
        return [(await store.read(stream)).stream is not None for stream in ("a", "b")]

    async def main() -> None:
        await touch("a")
        await touch("b")
        now[0] = 5.0
        await touch("a")
        now[0] = 12.0
        assert await there() == [True, False]
        now[0] = 15.0
        assert await there() == [False, False]

    asyncio.run(main())


def test_streams_without_redis_are_bounded(start: Start) -> None:
    client = start(streams_max=2)
    append(client, "a", rows=rows(1))
    append(client, "b", rows=rows(1))
    response = post(client, "c", rows=rows(1))
    assert "ANOMALY_STREAMS_MAX" in problem(response, 503, "overloaded")
    append(client, "a", rows=rows(1))
    assert client.delete("/streams/b").status_code == 204
    append(client, "c", rows=rows(1))


def test_several_processes_without_redis_say_what_is_missing(start: Start) -> None:
    client = start(workers=2)
    for response in (post(client, "t", rows=rows(1)), client.get("/streams/t")):
        assert "ANOMALY_REDIS_URL" in problem(response, 409, "conflict")


@pytest.mark.parametrize("fault", ["kill", "pause", "fill"])
def test_an_append_that_redis_cannot_take_is_not_acknowledged(
    start: Start, tmp_path: Path, fault: str
) -> None:
    with redis_server(tmp_path) as server:
        client = start(redis_url=server.url)
        append(client, "t", key="1", rows=rows(6))
        getattr(server, fault)()
        response = post(client, "t", key="2", rows=rows(6))
        problem(response, 503, "unavailable")
        assert int(response.headers["Retry-After"]) >= 1
        score = client.post("/score/timeseries", json={"rows": rows(6)})
        assert score.status_code == 200
        if fault == "pause":
            server.go_on()
        elif fault == "fill":
            with server.client() as redis:
                redis.config_set("maxmemory", "0")
        else:
            server.start()
        until = time.monotonic() + 20
        while (response := post(client, "t", key="2", rows=rows(6))).status_code == 503:
            assert time.monotonic() < until
            time.sleep(0.02)
        assert response.status_code == 200
        seen = state(client, "t")["rows_seen"]
        assert seen == (6 if fault == "kill" else 12)  # killed without persistence: begun anew


def test_what_was_acknowledged_outlives_a_redis_that_keeps_a_log(
    start: Start, tmp_path: Path
) -> None:
    options = ("--appendonly", "yes", "--appendfsync", "always")
    with redis_server(tmp_path, *options) as server:
        client = start(redis_url=server.url)
        for i in range(5):
            append(client, "t", key=f"{i}", rows=rows(3, seed=i))
        server.kill()
        problem(post(client, "t", key="4", rows=rows(3, seed=4)), 503, "unavailable")
        server.start(*options)
        until = time.monotonic() + 20
        while (response := post(client, "t", key="4", rows=rows(3, seed=4))).status_code == 503:
            assert time.monotonic() < until
            time.sleep(0.02)
        assert response.headers["Idempotent-Replayed"] == "true"
        assert state(client, "t")["rows_seen"] == 15


def test_a_stream_that_something_else_wrote_over_is_an_honest_error(
    start: Start, server: RedisServer
) -> None:
    client, stream = start(redis_url=server.url), next(_ids)
    append(client, stream, rows=rows(6))
    with server.client() as redis:
        redis.hset(f"anomaly:stream:1:{stream}", "state", b"garbage")
    assert "cannot be read" in problem(post(client, stream, rows=rows(1)), 409, "conflict")
    assert client.delete(f"/streams/{stream}").status_code == 204
    assert append(client, stream, rows=rows(1))["rows_seen"] == 1


def test_the_url_of_redis_may_come_from_a_file_and_metrics_say_it_is_up(
    start: Start, server: RedisServer, tmp_path: Path
) -> None:
    file = tmp_path / "url"
    file.write_text(f"{server.url}\n")
    client, stream = start(redis_url_file=file), next(_ids)
    append(client, stream, rows=rows(6))
    with server.client() as redis:
        assert redis.exists(f"anomaly:stream:1:{stream}")
    assert "anomaly_redis_up" in client.get("/metrics").text
    assert "anomaly_redis_up" not in start().get("/metrics").text


def test_a_form_posted_again_under_its_key_is_answered_from_memory(anywhere: TestClient) -> None:
    stream = next(_ids)
    text = "power,wind,pitch\n" + "\n".join(f"{i},2,{i % 3}" for i in range(12))
    answers = [
        anywhere.post(
            f"/streams/{stream}/rows",
            files={"file": ("rows.csv", text.encode(), "text/csv")},  # a boundary of its own each
            headers={"Idempotency-Key": "once"},
        )
        for _ in range(2)
    ]
    assert [a.status_code for a in answers] == [200, 200], answers[1].text
    assert answers[1].headers["Idempotent-Replayed"] == "true"
    assert state(anywhere, stream)["rows_seen"] == 12
