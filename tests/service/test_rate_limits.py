"""A caller gets as many requests as the limit says, here and in Redis."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import ValidationError

from service.contract.errors import RateLimited
from service.rate_limits import LocalBuckets, Rate, RateLimits, caller_of
from service.redis_link import RedisLink
from service.settings import Settings
from tests.redis_server import RedisServer, redis_server
from tests.service.conftest import Start

ROWS = {"rows": [[1.0, 2.0, 0.5], [1.0, 3.0, 0.6]] * 4}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis")) as running:
        yield running


def granted(url: str | None, rate: str, callers: list[str], processes: int = 1) -> list[bool]:
    """Whether each of these requests is let in, sent round to so many processes."""

    async def main() -> list[bool]:
        links = [RedisLink(url, print, budget_s=0.25) if url else None for _ in range(processes)]
        for link in links:
            if link is not None:
                await link.start()
        limits = [RateLimits(Rate.parse(rate), link) for link in links]
        found = []
        for i, caller in enumerate(callers):
            try:
                await limits[i % processes].check(caller)
                found.append(True)
            except RateLimited:
                found.append(False)
        for link in links:
            if link is not None:
                await link.close()
        return found

    return asyncio.run(main())


@pytest.mark.parametrize("shared", [False, True])
def test_a_burst_of_the_limit_is_let_in_and_then_no_more(server: RedisServer, shared: bool) -> None:
    url = server.url if shared else None
    assert granted(url, "3/h", ["a", "a", "b", "a", "a", "b", "a"]) == [
        *[True] * 4,
        False,
        True,
        False,
    ]


def test_processes_count_together_in_redis(server: RedisServer) -> None:
    assert granted(server.url, "5/h", ["together"] * 9, processes=3) == [True] * 5 + [False] * 4


@pytest.mark.parametrize("fault", ["kill", "fill", "pause"])
def test_without_redis_each_process_counts_for_itself(tmp_path: Path, fault: str) -> None:
    with redis_server(tmp_path) as server:

        async def main() -> None:
            link = RedisLink(server.url, print, patience_s=60)
            await link.start()
            limits = RateLimits(Rate.parse("3/h"), link)
            getattr(server, fault)()
            async with asyncio.timeout(20):  # without Redis's patience
                for _ in range(3):
                    await limits.check("a")
                with pytest.raises(RateLimited):
                    await limits.check("a")
            await link.close()

        asyncio.run(main())


def test_redis_holds_no_names_of_callers_and_forgets_them(server: RedisServer) -> None:
    granted(server.url, "100/s", ["key-of-somebody"])
    with server.client() as client:
        names = client.keys("anomaly:rate:*")
        assert names
        assert all(b"somebody" not in name for name in names)
        assert all(client.pttl(name) > 0 for name in names)


def test_a_bucket_fills_evenly_and_never_above_its_capacity() -> None:
    now = [0.0]
    buckets = LocalBuckets(Rate.parse("60/min"), clock=lambda: now[0])
    assert [buckets.take("a") for _ in range(60)] == [None] * 60
    assert buckets.take("a") == pytest.approx(1.0)
    now[0] = 0.5
    assert buckets.take("a") == pytest.approx(0.5)
    now[0] = 1.0
    assert buckets.take("a") is None
    now[0] = 1e6
    assert [buckets.take("a") for _ in range(61)].count(None) == 60


def test_callers_that_were_not_seen_for_long_take_no_memory() -> None:
    buckets = LocalBuckets(Rate.parse("1/h"), max_callers=10)
    for i in range(1000):
        assert buckets.take(str(i)) is None
    assert len(buckets._buckets) == 10


@pytest.mark.parametrize("text", ["", "10", "0/s", "-1/s", "1.5/s", "10/day", "10 / s", "ten/s"])
def test_a_limit_that_says_nothing_is_refused_with_what_is_allowed(text: str) -> None:
    with pytest.raises(ValidationError, match=r"100/s, 600/min or 5000/h"):
        Settings(rate_limit=text)


def test_the_key_counts_where_there_is_one_else_the_address() -> None:
    client = ("10.0.0.1", 1234)
    assert caller_of({"state": {"caller": "line-7"}, "client": client}) == "key line-7"
    assert caller_of({"state": {}, "client": client}) == "address 10.0.0.1"
    assert caller_of({"client": None}) == "address unknown"


def test_one_request_too_many_gets_429_and_is_told_when_to_come_again(start: Start) -> None:
    client = start(rate_limit="2/min")
    for _ in range(2):
        assert client.post("/streams/t/rows", json=ROWS).status_code == 200
    response = client.post("/streams/t/rows", json=ROWS)
    assert response.status_code == 429
    body = response.json()
    assert body["type"] == "urn:anomaly:problem:rate-limited"
    assert "2/min" in body["detail"]
    assert 1 <= int(response.headers["Retry-After"]) == body["retry_after_s"] <= 30
    assert client.get("/streams/t").json()["rows_seen"] == 16  # what was refused was not applied
    assert client.get("/livez").status_code == 200
