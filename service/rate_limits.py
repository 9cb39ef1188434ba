"""How many requests a caller may send: a token bucket each.

A bucket holds as many tokens as the limit allows in its period, and fills evenly. In this process,
or in Redis where one is configured, shared by all processes; while Redis fails, each process
counts for itself, so that the limit is at most multiplied by their number.
"""

import math
import re
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from time import monotonic
from typing import Any, Final, Self

from service.contract.errors import RateLimited, Unavailable
from service.redis_link import RedisLink

PREFIX: Final = "anomaly:rate:1:"
_PERIODS = {"s": 1.0, "min": 60.0, "h": 3600.0}
_RATE = re.compile(r"([1-9]\d{0,8})/(s|min|h)")
_MAX_CALLERS = 10_000

# KEYS: bucket; ARGV: capacity, tokens a second. Returns "" or the seconds until there is a token.
# The clock is the server's, so that replicas agree; one that jumps back only fills nothing.
_TAKE = """
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1e6
local capacity, rate = tonumber(ARGV[1]), tonumber(ARGV[2])
local known = redis.call('HMGET', KEYS[1], 'tokens', 'at')
local tokens = tonumber(known[1] or '') or capacity
local past = math.max(0, now - (tonumber(known[2] or '') or now))
tokens = math.min(capacity, tokens + past * rate)
local wait = ''
if tokens >= 1 then tokens = tokens - 1 else wait = string.format('%.6f', (1 - tokens) / rate) end
redis.call('HSET', KEYS[1], 'tokens', string.format('%.6f', tokens),
  'at', string.format('%.6f', now))
redis.call('PEXPIRE', KEYS[1], math.ceil(1000 * capacity / rate) + 1000)
return {wait}
"""


@dataclass(frozen=True)
class Rate:
    """``count`` requests in ``period_s`` seconds."""

    count: int
    period_s: float

    @classmethod
    def parse(cls, text: str) -> Self:
        """The rate that ``100/s``, ``600/min`` or ``5000/h`` says.

        Raises:
            ValueError: it says none.
        """
        match = _RATE.fullmatch(text)
        if match is None:
            raise ValueError(
                "a rate is a number of requests and a period, as in 100/s, 600/min or 5000/h"
            )
        return cls(int(match[1]), _PERIODS[match[2]])

    def __str__(self) -> str:
        period = next(name for name, seconds in _PERIODS.items() if seconds == self.period_s)
        return f"{self.count}/{period}"


class LocalBuckets:
    """The buckets of this process; those of callers that were not seen for longest are dropped."""

    def __init__(
        self, rate: Rate, max_callers: int = _MAX_CALLERS, clock: Callable[[], float] = monotonic
    ) -> None:
        self._capacity, self._per_s = rate.count, rate.count / rate.period_s
        self._max_callers, self._clock = max_callers, clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, caller: str) -> float | None:
        """None for one token taken, else the seconds until there is one."""
        now = self._clock()
        tokens, at = self._buckets.pop(caller, (float(self._capacity), now))
        tokens = min(self._capacity, tokens + (now - at) * self._per_s)
        granted = tokens >= 1
        self._buckets[caller] = (tokens - granted, now)
        if len(self._buckets) > self._max_callers:
            self._buckets.popitem(last=False)
        return None if granted else (1 - tokens) / self._per_s


class RateLimits:
    """What scoring routes ask before they read a body."""

    def __init__(self, rate: Rate | None, link: RedisLink | None = None) -> None:
        """Limits by ``rate``; none without one."""
        self.rate = rate
        self._link = link
        self._local = LocalBuckets(rate or Rate(1, 1))
        self._take = None if link is None else link.script(_TAKE)

    async def check(self, caller: str) -> None:
        """Nothing, for a request within the limit; delays by no more than the link's budget.

        Args:
            caller: as ``caller_of`` names it.

        Raises:
            RateLimited: it is one too many; says when to come again.
        """
        if self.rate is None:
            return
        try:
            wait_s = await self._shared(caller, self.rate)
        except Unavailable:
            wait_s = self._local.take(caller)
        if wait_s is not None:
            seconds = max(1, math.ceil(wait_s))
            raise RateLimited(
                f"more than {self.rate} requests (ANOMALY_RATE_LIMIT); come again in {seconds} s",
                seconds,
            )

    async def _shared(self, caller: str, rate: Rate) -> float | None:
        if self._link is None or self._take is None:
            return self._local.take(caller)
        # hashed: what names a caller may be personal, and a limit that changes begins anew
        name = PREFIX + sha256(f"{rate} {caller}".encode()).hexdigest()[:32]
        take = self._take
        answer = await self._link.run(
            lambda _: take([name], [rate.count, repr(rate.count / rate.period_s)])
        )
        return float(answer[0]) if answer[0] else None


def caller_of(scope: dict[str, Any] | Any) -> str:
    """Whom a limit counts for: the key that authentication found, else the client's address."""
    caller = scope.get("state", {}).get("caller")
    if caller is not None:
        return f"key {caller}"
    client = scope.get("client")
    return f"address {client[0] if client else 'unknown'}"
