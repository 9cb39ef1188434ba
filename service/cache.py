"""Answers that were computed before, by what they are a function of.

In this process (least recently used go first, bounded in bytes) or, where one is configured, in
Redis, shared by all processes. A cache changes no score: what is not found, not readable or not
answered in time is computed. Covers /score, /score/timeseries and /score/vectors only: not /v2, and
not streams, whose answers depend on what came before.

In Redis every value expires, so ``maxmemory-policy volatile-ttl`` drops results before streams,
which live longer; under ``noeviction`` a full Redis stores no further result, and streams get 503.
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from time import monotonic
from typing import Final

import orjson

from service.contract.errors import Unavailable
from service.redis_link import RedisLink, sealed, unsealed
from service.telemetry import Telemetry

log = logging.getLogger(__name__)

# raise the number when the form of a cached answer changes, or what a score is computed by
PREFIX: Final = "anomaly:result:2:"
_LARGEST_SHARE = 8  # one value may take an eighth of all
_ENTRY_BYTES = 256  # what an entry takes beside its value
_MAX_WRITES = 64

Option = str | int | float | bool | None


def cache_key(digest: str, options: Mapping[str, Option], files: Sequence[bytes]) -> str:
    """What an answer is a function of, as 64 hex digits.

    Args:
        digest: of the artifact; its manifest holds name, version and the digests of all files.
        options: everything else that changes the answer, as it was resolved and not as it was
            asked for: route, provider, map, fpr, review_fpr, stride, media type, limits.
        files: what was sent, in order.

    Raises:
        ValueError: there is no digest, or nothing was sent.
    """
    if not digest or not files:
        raise ValueError("a key needs the digest of an artifact and at least one file")
    key = sha256(orjson.dumps([digest, options], option=orjson.OPT_SORT_KEYS))
    for data in files:
        key.update(sha256(data).digest())
    return key.hexdigest()


class LocalResults:
    """Values of this process; the least recently used make room."""

    def __init__(
        self, ttl_s: float, max_bytes: int, clock: Callable[[], float] = monotonic
    ) -> None:
        self._ttl_s, self._max_bytes, self._clock = ttl_s, max_bytes, clock
        self._entries: OrderedDict[str, tuple[float, bytes]] = OrderedDict()
        self._bytes = 0

    @property
    def size(self) -> int:
        """Bytes that all entries take, about."""
        return self._bytes

    def get(self, key: str) -> bytes | None:
        entry = self._entries.get(key)
        if entry is None:
            return None
        until, value = entry
        if self._clock() >= until:
            self._drop(key)
            return None
        self._entries.move_to_end(key)
        return value

    def put(self, key: str, value: bytes) -> None:
        if key in self._entries:
            self._drop(key)
        self._entries[key] = (self._clock() + self._ttl_s, value)
        self._bytes += len(value) + _ENTRY_BYTES
        while self._bytes > self._max_bytes:
            self._drop(next(iter(self._entries)))

    def _drop(self, key: str) -> None:
        self._bytes -= len(self._entries.pop(key)[1]) + _ENTRY_BYTES


class ResultCache:
    """What routes ask before they score, and tell when they have."""

    def __init__(
        self, ttl_s: float, max_bytes: int, telemetry: Telemetry, link: RedisLink | None = None
    ) -> None:
        """A cache in Redis where there is a link, else in this process.

        Args:
            ttl_s: 0 switches it off.
            max_bytes: of all values in this process; of writes to Redis that are under way.
        """
        self.enabled = ttl_s > 0 and max_bytes > 0
        self._ttl_ms = max(1, round(1e3 * ttl_s))
        self._max_bytes = max_bytes
        self._telemetry = telemetry
        self._link = link
        self._local = LocalResults(ttl_s, max_bytes)
        self._writes: set[asyncio.Task[None]] = set()
        self._writing_bytes = 0

    async def get(self, key: str) -> bytes | None:
        """The value, where there is one; delays by no more than the budget of the link."""
        if not self.enabled:
            return None
        if self._link is None:
            value = self._local.get(key)
        else:
            name = PREFIX + key
            try:
                raw = await self._link.run(lambda redis: redis.get(name))
            except Unavailable:
                self._telemetry.cache_request("error")
                return None
            value = unsealed(name, raw if isinstance(raw, bytes) else None)
            if value is None and raw is not None:
                self._telemetry.cache_request("error")
                return None
        self._telemetry.cache_request("miss" if value is None else "hit")
        return value

    def keeps(self, size: int) -> bool:
        """Whether a value of so many bytes would be kept now; ask before one is built."""
        if not self.enabled or size > self._max_bytes // _LARGEST_SHARE:
            return False
        if self._link is None:
            return True
        room = self._writing_bytes + size <= self._max_bytes and len(self._writes) < _MAX_WRITES
        return room and self._link.up

    async def put(self, key: str, value: bytes) -> None:
        """The value will be there, unless too much is under way; never waits for Redis."""
        if not self.keeps(len(value)):
            return
        if self._link is None:
            self._local.put(key, value)
            return
        self._writing_bytes += len(value)
        write = asyncio.create_task(self._write(self._link, PREFIX + key, value))
        self._writes.add(write)
        write.add_done_callback(self._writes.discard)

    async def close(self) -> None:
        """Nothing is under way any more."""
        await asyncio.gather(*self._writes)

    async def _write(self, link: RedisLink, name: str, value: bytes) -> None:
        try:
            raw = sealed(name, value)
            await link.run(lambda redis: redis.set(name, raw, px=self._ttl_ms), patient=True)
        except Unavailable:
            log.debug("%s was not stored", name)  # its look-up was counted, the link said why
        finally:
            self._writing_bytes -= len(value)
