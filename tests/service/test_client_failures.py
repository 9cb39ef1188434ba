"""What ``service.client`` does when the service refuses, fails, or breaks off: in both clients."""

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import numpy as np
import orjson
import pytest

from service.client import (
    AsyncClient,
    Client,
    ImageScore,
    NoAnswer,
    OutOfTime,
    Retries,
    ServiceProblem,
    UnexpectedAnswer,
)
from service.rendering import thumbnail

Handler = Callable[[httpx.Request], httpx.Response]
RESULT = {
    "index": 0, "score": 0.9, "p_value": 0.1, "raw_score": 1.0, "threshold": None, "fpr": 0.01,
    "decision": "normal", "residual_map": None, "regions": [], "new_member": 1,
}  # fmt: skip
ANSWER = {"model": "m", "version": 1, "family": "nln", "request_id": "r", "results": [RESULT]}
APPENDED = ANSWER | {"rows": 1, "results": [], "stream": "t", "rows_seen": 1}


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that calls would have waited."""
    waited: list[float] = []

    async def no_sleep(seconds: float) -> None:
        waited.append(seconds)

    # the clients' own names: a service in this process goes on sleeping
    monkeypatch.setattr("service.client.blocking.sleep", waited.append)
    monkeypatch.setattr("service.client.asynchronous.sleep", no_sleep)
    return waited


class Script:
    """A service that answers what it is told to, one after the other, the last for ever."""

    def __init__(self, *steps: Any) -> None:
        self.steps = list(steps)
        self.seen: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.seen.append(request)
        step = self.steps.pop(0) if len(self.steps) > 1 else self.steps[0]
        if isinstance(step, Exception):
            raise step
        if isinstance(step, int):
            return httpx.Response(step, json=problem(step))
        if isinstance(step, httpx.Response):  # which can be sent once only
            return httpx.Response(step.status_code, headers=step.headers, content=step.content)
        return httpx.Response(200, json=step)


def problem(status: int) -> dict[str, Any]:
    return {"type": "urn:anomaly:problem:x", "title": "X", "status": status, "detail": "because"}


def refused(status: int, after: str) -> httpx.Response:
    return httpx.Response(status, json=problem(status), headers={"Retry-After": after})


def call(kind: str, script: Script, method: str, *args: Any, **options: Any) -> Any:
    """The method of either client over a scripted transport."""
    settings = {k: options.pop(k) for k in ("retries", "api_key") if k in options}
    if kind == "blocking":
        with Client("http://service", transport=httpx.MockTransport(script), **settings) as client:
            return getattr(client, method)(*args, **options)

    async def run() -> Any:
        transport = httpx.MockTransport(script)
        async with AsyncClient("http://service", transport=transport, **settings) as client:
            return await getattr(client, method)(*args, **options)

    return asyncio.run(run())


both = pytest.mark.parametrize("kind", ["blocking", "asynchronous"])


@both
@pytest.mark.parametrize("status", [429, 503])
def test_a_refusal_is_waited_out_as_long_as_it_asks(
    kind: str, status: int, waits: list[float]
) -> None:
    script = Script(refused(status, "2"), refused(status, "3"), ANSWER)
    assert isinstance(call(kind, script, "score_file", b"picture"), ImageScore)
    assert len(script.seen) == 3
    assert waits[0] >= 2
    assert waits[1] >= 3
    assert len({r.headers["X-Request-ID"] for r in script.seen}) == 1
    assert all(b"picture" in r.content for r in script.seen)


@both
@pytest.mark.parametrize(
    "status", [400, 401, 403, 404, 409, 413, 415, 422, 429, 500, 502, 503, 504]
)
def test_an_error_without_retry_after_is_raised_at_once(
    kind: str, status: int, waits: list[float]
) -> None:
    script = Script(status)
    with pytest.raises(ServiceProblem, match="because") as raised:
        call(kind, script, "score_file", b"x")
    assert raised.value.status == status
    assert len(script.seen) == 1
    assert waits == []


@both
@pytest.mark.parametrize(
    "broken",
    [httpx.ConnectError("no"), httpx.ReadError("broke"), httpx.RemoteProtocolError("ended")],
)
def test_scoring_is_repeated_where_the_connection_broke(
    kind: str, broken: Exception, waits: list[float]
) -> None:
    script = Script(broken, broken, ANSWER)
    assert call(kind, script, "score_file", b"x").decision == "normal"
    assert len(script.seen) == 3
    assert 0.1 <= waits[0] <= 0.2
    assert 0.2 <= waits[1] <= 0.4


@both
def test_an_append_is_repeated_with_the_same_key(kind: str, waits: list[float]) -> None:
    script = Script(httpx.ReadError("broke"), APPENDED)
    call(kind, script, "append_rows", "t 1/x", [[1.0]])
    keys = [r.headers["Idempotency-Key"] for r in script.seen]
    assert len(keys) == 2
    assert len(set(keys)) == 1
    assert script.seen[0].url.raw_path.startswith(b"/streams/t%201%2Fx/rows")
    other = Script(APPENDED)
    call(kind, other, "append_rows", "t", [[1.0]])
    assert other.seen[0].headers["Idempotency-Key"] not in keys


@both
def test_what_cannot_be_repeated_safely_is_not(kind: str, waits: list[float]) -> None:
    script = Script(httpx.ReadError("broke"))
    with pytest.raises(NoAnswer, match="DELETE /streams/t: broke"):
        call(kind, script, "delete_stream", "t")
    assert len(script.seen) == 1
    never_sent = Script(httpx.ConnectError("no"), httpx.Response(204))
    call(kind, never_sent, "delete_stream", "t")
    assert len(never_sent.seen) == 2


@both
def test_a_store_that_failed_may_have_done_it(kind: str, waits: list[float]) -> None:
    body = problem(503) | {"type": "urn:anomaly:problem:unavailable"}
    failed = httpx.Response(503, json=body, headers={"Retry-After": "1"})
    deletion = Script(failed, 404)
    with pytest.raises(ServiceProblem, match="503") as raised:
        call(kind, deletion, "delete_stream", "t")
    assert raised.value.type == "urn:anomaly:problem:unavailable"
    assert len(deletion.seen) == 1
    append = Script(failed, APPENDED)
    call(kind, append, "append_rows", "t", [[1.0]])
    assert len({r.headers["Idempotency-Key"] for r in append.seen}) == 1
    assert len(append.seen) == 2
    overloaded = Script(refused(503, "1"), httpx.Response(204))
    call(kind, overloaded, "delete_stream", "t")
    assert len(overloaded.seen) == 2


@both
def test_it_gives_up_after_so_many_attempts(kind: str, waits: list[float]) -> None:
    script = Script(refused(503, "0"))
    with pytest.raises(ServiceProblem):
        call(kind, script, "score_file", b"x", retries=Retries(attempts=3))
    assert len(script.seen) == 3
    unreachable = Script(httpx.ConnectError("refused"))
    with pytest.raises(NoAnswer, match="refused"):
        call(kind, unreachable, "models", retries=Retries(attempts=1))
    assert len(unreachable.seen) == 1


@both
@pytest.mark.parametrize(("after", "options"), [("60", {}), ("5", {"timeout_s": 4})])
def test_a_wait_beyond_the_cap_or_the_deadline_is_not_begun(
    kind: str, after: str, options: Any, waits: list[float]
) -> None:
    script = Script(refused(503, after))
    with pytest.raises(ServiceProblem) as raised:
        call(kind, script, "score_file", b"x", **options)
    assert raised.value.retry_after_s == float(after)
    assert waits == []


@both
def test_the_service_is_told_the_deadline(kind: str, waits: list[float]) -> None:
    script = Script(ANSWER)
    call(kind, script, "score_file", b"x", timeout_s=7)
    assert 6 < float(script.seen[0].headers["X-Request-Timeout"]) < 7
    with pytest.raises(OutOfTime, match="within 7 s"):
        call(kind, Script(httpx.ReadTimeout("late")), "score_file", b"x", timeout_s=7)


@both
def test_waiting_until_ready_outlasts_whatever_is_wrong(kind: str, waits: list[float]) -> None:
    late = httpx.ConnectError("not up yet")
    script = Script(late, refused(503, "60"), *[503] * 8, {"ready": True, "models": ["a/1"]})
    assert call(kind, script, "wait_until_ready").models == ("a/1",)
    assert len(waits) == 10
    assert max(waits) <= 1
    with pytest.raises(OutOfTime, match="because"):
        call(kind, Script(503), "wait_until_ready", timeout_s=0.05)


@both
def test_not_being_ready_is_an_answer(kind: str) -> None:
    not_yet = httpx.Response(503, json=problem(503) | {"reasons": ["a/1: loading"]})
    found = call(kind, Script(not_yet), "ready")
    assert (found.ready, found.reasons) == (False, ("a/1: loading",))


@both
def test_one_failing_request_of_many_fails_the_call(kind: str, waits: list[float]) -> None:
    with pytest.raises(ServiceProblem, match="422"):
        call(kind, Script(422), "score_files", [b"x"] * 300)
    # a query that is wrong is wrong for a lone last file too
    with pytest.raises(ServiceProblem, match="422"):
        call(kind, Script(422), "score_files", [b"x"])


@both
@pytest.mark.parametrize(
    "odd",
    [
        httpx.Response(200, text="<html>hello</html>"),
        httpx.Response(200, json=[]),
        httpx.Response(200, json={"results": []}),
        httpx.Response(200, json=ANSWER | {"results": []}),
        httpx.Response(302, headers={"Location": "http://elsewhere"}),
    ],
)
def test_an_answer_of_another_program_is_told_from_one_of_the_service(
    kind: str, odd: httpx.Response
) -> None:
    with pytest.raises(UnexpectedAnswer):
        call(kind, Script(odd), "score_file", b"x")


def test_an_error_page_of_a_proxy_is_a_problem_too() -> None:
    page = httpx.Response(502, text="<html>bad gateway</html>")
    with pytest.raises(ServiceProblem, match="502 Bad Gateway: <html>bad"):
        call("blocking", Script(page), "score_file", b"x")


def test_evidence_and_warnings_are_read() -> None:
    seen = np.arange(48, dtype=np.uint8).reshape(1, 8, 6)
    neighbour = {
        "distance": 0.5, "row": 3, "place": {"x": 1, "y": 2, "width": 6, "height": 8},
        "decoded": thumbnail(seen),
    }  # fmt: skip
    body = ANSWER | {"warnings": ["few"], "results": [RESULT | {"evidence": [neighbour]}]}
    script = Script(body)
    result = call("blocking", script, "score_file", b"x", evidence=1, fdr=0.05)
    assert dict(script.seen[0].url.params) == {"map": "none", "evidence": "1", "fdr": "0.05"}
    assert result.answer.warnings == ("few",)
    (found,) = result.evidence
    assert (found.distance, found.row, found.x, found.height) == (0.5, 3, 1, 8)
    np.testing.assert_array_equal(found.decoded, seen[0])


def test_the_key_and_the_address_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    script = Script({"models": []})
    monkeypatch.setenv("ANOMALY_API_KEY", "secret")
    monkeypatch.setenv("ANOMALY_URL", "http://elsewhere:1/below")
    client = Client(transport=httpx.MockTransport(script))
    assert client.models() == []
    assert "secret" not in repr(client)
    assert script.seen[0].headers["X-API-Key"] == "secret"
    assert str(script.seen[0].url) == "http://elsewhere:1/below/models"
    call("blocking", script, "models", api_key="other")
    call("blocking", script, "models", api_key="")
    assert script.seen[1].headers["X-API-Key"] == "other"
    assert "X-API-Key" not in script.seen[2].headers


@contextmanager
def breaking_off(times: int) -> Iterator[tuple[str, list[bytes]]]:
    """A server that reads a request and closes the connection, so many times; then it answers."""
    asked: list[bytes] = []
    body = orjson.dumps(ANSWER)
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode()
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(20)

        def serve() -> None:
            for turn in range(times + 1):
                with server.accept()[0] as connection:
                    connection.settimeout(20)
                    received = b""
                    while not received.endswith(b"--\r\n"):
                        received += connection.recv(65536)
                    asked.append(received)
                    connection.sendall((head + body) if turn == times else head[:20])

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}", asked
        thread.join(20)


@both
def test_a_real_connection_that_ends_in_the_middle_of_an_answer_is_made_again(kind: str) -> None:
    with breaking_off(times=2) as (url, asked):
        quick = Retries(base_s=0.01)
        if kind == "blocking":
            with Client(url, retries=quick) as client:
                found = client.score_file(b"picture")
        else:

            async def run() -> ImageScore:
                async with AsyncClient(url, retries=quick) as client:
                    return await client.score_file(b"picture")

            found = asyncio.run(run())
    assert found.decision == "normal"
    assert len(asked) == 3
    assert all(b"picture" in request for request in asked)


def test_an_option_that_does_not_exist_is_told_with_those_that_do() -> None:
    with pytest.raises(TypeError, match=r"unknown option timeout; there are .*timeout_s"):
        Client("http://127.0.0.1:1", timeout=3)  # type: ignore[call-arg]
    with Client("http://127.0.0.1:1") as client:
        with pytest.raises(TypeError, match=r"unknown option timeout; there are .*timeout_s"):
            client.ready(timeout=3)  # type: ignore[call-arg]
        with pytest.raises(TypeError, match="unknown option maps"):
            client.score_arrays([np.zeros((2, 2), np.uint8)], maps="none")  # type: ignore[call-arg]
