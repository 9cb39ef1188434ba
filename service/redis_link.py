"""The one door to Redis: short patience, a circuit breaker, and its exceptions translated.

A call has ``budget_s`` in all, connecting included. The first call that fails opens the circuit:
further ones are refused at once, and a probe of its own, in nobody's request, finds out more::

    up     calls pass
    slow   a call failed, or Redis answers later than ``budget_s``: only patient calls pass
    down   the probe failed too: no call passes, the probe is repeated until it succeeds

So a Redis that is slow, hanging or gone costs the requests of one moment ``budget_s``, and later
ones nothing. Patient calls, of work that has nothing to fall back on, wait ``patience_s``.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from hashlib import blake2b
from time import perf_counter
from typing import Any, Final, Literal, TypeVar

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from service.contract.errors import Unavailable

log = logging.getLogger(__name__)

T = TypeVar("T")
State = Literal["up", "slow", "down"]
Script = Callable[[list[str], list[bytes | str | int]], Awaitable[list[Any]]]

BUDGET_S: Final = 0.04  # a score is never delayed by more than 50 ms
PATIENCE_S: Final = 0.8  # sub-second
PROBE_EVERY_S: Final = 0.5
_CONNECTIONS = 16  # of one event loop; each costs about a millisecond to open
_GONE = (RedisConnectionError, RedisTimeoutError)  # of RedisError, but no answer of Redis
_SCHEMES = ("redis://", "rediss://", "unix://")
_SEAL = b"anomaly 1\n"  # raise the number when what is sealed changes its form
_CHECK_BYTES = 16


class RedisLink:
    """One per process; used from its event loop only."""

    def __init__(
        self,
        url: str,
        on_change: Callable[[bool], None],
        *,
        budget_s: float = BUDGET_S,
        patience_s: float = PATIENCE_S,
        probe_every_s: float = PROBE_EVERY_S,
    ) -> None:
        """A link that connects when it is started.

        Args:
            url: redis://, rediss:// (TLS) or unix://; may hold user, password and database.
            on_change: is told whether Redis answers within the budget, after every probe.

        Raises:
            ValueError: the URL is none; the message does not repeat it, it may hold a password.
        """
        if not url.startswith(_SCHEMES):
            raise ValueError(f"ANOMALY_REDIS_URL must begin with {', '.join(_SCHEMES)}")
        self._on_change = on_change
        self._budget_s, self._patience_s, self._probe_every_s = budget_s, patience_s, probe_every_s
        try:
            pool = BlockingConnectionPool.from_url(
                url,
                max_connections=_CONNECTIONS,
                timeout=patience_s,
                socket_timeout=patience_s,
                socket_connect_timeout=patience_s,
                retry=Retry(NoBackoff(), 0),
            )
        except ValueError as error:
            raise ValueError("ANOMALY_REDIS_URL is no URL that names a Redis server") from error
        self._redis: Redis = Redis.from_pool(pool)
        self._state: State = "slow"
        self._doubt = asyncio.Event()
        self._prober: asyncio.Task[None] | None = None
        self._closing = False
        self._refusal = ""

    @property
    def up(self) -> bool:
        """Whether the circuit is closed."""
        return self._state == "up"

    async def start(self) -> None:
        """The first probe is done and the prober runs."""
        await self._probe()
        self._prober = asyncio.create_task(self._keep_probing(), name="redis probe")

    async def close(self) -> None:
        """No connection is open."""
        self._closing = True
        if self._prober is not None:
            self._prober.cancel()
            await asyncio.gather(self._prober, return_exceptions=True)
        await self._redis.aclose()

    async def run(self, work: Callable[[Redis], Awaitable[T]], *, patient: bool = False) -> T:
        """What ``work`` returns.

        Raises:
            Unavailable: Redis did not answer in time, cannot be reached, or refused (full, say).
        """
        if self._state == "down" or (self._state == "slow" and not patient):
            raise Unavailable("Redis is not answering")
        limit_s = self._patience_s if patient else self._budget_s
        try:
            async with asyncio.timeout(limit_s):
                result = await work(self._redis)
        except Exception as error:  # any: uvloop's closed transports raise RuntimeError
            raise self._translated(error, limit_s) from error
        return result

    def script(self, text: str) -> Script:
        """A Lua script to be called, within ``run``, with its keys and arguments."""
        registered = self._redis.register_script(text)

        async def call(keys: list[str], args: list[bytes | str | int]) -> list[Any]:
            found = await registered(keys=keys, args=args)
            assert isinstance(found, list)
            return found

        return call

    def _translated(self, error: Exception, limit_s: float) -> Unavailable:
        """What a caller gets to see; all but a refusal by Redis itself has it probed."""
        name = type(error).__name__
        if isinstance(error, RedisError) and not isinstance(error, _GONE):
            if self._refusal != name:
                log.warning("Redis refuses: %s: %s", name, error)
            self._refusal = name
            return Unavailable(f"Redis refused ({name})")
        if self._state == "up":
            self._state = "slow"
            log.warning("Redis failed, it is being probed: %s: %s", name, error)
        self._doubt.set()
        return Unavailable(f"Redis did not answer within {1e3 * limit_s:g} ms")

    async def _keep_probing(self) -> None:
        while not self._closing:  # a cancellation within a call may come out as a Redis error
            await self._doubt.wait()
            await self._probe()
            if self._state != "up" and not self._closing:
                await asyncio.sleep(self._probe_every_s)

    async def _probe(self) -> None:
        """The state is what two PINGs found: the first may have had to connect."""
        before, cause = self._state, ""
        self._doubt.clear()
        try:
            async with asyncio.timeout(self._patience_s):
                await _ping(self._redis)
                started = perf_counter()
                await _ping(self._redis)
            in_time = perf_counter() - started <= self._budget_s
            self._state = "up" if in_time else "slow"
        except Exception as error:  # any: the prober must not end, nobody would start it again
            self._state, cause = "down", f": {type(error).__name__}: {error}"
        if self._state != "up":
            self._doubt.set()
        if self._state != before:
            level = logging.INFO if self.up else logging.WARNING
            log.log(level, "Redis is %s%s", self._state, cause)
        self._refusal = ""
        self._on_change(self.up)


async def _ping(redis: Redis) -> None:
    answer = redis.ping()  # typed for both kinds of client
    assert not isinstance(answer, bool)
    await answer


def sealed(key: str, value: bytes) -> bytes:
    """``value`` with a mark of its format and a check sum that binds it to its key."""
    return _SEAL + _check(key, value) + value


def unsealed(key: str, raw: bytes | None) -> bytes | None:
    """The value that was sealed under ``key``; None for anything else."""
    head = len(_SEAL) + _CHECK_BYTES
    if raw is None or not raw.startswith(_SEAL) or len(raw) < head:
        return None
    value = raw[head:]
    return value if raw[len(_SEAL) : head] == _check(key, value) else None


def _check(key: str, value: bytes) -> bytes:
    found = blake2b(key.encode() + b"\0", digest_size=_CHECK_BYTES)
    found.update(value)
    return found.digest()
