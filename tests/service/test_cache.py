"""The cache of results: what is found, what is forgotten, and that it never invents anything."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from service.cache import PREFIX, LocalResults, ResultCache, cache_key
from service.redis_link import RedisLink
from service.telemetry import Telemetry
from tests.redis_server import RedisServer, redis_server

DIGEST = "a" * 64
KEY = cache_key(DIGEST, {"map": "none", "fpr": 0.01}, [b"image"])


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis")) as running:
        yield running


def counted(telemetry: Telemetry) -> dict[str, int]:
    text = telemetry.exposition("")[0].decode()
    lines = [line for line in text.splitlines() if line.startswith("anomaly_cache_requests_total")]
    return {line.split('"')[1]: int(float(line.split()[-1])) for line in lines}


def cached(
    use: Callable[[ResultCache], Awaitable[None]],
    server: RedisServer | None = None,
    ttl_s: float = 300,
    max_bytes: int = 80_000,
) -> dict[str, int]:
    """Uses a cache; what it counted."""
    telemetry = Telemetry()

    async def main() -> None:
        link = None
        if server is not None:
            link = RedisLink(server.url, print, budget_s=0.25, probe_every_s=0.05)
            await link.start()
        cache = ResultCache(ttl_s, max_bytes, telemetry, link)
        try:
            await use(cache)
        finally:
            await cache.close()
            if link is not None:
                await link.close()

    asyncio.run(main())
    return counted(telemetry)


@pytest.mark.parametrize("shared", [False, True])
def test_what_was_put_is_found_until_it_expires(server: RedisServer, shared: bool) -> None:
    key = cache_key(DIGEST, {"shared": shared}, [b""])

    async def use(cache: ResultCache) -> None:
        assert await cache.get(key) is None
        await cache.put(key, b"answer")
        await cache.close()  # waits for what is under way
        assert await cache.get(key) == b"answer"
        await asyncio.sleep(0.25)
        assert await cache.get(key) is None

    counts = cached(use, server if shared else None, ttl_s=0.2)
    assert counts == {"miss": 2, "hit": 1}


def test_processes_share_what_is_in_redis(server: RedisServer) -> None:
    async def put(cache: ResultCache) -> None:
        await cache.put(KEY, b"answer")

    async def get(cache: ResultCache) -> None:
        assert await cache.get(KEY) == b"answer"

    cached(put, server)
    assert cached(get, server) == {"hit": 1}


@pytest.mark.parametrize("found", [b"", b"garbage", b'{"score": 0.1}', b"anomaly 1\n" + bytes(40)])
def test_a_value_that_is_not_ours_is_not_an_answer(server: RedisServer, found: bytes) -> None:
    async def use(cache: ResultCache) -> None:
        with server.client() as client:
            client.set(PREFIX + KEY, found)
        assert await cache.get(KEY) is None
        await cache.put(KEY, b"answer")
        await cache.close()
        assert await cache.get(KEY) == b"answer"

    assert cached(use, server) == {"error": 1, "hit": 1}


def test_an_answer_moved_to_another_key_is_not_an_answer(server: RedisServer) -> None:
    other = cache_key(DIGEST, {}, [b"another image"])

    async def use(cache: ResultCache) -> None:
        await cache.put(other, b"answer")
        await cache.close()
        with server.client() as client:
            client.rename(PREFIX + other, PREFIX + KEY)
        assert await cache.get(KEY) is None

    assert cached(use, server) == {"error": 1}


def test_a_key_of_another_type_is_not_an_answer(server: RedisServer) -> None:
    async def use(cache: ResultCache) -> None:
        with server.client() as client:
            client.delete(PREFIX + KEY)
            client.lpush(PREFIX + KEY, "x")
        assert await cache.get(KEY) is None

    assert cached(use, server) == {"error": 1}


def test_a_full_redis_keeps_answering_what_it_has(tmp_path: Path) -> None:
    other = cache_key(DIGEST, {}, [b"another image"])
    with redis_server(tmp_path) as server:

        async def use(cache: ResultCache) -> None:
            await cache.put(KEY, b"answer")
            await cache.close()
            server.fill()
            await cache.put(other, b"another answer")
            await cache.close()
            assert await cache.get(KEY) == b"answer"
            assert await cache.get(other) is None

        assert cached(use, server) == {"hit": 1, "miss": 1}  # look-ups, not writes


def test_a_redis_that_dies_turns_hits_into_errors_and_comes_back(tmp_path: Path) -> None:
    with redis_server(tmp_path) as server:

        async def use(cache: ResultCache) -> None:
            server.kill()
            assert await cache.get(KEY) is None
            assert not cache.keeps(4)
            await cache.put(KEY, b"lost")
            server.start()
            async with asyncio.timeout(20):
                while await cache.get(KEY) is None:
                    await cache.put(KEY, b"answer")
                    await asyncio.sleep(0.01)
            assert await cache.get(KEY) == b"answer"

        assert cached(use, server)["error"] >= 1


@pytest.mark.parametrize("shared", [False, True])
def test_a_value_that_would_take_too_much_is_not_kept(server: RedisServer, shared: bool) -> None:
    async def use(cache: ResultCache) -> None:
        assert cache.keeps(10_000)
        assert not cache.keeps(10_001)
        await cache.put(KEY, bytes(10_001))
        await cache.close()
        with server.client() as client:
            client.delete(PREFIX + KEY) if not shared else None
        assert await cache.get(KEY) is None

    with server.client() as client:
        client.delete(PREFIX + KEY)
    assert cached(use, server if shared else None, max_bytes=80_000) == {"miss": 1}


def test_writes_under_way_are_bounded(server: RedisServer) -> None:
    keys = [cache_key(DIGEST, {"i": i}, [b"bounded"]) for i in range(200)]

    async def use(cache: ResultCache) -> None:
        for key in keys:
            await cache.put(key, bytes(100))
        await cache.close()
        with server.client() as client:
            assert 1 <= client.exists(*[PREFIX + key for key in keys]) <= 64

    cached(use, server)


def test_a_ttl_of_0_switches_it_off() -> None:
    async def use(cache: ResultCache) -> None:
        assert not cache.enabled
        assert not cache.keeps(1)
        await cache.put(KEY, b"answer")
        assert await cache.get(KEY) is None

    assert cached(use, ttl_s=0) == {}


def test_the_least_recently_used_make_room_and_memory_is_bounded() -> None:
    clock = Clock()
    results = LocalResults(ttl_s=10, max_bytes=10_000, clock=clock)
    for i in range(5):
        results.put(str(i), bytes(1000))
    for i in range(5, 500):
        assert results.get("0") is not None
        results.put(str(i), bytes(1000))
        assert results.size <= 10_000
    assert results.get("1") is None
    assert results.get("499") is not None
    results.put("499", b"new")
    assert results.get("499") == b"new"
    clock.now = 10.0
    assert results.get("499") is None


def test_a_key_depends_on_everything_that_changes_an_answer() -> None:
    def key(digest: str = DIGEST, files: tuple[bytes, ...] = (b"1", b"2"), **more: object) -> str:
        options = {"route": "/score", "map": "png", "fpr": 0.01, "review_fpr": None, **more}
        return cache_key(digest, options, files)  # type: ignore[arg-type]

    variants = [
        key(),
        key(digest="b" * 64),
        key(map="none"),
        key(fpr=0.010000000000000002),
        key(review_fpr=0.05),
        key(route="/v2"),
        key(stride=1),
        key(stride="1"),
        key(files=(b"2", b"1")),
        key(files=(b"12",)),
        key(files=(b"1", b"2", b"")),
    ]
    assert len(set(variants)) == len(variants)
    assert key() == key()
    options = {"a": 1, "b": 2}
    assert cache_key(DIGEST, options, [b""]) == cache_key(
        DIGEST, dict(reversed(options.items())), [b""]
    )


def test_a_key_without_model_or_input_is_refused() -> None:
    for digest, files in (("", [b"1"]), (DIGEST, [])):
        with pytest.raises(ValueError, match="digest"):
            cache_key(digest, {}, files)
