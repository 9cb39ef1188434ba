"""Requests are scored together, and none of them notices."""

import asyncio
import os
import signal
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from starlette.testclient import TestClient

from service.app import create_app
from service.detectors.base import Detection
from service.settings import Settings
from tests.service.conftest import Start
from tests.service.pictures import encode, grey
from tests.service.test_process import serving

PNG = {"Content-Type": "image/png"}
LEVELS = [10, 51, 102, 153, 204, 250, 0, 33]

Ask = Callable[[httpx.AsyncClient], Awaitable[Any]]


def within(models: Path, ask: Ask, **settings: Any) -> tuple[Any, str]:
    """What ``ask`` returns, asked of a service in this event loop, and the metrics afterwards."""

    async def run() -> tuple[Any, str]:
        app = create_app(Settings(models_dir=models, threads=1, cache_ttl_s=0, **settings))
        async with app.router.lifespan_context(app):
            resources = app.state.resources
            while resources.catalog.loading:
                await asyncio.sleep(0.01)
            transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://t") as client:
                client.app = app  # type: ignore[attr-defined]
                answer = await ask(client)
                return answer, (await client.get("/metrics")).text

    return asyncio.run(run())


def metric(text: str, line: str) -> float:
    return sum(float(row.rpartition(" ")[2]) for row in text.splitlines() if row.startswith(line))


async def post(client: httpx.AsyncClient, level: int, **kwargs: Any) -> httpx.Response:
    headers = PNG | kwargs.pop("headers", {})
    return await client.post("/score", content=encode(grey(level)), headers=headers, **kwargs)


def detector_of(client: httpx.AsyncClient) -> Any:
    app = client.app  # type: ignore[attr-defined]
    return app.state.resources.catalog.get("bright", None, "image").detector


def test_requests_that_wait_together_are_scored_in_one_batch_each_with_its_own_answer(
    two_models: Path,
) -> None:
    async def ask(client: httpx.AsyncClient) -> list[httpx.Response]:
        return await asyncio.gather(*(post(client, level) for level in LEVELS))

    answers, metrics = within(two_models, ask, batch_max_delay_ms=300)
    raw = [a.json()["results"][0]["raw_score"] for a in answers]
    assert raw == pytest.approx([level / 255 for level in LEVELS])
    assert metric(metrics, 'anomaly_batch_size_count{model="bright"}') == 1
    assert metric(metrics, 'anomaly_batch_size_sum{model="bright"}') == len(LEVELS)


def test_a_full_batch_does_not_wait_and_none_is_larger_than_allowed(two_models: Path) -> None:
    async def ask(client: httpx.AsyncClient) -> list[httpx.Response]:
        return await asyncio.gather(*(post(client, level) for level in LEVELS))

    answers, metrics = within(two_models, ask, batch_max_delay_ms=2000, batch_max_size=4)
    assert [a.status_code for a in answers] == [200] * 8
    assert metric(metrics, 'anomaly_batch_size_count{model="bright"}') == 2
    assert metric(metrics, 'anomaly_batch_size_bucket{le="4.0",model="bright"}') == 2


def test_a_broken_image_fails_alone(two_models: Path) -> None:
    async def ask(client: httpx.AsyncClient) -> list[httpx.Response]:
        broken = client.post("/score", content=encode(grey(9))[:45], headers=PNG)
        both = [("image", encode(grey(102))), ("image", b"no image at all")]
        mixed = client.post("/score", files=both)
        return await asyncio.gather(post(client, 51), broken, mixed, post(client, 153))

    (first, broken, mixed, last), metrics = within(two_models, ask, batch_max_delay_ms=300)
    assert first.json()["results"][0]["raw_score"] == pytest.approx(0.2)
    assert broken.status_code == 400
    assert mixed.json()["results"][0]["raw_score"] == pytest.approx(0.4)
    assert mixed.json()["results"][1]["error"]["status"] == 415
    assert last.json()["results"][0]["raw_score"] == pytest.approx(0.6)
    assert metric(metrics, 'anomaly_batch_size_sum{model="bright"}') == 3


@pytest.mark.parametrize("how", ["raises", "not a number", "too few"])
def test_what_the_runtime_stumbles_on_fails_alone(two_models: Path, how: str) -> None:
    async def ask(client: httpx.AsyncClient) -> list[httpx.Response]:
        detector = detector_of(client)
        real = detector.detect

        def detect(x: np.ndarray, *, maps: bool) -> Detection:
            bad = x.mean(axis=(1, 2, 3)) > 0.99
            found = real(x, maps=maps)
            if not bad.any():
                return found
            if how == "raises":
                from service.contract.errors import DetectorFailure

                raise DetectorFailure("the runtime fell over")
            if how == "too few":
                return Detection(found.scores[:-1], found.maps)
            return Detection(np.where(bad, np.nan, found.scores), found.maps)

        detector.detect = detect
        return await asyncio.gather(*(post(client, level) for level in (51, 255, 102)))

    (first, bad, last), _ = within(two_models, ask, batch_max_delay_ms=300)
    assert bad.status_code == 500
    assert "fell over" not in bad.text
    assert first.json()["results"][0]["raw_score"] == pytest.approx(0.2)
    assert last.json()["results"][0]["raw_score"] == pytest.approx(0.4)


def test_who_asks_for_maps_and_who_does_not_are_both_served(two_models: Path) -> None:
    async def ask(client: httpx.AsyncClient) -> list[httpx.Response]:
        maps = [post(client, level, params={"map": "png"}) for level in LEVELS]
        none = [post(client, level, params={"map": "none"}) for level in LEVELS]
        return await asyncio.gather(*maps, *none)

    answers, metrics = within(two_models, ask, batch_max_delay_ms=300)
    given = [a.json()["results"][0]["residual_map"] is not None for a in answers]
    assert given == [True] * 8 + [False] * 8
    assert metric(metrics, 'anomaly_batch_size_count{model="bright"}') == 2


def slow(client: httpx.AsyncClient, seconds: float) -> list[int]:
    """The default model takes so long for a batch; the list tells how many items it scored."""
    detector = detector_of(client)
    real, scored = detector.detect, []

    def detect(x: np.ndarray, *, maps: bool) -> Detection:
        scored.append(len(x))
        time.sleep(seconds)
        return real(x, maps=maps)

    detector.detect = detect
    return scored


def test_a_request_whose_deadline_passed_in_the_queue_is_never_scored(two_models: Path) -> None:
    async def ask(client: httpx.AsyncClient) -> tuple[Any, ...]:
        scored = slow(client, 0.4)
        first = asyncio.create_task(post(client, 51))
        await asyncio.sleep(0.1)
        order: list[str] = []
        first.add_done_callback(lambda _: order.append("first"))
        late = await post(client, 102, headers={"X-Request-Timeout": "0.05"})
        order.append("late")
        third = asyncio.create_task(post(client, 153))
        return await first, late, order, await third, scored

    (first, late, order, third, scored), _ = within(two_models, ask, concurrency=1)
    assert (first.status_code, late.status_code, third.status_code) == (200, 504, 200)
    assert late.json()["type"].endswith("deadline-passed")
    assert order == ["late", "first"]  # answered when it passed, not when the batch before ended
    assert scored == [1, 1]


def test_a_request_whose_client_went_away_is_never_scored(two_models: Path) -> None:
    async def ask(client: httpx.AsyncClient) -> list[int]:
        scored = slow(client, 0.4)
        app = client.app  # type: ignore[attr-defined]
        first = asyncio.create_task(post(client, 51))
        await asyncio.sleep(0.05)
        left = asyncio.Event()
        messages = [{"type": "http.request", "body": encode(grey(1)), "more_body": False}]

        async def receive() -> dict[str, Any]:
            if messages:
                return messages.pop()
            await left.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            raise AssertionError(f"nobody is there to be sent {message}")

        scope = {
            "type": "http", "method": "POST", "path": "/score", "query_string": b"",
            "headers": [(b"content-type", b"image/png")],
        }  # fmt: skip
        gone = asyncio.create_task(app(scope, receive, send))
        await asyncio.sleep(0.1)
        left.set()
        await gone
        assert not first.done()
        await first
        assert (await post(client, 102)).status_code == 200
        return scored

    scored, metrics = within(two_models, ask, concurrency=1)
    assert scored == [1, 1]
    assert metric(metrics, "anomaly_http_request_duration_seconds_count{") >= 3
    assert 'status="499"' in metrics


def test_a_full_queue_refuses_at_once_and_recovers(two_models: Path) -> None:
    async def ask(client: httpx.AsyncClient) -> tuple[list[httpx.Response], httpx.Response]:
        slow(client, 0.2)
        many = [asyncio.create_task(post(client, 51)) for _ in range(12)]
        answers = await asyncio.gather(*many)
        return answers, await post(client, 102)

    (answers, after), metrics = within(two_models, ask, concurrency=1, queue_max_items=4)
    refused = [a for a in answers if a.status_code == 503]
    assert len(refused) == 8
    assert {a.headers["Retry-After"] for a in refused} == {"1"}
    assert {a.json()["type"].rpartition(":")[2] for a in refused} == {"overloaded"}
    assert after.status_code == 200
    assert metric(metrics, 'anomaly_queue_depth{model="bright"}') == 0


def test_a_full_queue_does_not_read_the_body_it_refuses(two_models: Path) -> None:
    async def ask(client: httpx.AsyncClient) -> list[int]:
        app = client.app  # type: ignore[attr-defined]
        seen: list[int] = []

        async def receive() -> dict[str, Any]:
            raise AssertionError("the body was asked for")

        async def send(message: Any) -> None:
            seen.extend([message["status"]] if "status" in message else [])

        scope = {
            "type": "http", "method": "POST", "path": "/score", "query_string": b"",
            "headers": [(b"content-type", b"image/png")],
        }  # fmt: skip
        with app.state.resources.admission.admit("bright", 4):
            await app(scope, receive, send)
        return seen

    seen, _ = within(two_models, ask, queue_max_items=4)
    assert seen == [503]


def test_a_delay_keeps_no_ready_batch_waiting_while_a_slot_is_free(two_models: Path) -> None:
    async def ask(client: httpx.AsyncClient) -> int:
        at_once = most = 0
        detector = detector_of(client)
        real = detector.detect

        def detect(x: np.ndarray, *, maps: bool) -> Detection:
            nonlocal at_once, most
            at_once += 1
            most = max(most, at_once)
            time.sleep(0.3)
            at_once -= 1
            return real(x, maps=maps)

        detector.detect = detect
        await asyncio.gather(*(post(client, level) for level in LEVELS))
        return most

    settings = {"concurrency": 2, "batch_max_size": 4, "batch_max_delay_ms": 20}
    most, _ = within(two_models, ask, **settings)
    assert most == 2


def test_one_model_that_is_slow_does_not_fill_the_queue_of_another(two_models: Path) -> None:
    async def ask(client: httpx.AsyncClient) -> httpx.Response:
        slow(client, 0.3)
        waiting = [asyncio.create_task(post(client, 51)) for _ in range(3)]
        await asyncio.sleep(0.05)
        rows = [[float(i % 7), 1.0, float(i % 5)] for i in range(10)]
        answer = await client.post("/score/timeseries", json={"rows": rows})
        await asyncio.gather(*waiting)
        return answer

    answer, _ = within(two_models, ask, concurrency=2, queue_max_items=3)
    assert answer.status_code == 200


def test_work_that_nobody_waits_for_counts_until_its_thread_ends(two_models: Path) -> None:
    async def ask(client: httpx.AsyncClient) -> tuple[list[int], int]:
        app = client.app  # type: ignore[attr-defined]
        admission = app.state.resources.admission
        go_on = threading.Event()

        async def late() -> None:
            with admission.admit("bright", 1):
                await admission.run("bright", lambda: go_on.wait(20))

        task = asyncio.create_task(late())
        await asyncio.sleep(0.1)
        task.cancel()
        await asyncio.wait([task])
        seen = [(await post(client, 51)).status_code]
        go_on.set()
        for _ in range(200):
            if (status := (await post(client, 51)).status_code) == 200:
                break
            await asyncio.sleep(0.02)
        return seen, status

    (seen, after), _ = within(two_models, ask, queue_max_items=1, concurrency=2)
    assert seen == [503]
    assert after == 200


def test_large_pictures_are_decoded_apart_from_the_batch_with_the_same_scores(
    start: Start,
) -> None:
    client: TestClient = start()
    large = encode(grey(51, 600, 500))
    answer = client.post("/score", content=large, headers=PNG).json()["results"][0]
    assert answer["raw_score"] == pytest.approx(0.2)
    assert answer["residual_map"]["width"] == 500


def test_sigterm_answers_what_is_in_flight_and_refuses_what_is_new(
    two_models: Path, tmp_path: Path
) -> None:
    settings = {"ANOMALY_BATCH_MAX_DELAY_MS": "1500"}
    with serving(two_models, tmp_path / "log", **settings) as (process, base):
        answers: list[int] = []

        def ask() -> None:
            answers.append(
                httpx.post(f"{base}/score", content=encode(grey(51)), headers=PNG).status_code
            )

        waiting = [threading.Thread(target=ask) for _ in range(4)]
        for thread in waiting:
            thread.start()
        time.sleep(0.5)
        began = time.monotonic()
        os.kill(process.pid, signal.SIGTERM)
        time.sleep(0.3)
        with pytest.raises(httpx.TransportError):
            httpx.post(f"{base}/score", content=encode(grey(51)), headers=PNG)
        for thread in waiting:
            thread.join()
        assert answers == [200] * 4
        assert process.wait(timeout=30) in (0, -signal.SIGTERM)
        assert time.monotonic() - began < 10
